"""Many calls that take a path, and many paths of which most cannot be used."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import partial

from tests.support.parity import attempt
from tests.support.syscalls import UTIME_OMIT, faccessat, linkat, renameat2, utimensat
from tests.support.things import ALICE, KINDS, file, folder, symlink, thing

THINGS = {
    "file": file(0o640, ALICE),
    "dir": folder(0o755, ALICE),
    "dir/x": file(0o644, ALICE),
    "loop": symlink("loop"),
    "ping": symlink("pong"),
    "pong": symlink("ping"),
    "dangling": symlink("nowhere"),
    "dirlink": symlink("dir"),
    "through a file": symlink("file/x"),
    "too long a target": symlink("t" * 300),
    "closed": folder(0o700),
    "closed/x": file(0o666),
    "owner only": folder(0o700, ALICE),
    "owner only/x": file(0o666),
    "not owner": folder(0o077, ALICE),
    "not owner/x": file(0o666, ALICE),
    "group only": folder(0o070, gid=2002),
    "group only/x": file(0o666),
    "not group": folder(0o707, gid=2001),
    "not group/x": file(0o666),
    "unsearchable": folder(0o666),
    "unsearchable/x": file(0o666),
    "unlisted": folder(0o711),
    "unlisted/x": file(0o666),
    "unwritable": folder(0o555),
    "unwritable/x": file(0o666),
    "sticky": folder(0o1777),
    "sticky/x": file(0o644),
    **{kind: thing(kind) for kind in KINDS if kind not in ("file", "dir")},
}


def limit() -> int:
    """The longest name possible here; it is a documented difference, so the rest goes by it."""
    return os.pathconf(".", "PC_NAME_MAX")


def wrong_paths() -> dict[str, str]:
    longest = limit()
    return {
        "name too long": "n" * (longest + 1),
        "component too long": "n" * (longest + 1) + "/x",
        "longest name, absent": "n" * longest + "/x",
        "path too long": "/".rjust(4092, "/").replace("/", ".", 1) + "file",
        "path just not too long": "/".rjust(4089, "/").replace("/", ".", 1) + "absent",
        "much too long": "x" + "/" * 9000,
        "empty": "",
        **{name: f"{name}/x" for name in ("file", "fifo", "socket", "char", "absent", "dangling")},
        **{f"{name} itself": name for name in ("loop", "ping", "through a file")},
        **{f"in {name}": f"{name}/x" for name in ("loop", "ping", "too long a target")},
        "absent itself": "absent",
        "absent below the absent": "absent/absent",
        "slash behind a file": "file/",
        "slash behind the absent": "absent/",
        "dot behind a file": "file/.",
        "slash behind a dangling link": "dangling/",
    }


def closed_paths() -> dict[str, str]:
    closed = [name for name in THINGS if name.endswith("/x")]
    return {name: name for name in closed} | {f"absent beside {n}": n[:-1] + "y" for n in closed}


def over(paths: Callable[[], dict[str, str]], names: tuple[str, ...]) -> object:
    """Make some of the calls with each of the paths."""
    return {
        f"{name}, {about}": attempt(partial(CALLS[name], path))
        for name in names
        for about, path in paths().items()
    }


def opened(flags: int, path: str) -> None:
    os.close(os.open(path, flags | os.O_NONBLOCK, 0o644))


def _status(path: str) -> object:
    status = os.stat(path)
    return status.st_mode, status.st_size if stat.S_ISREG(status.st_mode) else None


def visited(path: str) -> None:
    here = os.open(".", os.O_PATH)
    try:
        os.chdir(path)
        os.fchdir(here)
    finally:
        os.close(here)


def nothing_changed(path: str) -> None:
    utimensat(path, (0, UTIME_OMIT), (0, UTIME_OMIT))


CALLS: dict[str, Callable[[str], object]] = {
    "stat": _status,
    "lstat": lambda path: os.lstat(path).st_mode,
    "access": lambda path: faccessat(path, os.R_OK | os.W_OK),
    "readlink": os.readlink,
    "chmod": lambda path: os.chmod(path, 0o604),
    "chown": lambda path: os.chown(path, -1, -1),
    "chown to oneself": lambda path: os.chown(path, os.geteuid(), os.getegid()),
    "lchown": lambda path: os.lchown(path, -1, -1),
    "utimensat": os.utime,
    "utimensat omit": nothing_changed,
    "utimensat values": lambda path: os.utime(path, (5, 6)),
    "truncate": lambda path: os.truncate(path, 2),
    "open to read": partial(opened, os.O_RDONLY),
    "open to write": partial(opened, os.O_WRONLY),
    "open a directory": partial(opened, os.O_RDONLY | os.O_DIRECTORY),
    "open without following": partial(opened, os.O_RDONLY | os.O_NOFOLLOW),
    "open a path": partial(opened, os.O_PATH),
    "open and truncate": partial(opened, os.O_RDWR | os.O_TRUNC),
    "create": partial(opened, os.O_WRONLY | os.O_CREAT),
    "create exclusively": partial(opened, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "list": lambda path: sorted(os.listdir(path)),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda path: os.mknod(path, stat.S_IFSOCK | 0o644),
    "symlink": lambda path: os.symlink("x", path),
    "link to": lambda path: linkat("file", path),
    "link from": lambda path: linkat(path, "new"),
    "rename to": lambda path: renameat2("fifo", path, 1),
    "rename from": lambda path: renameat2(path, "block", 1),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "chdir": visited,
    "getxattr": lambda path: os.getxattr(path, "user.k"),
    "setxattr": lambda path: os.setxattr(path, "user.k", b"v"),
    "listxattr": os.listxattr,
    "removexattr": lambda path: os.removexattr(path, "user.k"),
    "statvfs": lambda path: os.statvfs(path).f_bsize,
    "execute": lambda path: faccessat(path, os.X_OK),
}
