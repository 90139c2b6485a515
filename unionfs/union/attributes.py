"""Changing attributes: mode, owner, times, size, extended attributes (aufs.md 5.1, 5.3).

Each change copies up first. An open file is changed through its descriptor, which also works when
it has no name any more.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from errno import EINVAL, ENODATA, ENOENT, EOPNOTSUPP, EPERM, ESTALE
from typing import TYPE_CHECKING, Final, TypeVar

from unionfs.branch import MountedOver
from unionfs.branch.forms import is_mark_xattr
from unionfs.union.copyup import copy_up, copy_up_directory
from unionfs.union.idmap import ACL_PREFIX
from unionfs.union.lookup import getattr_, locate
from unionfs.union.nodes import DirectoryNode, FileNode, reopen
from unionfs.union.strangers import is_strangers, is_suspect, without_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from unionfs.union.operation import Operation
    from unionfs.union.state import Entry, State

T = TypeVar("T")

_CLASSES: Final = (b"user.", b"trusted.", b"security.", b"system.")


@dataclass(frozen=True, slots=True)
class Change:
    """What is to change; None means: leave it.

    Attributes:
        mode: permission bits.
        uid, gid: the new owner.
        size: bytes.
        atime_ns, mtime_ns: nanoseconds since the epoch.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


_NOTHING: Final = Change()


def setattr_(state: State, node: FileNode | DirectoryNode, change: Change) -> Operation[Entry]:
    """Change attributes and return the new ones.

    Raises:
        OSError: ``EROFS`` without a writable branch at or above it, and whatever the branch says.
    """
    if isinstance(node, DirectoryNode):
        if change.size is not None:
            raise OSError(EINVAL, "a directory has no size to set")
        if node.removed:
            node.last = _changed(node.last, change)
            return getattr_(state, node)
        target = state.target(node.branch)
        copy_up_directory(state, node, target)
        directory = state.writable_directory(node, target)
        _apply(state, _pinned(directory.fd), directory.status(), change)
        return getattr_(state, node)
    if node.last is not None:
        # Nothing leads to it any more. Who means it still sees what is changed.
        node.last = _changed(node.last, change)
        return getattr_(state, node)
    size = change.size
    if (yield from copy_up(state, node, keep=size)):
        size = None  # the copy was made so
        if change == Change(size=change.size):
            return getattr_(state, node)
    if node.held >= 0:
        if size is not None:
            _truncate_open(node, size)
        is_symlink = node.kind == stat.S_IFLNK
        _apply(state, _pinned(node.held), os.fstat(node.held), change, is_symlink=is_symlink)
        return getattr_(state, node)
    place, name, status = locate(state, node)
    with place.pinned(name) as pinned:
        if size is not None:
            fd = place.open_file(name, os.O_WRONLY)
            try:
                os.ftruncate(fd, size)
            finally:
                os.close(fd)
        is_symlink = stat.S_ISLNK(status.st_mode)
        _apply(state, pinned, place.stat(name), change, is_symlink=is_symlink)
    return getattr_(state, node)


def _truncate_open(node: FileNode, size: int) -> None:
    if node.fd_writable:
        os.ftruncate(node.fd, size)
        return
    fd = reopen(node.held, os.O_WRONLY)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def _pinned(fd: int) -> bytes:
    return b"/proc/self/fd/%d" % fd


def _apply(
    state: State, path: bytes, status: os.stat_result, change: Change, *, is_symlink: bool = False
) -> None:
    """Change owner, then mode, then times: a change of owner may clear mode bits.

    A request to change nothing is a chown(2) to the present owner: that counts as a change, too.
    """
    if change.uid is not None or change.gid is not None or change == _NOTHING:
        state.set_owner(
            path,
            -1 if change.uid is None else change.uid,
            -1 if change.gid is None else change.gid,
        )
    if change.mode is not None:
        if is_symlink:
            raise OSError(EOPNOTSUPP, "a symbolic link has no mode")
        os.chmod(path, stat.S_IMODE(change.mode))
    if change.atime_ns is not None or change.mtime_ns is not None:
        os.utime(
            path,
            ns=(
                status.st_atime_ns if change.atime_ns is None else change.atime_ns,
                status.st_mtime_ns if change.mtime_ns is None else change.mtime_ns,
            ),
        )


def _changed(status: os.stat_result | None, change: Change) -> os.stat_result:
    """Return the attributes of an object that exists in memory only, with the change made."""
    if status is None:
        raise OSError(ENOENT, "the object has been removed")
    fields = list(status)
    extra = {key: getattr(status, key) for key in _EXTRA}
    if change.mode is not None:
        fields[0] = stat.S_IFMT(status.st_mode) | stat.S_IMODE(change.mode)
    if change.uid is not None:
        fields[4] = change.uid
    if change.gid is not None:
        fields[5] = change.gid
    for index, key, value in ((7, "st_atime", change.atime_ns), (8, "st_mtime", change.mtime_ns)):
        if value is not None:
            fields[index] = value // 1_000_000_000
            extra[key + "_ns"] = value
            extra[key] = value / 1e9
    return os.stat_result(fields, extra)


_EXTRA: Final = (
    "st_atime",
    "st_mtime",
    "st_ctime",
    "st_atime_ns",
    "st_mtime_ns",
    "st_ctime_ns",
    "st_blksize",
    "st_blocks",
    "st_rdev",
)


def _check_visible(state: State, key: bytes) -> None:
    if is_mark_xattr(key):
        raise OSError(ENODATA, "a private mark of a union filesystem", key)
    # What is not enforced is not shown either (aufs.md 5.3).
    if key.startswith(ACL_PREFIX) and not state.rules.acl:
        raise OSError(EOPNOTSUPP, "POSIX ACLs are not enabled", key)


def _reach(state: State, node: FileNode | DirectoryNode, use: Callable[[bytes], T]) -> T:
    """Call ``use`` with a path that leads to exactly the object that answers for a node."""
    if isinstance(node, DirectoryNode):
        if node.removed:
            raise OSError(ENODATA, "the directory has been removed")
        directory = state.directories.get(node, node.copies[0])
        if isinstance(directory, MountedOver):
            raise OSError(ENODATA, "something is mounted on the directory, on its branch")
        return use(_pinned(directory.fd))
    if node.held >= 0:
        return use(_pinned(node.held))
    if node.last is not None:
        raise OSError(ENODATA, "the file has been removed")
    directory, name, _ = locate(state, node)
    with directory.pinned(name) as path:
        return use(path)


def owner_of(
    state: State, node: FileNode | DirectoryNode, status: os.stat_result
) -> tuple[int, int]:
    """Return owner and group as stored, ``NO_ID`` in place of one that has no id here.

    Args:
        status: the attributes of the object that answers.

    Raises:
        OSError: it cannot be found out.
    """
    if is_suspect(status):
        try:
            found = _reach(state, node, is_strangers)
        except OSError as error:
            if error.errno not in (ENODATA, ENOENT, ESTALE):
                raise
            found = True  # removed meanwhile
        if found:
            return without_ids(status)
    return status.st_uid, status.st_gid


def list_xattrs(state: State, node: FileNode | DirectoryNode, *, privileged: bool) -> list[bytes]:
    """List the extended attributes of the object that answers.

    Args:
        privileged: the caller is root and may see ``trusted.*``.
    """
    if node.last is not None and (isinstance(node, DirectoryNode) or node.held < 0):
        return []  # removed: nothing leads to what it had
    keys: list[str] = []
    _reach(state, node, lambda path: keys.extend(os.listxattr(path)))
    names = map(os.fsencode, keys)
    return [
        name
        for name in names
        if (state.rules.acl or not name.startswith(ACL_PREFIX))
        and not is_mark_xattr(name)
        and (privileged or not name.startswith(b"trusted."))
    ]


def get_xattr(state: State, node: FileNode | DirectoryNode, key: bytes) -> bytes:
    """Read an extended attribute of the object that answers."""
    _check_visible(state, key)
    value = b""

    def read(path: bytes) -> None:
        nonlocal value
        value = os.getxattr(path, key)

    _reach(state, node, read)
    return value


def set_xattr(
    state: State, node: FileNode | DirectoryNode, key: bytes, value: bytes
) -> Operation[None]:
    """Set an extended attribute, after copy-up.

    Raises:
        OSError: ``EPERM`` for a private mark: nobody inside may forge one. ``EOPNOTSUPP`` for a
            name of no class; nothing is copied up for either.
    """
    if is_mark_xattr(key):
        raise OSError(EPERM, "a private mark of a union filesystem", key)
    if not key.startswith(_CLASSES):
        raise OSError(EOPNOTSUPP, "extended attributes have a class", key)
    _check_visible(state, key)
    yield from _bring_up(state, node)
    _reach(state, node, lambda path: os.setxattr(path, key, value))


def remove_xattr(state: State, node: FileNode | DirectoryNode, key: bytes) -> Operation[None]:
    """Remove an extended attribute, after copy-up.

    Raises:
        OSError: ``ENODATA`` when it is not there; nothing is copied up then. An ACL that is not
            there is as good as removed.
    """
    _check_visible(state, key)
    try:
        _reach(state, node, lambda path: os.getxattr(path, key))
    except OSError as error:
        if error.errno == ENODATA and key.startswith(ACL_PREFIX):
            return
        raise
    yield from _bring_up(state, node)
    _reach(state, node, lambda path: os.removexattr(path, key))


def _bring_up(state: State, node: FileNode | DirectoryNode) -> Operation[None]:
    if node.last is not None:
        raise OSError(ENOENT, "the object has been removed")
    if isinstance(node, DirectoryNode):
        copy_up_directory(state, node, state.target(node.branch))
    else:
        yield from copy_up(state, node)
