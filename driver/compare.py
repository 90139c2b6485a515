"""What differs between two mounted trees (driver.md 1.8, "naive").

This is the way that works for any two layers: both are mounted and walked side by side. It reads
attributes only, never content, so two files of equal size and time count as equal.

Everything goes by descriptor below the two roots. The size of a directory and its times say nothing
about its content and never count.

A layer without parent is its branch, not a union. What marks other layers' files as gone in there
shows in no union, so it is none of the names that are compared.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from driver.beneath import ABSENT, find, open_directory
from driver.changes import same_time
from driver.values import Change, ChangeKind
from unionfs import syscalls
from unionfs.branch.forms import OPAQUE_MARK, WHITEOUT_PREFIX, is_device_whiteout

_CAPABILITY = b"security.capability"
_NO_CAPABILITY = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.ENOENT})


class _Entry(NamedTuple):
    """One name in at least one of the trees.

    Attributes:
        kind: None when it did not change itself.
        in_new, in_old: it is a directory there, to be looked into.
        replaced: it is a directory now and was something else.
    """

    name: bytes
    kind: ChangeKind | None
    in_new: bool
    in_old: bool
    replaced: bool = False


class Comparison(NamedTuple):
    """What differs between two trees.

    Attributes:
        changes: as `tree_changes` lists them.
        replaced: paths, relative to the root, of directories where ``old`` has something else.
    """

    changes: list[Change]
    replaced: list[bytes]

    def marks(self) -> list[bytes]:
        """List the marks that a layer needs on top of ``old`` to take away what is gone.

        Where ``old`` shows a file, its own layers may still have a directory below that, and a
        union would merge it with the one that is now made in the file's place. So that one has to
        be opaque.

        Returns:
            Paths relative to the root: of whiteouts, ``dir/.wh.name``, and of opaque marks.
        """
        opaque = [path + b"/" + OPAQUE_MARK for path in self.replaced]
        return opaque + [
            directory + slash + WHITEOUT_PREFIX + name
            for directory, slash, name in (
                _relative(change).rpartition(b"/")
                for change in self.changes
                if change.kind is ChangeKind.DELETE
            )
        ]

    def members(self) -> set[bytes]:
        """Return the paths, relative to the root, of all that such a layer consists of."""
        kept = (change for change in self.changes if change.kind is not ChangeKind.DELETE)
        return {_relative(change) for change in kept}.union(self.marks())


def tree_changes(new: int, old: int | None) -> list[Change]:
    """List what has to be done to ``old`` so that it looks like ``new``.

    Args:
        new: descriptor of the newer tree's root.
        old: descriptor of the older one's; None is an empty tree.

    Returns:
        In lexical order of the tree, directories before their content. A directory in which
        something changed is listed itself; the root never is.

    Raises:
        OSError: a directory cannot be read.
    """
    return compare_trees(new, old).changes


def compare_trees(new: int, old: int | None) -> Comparison:
    """Compare two trees, as `tree_changes` does.

    Raises:
        OSError: a directory cannot be read.
    """
    changes: list[Change] = []
    replaced: list[bytes] = []
    listed: set[bytes] = {b""}

    def add(path: bytes, kind: ChangeKind) -> None:
        # Ancestors first: they were passed on the way here, so their place in the order is now.
        for end in (index for index, byte in enumerate(path) if byte == 0x2F):
            if path[:end] not in listed:
                listed.add(path[:end])
                changes.append(Change("/" + os.fsdecode(path[:end]), ChangeKind.MODIFY))
        listed.add(path)
        changes.append(Change("/" + os.fsdecode(path), kind))

    stack = [(b"", iter(_compare(new, old, b"")))]
    while stack:
        where, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            continue
        path = where + b"/" + entry.name if where else entry.name
        if entry.kind is not None:
            add(path, entry.kind)
        if entry.replaced:
            replaced.append(path)
        if entry.in_new:
            inside = _compare(new, old if entry.in_old else None, path)
            stack.append((path, iter(inside)))
    return Comparison(changes, replaced)


def changed_size(root: int, changes: Iterable[Change]) -> int:
    """Add up the bytes of everything that was added or modified, each inode once.

    Args:
        root: descriptor of the tree that the changes lead to.
    """
    total = 0
    counted: set[tuple[int, int]] = set()
    for change in changes:
        if change.kind is ChangeKind.DELETE:
            continue
        path, _, name = _relative(change).rpartition(b"/")
        try:
            fd = open_directory(root, path)
        except OSError as error:
            if error.errno not in ABSENT:
                raise
            continue
        try:
            status = find(fd, name)
        finally:
            os.close(fd)
        if status is None or stat.S_ISDIR(status.st_mode):
            continue
        if (status.st_dev, status.st_ino) not in counted:
            counted.add((status.st_dev, status.st_ino))
            total += status.st_size
    return total


def _relative(change: Change) -> bytes:
    return os.fsencode(change.path[1:])


def _compare(new: int, old: int | None, path: bytes) -> list[_Entry]:
    new_fd = _open(new, path)
    try:
        old_fd = -1 if old is None else _open(old, path)
        try:
            return list(_entries(new_fd, old_fd))
        finally:
            if old_fd >= 0:
                os.close(old_fd)
    finally:
        if new_fd >= 0:
            os.close(new_fd)


def _entries(new_fd: int, old_fd: int) -> Iterable[_Entry]:
    new_names, old_names = _names(new_fd), _names(old_fd)
    for name in sorted(new_names | old_names):
        new = _shown(new_fd, name) if name in new_names else None
        old = _shown(old_fd, name) if name in old_names else None
        if new is None:
            if old is not None:
                yield _Entry(name, ChangeKind.DELETE, in_new=False, in_old=False)
            continue
        in_new = stat.S_ISDIR(new.st_mode)
        if old is None:
            yield _Entry(name, ChangeKind.ADD, in_new, in_old=False)
        elif not os.path.samestat(new, old):
            in_old = stat.S_ISDIR(old.st_mode)
            differs = _differ(new, old) or _capability(new_fd, name, new) != _capability(
                old_fd, name, old
            )
            kind = ChangeKind.MODIFY if differs else None
            yield _Entry(name, kind, in_new, in_old, replaced=in_new and not in_old)


def _shown(fd: int, name: bytes) -> os.stat_result | None:
    status = find(fd, name)
    return None if status is None or is_device_whiteout(status) else status


def _differ(new: os.stat_result, old: os.stat_result) -> bool:
    # The mode holds the type, so from here on both are of one kind. Only directories are spared the
    # look at time and size; block devices and sockets share bits with them but are none (Q13).
    if (new.st_mode, new.st_uid, new.st_gid, new.st_rdev) != (
        old.st_mode,
        old.st_uid,
        old.st_gid,
        old.st_rdev,
    ):
        return True
    if stat.S_ISDIR(new.st_mode):
        return False
    return new.st_size != old.st_size or not same_time(new.st_mtime_ns, old.st_mtime_ns)


def _capability(dir_fd: int, name: bytes, status: os.stat_result) -> bytes:
    if not stat.S_ISREG(status.st_mode):
        return b""
    try:
        return syscalls.getxattr_at(dir_fd, name, _CAPABILITY)
    except OSError as error:
        if error.errno not in _NO_CAPABILITY:
            raise
        return b""


def _open(root: int, path: bytes) -> int:
    try:
        return open_directory(root, path)
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return -1  # gone meanwhile, or a mount of somebody else's


def _names(fd: int) -> set[bytes]:
    if fd < 0:
        return set()
    names = map(os.fsencode, os.listdir(fd))
    return {name for name in names if not name.startswith(WHITEOUT_PREFIX)}
