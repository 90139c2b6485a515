"""Walking down and up a directory tree of any depth with a bounded number of descriptors.

A tree can be deeper than a process may hold files open, and longer than a path may be. A
``Descent`` keeps the descriptors of the last few levels. Going up past them it opens the way from
the root again, by names, following no link and entering no mount, and refills several levels at
once, so that it happens seldom. If the tree was moved meanwhile that fails with ``OSError``;
it never ends up in another tree.
"""

import os
from typing import Self

from driver.beneath import ABSENT, open_child, open_directory

_KEPT = 64  # levels with an open descriptor
_REFILLED = 32  # of them, how many are opened when going up has used up the rest
_LIST = os.O_RDONLY | os.O_DIRECTORY


class Descent:
    """A position in a tree; starts at its root.

    Args:
        root_fd: directory descriptor of the root, ``O_PATH`` will do; stays the caller's.
    """

    def __init__(self, root_fd: int) -> None:
        self._root = open_child(root_fd, b".", _LIST)
        self._fds: list[int] = []  # one for each name in `path`, -1 where it was given back
        self.path: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._root, *self._fds):
            if fd >= 0:
                os.close(fd)

    @property
    def fd(self) -> int:
        """Descriptor of the current directory, open for reading."""
        return self._fds[-1] if self._fds else self._root

    def enter(self, name: bytes) -> None:
        """Go down into the directory ``name``.

        Raises:
            OSError: there is none (``ENOENT``, ``ENOTDIR``, ``ELOOP``), or a mount hides it
            (``EXDEV``).
        """
        self._fds.append(open_child(self.fd, name, _LIST))
        self.path.append(name)
        surplus = len(self._fds) - 1 - _KEPT
        if surplus >= 0 and self._fds[surplus] >= 0:
            os.close(self._fds[surplus])
            self._fds[surplus] = -1

    def enter_if_there(self, name: bytes) -> bool:
        """Go down into ``name`` unless it has vanished or is no directory of this tree.

        Returns:
            Whether it was entered.

        Raises:
            OSError: it cannot be opened.
        """
        try:
            self.enter(name)
        except OSError as error:
            if error.errno not in ABSENT:
                raise
            return False
        return True

    def leave(self) -> bytes:
        """Go up to the parent.

        Returns:
            The name of the directory that was left.

        Raises:
            OSError: the way from the root to here is no longer there.
        """
        os.close(self._fds.pop())
        name = self.path.pop()
        if self._fds and self._fds[-1] < 0:
            self._refill()
        return name

    def _refill(self) -> None:
        first = max(0, len(self._fds) - _REFILLED)
        self._fds[first] = open_directory(self._root, b"/".join(self.path[: first + 1]))
        for level in range(first + 1, len(self._fds)):
            self._fds[level] = open_child(self._fds[level - 1], self.path[level], _LIST)
