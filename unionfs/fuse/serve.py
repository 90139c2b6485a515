"""Serving one mount from beginning to end.

The daemon opens ``/dev/fuse`` and calls mount(2) itself, so a refusal has an errno and the source
shows in the mount table as it was given; libfuse then finds the ready descriptor as ``/dev/fd/N``.
The mount is reported as ready when it has answered a request. It ends when somebody unmounts it, or
SIGTERM does.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
import stat
from typing import TYPE_CHECKING, Final

import pyfuse3
import trio

from unionfs import syscalls
from unionfs.fuse.eager import take_requests_eagerly
from unionfs.fuse.operations import UnionOperations
from unionfs.text import octal_unescape, printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from unionfs.union.core import Job, Union
    from unionfs.union.options import MountOptions

_TYPE: Final = b"fuse.aufs"
_UNMOUNT_TRIES: Final = 5
_UNMOUNT_PAUSE_S: Final = 0.1

log = logging.getLogger(__name__)


class MountError(OSError):
    """The mount could not be made; its text is one line for the user."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.text = text

    def __str__(self) -> str:
        return self.text


def serve(
    union: Union,
    mountpoint: bytes,
    source: bytes,
    options: MountOptions,
    *,
    on_ready: Callable[[], None],
    debug: bool = False,
) -> None:
    """Mount a union and serve it until it is unmounted.

    Args:
        union: what to serve; closed when this returns.
        mountpoint: absolute path of a directory.
        source: what the mount table shows as the source, verbatim.
        options: mount flags and caching.
        on_ready: called once the mount answers.
        debug: log every request that fails.

    Raises:
        MountError: the mount was refused, or never answered.
    """
    try:
        device = _mount(union, mountpoint, source, options)
        try:
            union.prepare()
            trio.run(_serve, union, mountpoint, options, device, on_ready)
        except BaseException as error:  # noqa: BLE001 - raised again, in a better form
            _detach(mountpoint)  # no dead mount may stay
            raise _first(error) from None
        if _is_dead(mountpoint):
            log.error("the connection to the kernel was aborted: %s ends", printable(mountpoint))
            _detach(mountpoint)
    finally:
        union.close()


def _first(error: BaseException) -> BaseException:
    """Return the first of several errors: the others are its consequences."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _mount(union: Union, mountpoint: bytes, source: bytes, options: MountOptions) -> int:
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        raise MountError(
            error.errno or errno.EIO,
            f"/dev/fuse cannot be opened ({name}): load the fuse module, check its permissions",
        ) from error
    flags = 0
    for wanted, flag in (
        (options.read_only, syscalls.MS_RDONLY),
        (not options.suid, syscalls.MS_NOSUID),
        (not options.dev, syscalls.MS_NODEV),
        (not options.exec, syscalls.MS_NOEXEC),
        (options.noatime, syscalls.MS_NOATIME),
        (options.nodiratime, syscalls.MS_NODIRATIME),
        (options.sync, syscalls.MS_SYNCHRONOUS),
        (options.dirsync, syscalls.MS_DIRSYNC),
    ):
        if wanted:
            flags |= flag
    root_mode = stat.S_IFMT(union.root.copies[0].branch.root.status().st_mode)
    data = b"fd=%d,rootmode=%o,user_id=%d,group_id=%d,default_permissions" % (
        device,
        root_mode,
        os.geteuid(),
        os.getegid(),
    )
    if options.allow_other:
        data += b",allow_other"
    try:
        syscalls.mount(source, mountpoint, _TYPE, flags, data)
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
            error.errno or errno.EIO,
            f"{printable(mountpoint)} cannot be mounted ({name}): {advice}",
        ) from error
    return device


async def _serve(
    union: Union,
    mountpoint: bytes,
    options: MountOptions,
    device: int,
    on_ready: Callable[[], None],
) -> None:
    # Signals first: from the moment the mount answers, somebody may want it to end.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        await _serve_requests(union, mountpoint, options, device, on_ready, signals)


async def _serve_requests(
    union: Union,
    mountpoint: bytes,
    options: MountOptions,
    device: int,
    on_ready: Callable[[], None],
    signals: AsyncIterator[int],
) -> None:
    async with trio.open_nursery() as background:

        def start(job: Job) -> None:
            background.start_soon(_run_job, job)

        operations = UnionOperations(
            union, trusting=options.udba == "none", fsync=options.fsync, background=start
        )
        pyfuse3.init(operations, f"/dev/fd/{device}", set())
        turnstile = take_requests_eagerly(device)
        operations.before_waiting = turnstile.let_another_in
        turnstile.on_gone = union.cancel
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_unmount_on_signal, mountpoint, signals)
                nursery.start_soon(_report_when_ready, mountpoint, on_ready)
                # Objects made so far stay: the collector need not look at them again.
                gc.collect()
                gc.freeze()
                await pyfuse3.main()
                union.cancel()
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=False)


async def _run_job(job: Job) -> None:
    await trio.to_thread.run_sync(job.run)


async def _report_when_ready(mountpoint: bytes, on_ready: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
    on_ready()


async def _unmount_on_signal(mountpoint: bytes, signals: AsyncIterator[int]) -> None:
    async for _ in signals:
        await _unmount(mountpoint)


async def _unmount(mountpoint: bytes) -> None:
    """Unmount; when the mount stays in use, take it out of the tree and let the users finish."""
    for _ in range(_UNMOUNT_TRIES):
        if not is_mounted(mountpoint):
            log.warning("another mount lies on %s: unmount that one first", printable(mountpoint))
            return
        try:
            await trio.to_thread.run_sync(syscalls.umount, mountpoint)
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            await trio.sleep(_UNMOUNT_PAUSE_S)
        else:
            return
    log.warning("%s is in use: detached, its users go on until they close", printable(mountpoint))
    _detach(mountpoint)


def _detach(mountpoint: bytes) -> None:
    """Take our mount out of the tree, if it is the one that is visible at its mount point."""
    if not is_mounted(mountpoint):
        return
    try:
        syscalls.umount(mountpoint, syscalls.MNT_DETACH)
    except OSError as error:
        log.warning("%s cannot be unmounted: %s", printable(mountpoint), error)


def _is_dead(mountpoint: bytes) -> bool:
    """Tell whether a mount without a server is at the mount point (ours is closed by now)."""
    try:
        os.stat(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def is_mounted(mountpoint: bytes) -> bool:
    """Tell whether the topmost mount at a path is a union; it need not answer for that."""
    topmost = b""
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields = line.split()
            if octal_unescape(fields[4]) == mountpoint:
                topmost = fields[fields.index(b"-") + 1]
    return topmost == _TYPE
