"""The live mount as text files, where scripts look for it.

aufs shows each mount as a folder in sysfs, and a whole field of scripts reads it with
``cat /sys/fs/aufs/si_*/br[0-9]*``.  A daemon cannot add to sysfs, so the same files stand in

    /run/fuse-aufs/si_<hex>/              for root
    $XDG_RUNTIME_DIR/fuse-aufs/si_<hex>/  for everybody else

    brN         PATH=perm+attrs of branch N, with octal escapes
    bridN       its id, a decimal number that stays with the branch
    xi_path     where the inode number map would be; empty with noxino
    options     what aufs would show in /proc/mounts
    mount_options                      what ``fuse-aufs -o`` takes to make the same mount
    mountpoint  source  pid  device    of the mount, one line each

A folder appears complete (it is filled under another name, then renamed) and goes away with the
daemon.  As long as the daemon lives it holds a lock on its ``pid`` file.  So whoever can take the
lock has found the remains of a daemon that was killed, and may remove them: unlike the process
number, the lock cannot belong to somebody else by now, and it works across PID namespaces.

The files inform, nothing depends on them: a folder that cannot be made is a warning.

(aufs.md 1.5; design: "Names".)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from unionfs.errors import ReportedError
from unionfs.mount_table import mounted_device
from unionfs.text import octal_escape, octal_unescape, printable
from unionfs.union.options import BranchSpec, MountOptions
from unionfs.union.printing import kernel_style_string, option_string

# Read first when set.  For a service manager with directories of its own, and for tests, which
# must not touch the machine's /run.
OVERRIDE: Final = "FUSE_AUFS_STATE"

_FIRST_BRANCH_ID: Final = 64
_PREFIX: Final = "si_"
_UNFINISHED: Final = ".new_"
_GRACE: Final = 60.0  # seconds after which an unfinished folder counts as left behind
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_NOFOLLOW | os.O_CLOEXEC


class StateError(ReportedError):
    """The state folder cannot be made."""


def base_candidates() -> list[str]:
    """Return the folders that may hold the state of this user's mounts, best first.

    Root inside a user namespace usually may not write /run, therefore the second one.
    """
    override = os.environ.get(OVERRIDE)
    if override:
        return [os.path.abspath(override)]
    candidates = ["/run/fuse-aufs"] if os.geteuid() == 0 else []
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime):
        candidates.append(os.path.join(runtime, "fuse-aufs"))
    return candidates


def _open_base(path: str, *, create: bool) -> int:
    """Open one candidate.  What another user could have put in our way is refused."""
    parent, name = os.path.split(path)
    parent_fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _refuse_foreign(parent_fd, parent, {0, os.geteuid()})
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=parent_fd)
        fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
    finally:
        os.close(parent_fd)
    try:
        _refuse_foreign(fd, path, {os.geteuid()})
    except OSError:
        os.close(fd)
        raise
    return fd


def _refuse_foreign(fd: int, path: str, owners: set[int]) -> None:
    status = os.fstat(fd)
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
    if status.st_uid not in owners or shared:
        raise PermissionError(errno.EPERM, "others could change it", path)


@dataclass(frozen=True, slots=True)
class MountState:
    """What a live mount says about itself.

    si: its id, hexadecimal.  device: "major:minor" as in /proc/self/mountinfo, "" when unknown.
    options: as in /proc/mounts.  mount_options: as for ``-o``.
    branches: paths and permissions as printed in the brN files.
    """

    si: str
    mountpoint: bytes
    source: bytes
    device: str
    pid: int
    options: str
    mount_options: bytes
    branches: tuple[tuple[bytes, str], ...]


class StateFolder:
    """The folder of one live mount, owned by its daemon."""

    def __init__(self, base_fd: int, base: str, si: str, lock_fd: int) -> None:
        self._base_fd = base_fd
        self._lock_fd = lock_fd
        self._name = _PREFIX + si
        self.si = si
        self.path = os.path.join(base, self._name)

    @classmethod
    def create(
        cls,
        mountpoint: bytes,
        source: bytes,
        options: MountOptions,
        branches: Sequence[BranchSpec],
    ) -> StateFolder:
        """Make the folder; call it in the daemon, when the mount answers.

        mountpoint: absolute.  branches: with the permissions they were opened with.
        Sweeps what dead daemons left.  Raises StateError.
        """
        failure = OSError(errno.ENOENT, "XDG_RUNTIME_DIR is not set")
        for base in base_candidates():
            try:
                base_fd = _open_base(base, create=True)
            except OSError as error:
                failure = error
                continue
            try:
                _sweep(base_fd)
                si = secrets.token_hex(8)
                contents = _contents(si, mountpoint, source, options, branches)
                return cls._fill(base_fd, base, si, contents)
            except OSError as error:
                os.close(base_fd)
                failure = error
        symbol = errno.errorcode.get(failure.errno or 0, "EIO")
        raise StateError(
            failure.errno or errno.EIO,
            f"no state folder for this mount: {failure.strerror} ({symbol}): "
            "aufsctl will not find it",
        ) from failure

    @classmethod
    def _fill(cls, base_fd: int, base: str, si: str, contents: dict[str, bytes]) -> StateFolder:
        unfinished = _UNFINISHED + si
        os.mkdir(unfinished, 0o700, dir_fd=base_fd)
        lock_fd = -1
        try:
            folder_fd = os.open(unfinished, _DIRECTORY, dir_fd=base_fd)
            try:
                lock_fd = _write(folder_fd, "pid", b"%d\n" % os.getpid())
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for name, text in contents.items():
                    os.close(_write(folder_fd, name, text))
            finally:
                os.close(folder_fd)
            os.rename(unfinished, _PREFIX + si, src_dir_fd=base_fd, dst_dir_fd=base_fd)
        except OSError:
            if lock_fd >= 0:
                os.close(lock_fd)
            _remove(base_fd, unfinished)
            raise
        return cls(base_fd, base, si, lock_fd)

    def remove(self) -> None:
        """Take the folder away; the mount is gone.  Never fails."""
        _remove(self._base_fd, self._name)
        os.close(self._lock_fd)
        os.close(self._base_fd)


def _contents(
    si: str,
    mountpoint: bytes,
    source: bytes,
    options: MountOptions,
    branches: Sequence[BranchSpec],
) -> dict[str, bytes]:
    """Return name and text of every file but ``pid``."""
    files = {
        "mountpoint": octal_escape(mountpoint) + b"\n",
        "source": octal_escape(source) + b"\n",
        "device": mounted_device(mountpoint).encode() + b"\n",
        "mount_options": octal_escape(option_string(options)) + b"\n",
        "options": octal_escape(kernel_style_string(options, si)) + b"\n",
        "xi_path": octal_escape(_xino_path(options, branches)) + b"\n",
    }
    for index, branch in enumerate(branches):
        files[f"br{index}"] = b"%s=%s\n" % (
            octal_escape(branch.path),
            str(branch.permission or "").encode(),
        )
        files[f"brid{index}"] = b"%d\n" % (_FIRST_BRANCH_ID + index)
    return files


def _xino_path(options: MountOptions, branches: Sequence[BranchSpec]) -> bytes:
    if options.noxino:
        return b""
    if options.xino is not None:
        return options.xino
    for branch in branches:
        if branch.permission is not None and branch.permission.writable:
            return branch.path + b"/.aufs.xino"
    return b"/tmp/.aufs.xino"


# --- reading ------------------------------------------------------------------------------------


def live_mounts() -> list[MountState]:
    """Return the mounts whose state this user can read and whose daemon lives, by mount point."""
    found: list[MountState] = []
    for base in base_candidates():
        try:
            base_fd = _open_base(base, create=False)
        except OSError:
            continue
        try:
            for name in os.listdir(base_fd):
                if name.startswith(_PREFIX):
                    with contextlib.suppress(OSError, ValueError):
                        found.append(_read(base_fd, name))
        finally:
            os.close(base_fd)
    return sorted(found, key=lambda state: (state.mountpoint, state.si))


def _read(base_fd: int, name: str) -> MountState:
    folder_fd = os.open(name, _DIRECTORY, dir_fd=base_fd)
    try:
        if not _is_locked(folder_fd):
            raise FileNotFoundError(errno.ENOENT, "its daemon is gone", name)

        def line(file: str) -> bytes:
            fd = os.open(file, os.O_RDONLY | _FILE, dir_fd=folder_fd)
            with open(fd, "rb") as opened:
                return opened.read().removesuffix(b"\n")

        branches = []
        for index in range(sum(1 for n in os.listdir(folder_fd) if n.startswith("brid"))):
            path, _, permission = line(f"br{index}").rpartition(b"=")
            branches.append((octal_unescape(path), permission.decode()))
        return MountState(
            si=name.removeprefix(_PREFIX),
            mountpoint=octal_unescape(line("mountpoint")),
            source=octal_unescape(line("source")),
            device=line("device").decode(),
            pid=int(line("pid")),
            options=printable(line("options")),
            mount_options=octal_unescape(line("mount_options")),
            branches=tuple(branches),
        )
    finally:
        os.close(folder_fd)


def _is_locked(folder_fd: int) -> bool:
    fd = os.open("pid", os.O_RDONLY | _FILE, dir_fd=folder_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


# --- sweeping -----------------------------------------------------------------------------------


def _sweep(base_fd: int) -> None:
    """Remove the folders of daemons that ended without removing theirs."""
    for name in os.listdir(base_fd):
        if name.startswith((_PREFIX, _UNFINISHED)):
            with contextlib.suppress(OSError):
                if _abandoned(base_fd, name):
                    _remove(base_fd, name)


def _abandoned(base_fd: int, name: str) -> bool:
    folder_fd = os.open(name, _DIRECTORY, dir_fd=base_fd)
    try:
        # Between its mkdir and its lock a new folder looks abandoned.
        if name.startswith(_UNFINISHED) and time.time() - os.fstat(folder_fd).st_mtime < _GRACE:
            return False
        try:
            return not _is_locked(folder_fd)
        except FileNotFoundError:
            return True
    finally:
        os.close(folder_fd)


def _write(folder_fd: int, name: str, text: bytes) -> int:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=folder_fd)
    try:
        os.write(fd, text)
    except OSError:
        os.close(fd)
        raise
    return fd


def _remove(base_fd: int, name: str) -> None:
    with contextlib.suppress(OSError):
        folder_fd = os.open(name, _DIRECTORY, dir_fd=base_fd)
        try:
            for file in os.listdir(folder_fd):
                with contextlib.suppress(OSError):
                    os.unlink(file, dir_fd=folder_fd)
        finally:
            os.close(folder_fd)
        os.rmdir(name, dir_fd=base_fd)
