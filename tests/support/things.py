"""Objects of every type and the people they belong to: declared in a table, then built."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

KINDS = ("file", "dir", "symlink", "fifo", "socket", "char", "block")
BUILT_AT = 1_000_000_000  # seconds; each object's atime, and one more for its mtime


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes the call."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = Actor("root", 0, 0)
ALICE = Actor("alice", 1001, 1001, (2001,))
BOB = Actor("bob", 1002, 1002, (2001, 2002))
EVERYBODY = (ROOT, ALICE, BOB)


@dataclass(frozen=True, slots=True)
class Thing:
    """An object to be built; ``kind`` is one of ``KINDS``, or ``hardlink`` with a target.

    text: content of a file, target of a symbolic or hard link.
    source: a file of the host that the content is copied from instead.
    """

    kind: str
    mode: int
    uid: int = 0
    gid: int = 0
    text: str = ""
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    source: str = ""


def thing(
    kind: str, mode: int | None = None, owner: Actor = ROOT, gid: int | None = None, text: str = ""
) -> Thing:
    """Return an object of a kind with the usual mode, belonging to an actor."""
    usual = {"dir": 0o755, "symlink": 0o777, "char": 0o666, "block": 0o660}.get(kind, 0o644)
    if not text:
        text = {"file": "text", "symlink": "nowhere"}.get(kind, "")
    return Thing(
        kind,
        usual if mode is None else mode,
        owner.uid,
        owner.gid if gid is None else gid,
        text,
    )


def file(
    mode: int = 0o644, owner: Actor = ROOT, *, gid: int | None = None, text: str = "text"
) -> Thing:
    """Return a regular file."""
    made = thing("file", mode, owner, gid)
    return replace(made, text=text)


def folder(mode: int = 0o755, owner: Actor = ROOT, *, gid: int | None = None) -> Thing:
    """Return a directory."""
    return thing("dir", mode, owner, gid)


def symlink(text: str, owner: Actor = ROOT) -> Thing:
    """Return a symbolic link."""
    return thing("symlink", owner=owner, text=text)


def hardlink(target: str) -> Thing:
    """Return one more name of an object that stands before it in the table."""
    return Thing("hardlink", 0, text=target)


def build(top: Path, things: Mapping[str, Thing]) -> None:
    """Make a directory that everybody may write, and the objects in it."""
    top.mkdir()
    for name, what in things.items():
        _make(os.path.join(top, name), what, top)
    for name, what in things.items():
        if what.kind != "hardlink":
            _dress(os.path.join(top, name), what)
    top.chmod(0o777)
    age(top, things)


def age(top: Path, things: Iterable[str]) -> None:
    """Give everything old times."""
    for name in (".", *things):
        os.utime(os.path.join(top, name), (BUILT_AT, BUILT_AT + 1), follow_symlinks=False)


def _make(path: str, what: Thing, top: Path) -> None:
    match what.kind:
        case "file" if what.source:
            shutil.copyfile(what.source, path)
        case "file":
            Path(path).write_text(what.text)
        case "dir":
            os.mkdir(path)
        case "symlink":
            os.symlink(what.text, path)
        case "hardlink":
            os.link(top / what.text, path, follow_symlinks=False)
        case "fifo":
            os.mkfifo(path)
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        case "char":
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        case "block":
            os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(259, 70000))
        case _:
            raise AssertionError(what.kind)


def _dress(path: str, what: Thing) -> None:
    os.chown(path, what.uid, what.gid, follow_symlinks=False)
    if what.kind != "symlink":
        os.chmod(path, what.mode)
    for key, value in what.xattrs.items():
        os.setxattr(path, key, value, follow_symlinks=False)


def bound_socket(path: str) -> None:
    """Bind a socket to a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(path)
