"""Files of a layer, one at a time (driver.md 1.5, ``DiffGetter``).

An engine that remembers how a layer's tar was laid out rebuilds it by asking for the content of one
file after the other. Names come from that record, the branch was filled by a stranger, so a name is
resolved inside the branch as if it were the root of the world, and only regular files are opened.
"""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType
from typing import BinaryIO, Self

from driver.beneath import open_root
from unionfs import syscalls

_CONFINED = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS


class FileGetter:
    """Opens files of one layer by name. A context manager.

    Args:
        branch: directory of the layer.

    Raises:
        OSError: ``ENOENT`` when there is no such directory.
    """

    def __init__(self, branch: str) -> None:
        self._root = open_root(branch)

    def get(self, name: str) -> BinaryIO:
        """Open the file ``name``, relative to the layer's root, for reading.

        Raises:
            FileNotFoundError: no such file in the layer.
            OSError: ``EISDIR`` or ``EINVAL`` when it is no regular file, ``EBADF`` after `close`.
        """
        if "\0" in name:
            raise FileNotFoundError(errno.ENOENT, "no file has a NUL in its name", name)
        # Pinned first and opened second: opening a fifo would wait, opening a device would act.
        pinned = syscalls.openat2(
            self._root, os.fsencode(name).lstrip(b"/") or b".", os.O_PATH, resolve=_CONFINED
        )
        try:
            mode = os.fstat(pinned).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
            if not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "not a regular file", name)
            return open(f"/proc/self/fd/{pinned}", "rb")
        finally:
            os.close(pinned)

    def close(self) -> None:
        """Give the layer back; files that were handed out stay open."""
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
