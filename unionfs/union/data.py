"""Copying the content of a file: shared blocks where the filesystem can, holes kept everywhere."""

from __future__ import annotations

import os
from errno import EBADF, EINVAL, EIO, ENOSYS, ENOTTY, ENXIO, EOPNOTSUPP, EPERM, ETXTBSY, EXDEV
from typing import TYPE_CHECKING, Final

from unionfs import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK: Final = 4 << 20
_BLOCK: Final = 4096
_ZEROS: Final = bytes(_BLOCK)
_CANNOT_SHARE: Final = frozenset((EOPNOTSUPP, EXDEV, EINVAL, EPERM, ENOSYS, EBADF, ETXTBSY, ENOTTY))


class CancelledError(OSError):
    """The copy was given up because the union is being unmounted."""


def copy_content(
    source: int, target: int, size: int, is_cancelled: Callable[[], bool] = lambda: False
) -> None:
    """Copy the first ``size`` bytes of a file into an empty one.

    A block of zeros becomes a hole, so sparse files stay sparse and zero-filled ones become so.

    Args:
        source, target: descriptors; their positions are not used.
        size: bytes to copy; the target has this size afterwards, even if the source is shorter.
        is_cancelled: asked between pieces.

    Raises:
        CancelledError: when ``is_cancelled`` says so. The target is then incomplete.
    """
    whole = os.fstat(source).st_size
    if 0 < size == whole:
        try:
            syscalls.ficlone(target, source)
            return
        except OSError as error:
            if error.errno not in _CANNOT_SHARE:
                raise
    position = 0
    end = min(size, whole)
    while position < end:
        start, stop = _next_data(source, position, end)
        position = start
        while position < stop:
            if is_cancelled():
                raise CancelledError(EIO, "given up: the union is being unmounted")
            position += _copy_piece(source, target, position, min(_CHUNK, stop - position))
        position = stop
    if os.fstat(target).st_size != size:
        os.ftruncate(target, size)


def _next_data(source: int, position: int, end: int) -> tuple[int, int]:
    """Return the next stretch that holds data, (end, end) if there is none."""
    try:
        start = os.lseek(source, position, os.SEEK_DATA)
        if start >= end:
            return end, end
        return start, min(os.lseek(source, start, os.SEEK_HOLE), end)
    except OSError as error:
        if error.errno == ENXIO:
            return end, end
        if error.errno in (EINVAL, EOPNOTSUPP):
            return position, end
        raise


def _copy_piece(source: int, target: int, position: int, length: int) -> int:
    """Copy one piece and return its length; zero blocks are left out."""
    data = os.pread(source, length, position)
    if not data:
        return length  # the file has become shorter: the rest is a hole
    view = memoryview(data)
    here = 0
    while here < len(data):
        while here < len(data) and _is_zero(data, here):
            here += _BLOCK
        start = here
        while here < len(data) and not _is_zero(data, here):
            here += _BLOCK
        here = min(here, len(data))
        while start < here:
            start += os.pwrite(target, view[start:here], position + start)
    return len(data)


def _is_zero(data: bytes, here: int) -> bool:
    # bytes compare with memcmp; a memoryview would compare one element after the other
    block = data[here : here + _BLOCK]
    return block == _ZEROS or block == _ZEROS[: len(block)]
