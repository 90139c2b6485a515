"""Two directory trees, compared by everything a program could see."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator

# What is known of one path: kind and mode, owner, device, size or link text, content, xattrs, mtime
# in seconds (layer tars keep no more), and the other names of the same file.
Facts = tuple[object, ...]


def differences(left: str, right: str) -> list[str]:
    """Return a line for each path that is not the same in both trees; none when they are equal."""
    one, two = facts_of(left), facts_of(right)
    lines = []
    for path in sorted(one.keys() | two.keys()):
        if path not in two:
            lines.append(f"{path}: only in {left}")
        elif path not in one:
            lines.append(f"{path}: only in {right}")
        elif one[path] != two[path]:
            lines.append(f"{path}: {one[path]} is not {two[path]}")
    return lines


def facts_of(root: str) -> dict[str, Facts]:
    """Return what is known of every path below ``root``, itself excluded."""
    found = {path: os.lstat(os.path.join(root, path)) for path in _walk(root)}
    names: dict[tuple[int, int], list[str]] = {}
    for path, status in found.items():
        names.setdefault((status.st_dev, status.st_ino), []).append(path)
    return {
        path: (
            stat.filemode(status.st_mode),
            (status.st_uid, status.st_gid),
            status.st_rdev,
            int(status.st_mtime),
            _content(os.path.join(root, path), status.st_mode),
            _xattrs(os.path.join(root, path)),
            tuple(sorted(names[status.st_dev, status.st_ino])),
        )
        for path, status in found.items()
    }


def _walk(root: str) -> Iterator[str]:
    for folder, directories, files in os.walk(root):
        for name in directories + files:
            yield os.path.relpath(os.path.join(folder, name), root)


def _content(path: str, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if not stat.S_ISREG(mode):
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _xattrs(path: str) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
