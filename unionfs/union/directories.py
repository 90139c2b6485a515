"""Open directories of the branches: the most recently used stay open, the rest are re-opened.

A union of many layers has more directories than a process may have descriptors. Each open directory
is checked against the identity that its node remembers, so a directory that somebody exchanged on a
branch is noticed and answered with ESTALE, upon which the kernel looks the path up again.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from errno import ELOOP, ENOENT, ENOTDIR, ESTALE
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from unionfs.branch import Directory, WritableDirectory
    from unionfs.union.nodes import Copy, DirectoryNode

# An operation holds at most four directories at a time; far more than that must fit.
MINIMUM: Final = 64


class OpenDirectories:
    """The open directories of all branches, least recently used closed first.

    Args:
        limit: how many may be open.
    """

    def __init__(self, limit: int) -> None:
        self.limit = max(limit, MINIMUM)
        self._open: OrderedDict[tuple[int, int], Directory] = OrderedDict()
        self.reopened = 0

    def __len__(self) -> int:
        return len(self._open)

    def get(self, node: DirectoryNode, copy: Copy) -> Directory:
        """Return an open directory, valid until the operation ends.

        Raises:
            OSError: ``ESTALE`` when the directory is not where it was.
        """
        if node.parent is node:
            return copy.branch.root
        key = copy.identity
        directory = self._open.get(key)
        if directory is not None:
            self._open.move_to_end(key)
            return directory
        directory = self._reopen(node, copy)
        self._open[key] = directory
        if len(self._open) > self.limit:
            self._open.popitem(last=False)[1].close()
        return directory

    def writable(self, node: DirectoryNode, copy: Copy) -> WritableDirectory:
        """Return an open directory of a writable branch."""
        return cast("WritableDirectory", self.get(node, copy))

    def close(self, copy: Copy) -> None:
        """Close a directory that has been removed."""
        directory = self._open.pop(copy.identity, None)
        if directory is not None:
            directory.close()

    def close_all(self) -> None:
        """Close everything."""
        for directory in self._open.values():
            directory.close()
        self._open.clear()

    def _reopen(self, node: DirectoryNode, copy: Copy) -> Directory:
        self.reopened += 1
        try:
            directory = self._open_below_parent(node, copy)
            if directory is None:
                directory = copy.branch.open_directory(node.path())
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR, ELOOP):
                raise OSError(ESTALE, "the directory is not where it was") from error
            raise
        status = os.fstat(directory.fd)
        if (status.st_dev, status.st_ino) != copy.identity:
            directory.close()
            raise OSError(ESTALE, "another directory has taken the place")
        return directory

    def _open_below_parent(self, node: DirectoryNode, copy: Copy) -> Directory | None:
        """Open through the parent's descriptor where that is at hand."""
        parent = node.parent
        if parent.parent is parent:
            above: Directory | None = copy.branch.root
        else:
            above = next(
                (
                    self._open.get(other.identity)
                    for other in parent.copies
                    if other.branch is copy.branch
                ),
                None,
            )
        if above is None:
            return None
        return copy.branch.directory_type(copy.branch, above.open_child(node.name))
