"""Layer tars for tests: built with Python's own tarfile, extracted with ours, trees compared.

The archives are made by foreign code on purpose; a reader that was only ever fed by the writer
next door proves nothing.
"""

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from driver.archive import apply_layer, layer_chunks, unpack_layer

Extract = Callable[[Path, bytes], object]


class Layer:
    """An archive under construction; every method adds one entry and returns the layer."""

    def __init__(self, format: int = tarfile.PAX_FORMAT) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(
            fileobj=self._buffer,
            mode="w",
            format=format,
            encoding="utf-8",
            errors="surrogateescape",
        )

    def entry(
        self,
        name: str,
        kind: bytes,
        data: bytes = b"",
        *,
        pax: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> "Layer":
        info = tarfile.TarInfo(name)
        info.type = kind
        info.size = len(data)
        info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
        info.mtime = 1_000_000_000
        if pax:
            info.pax_headers = dict(pax)
        for key, value in fields.items():
            setattr(info, key, value)
        self._tar.addfile(info, io.BytesIO(data))
        return self

    def file(self, name: str, data: bytes = b"data", **fields: Any) -> "Layer":
        return self.entry(name, tarfile.REGTYPE, data, **fields)

    def directory(self, name: str, **fields: Any) -> "Layer":
        return self.entry(name, tarfile.DIRTYPE, **fields)

    def symlink(self, name: str, target: str, **fields: Any) -> "Layer":
        return self.entry(name, tarfile.SYMTYPE, linkname=target, **fields)

    def link(self, name: str, target: str, **fields: Any) -> "Layer":
        return self.entry(name, tarfile.LNKTYPE, linkname=target, **fields)

    def names(self, *names: str) -> "Layer":
        """Add a directory for each name that ends in a slash, an empty file for each other."""
        for name in names:
            if name.endswith("/"):
                self.directory(name.rstrip("/"))
            else:
                self.file(name, b"")
        return self

    def bytes(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()


class Trickle:
    """A stream that is no file: no seeking, and only a few bytes at a time."""

    def __init__(self, data: bytes, portion: int = 7) -> None:
        self._data = memoryview(data)
        self._portion = portion
        self.ended = False

    def read(self, size: int, /) -> bytes:
        taken = self._data[: min(size, self._portion)]
        self._data = self._data[len(taken) :]
        self.ended = not taken
        return bytes(taken)


def unpack(root: Path, data: bytes, **options: Any) -> None:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        unpack_layer(fd, io.BytesIO(data), **options)
    finally:
        os.close(fd)


def apply(root: Path, data: bytes, **options: Any) -> int:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return apply_layer(fd, io.BytesIO(data), **options)
    finally:
        os.close(fd)


def unpack_by_steps(root: Path, data: bytes) -> None:
    unpack(root, data, openat2=False)


def apply_by_steps(root: Path, data: bytes) -> None:
    apply(root, data, openat2=False)


EXTRACTORS: tuple[Extract, ...] = (unpack, apply, unpack_by_steps, apply_by_steps)
"""Both extractors, each with the kernel's resolution and with our own."""


def make(base: Path, *names: str) -> Path:
    """Make directories (names ending in ``/``) and files holding their own name."""
    base.mkdir(exist_ok=True)
    for name in names:
        path = base / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    return base


def written(branch: Path, **options: object) -> bytes:
    """Return the tar of a branch."""
    return b"".join(layer_chunks(branch, **options))  # type: ignore[arg-type]


def members(data: bytes) -> list[tarfile.TarInfo]:
    """Return what the standard library finds in a tar."""
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        return tar.getmembers()


def raw_names(data: bytes) -> list[str]:
    """Return the names as stored, trailing slashes included."""
    done = subprocess.run(
        ["tar", "-t", "--quoting-style=literal"], input=data, check=True, capture_output=True
    )
    return [os.fsdecode(line) for line in done.stdout.splitlines()]


def listing(root: Path) -> list[str]:
    """Return all paths, sorted; those of directories end in a slash."""
    return sorted(
        os.path.relpath(os.path.join(where, name), root) + ("/" if name in directories else "")
        for where, directories, files in os.walk(root)
        for name in (*directories, *files)
        if not (name in directories and os.path.islink(os.path.join(where, name)))
    ) + sorted(
        os.path.relpath(os.path.join(where, name), root)
        for where, directories, _ in os.walk(root)
        for name in directories
        if os.path.islink(os.path.join(where, name))
    )


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Return everything that a layer keeps about each path, names of one file by the first name."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[tuple[int, int], str] = {}
    for path in _walk(os.fsencode(root)):
        status = os.lstat(path)
        name = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
        content: object = None
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                content = file.read()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            content = status.st_rdev
        same = name
        if not stat.S_ISDIR(status.st_mode):
            same = first.setdefault((status.st_dev, status.st_ino), name)
        found[name] = (
            stat.S_IFMT(status.st_mode),
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns // 1_000_000_000,
            content,
            same,
            {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            },
        )
    return found


def _walk(root: bytes) -> Iterable[bytes]:
    pending = [root]
    while pending:
        where = pending.pop()
        for name in sorted(os.listdir(where), reverse=True):
            path = os.path.join(where, name)
            yield path
            if os.path.isdir(path) and not os.path.islink(path):
                pending.append(path)
