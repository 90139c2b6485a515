"""Directory listings as the C library sees them: types, numbers and positions included."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_libc = ctypes.CDLL(None, use_errno=True)


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8),
        ("d_name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.POINTER(_Dirent)
_libc.readdir64.argtypes = (ctypes.c_void_p,)
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = (ctypes.c_void_p,)
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
_libc.rewinddir.argtypes = (ctypes.c_void_p,)
_libc.closedir.argtypes = (ctypes.c_void_p,)


@dataclass(frozen=True)
class Entry:
    """One entry of a listing; ``type`` is a ``DT_`` number, 0 for unknown."""

    name: str
    number: int
    type: int


class Listing:
    """An open directory: opendir(3), readdir(3), telldir(3), seekdir(3) and rewinddir(3)."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        if not self._stream:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _libc.closedir(self._stream)

    def entry(self) -> Entry | None:
        """Return the next entry, None at the end."""
        ctypes.set_errno(0)
        found = _libc.readdir64(self._stream)
        if not found:
            number = ctypes.get_errno()
            if number:
                raise OSError(number, os.strerror(number))
            return None
        dirent = found.contents
        return Entry(os.fsdecode(dirent.d_name), dirent.d_ino, dirent.d_type)

    def next(self) -> str | None:
        """Return the next name, None at the end."""
        entry = self.entry()
        return entry.name if entry else None

    def tell(self) -> int:
        """Return the present position."""
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        """Go to a position that ``tell`` has returned."""
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        """Go to the beginning and look again."""
        _libc.rewinddir(self._stream)


def entries(path: Path) -> list[Entry]:
    """Return all entries of a directory in their order, without ``.`` and ``..``."""
    with Listing(path) as listing:
        found = [*iter(listing.entry, None)]
    return [entry for entry in found if entry is not None and entry.name not in (".", "..")]


def listed(path: Path) -> list[str]:
    """Return the names in a directory in their order, without ``.`` and ``..``."""
    return [entry.name for entry in entries(path)]
