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
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

from driver.beneath import find
from driver.changes import same_time
from driver.descent import Descent
from driver.values import Change, ChangeKind
from unionfs import syscalls
from unionfs.branch.forms import OPAQUE_MARK, WHITEOUT_PREFIX, is_device_whiteout

_CAPABILITY = b"security.capability"
_NO_CAPABILITY = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.ENOENT})


class Entry(NamedTuple):
    """One name in at least one of the trees.

    Attributes:
        kind: None when it did not change itself.
        status: its attributes in the new tree; None when it is gone.
        in_old: it is a directory in both.
        replaced: it is a directory now and was something else.
    """

    name: bytes
    kind: ChangeKind | None
    status: os.stat_result | None = None
    in_old: bool = False
    replaced: bool = False


class Comparison:
    """What has to be done to one tree so that it looks like another.

    Attributes:
        changes: in lexical order of the tree, directories before their content. A directory in
            which something changed is listed itself; the root never is.
        replaced: paths, relative to the root, of directories where the old tree has something else.
        size: bytes of all that was added or modified, directories apart, each inode once.
    """

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.replaced: list[bytes] = []
        self.size = 0
        self._listed: set[bytes] = {b""}
        self._counted: set[tuple[int, int]] = set()

    def marks(self) -> list[bytes]:
        """List the marks that a layer needs on top of the old tree to take away what is gone.

        Where the old tree shows a file, its own layers may still have a directory below that, and a
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

    def note(self, path: bytes, entry: Entry) -> None:
        """Take in what was found out about one name, in the order of `changes`."""
        if entry.replaced:
            self.replaced.append(path)
        if entry.kind is None:
            return
        # Ancestors first: they were passed on the way here, so their place in the order is now.
        above = path.rpartition(b"/")[0]
        unlisted = []
        while above not in self._listed:
            unlisted.append(above)
            above = above.rpartition(b"/")[0]
        for directory in reversed(unlisted):
            self._list(directory, ChangeKind.MODIFY)
        self._list(path, entry.kind)
        status = entry.status
        if status is not None and not stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if identity not in self._counted:
                self._counted.add(identity)
                self.size += status.st_size

    def _list(self, path: bytes, kind: ChangeKind) -> None:
        self._listed.add(path)
        self.changes.append(Change("/" + os.fsdecode(path), kind))


def compare_trees(new: int, old: int | None) -> Comparison:
    """Find out what has to be done to ``old`` so that it looks like ``new``.

    Args:
        new: descriptor of the newer tree's root.
        old: descriptor of the older one's; None is an empty tree.

    Raises:
        OSError: a directory cannot be read, or was moved while it was walked through. What
            vanishes before counts as never seen.
    """
    found = Comparison()
    with ExitStack() as held:
        at = held.enter_context(Descent(new))
        beside = None if old is None else held.enter_context(Descent(old))
        # One level is its path, what is still to do in it, and its directory in the old tree.
        levels = [(b"", iter(_entries(at, beside)), beside)]
        while levels:
            where, entries, inside = levels[-1]
            entry = next(entries, None)
            if entry is None:
                levels.pop()
                if levels:
                    at.leave()
                    if inside is not None:
                        inside.leave()
                continue
            path = where + b"/" + entry.name if where else entry.name
            found.note(path, entry)
            if entry.status is None or not stat.S_ISDIR(entry.status.st_mode):
                continue
            if at.enter_if_there(entry.name):
                both = inside is not None and entry.in_old and inside.enter_if_there(entry.name)
                deeper = inside if both else None
                levels.append((path, iter(_entries(at, deeper)), deeper))
    return found


def _relative(change: Change) -> bytes:
    return os.fsencode(change.path[1:])


def _entries(at: Descent, beside: Descent | None) -> list[Entry]:
    """Compare one directory of the new tree with the same one of the old, if it is there."""
    return list(_compare(at.fd, -1 if beside is None else beside.fd))


def _compare(new_fd: int, old_fd: int) -> Iterator[Entry]:
    new_names, old_names = _names(new_fd), _names(old_fd)
    for name in sorted(new_names | old_names):
        new = _shown(new_fd, name) if name in new_names else None
        old = _shown(old_fd, name) if name in old_names else None
        if new is None:
            if old is not None:
                yield Entry(name, ChangeKind.DELETE)
        elif old is None:
            yield Entry(name, ChangeKind.ADD, new)
        elif not os.path.samestat(new, old):
            yield _changed(name, new_fd, new, old_fd, old)


def _changed(
    name: bytes, new_fd: int, new: os.stat_result, old_fd: int, old: os.stat_result
) -> Entry:
    is_directory, was_directory = stat.S_ISDIR(new.st_mode), stat.S_ISDIR(old.st_mode)
    differs = _differ(new, old) or _capability(new_fd, name, new) != _capability(old_fd, name, old)
    return Entry(
        name,
        ChangeKind.MODIFY if differs else None,
        new,
        in_old=is_directory and was_directory,
        replaced=is_directory and not was_directory,
    )


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


def _names(fd: int) -> set[bytes]:
    if fd < 0:
        return set()
    names = map(os.fsencode, os.listdir(fd))
    return {name for name in names if not name.startswith(WHITEOUT_PREFIX)}
