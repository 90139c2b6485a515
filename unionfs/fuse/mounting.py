"""Making the mount and taking it away again.

Who may call mount(2) does so: root, and root of a user namespace. The daemon opens ``/dev/fuse``
itself then, so a refusal has an errno and the source shows in the mount table as it was given.

A plain user has to ask ``fusermount3``, a small set-user-id program that comes with FUSE. It checks
that the mount point is the user's to cover, mounts with ``nosuid,nodev`` whatever was asked for,
and hands the FUSE descriptor over through a socket whose number it finds in its environment.
Unmounting goes the same way, or by umount(8).
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import stat
import subprocess
from typing import TYPE_CHECKING, Final

from unionfs import syscalls
from unionfs.errors import ReportedError
from unionfs.mount_table import mount_table, mounted_device
from unionfs.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unionfs.union.options import MountOptions

TYPE: Final = b"fuse.aufs"
DEVICE: Final = "/dev/fuse"
_HELPER: Final = "fusermount3"
_HELPER_CONFIGURATION: Final = "/etc/fuse.conf"

log = logging.getLogger(__name__)


class MountError(ReportedError):
    """The mount could not be made."""


class MountPoint:
    """A directory, and the mount of ours on it.

    Args:
        path: absolute, without symbolic links.
        helper: path of ``fusermount3`` for a user who may not call mount(2); else None.
    """

    def __init__(self, path: bytes, helper: str | None = None) -> None:
        self.path = path
        self.helper = helper
        self._device: str | None = None  # of our mount in the mount table; "" if not found there

    def __str__(self) -> str:
        return printable(self.path)

    def mount(
        self, source: bytes, options: MountOptions, mode: int, warn: Callable[[str], None]
    ) -> int:
        """Mount, and return the FUSE descriptor.

        Args:
            source: what the mount table shows as the source, verbatim.
            options: flags of the mount.
            mode: file type and permissions of the root directory.
            warn: called with a line about each option that had to be dropped.

        Raises:
            MountError: the mount was refused.
        """
        if self.helper is not None:
            fd = self._ask_helper(self.helper, source, options, warn)
        else:
            fd = self._mount(source, options, mode)
        self._device = ""
        try:
            self._device = mounted_device(self.path)
        except OSError as error:
            log.warning("the mount table cannot be read: %s", error)
        return fd

    def _mount(self, source: bytes, options: MountOptions, mode: int) -> int:
        try:
            device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "?")
            raise MountError(
                error.errno or errno.EIO,
                f"{DEVICE} cannot be opened ({name}): load the fuse module, check its permissions",
            ) from error
        data = b"fd=%d,rootmode=%o,user_id=%d,group_id=%d,default_permissions" % (
            device,
            stat.S_IFMT(mode),
            os.geteuid(),
            os.getegid(),
        )
        if options.allow_other is not False:
            data += b",allow_other"
        flags = 0
        for flag, _ in _flags(options):
            flags |= flag
        try:
            syscalls.mount(source, self.path, TYPE, flags, data)
        except OSError as error:
            os.close(device)
            name = errno.errorcode.get(error.errno or 0, "?")
            advice = {
                "EPERM": "mounting needs root, or root in a user namespace (unshare -Urm)",
                "ENODEV": "this kernel has no FUSE: load the fuse module",
                "ENOTDIR": "the mount point must be a directory",
                "ENOENT": "create the mount point first",
            }.get(name, os.strerror(error.errno or 0))
            raise MountError(
                error.errno or errno.EIO, f"{self} cannot be mounted ({name}): {advice}"
            ) from error
        return device

    def _ask_helper(
        self,
        helper: str,
        source: bytes,
        options: MountOptions,
        warn: Callable[[str], None],
    ) -> int:
        words = [
            b"default_permissions",
            b"fsname=" + _escaped(source),
            b"subtype=" + TYPE.partition(b".")[2],
            *(word for _, word in _flags(options) if word),
        ]
        if options.allow_other is not False:
            if _others_allowed():
                words.append(b"allow_other")
            elif options.allow_other:
                warn(
                    f"allow_other is dropped: the administrator has to set user_allow_other in "
                    f"{_HELPER_CONFIGURATION} first"
                )
        ours, theirs = socket.socketpair()
        with ours, theirs:
            done = _run([helper, "-o", b",".join(words), "--", self.path], passed=theirs.fileno())
            theirs.close()
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
        if done.returncode != 0 or not descriptors:
            for descriptor in descriptors:
                os.close(descriptor)
            raise MountError(
                errno.EPERM, f"{self} cannot be mounted (EPERM): {_last_words(done.stderr)}"
            )
        return descriptors[0]

    def unmount(self) -> None:
        """Unmount.

        Raises:
            OSError: ``EBUSY`` when the mount is in use, ``EPERM`` when it is somebody else's.
        """
        self._unmount(lazily=False)

    def detach(self) -> None:
        """Take our mount out of the tree, if it is the one that is visible at its mount point."""
        if not self.is_mounted():
            return
        try:
            self._unmount(lazily=True)
        except OSError as error:
            log.warning("%s cannot be unmounted: %s", self, error)

    def _unmount(self, *, lazily: bool) -> None:
        if self.helper is None:
            syscalls.umount(self.path, syscalls.MNT_DETACH if lazily else 0)
            return
        # The helper believes /etc/mtab, which a system that never booted does not have. umount(8)
        # believes the kernel, and lets users unmount what is theirs as well.
        helped = _run([self.helper, "-u", *(["-z"] if lazily else []), "--", self.path])
        if helped.returncode == 0 or not self.is_mounted():
            return
        done = _run(["umount", "-i", *(["-l"] if lazily else []), "--", self.path])
        if done.returncode != 0 and self.is_mounted():
            # Both have words only, those of the kernel.
            number = errno.EBUSY if b"busy" in helped.stderr + done.stderr else errno.EPERM
            raise OSError(number, _last_words(helped.stderr))

    def is_mounted(self) -> bool:
        """Tell whether the topmost mount here is ours; it need not answer for that."""
        if not self._device:
            return self._device is not None
        return mounted_device(self.path) == self._device

    def is_attached(self) -> bool:
        """Tell whether our mount is in the tree at all, here or elsewhere, covered or not."""
        if not self._device:
            return self._device is not None
        # Twice: old kernels skip a line when somebody unmounts while the table is read.
        return any(line.device == self._device for _ in range(2) for line in mount_table())

    def is_dead(self) -> bool:
        """Tell whether a mount without a server is here."""
        try:
            os.stat(self.path)
        except OSError as error:
            return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        return False


def find_helper() -> str | None:
    """Return the path of ``fusermount3``, or None where it is not installed or of no use."""
    helper = shutil.which(_HELPER)
    if helper is None or not os.stat(helper).st_mode & stat.S_ISUID:
        return None
    return helper


def _others_allowed() -> bool:
    """Tell whether the administrator lets plain users open their mounts to others."""
    try:
        with open(_HELPER_CONFIGURATION, encoding="utf-8", errors="replace") as lines:
            # As the helper reads it: a line without an end is not taken.
            return any(
                line.endswith("\n") and line.partition("#")[0].strip() == "user_allow_other"
                for line in lines
            )
    except OSError:
        return False


def _flags(options: MountOptions) -> list[tuple[int, bytes]]:
    """Return the flags that are wanted: for mount(2), and as the words of the helper."""
    return [
        (flag, word)
        for wanted, flag, word in (
            (options.read_only, syscalls.MS_RDONLY, b"ro"),
            (not options.suid, syscalls.MS_NOSUID, b"nosuid"),
            (not options.dev, syscalls.MS_NODEV, b"nodev"),
            (not options.exec, syscalls.MS_NOEXEC, b"noexec"),
            (options.noatime, syscalls.MS_NOATIME, b"noatime"),
            # Not a word of Debian's helper. A union keeps no access times of its own anyway.
            (options.nodiratime, syscalls.MS_NODIRATIME, b""),
            (options.sync, syscalls.MS_SYNCHRONOUS, b"sync"),
            (options.dirsync, syscalls.MS_DIRSYNC, b"dirsync"),
        )
        if wanted
    ]


def _run(command: Sequence[str | bytes], passed: int = -1) -> subprocess.CompletedProcess[bytes]:
    """Run the helper, or what does its work, and keep what it says.

    Args:
        passed: a descriptor that it is to find by the variable ``_FUSE_COMMFD``.
    """
    variables = {"LC_ALL": "C"}
    if passed >= 0:
        variables["_FUSE_COMMFD"] = str(passed)
    return subprocess.run(
        command,
        pass_fds=[passed] if passed >= 0 else [],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )


def _escaped(value: bytes) -> bytes:
    r"""Protect a value in an option list: ``\`` before what would end it."""
    return value.replace(b"\\", b"\\\\").replace(b",", b"\\,")


def _last_words(output: bytes) -> str:
    """Return the last line that the helper said, without its name."""
    lines = output.decode(errors="replace").strip().splitlines() or ["it did not say why"]
    return printable(lines[-1].rpartition(f"{_HELPER}: ")[2])
