"""Open directories of the branches: the most recently used stay open, the rest are re-opened.

A directory that is dropped here stays open for as long as an operation holds the object: it closes
itself when nobody does any more.

A union of many layers has more directories than a process may have descriptors. Each open directory
is checked against the identity that its node remembers, so a directory that somebody exchanged on a
branch is noticed and answered with ESTALE, upon which the kernel looks the path up again.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from errno import EBUSY, ELOOP, EMFILE, ENFILE, ENOENT, ENOTDIR, ESTALE, EXDEV
from typing import TYPE_CHECKING, Final, cast

from unionfs.branch import MountedOver

if TYPE_CHECKING:
    from unionfs.branch import Directory, WritableDirectory
    from unionfs.union.nodes import Copy, DirectoryNode

MINIMUM: Final = 64  # fewer than that would be re-opened all the time


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
        """Return an open directory.

        Raises:
            OSError: ``ESTALE`` when the directory is not where it was, ``EIO`` when overlayfs has
                left its content in another place.
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
            self._open.popitem(last=False)
        return directory

    def make_room(self) -> bool:
        """Close half of the directories: descriptors have run out. False when there are none."""
        count = (len(self._open) + 1) // 2
        for _ in range(count):
            self._open.popitem(last=False)
        return count > 0

    def writable(self, node: DirectoryNode, copy: Copy) -> WritableDirectory:
        """Return an open directory of a writable branch.

        Raises:
            OSError: ``EBUSY`` when something is mounted on it there, and as :meth:`get`.
        """
        directory = self.get(node, copy)
        if isinstance(directory, MountedOver):
            raise OSError(EBUSY, "something is mounted on the directory, on its branch")
        return cast("WritableDirectory", directory)

    def close(self, copy: Copy) -> None:
        """Drop a directory that has been removed or forgotten."""
        self._open.pop(copy.identity, None)

    def close_all(self) -> None:
        """Drop everything."""
        self._open.clear()

    def _reopen(self, node: DirectoryNode, copy: Copy) -> Directory:
        self.reopened += 1
        try:
            directory = self._open_again(node, copy)
        except OSError as error:
            if error.errno == EXDEV:
                return self._mounted_over(node, copy)
            if error.errno in (EMFILE, ENFILE) and self.make_room():
                return self._reopen(node, copy)
            if error.errno in (ENOENT, ENOTDIR, ELOOP):
                raise OSError(ESTALE, "the directory is not where it was") from error
            raise
        if isinstance(directory, MountedOver):
            return directory
        status = os.fstat(directory.fd)
        if (status.st_dev, status.st_ino) != copy.identity:
            directory.close()
            raise OSError(ESTALE, "another directory has taken the place")
        try:
            directory.check_complete()
        except OSError:
            directory.close()
            raise
        return directory

    def _mounted_over(self, node: DirectoryNode, copy: Copy) -> Directory:
        """Stand in for a directory that is not entered, because something is mounted on it."""
        for other in node.parent.copies:
            if other.branch is copy.branch:
                status = self.get(node.parent, other).find(node.name)
                if status is not None:
                    return MountedOver(copy.branch, status)
        raise OSError(ESTALE, "the directory is not where it was")

    def _open_again(self, node: DirectoryNode, copy: Copy) -> Directory:
        directory = self._open_below_parent(node, copy)
        return directory or copy.branch.open_directory(node.path())

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
