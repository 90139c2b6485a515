"""Opening the branches of a union: every check that can be made before anything is mounted.

(Specification: aufs.md 1.1, 1.2 and 1.4. The wording of the errors is for people: one line that
names the branch and says what to do.)
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOSPC, ENOTDIR, EROFS, errorcode
from typing import TYPE_CHECKING, Final, Protocol

from unionfs import syscalls
from unionfs.branch.branch import Branch, WritableBranch
from unionfs.branch.errors import BranchError
from unionfs.branch.forms import NAME_LIMIT
from unionfs.branch.lock import lock
from unionfs.branch.permission import Access, Permission

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Filesystems that are read-only by nature: a branch on one is `rr` unless it says otherwise.
_NATIVELY_READ_ONLY: Final = {
    0x73717368: "squashfs",
    0x9660: "iso9660",
    0x28CD3D45: "cramfs",
    0x7275: "romfs",
    0xE0F5E1E2: "erofs",
}
_NO_BRANCH: Final = {
    0x9FA0: "proc",
    0x62656572: "sysfs",
    0x62656570: "configfs",
    0x64626720: "debugfs",
    0x73636673: "securityfs",
    0x61756673: "aufs",
    0xF15F: "ecryptfs",
}
_FUSE: Final = 0x65735546


class Specification(Protocol):
    """What the user said about one branch; ``permission`` is None when nothing was said."""

    @property
    def path(self) -> bytes:
        """Where the branch is."""

    @property
    def permission(self) -> Permission | None:
        """What it was said to be."""


def open_branches(
    specifications: Sequence[Specification],
    *,
    read_only: bool = False,
    exclusive: bool = True,
    ask: bool = False,
    foreign: bool = False,
    limit: int = 127,
    warn: Callable[[str], None],
) -> list[Branch]:
    """Open and check all branches, top first.

    Args:
        specifications: path and permission of each.
        read_only: the union is mounted ``ro``: its top branch does not default to ``rw``.
        exclusive: keep every other union off the writable branches.
        ask: ask a union that was unmounted while it was in use to give its branch up.
        foreign: honour whiteouts and opaque marks of other union filesystems too.
        limit: the largest number of branches.
        warn: receives one line for each thing the user should know.

    Raises:
        BranchError: when one cannot be used. None stays open then.
    """
    if not specifications:
        raise BranchError(EINVAL, "no branch is given (EINVAL): name them with -o br:TOP=rw:LOWER")
    if len(specifications) > limit:
        raise BranchError(
            ENOSPC, f"{len(specifications)} branches are more than the limit of {limit} (ENOSPC)"
        )
    branches: list[Branch] = []
    try:
        for index, specification in enumerate(specifications):
            branches.append(
                _open(
                    specification,
                    index,
                    read_only=read_only,
                    exclusive=exclusive,
                    ask=ask,
                    foreign=foreign,
                )
            )
        _refuse_second_writable(branches)
        _refuse_overlap(branches)
    except BaseException:
        for branch in branches:
            branch.close()
        raise
    if not read_only and not branches[0].writable:
        rest = any(branch.writable for branch in branches)
        reach = "what shows on it cannot be changed" if rest else "the union can only be read"
        warn(f"the top branch {branches[0]} is not writable: {reach}")
    return branches


def _open(
    specification: Specification,
    index: int,
    *,
    read_only: bool,
    exclusive: bool,
    ask: bool,
    foreign: bool,
) -> Branch:
    path = specification.path
    shown = os.fsdecode(path)
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError as error:
        raise BranchError(
            ENOTDIR, f"branch {shown} is not a directory (ENOTDIR): a branch is a directory"
        ) from error
    except OSError as error:
        name = errorcode.get(error.errno or 0, "?")
        advice = {
            "ENOENT": "create it or correct the path",
            "EACCES": "search permission is needed on every directory above it",
        }.get(name, os.strerror(error.errno or 0))
        raise BranchError(
            error.errno or EINVAL, f"branch {shown} cannot be opened ({name}): {advice}"
        ) from error
    lock_fd = -1
    try:
        magic = syscalls.filesystem_magic(fd)
        if magic in _NO_BRANCH:
            raise BranchError(
                EINVAL,
                f"branch {shown} lies on {_NO_BRANCH[magic]} (EINVAL): use a real directory",
            )
        permission = specification.permission or _default(index, magic, read_only=read_only)
        if permission.writable:
            _check_writable(fd, shown, magic)
            if exclusive:
                lock_fd = lock(fd, shown, ask=ask)
        fd, walled = _wall_off(fd, writable=permission.writable)
        if permission.writable:
            return WritableBranch(
                path,
                index,
                permission,
                fd,
                walled=walled,
                magic=magic,
                foreign=foreign,
                lock_fd=lock_fd,
            )
        return Branch(path, index, permission, fd, walled=walled, magic=magic, foreign=foreign)
    except BaseException:
        os.close(fd)
        if lock_fd >= 0:
            os.close(lock_fd)
        raise


def _default(index: int, magic: int, *, read_only: bool) -> Permission:
    """Return the permission of a branch about which nothing was said (aufs.md 1.2)."""
    if magic in _NATIVELY_READ_ONLY:
        return Permission(Access.RR, frozenset())
    if index == 0 and not read_only:
        return Permission(Access.RW, frozenset())
    return Permission(Access.RO, frozenset())


def _check_writable(fd: int, shown: str, magic: int) -> None:
    status = os.fstatvfs(fd)
    if status.f_flag & os.ST_RDONLY:
        raise BranchError(
            EROFS,
            f"branch {shown} is rw but its filesystem is mounted read-only (EROFS): use {shown}=ro",
        )
    if magic == _FUSE and status.f_namemax == NAME_LIMIT:
        raise BranchError(
            EINVAL,
            f"branch {shown} is rw but lies on another union (EINVAL): unmount that one first, or "
            f"use {shown}=ro",
        )
    if status.f_namemax < 255:
        raise BranchError(
            EINVAL,
            f"branch {shown} is rw but its filesystem allows names of only {status.f_namemax} "
            "bytes (EINVAL): whiteouts need 255",
        )


def _wall_off(fd: int, *, writable: bool) -> tuple[int, bool]:
    """Return a descriptor of the branch without the mounts below it, and whether that worked.

    Where it does, the kernel also sees to it that nothing is written to a read-only branch, not
    even the times of access of what is read there.
    """
    try:
        clone = syscalls.open_tree_clone(fd)
    except OSError:
        return fd, False
    os.close(fd)
    if not writable:
        try:
            syscalls.forbid_writing(clone)
        except OSError:
            pass  # an old kernel, or locked flags: then only times of access can change
    return clone, True


def _refuse_second_writable(branches: Sequence[Branch]) -> None:
    writable = [branch for branch in branches if branch.writable]
    if len(writable) > 1:
        raise BranchError(
            EINVAL,
            f"branches {writable[0]} and {writable[1]} are both writable, which is not yet "
            "supported (EINVAL): make all but one of them ro",
        )


def _refuse_overlap(branches: Sequence[Branch]) -> None:
    """Refuse a branch that is, contains or lies in another on the same filesystem (aufs.md 1.1)."""
    tops: dict[tuple[int, int], Branch] = {}
    for branch in branches:
        status = os.fstat(branch.root.fd)
        key = (status.st_dev, status.st_ino)
        if key in tops:
            raise BranchError(
                EINVAL,
                f"branches {tops[key]} and {branch} are the same directory (EINVAL): name it once",
            )
        tops[key] = branch
    seen: set[tuple[int, int]] = set()
    for branch in branches:
        # The walk upwards starts from the path: a walled-off root has nothing above it.
        fd = os.open(branch.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            device, last = status.st_dev, status.st_ino
            while True:
                above = os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = above
                status = os.fstat(fd)
                key = (status.st_dev, status.st_ino)
                if status.st_dev != device or status.st_ino == last:
                    break
                last = status.st_ino
                if key in tops:
                    raise BranchError(
                        EINVAL,
                        f"branch {branch} lies inside branch {tops[key]} (EINVAL): branches must "
                        "not overlap",
                    )
                if key in seen:
                    break
                seen.add(key)
        finally:
            os.close(fd)
