"""Trees of files: filling a branch, describing what is there, telling two descriptions apart.

Two kinds of looking are kept apart. ``paths`` and ``assert_whiteout`` look at a branch physically,
as ``ls -A`` on the directory would; ``describe`` looks at any tree, a branch or a mounted union,
and says everything that a program could see in it, so that two views can be compared.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import operator
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

# At the top of each writable branch; they belong to the union, not to the user (aufs.md 2.1).
PRIVATE = frozenset({".wh..wh.aufs", ".wh..wh.plnk", ".wh..wh.orph"})

_WHOLE = 4 << 20  # bytes: larger files are compared by their two ends
_END = 1 << 20
_OLD_NS = 1_000_000_000_123_456_789  # 2001-09-09: a time that nothing in a test has by chance


def fill(branch: Path, *names: str) -> None:
    """Create entries in a branch: ``d/`` a directory, ``.wh.x`` a whiteout, anything else a file.

    Parent directories come with them. Files hold the name of the branch as text.
    """
    for name in names:
        path = branch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif path.name.startswith(".wh."):
            path.touch(0o444)
        else:
            path.write_text(branch.name)


def age(path: Path) -> int:
    """Give an entry an old time of access and change; returns it in nanoseconds."""
    os.utime(path, ns=(_OLD_NS, _OLD_NS), follow_symlinks=False)
    return _OLD_NS


def paths(branch: Path) -> set[str]:
    """Return everything that lies in a branch, without the private entries at its top."""
    found: set[str] = set()
    for folder, directories, files in os.walk(branch):
        here = os.path.relpath(folder, branch)
        if here == ".":
            directories[:] = [name for name in directories if name not in PRIVATE]
            files = [name for name in files if name not in PRIVATE]
        found.update(os.path.normpath(os.path.join(here, name)) for name in directories + files)
    return found


def temporaries(branch: Path) -> set[str]:
    """Return the paths of half-made copies and of directories on their way out (aufs.md 2.3)."""
    return {
        path
        for path in paths(branch)
        if any(
            part.startswith(".wh..wh.") and part != ".wh..wh..opq" for part in path.split(os.sep)
        )
    }


def assert_whiteout(branch: Path, name: str) -> None:
    """Check that ``.wh.``-marked ``name`` is there in the form of aufs.md 2.1."""
    directory, base = os.path.split(name)
    status = os.lstat(branch / directory / f".wh.{base}")
    assert stat.S_ISREG(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o444
    assert status.st_size == 0
    assert status.st_ino == os.lstat(branch / ".wh..wh.aufs").st_ino


@dataclass(frozen=True)
class Seen:
    """Everything about one entry that a program can see, times of access and status excepted."""

    kind: str
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    device: int
    mtime_ns: int
    content: bytes
    xattrs: tuple[tuple[str, bytes], ...]
    same_as: tuple[str, ...]  # all names of this inode, itself included

    def differences(self, other: Seen) -> str:
        """Return in words in which fields two entries differ."""
        return ", ".join(
            f"{field.name}: {getattr(self, field.name)!r} != {getattr(other, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        )


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
_UNREACHABLE = Seen("name too long", 0, 0, 0, 0, 0, 0, 0, b"", (), ())


def describe(top: Path) -> dict[str, Seen]:
    """Describe a whole tree, its top included, by relative path.

    Each listing is checked on the way: no name twice, and the number and type that a directory
    gives for a name are those that ``stat`` gives.
    """
    statuses: dict[str, os.stat_result | None] = {".": os.lstat(top)}
    pending = ["."]
    while pending:
        here = pending.pop()
        with os.scandir(top / here) as entries:
            for entry in entries:
                path = os.path.normpath(os.path.join(here, entry.name))
                assert path not in statuses, f"{path} is listed twice"
                try:
                    status = os.lstat(entry.path)
                except OSError as error:
                    assert error.errno == errno.ENAMETOOLONG, f"{path} is listed, but {error}"
                    statuses[path] = None
                    continue
                statuses[path] = status
                assert entry.inode() == status.st_ino, f"{path}: d_ino differs from st_ino"
                if entry.is_dir(follow_symlinks=False):
                    assert stat.S_ISDIR(status.st_mode), path
                    pending.append(path)
                else:
                    assert not stat.S_ISDIR(status.st_mode), path
                    assert entry.is_symlink() == stat.S_ISLNK(status.st_mode), path
    names: dict[tuple[int, int], list[str]] = {}
    for path, known in sorted(statuses.items(), key=operator.itemgetter(0)):
        if known is not None:
            names.setdefault((known.st_dev, known.st_ino), []).append(path)
    return {
        path: (
            _UNREACHABLE
            if known is None
            else _seen(top / path, known, names[(known.st_dev, known.st_ino)])
        )
        for path, known in statuses.items()
    }


def _seen(path: Path, status: os.stat_result, names: list[str]) -> Seen:
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    content = b""
    if kind == "symlink":
        content = os.readlink(os.fsencode(path))
    elif kind == "file":
        content = digest(path)
    keys = sorted(os.listxattr(path, follow_symlinks=False))
    return Seen(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        nlink=status.st_nlink,
        size=0 if kind == "directory" else status.st_size,
        device=status.st_rdev,
        mtime_ns=status.st_mtime_ns,
        content=content,
        xattrs=tuple((key, os.getxattr(path, key, follow_symlinks=False)) for key in keys),
        same_as=tuple(names),
    )


def digest(path: Path) -> bytes:
    """Return a digest of a file's content; of a large one, of its first and last MiB."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        parts = [(0, size)] if size <= _WHOLE else [(0, _END), (size - _END, _END)]
        total = hashlib.sha256()
        for offset, length in parts:
            end = offset + length
            while offset < end and (data := os.pread(fd, min(end - offset, _END), offset)):
                total.update(data)
                offset += len(data)
        return total.digest()
    finally:
        os.close(fd)


def differences(before: dict[str, Seen], after: dict[str, Seen]) -> list[str]:
    """Return one line for each entry in which two descriptions differ."""
    lines = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if new is None:
            lines.append(f"{path} has gone")
        elif old is None:
            lines.append(f"{path} has appeared ({new.kind})")
        elif old != new:
            lines.append(f"{path}: {old.differences(new)}")
    return lines


@contextlib.contextmanager
def fails(*symbols: str) -> Iterator[None]:
    """The body must raise OSError with one of these errnos, given by their symbols."""
    try:
        yield
    except OSError as error:
        symbol = errno.errorcode.get(error.errno or 0, str(error.errno))
        # The only pair of symbols of which Python knows one.
        symbol = {"ENOTSUP": "EOPNOTSUPP"}.get(symbol, symbol)
        assert symbol in symbols, f"{symbol} ({error}), expected {' or '.join(symbols)}"
    else:
        raise AssertionError(f"succeeded, expected {' or '.join(symbols)}")


def outcome(action: object, *arguments: object) -> object:
    """Call and return the result, or the errno's symbol: for comparing with a plain directory."""
    assert callable(action)
    try:
        return action(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
