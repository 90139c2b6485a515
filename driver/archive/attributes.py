"""Extended attributes that belong to a layer, read from a branch (driver.md 7.2).

Not everything that is attached to a file is part of the image: labels belong to the host, and
overlay filesystems keep their own notes there. A layer carries file capabilities, and what users
have set (``user.*``), because a diff that is applied to a sibling must give the same tree.
"""

import errno
import os
from collections.abc import Callable

from driver.errors import ArchiveError
from unionfs.branch.forms import FOREIGN_METACOPY, FOREIGN_REDIRECT

AttributeFilter = Callable[[bytes], bool]
"""Tells by its name whether an attribute is written."""

_CAPABILITY = b"security.capability"
_USER = b"user."
_OVERLAY_NOTES = (b"user.overlay.", b"user.fuseoverlayfs.")
_REFERENCES = FOREIGN_METACOPY | FOREIGN_REDIRECT

_REVISION_MASK = 0xFF000000
_REVISION_2 = 0x02000000
_REVISION_3 = 0x03000000
_REVISION_2_SIZE = 20  # bytes; revision 3 has the id of a namespace's root behind it

_NONE = frozenset({errno.EOPNOTSUPP, errno.ENODATA, errno.EPERM, errno.EACCES})


def layer_attributes(name: bytes) -> bool:
    """Tell whether a layer carries the attribute: capabilities, and ``user.*`` but overlay's."""
    return name == _CAPABILITY or (name.startswith(_USER) and not name.startswith(_OVERLAY_NOTES))


def read_attributes(
    target: int | bytes, wanted: AttributeFilter, path: bytes
) -> dict[bytes, bytes]:
    """Read the wanted attributes.

    Args:
        target: descriptor open for reading, or the ``/proc/self/fd`` path of a pinned object.
        wanted: chooses among them.
        path: of the object in the layer, for messages.

    Returns:
        Names and values; empty where the filesystem has no attributes.

    Raises:
        ArchiveError: they say that what looks like a file of zeros or an empty directory is only a
            reference of overlayfs: a layer that held it as such would have lost its content.
    """
    found: dict[bytes, bytes] = {}
    try:
        names = os.listxattr(target)
    except OSError as error:
        if error.errno not in _NONE:
            raise
        return found
    if not _REFERENCES.isdisjoint(map(os.fsencode, names)):
        raise ArchiveError(
            "its content lies elsewhere, overlayfs wrote it with redirect_dir=on or metacopy=on:"
            " copy the tree out of such a mount first",
            path,
        )
    for name in map(os.fsencode, names):
        if not wanted(name):
            continue
        try:
            value = os.getxattr(target, name)
        except OSError as error:
            if error.errno not in _NONE:
                raise
            continue
        found[name] = _portable_capability(value) if name == _CAPABILITY else value
    return found


def _portable_capability(value: bytes) -> bytes:
    """Take the user namespace out of a capability: inside the container it means nothing."""
    head = int.from_bytes(value[:4], "little")
    if head & _REVISION_MASK != _REVISION_3:
        return value
    head = head & ~_REVISION_MASK | _REVISION_2
    return head.to_bytes(4, "little") + value[4:_REVISION_2_SIZE]
