"""Changes of a tree by random numbers, made in the same way in several places.

A change names what it works on by number: the n-th of the paths that are there when its turn
comes, or of those that were there once and may come back, or a new name in the n-th directory. So
most changes find something to work on, whatever came before.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

Target = tuple[int, bytes]

_MODES = (0o644, 0o755, 0o4711, 0o2755, 0o1777, 0o600)
_KEYS = ("user.k", "trusted.k", "user.other")
_OLD_NS = 1_000_000_000_000_000_789  # 2001: nothing in a test gets such a time by chance
_DAY_NS = 86_400_000_000_000


def old_time(variant: int) -> int:
    """Return a time in the past, in nanoseconds; later for a greater number."""
    return _OLD_NS + variant * _DAY_NS


@dataclass(frozen=True)
class Change:
    """One call.

    verb: which.
    target, other: the number of a path, and a name in it; an empty name means the path itself.
    variant: everything else.
    """

    verb: str
    target: Target
    other: Target
    variant: int

    def prepared(self, top: Path, mentioned: Collection[str]) -> Prepared:
        """Find out which paths are meant, in one of the places.

        mentioned: paths that are there, or could be.
        """
        known = _listing(top)
        vacant = [
            path for path in mentioned if path not in known and known.get(os.path.dirname(path))
        ]
        folders = [path for path, is_folder in known.items() if is_folder]
        wanted = list(known)[1:]  # the top itself is spared
        if self.target[0] % 8 and self.verb in ON_FILES | ON_FOLDERS:
            is_folder = self.verb in ON_FOLDERS
            wanted = [path for path in wanted if known[path] is is_folder] or wanted
        found = []
        for number, name in (self.target, self.other):
            if name and vacant and number % 4:
                found.append(vacant[number // 4 % len(vacant)])
            elif name:
                found.append(os.path.join(folders[number % len(folders)], os.fsdecode(name)))
            else:
                found.append(wanted[number // 8 % len(wanted)] if wanted else "gone")
            wanted = list(known)[1:]
        return Prepared(self, *found)


@dataclass(frozen=True)
class Prepared:
    """A change whose paths are known."""

    change: Change
    path: str
    other: str

    def __str__(self) -> str:
        return f"{self.change.verb} {self.path!r} {self.other!r} {self.change.variant}"

    def apply(self, top: Path) -> str:
        """Make the change below ``top``; returns ``ok`` or the symbol of the errno."""
        call = _CALLS[self.change.verb]
        try:
            call(str(top / self.path), str(top / self.other), self.change.variant)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error.errno))
        return "ok"


def _listing(top: Path) -> dict[str, bool]:
    """Return all relative paths, sorted, the top ("") first, and whether they are directories."""
    found = {"": True}
    pending = [""]
    while pending:
        here = pending.pop()
        for name in os.listdir(top / here):
            path = os.path.join(here, name)
            try:
                status = os.lstat(top / path)
            except FileNotFoundError:
                continue  # overlayfs lists some whiteouts
            found[path] = stat.S_ISDIR(status.st_mode)
            if found[path]:
                pending.append(path)
    return dict(sorted(found.items()))


def _create(path: str, _other: str, variant: int) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _MODES[variant % 6] & 0o777)
    os.write(fd, b"new %d" % variant)
    os.close(fd)


def _write(path: str, _other: str, variant: int, flags: int = 0) -> None:
    # O_NONBLOCK: a fifo has no reader.
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags)
    try:
        os.write(fd, b"written %d" % variant)
    finally:
        os.close(fd)


def _truncate(path: str, _other: str, variant: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.ftruncate(fd, variant)
    finally:
        os.close(fd)


def _chmod(path: str, _other: str, variant: int) -> None:
    if not stat.S_ISLNK(os.lstat(path).st_mode):
        os.chmod(path, _MODES[variant % 6])


def _remove_all(path: str) -> None:
    for name in sorted(os.listdir(path)):
        here = os.path.join(path, name)
        try:
            is_folder = stat.S_ISDIR(os.lstat(here).st_mode)
        except FileNotFoundError:
            continue
        if is_folder:
            _remove_all(here)
        else:
            os.unlink(here)
    os.rmdir(path)


def _move_new_folder(path: str, other: str, variant: int, flags: int) -> None:
    """Move a directory that lies on the writable branch only: overlayfs moves no others."""
    if flags == RENAME_EXCHANGE and stat.S_ISDIR(os.lstat(other).st_mode):
        return  # EXDEV for most
    os.mkdir(path)
    _create(os.path.join(path, "abc"[variant % 3]), "", variant)
    renameat2(Path(path), Path(other), flags)


_DEVICES = (
    (stat.S_IFIFO, 0),
    (stat.S_IFSOCK, 0),
    (stat.S_IFCHR, os.makedev(1, 3)),
    (stat.S_IFBLK, os.makedev(7, 1)),
    (stat.S_IFCHR, os.makedev(0, 0)),  # a whiteout of overlayfs: nobody may make one
    (stat.S_IFREG, 0),
)


def _mknod(path: str, _other: str, variant: int) -> None:
    kind, device = _DEVICES[variant % 6]
    os.mknod(path, kind | 0o640, device)


def _on_files(call: Callable[[str, str, int], None], path: str, other: str, variant: int) -> None:
    """Call for a regular file; writing to a device or fifo would change no tree."""
    if stat.S_ISREG(os.lstat(path).st_mode):
        call(path, other, variant)


def _time(path: str, _other: str, variant: int) -> None:
    time = old_time(variant) + 1
    os.utime(path, ns=(time, time), follow_symlinks=False)


def _set_attribute(path: str, _other: str, variant: int) -> None:
    flags = (0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)[variant // 3 % 4]
    value = b"set %d" % variant
    os.setxattr(path, _KEYS[variant % 3], value, flags, follow_symlinks=False)


_CALLS: dict[str, Callable[[str, str, int], None]] = {
    "create": _create,
    "write": partial(_on_files, _write),
    "append": partial(_on_files, partial(_write, flags=os.O_APPEND)),
    "overwrite": partial(_on_files, partial(_write, flags=os.O_TRUNC)),
    "truncate": partial(_on_files, _truncate),
    "mkdir": lambda path, _, variant: os.mkdir(path, _MODES[variant % 6] & 0o1777),
    "rmdir": lambda path, *_: os.rmdir(path),
    "remove all": lambda path, *_: _remove_all(path),
    "unlink": lambda path, *_: os.unlink(path),
    "rename": lambda path, other, _: os.rename(path, other),
    "move new folder": partial(_move_new_folder, flags=0),
    "exchange new folder": partial(_move_new_folder, flags=RENAME_EXCHANGE),
    "exchange": lambda path, other, _: renameat2(Path(path), Path(other), RENAME_EXCHANGE),
    "rename to new": lambda path, other, _: renameat2(Path(path), Path(other), RENAME_NOREPLACE),
    "link": lambda path, other, _: os.link(path, other, follow_symlinks=False),
    "symlink": lambda path, _, variant: os.symlink(f"new {variant}", path),
    "mknod": _mknod,
    "chmod": _chmod,
    "chown": lambda path, _, variant: os.chown(
        path, variant % 4, variant // 4 % 4, follow_symlinks=False
    ),
    "utime": _time,
    "setxattr": _set_attribute,
    "removexattr": lambda path, _, variant: os.removexattr(
        path, _KEYS[variant % 3], follow_symlinks=False
    ),
}
VERBS = tuple(_CALLS)
# What mostly gets a file, or a directory: most others would only fail.
ON_FILES = frozenset({"write", "append", "overwrite", "truncate", "unlink", "link"})
ON_FOLDERS = frozenset({"rmdir", "remove all"})
# What makes a name out of nothing; all others work on what is there.
MAKING = frozenset(
    {"create", "mkdir", "symlink", "mknod", "move new folder", "exchange new folder"}
)
# What takes a second path.
PAIRS = frozenset(
    {"rename", "exchange", "rename to new", "link", "move new folder", "exchange new folder"}
)
