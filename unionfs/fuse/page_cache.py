"""What the kernel's page cache of a file may keep from one open to the next.

It keeps pages as long as they are right. They are not when others have changed the file on its
branch, and not when what is in them could not be stored.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from unionfs.text import printable

if TYPE_CHECKING:
    from unionfs.union.core import FileNode

_NEVER_RIGHT: Final = ()  # as a node's cache_key: there are no attributes for which it is right

log = logging.getLogger(__name__)


def may_be_kept(node: FileNode, *, trusting: bool) -> bool:
    """Tell whether the pages are right, at an open; from then on they are.

    Args:
        node: an open file.
        trusting: nobody but us changes the branch.
    """
    if trusting and node.cache_key != _NEVER_RIGHT:
        return True
    status = os.fstat(node.fd)
    key = (*node.identity, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
    same, node.cache_key = node.cache_key == key, key
    return same


def was_not_stored(node: FileNode, why: OSError | str) -> None:
    """Account for a write that failed: nobody else may hear of it, and nobody may read it.

    What a program writes through a shared map is in the page cache before it comes here, and the
    program may have closed the file or ended. The kernel keeps such pages as if they had been
    stored. It drops them at the next open, which is the opener's to wait for. A notification would
    do it at once, but it waits for the answers to all writes of the file: a daemon killed meanwhile
    could not end, and the mount would hang.
    """
    log.warning("a write to %s failed: %s", _shown(node), why)
    node.cache_key = _NEVER_RIGHT


def _shown(node: FileNode) -> str:
    """Return a path of a file, below the mount point, for a message."""
    if not node.names:
        return f"a file without a name, inode {node.number}"
    parent, name = next(reversed(node.names))
    return printable(b"/".join((b"", *parent.path(), name)))
