"""Serving one mount from beginning to end.

The mount is made (``mounting.py``), its features are agreed on (``handshake.py``), and libfuse
finds the ready descriptor as ``/dev/fd/N``. The mount is reported as ready when it has answered a
request. It ends when somebody unmounts it, or SIGTERM does.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
from errno import EBUSY, EPROTO, ETIMEDOUT
from typing import TYPE_CHECKING, Final

import pyfuse3
import trio

from unionfs.branch.lock import GIVE_UP
from unionfs.fuse.eager import take_requests_eagerly
from unionfs.fuse.guard import drive
from unionfs.fuse.handshake import Feature, HandshakeError, Introduction, features, negotiate
from unionfs.fuse.operations import UnionOperations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from unionfs.fuse.mounting import MountPoint
    from unionfs.union.core import Job, Union
    from unionfs.union.options import MountOptions

_UNMOUNT_TRIES: Final = 5
_UNMOUNT_PAUSE_S: Final = 0.1
_INTRODUCTION_S: Final = 10.0

log = logging.getLogger(__name__)


def serve(
    union: Union,
    point: MountPoint,
    source: bytes,
    options: MountOptions,
    *,
    on_ready: Callable[[], None],
    warn: Callable[[str], None],
) -> None:
    """Mount a union and serve it until it is unmounted.

    Args:
        union: what to serve; closed when this returns.
        point: where to mount it.
        source: what the mount table shows as the source, verbatim.
        options: mount flags and caching.
        on_ready: called once the mount answers.
        warn: called with a line for the user before that.

    Raises:
        MountError: the mount was refused, or never answered.
    """
    mode = union.root.copies[0].branch.root.status().st_mode
    wanted = None
    if options.init == "own":
        wanted = features(
            trusting=options.udba == "none", acl=options.acl, links_may_part=not options.plink
        )
    try:
        device = point.mount(source, options, mode, warn)
        try:
            union.prepare()
            try:
                trio.run(_serve, union, point, options, device, wanted, on_ready)
            except* HandshakeError as errors:
                log.warning("INIT is left to libfuse: %s", _first(errors))
                point.detach()
                device = point.mount(source, options, mode, warn)
                trio.run(_serve, union, point, options, device, None, on_ready)
        except BaseException as error:  # noqa: BLE001 - raised again, in a better form
            point.detach()  # no dead mount may stay
            raise _first(error) from None
        if point.is_dead():
            log.error("the connection to the kernel was aborted: %s ends", point)
            point.detach()
    finally:
        union.close()


def _first(error: BaseException) -> BaseException:
    """Return the first of several errors: the others are its consequences."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _serve(
    union: Union,
    point: MountPoint,
    options: MountOptions,
    device: int,
    wanted: Feature | None,  # None: INIT is left to libfuse
    on_ready: Callable[[], None],
) -> None:
    # Signals first: from the moment the mount answers, somebody may want it to end.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, GIVE_UP) as signals:
        async with trio.open_nursery() as background:

            def start(job: Job) -> None:
                background.start_soon(_run_job, job)

            operations = UnionOperations(
                union, trusting=options.udba == "none", fsync=options.fsync, background=start
            )
            if wanted is None:
                await _serve_requests(operations, point, device, signals, on_ready, union.cancel)
                return
            introduction = _introduce(device, wanted)
            operations.on_init = introduction.finish

            def cancel() -> None:
                if introduction.done:  # else another attempt follows
                    union.cancel()

            try:
                async with trio.open_nursery() as watch:
                    watch.start_soon(_give_up, introduction)
                    await _serve_requests(
                        operations, point, introduction.fd, signals, on_ready, cancel
                    )
                    watch.cancel_scope.cancel()
                if not introduction.done:
                    raise HandshakeError(EPROTO, "libfuse ended before it had the device")
            except* OSError as errors:
                if introduction.done:
                    raise
                # Whatever went wrong so far, nothing has been served.
                raise HandshakeError(EPROTO, str(_first(errors))) from errors
            finally:
                introduction.close()


def _introduce(device: int, wanted: Feature) -> Introduction:
    try:
        return Introduction(device, negotiate(device, wanted))
    except HandshakeError:
        os.close(device)
        raise


async def _serve_requests(
    operations: UnionOperations,
    point: MountPoint,
    device: int,
    signals: AsyncIterator[int],
    on_ready: Callable[[], None],
    cancel: Callable[[], None],
) -> None:
    pyfuse3.init(operations, f"/dev/fd/{device}", set())
    turnstile = take_requests_eagerly(device)
    operations.before_waiting = turnstile.let_another_in
    turnstile.on_gone = cancel
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, point, operations.union)
            nursery.start_soon(_report_when_ready, point, on_ready)
            # Objects made so far stay: the collector need not look at them again.
            gc.collect()
            gc.freeze()
            await pyfuse3.main()
            cancel()
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=False)


async def _run_job(job: Job) -> None:
    await trio.to_thread.run_sync(job.run)


async def _give_up(introduction: Introduction) -> None:
    await trio.sleep(_INTRODUCTION_S)
    if not introduction.done:
        raise HandshakeError(ETIMEDOUT, "libfuse did not take the INIT that it was given")


async def _report_when_ready(point: MountPoint, on_ready: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(os.stat, point.path, abandon_on_cancel=True)
    on_ready()


async def _obey(signals: AsyncIterator[int], point: MountPoint, union: Union) -> None:
    async for number in signals:
        try:
            if number != GIVE_UP:
                await _unmount(point)
            elif not point.is_attached():
                await _give_branch_up(point, union)
        except OSError as error:  # no descriptor is left to look at the mount table with
            log.warning("%s: a signal has no effect: %s", point, error)


async def _give_branch_up(point: MountPoint, union: Union) -> None:
    """Let another union have the branch: this one was unmounted while it was in use."""
    log.warning("%s was unmounted and its branch is wanted: nothing is changed any more", point)
    await drive(union.relinquish(), lambda: None)


async def _unmount(point: MountPoint) -> None:
    """Unmount; when the mount stays in use, take it out of the tree and let the users finish."""
    for _ in range(_UNMOUNT_TRIES):
        if not point.is_mounted():
            if point.is_attached():
                log.warning("%s is covered by another mount, or was moved: unmount that", point)
            return
        try:
            await trio.to_thread.run_sync(point.unmount)
        except OSError as error:
            if error.errno != EBUSY:
                if point.is_mounted():  # else somebody was faster
                    log.warning("%s cannot be unmounted: %s", point, error)
                return
            await trio.sleep(_UNMOUNT_PAUSE_S)
        else:
            return
    log.warning("%s is in use: detached, its users go on until they close", point)
    await trio.to_thread.run_sync(point.detach)
