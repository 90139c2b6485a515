"""Branches for tests with the model: described in memory, and the same put on the disk."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from tests.support.model import File, Node, Tree

What = Literal["file", "directory", "whiteout", "opaque", "symlink", "fifo", "link"]
Stroke = tuple[tuple[bytes, ...], What, int]

_FILE_MODES = (0o644, 0o600, 0o4755, 0o640)
_DIRECTORY_MODES = (0o755, 0o700, 0o2775, 0o1777)
_FOREIGN = (b"a", b"c")  # the names whose whiteouts are devices, where that is allowed
_OLDEST_NS = 1_000_000_000_000_000_789  # 2001: nothing in a test gets such a time by chance


def dressed(node: Node, variant: int) -> None:
    """Give a node attributes by a small number."""
    modes = _DIRECTORY_MODES if isinstance(node, Tree) else _FILE_MODES
    node.mode = modes[variant % 4]
    node.uid = variant % 3 * 1000
    node.gid = variant % 5 * 500
    node.mtime = old_time(variant)
    node.xattrs = {b"user.k": b"%d" % variant} if variant & 4 else {}


def old_time(variant: int) -> int:
    """Return a time in the past, in nanoseconds."""
    return _OLDEST_NS + variant * 86_400_000_000_000


def grow(tree: Tree, strokes: Iterable[Stroke]) -> None:
    """Draw a branch into an empty tree, stroke by stroke; strokes that do not fit are left out."""
    files: list[File] = []
    for path, what, variant in strokes:
        parent = _directory(tree, path[:-1])
        if parent is None:
            continue
        name = path[-1]
        if what == "whiteout":
            parent.whiteouts.add(name)
        elif what == "opaque":
            here = _directory(tree, path)
            if here is not None:
                here.opaque = True
        elif what == "directory":
            here = _directory(tree, path)
            if here is not None:
                dressed(here, variant)
        elif name not in parent.names:
            if what == "link":
                if files:
                    file = files[variant % len(files)]
                    file.nlink += 1
                    parent.names[name] = file
                continue
            file = _file(what, variant, tree)
            files.append(file)
            parent.names[name] = file


def _directory(tree: Tree, path: tuple[bytes, ...]) -> Tree | None:
    for name in path:
        new = Tree(mtime=old_time(0), writable=tree.writable, fixed=tree.fixed, whable=tree.whable)
        child = tree.names.setdefault(name, new)
        if not isinstance(child, Tree):
            return None
        tree = child
    return tree


def make_way(tree: Tree, above: Tree) -> None:
    """Take away the files of a tree that have the name of a directory in another, above it.

    They would be skipped, and be in the way of a directory that has to be made there.
    """
    for name, child in list(tree.names.items()):
        cover = above.names.get(name)
        if not isinstance(cover, Tree):
            continue
        if isinstance(child, Tree):
            make_way(child, cover)
        else:
            del tree.names[name]
            child.nlink -= 1


def _file(what: What, variant: int, tree: Tree) -> File:
    file = File(upper=tree.writable, fixed=tree.fixed)
    dressed(file, variant)
    if what == "file":
        file.content = bytearray(b"%d" % variant * variant)
        return file
    file.xattrs = {}
    if what == "symlink":
        file.kind, file.mode, file.content = stat.S_IFLNK, 0o777, bytearray(b"to %d" % variant)
    else:
        file.kind = stat.S_IFIFO
    return file


def plant(tree: Tree, top: Path, *, foreign: bool = False) -> None:
    """Put a tree on the disk, below the existing directory ``top``.

    foreign: write some whiteouts and opaque marks as overlayfs does.
    """
    _plant(tree, os.fsencode(top), {}, foreign=foreign)


def _plant(tree: Tree, top: bytes, planted: dict[File, bytes], *, foreign: bool) -> None:
    for name, node in tree.names.items():
        path = top + b"/" + name
        if isinstance(node, Tree):
            os.mkdir(path)
            _plant(node, path, planted, foreign=foreign)
        elif node in planted:
            os.link(planted[node], path, follow_symlinks=False)
        else:
            _make(node, path)
            planted[node] = path
    for name in tree.whiteouts:
        if foreign and name not in tree.names and name in _FOREIGN:
            os.mknod(top + b"/" + name, stat.S_IFCHR, 0)
        else:
            _mark(top + b"/.wh." + name)
    if tree.opaque:
        if foreign and len(tree.names) % 2:
            os.setxattr(top, "trusted.overlay.opaque", b"y")
        else:
            _mark(top + b"/.wh..wh..opq")
    _dress(tree, top)


def _mark(path: bytes) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o444))


def _make(file: File, path: bytes) -> None:
    if file.kind == stat.S_IFLNK:
        os.symlink(bytes(file.content), path)
    elif file.kind == stat.S_IFIFO:
        os.mkfifo(path)
    else:
        fd = os.open(path, os.O_CREAT | os.O_WRONLY)
        os.write(fd, file.content)
        os.close(fd)
    _dress(file, path)


def _dress(node: Node, path: bytes) -> None:
    os.chown(path, node.uid, node.gid, follow_symlinks=False)
    if not (isinstance(node, File) and node.kind == stat.S_IFLNK):
        os.chmod(path, node.mode)
    for key, value in node.xattrs.items():
        os.setxattr(path, key, value, follow_symlinks=False)
    os.utime(path, ns=(node.mtime, node.mtime), follow_symlinks=False)


def fingerprint(top: Path) -> str:
    """Return a digest of everything in a branch except times of access."""
    digest = hashlib.sha256()
    pending = [os.fsencode(top)]
    while pending:
        path = pending.pop()
        status = os.lstat(path)
        keys = sorted(os.listxattr(path, follow_symlinks=False))
        values = [os.getxattr(path, key, follow_symlinks=False) for key in keys]
        content: object = b""
        if stat.S_ISDIR(status.st_mode):
            content = sorted(os.listdir(path))
            pending.extend(path + b"/" + name for name in os.listdir(path))
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = Path(os.fsdecode(path)).read_bytes()
        seen = (path, *status[:6], status.st_mtime_ns, status.st_ctime_ns, keys, values, content)
        digest.update(repr(seen).encode())
    return digest.hexdigest()
