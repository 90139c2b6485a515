"""The whole tree of a union, and of a model, in one form that can be compared."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tests.support.branches import old_time
from tests.support.model import RECENT, Directory, File, Model
from unionfs.union.core import DirectoryNode, Entry, FileNode, Job, Union, run_now

Path_ = tuple[bytes, ...]
View = dict[Path_, tuple[object, ...]]

_OLDEST, _NEWEST_OLD = old_time(0), old_time(1000)
_PRIVATE = frozenset({b".wh..wh.aufs", b".wh..wh.plnk", b".wh..wh.orph"})


def model_view(model: Model) -> tuple[View, dict[Path_, File | Directory]]:
    """Return what a model shows, and which of its objects shows under which path."""
    nodes: dict[Path_, File | Directory] = {}
    for directory in model.root.walk():
        path = directory.path()
        nodes[path] = directory
        nodes.update(
            {
                (*path, name): node
                for name, node in directory.names.items()
                if isinstance(node, File)
            }
        )
    first: dict[File | Directory, Path_] = {}
    view: View = {}
    for path in sorted(nodes):
        node = nodes[path]
        same_as = first.setdefault(node, path)
        common = (node.mode, node.uid, node.gid, node.mtime, node.xattrs)
        if isinstance(node, Directory):
            view[path] = ("directory", *common)
        else:
            kind = {stat.S_IFREG: "file", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}[node.kind]
            view[path] = (kind, *common, node.nlink, same_as, bytes(node.content))
    return view, nodes


def union_view(union: Union) -> tuple[View, dict[Path_, int]]:
    """Return what a union shows, and the inode numbers; listing and lookup have to agree."""
    seen: dict[Path_, Entry] = {}
    contents: dict[Path_, tuple[dict[bytes, bytes], bytes]] = {}

    def visit(node: DirectoryNode, path: Path_) -> None:
        seen[path] = union.getattr(node)
        contents[path] = _inside(union, node)
        stream = union.open_directory(node)
        before = 0
        for offset, name, item in list(union.read_directory(stream, 0)):
            assert offset > before, "offsets ascend"
            before = offset
            listed = union.listed(stream, name, item)
            assert listed is not None, name
            entry = union.lookup(node, name)
            assert listed.node is entry.node, "d_ino differs from st_ino"
            assert listed[1:] == entry[1:] == union.getattr(entry.node)[1:]
            here = (*path, name)
            assert here not in seen, "listed twice"
            if isinstance(entry.node, DirectoryNode):
                visit(entry.node, here)
            else:
                seen[here] = entry
                contents[here] = _inside(union, entry.node)
            union.forget(entry.node.number)
        union.close_directory(stream)

    visit(union.root, ())
    first: dict[int, Path_] = {}
    view: View = {}
    for path in sorted(seen):
        node, status, nlink = seen[path]
        same_as = first.setdefault(node.number, path)
        xattrs, content = contents[path]
        mtime = status.st_mtime_ns if _OLDEST <= status.st_mtime_ns <= _NEWEST_OLD else RECENT
        common = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, mtime, xattrs)
        if isinstance(node, DirectoryNode):
            view[path] = ("directory", *common)
        else:
            kind = {stat.S_IFREG: "file", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}[node.kind]
            view[path] = (kind, *common, nlink, same_as, content)
    return view, {path: entry.node.number for path, entry in seen.items()}


def _inside(union: Union, node: FileNode | DirectoryNode) -> tuple[dict[bytes, bytes], bytes]:
    """Return extended attributes and content."""
    if isinstance(node, FileNode) and node.kind != stat.S_IFREG:
        return {}, union.readlink(node) if node.kind == stat.S_IFLNK else b""
    keys = [key for key in union.list_xattrs(node) if key.startswith((b"user.", b"trusted."))]
    xattrs = {key: union.get_xattr(node, key) for key in keys}
    return xattrs, b"" if isinstance(node, DirectoryNode) else content_of(union, node)


def content_of(union: Union, node: FileNode) -> bytes:
    """Open, read and close a file."""
    handle = run_now(union.open(node, os.O_RDONLY))
    try:
        data = union.read(handle, 0, 1 << 20)
        return bytes(data.run() if isinstance(data, Job) else data)
    finally:
        union.release(handle)


def writable_branch(top: Path) -> set[Path_]:
    """Return what lies on a writable branch, without what the union itself keeps at the top."""
    found: set[Path_] = set()
    pending: list[Path_] = [()]
    while pending:
        path = pending.pop()
        with os.scandir(os.path.join(os.fsencode(top), *path)) as entries:
            for entry in entries:
                here = (*path, entry.name)
                if path or entry.name not in _PRIVATE:
                    found.add(here)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(here)
    return found


def expected_on_writable_branch(model: Model) -> set[Path_]:
    """Return what has to lie on the writable branch, opaque marks left out."""
    expected: set[Path_] = set()
    for directory in model.root.walk():
        if directory.upper:
            path = directory.path()
            expected.add(path)
            expected.update((*path, name) for name in directory.on_upper)
            expected.update((*path, b".wh." + name) for name in directory.whiteouts)
    expected.remove(())
    return expected
