"""Look before you sleep: how the worker tasks of pyfuse3 take requests.

Several tasks serve one mount, so that one which waits for a disk does not hold up the rest. pyfuse3
lets them take turns at the descriptor under a fair lock: after every request another task is woken,
a trip through the event loop that costs more than the request itself. Here

* the task that has just answered takes the next request too, as long as there is one;
* another task is woken only when this one is about to wait (:meth:`Turnstile.let_another_in`);
* the descriptor is asked whether a request is there before the event loop is asked to wait for one.

The event loop gets its turn every so often all the same, or a busy client would starve timers,
signals and the results of worker threads.

pyfuse3 reaches trio through a name of its own, which its asyncio support also replaces;
:func:`take_requests_eagerly` puts a stand-in there.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any, Final, Self

import pyfuse3
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

_GONE: Final = select.POLLERR | select.POLLHUP | select.POLLNVAL
_TURNS: Final = 32  # requests between two turns of the event loop


class Turnstile:
    """The lock under which one task at a time reads the descriptor; unfair on purpose.

    Args:
        device: the FUSE descriptor.

    Attributes:
        on_gone: called when the kernel has closed the connection, perhaps more than once.
    """

    def __init__(self, device: int) -> None:
        self.on_gone: Callable[[], None] = lambda: None
        self._device = device
        self._poll = select.poll()
        self._poll.register(device, select.POLLIN)
        self._held = False
        self._taken = 0
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            await self._waiting.park()
        self._held = True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held = False
        if error is not None:
            self._waiting.unpark_all()

    async def run_worker(self, worker: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run a worker task; whoever waits takes over when it ends, be it only to end too."""
        try:
            await worker(*args)
        finally:
            self._waiting.unpark_all()
            if any(events & _GONE for _, events in self._poll.poll(0)):
                self.on_gone()

    def let_another_in(self) -> None:
        """Let another task take requests: the caller is going to wait for something else."""
        if not self._held:
            self._waiting.unpark()

    async def wait_readable(self, fd: int) -> None:
        """Wait until there is a request, or an error to be read."""
        if fd == self._device and self._taken < _TURNS and self._poll.poll(0):
            self._taken += 1
            return
        self._taken = 0
        await trio.lowlevel.wait_readable(fd)


class _Nursery:
    """A nursery whose tasks are workers."""

    def __init__(self, turnstile: Turnstile) -> None:
        self._turnstile = turnstile
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._manager.__aexit__(kind, error, traceback)

    def start_soon(
        self, worker: Callable[..., Awaitable[None]], *args: object, name: str | None = None
    ) -> None:
        """Start a worker."""
        if self._nursery is not None:
            self._nursery.start_soon(self._turnstile.run_worker, worker, *args, name=name)


class _StandIn:
    """A module with some of its names replaced."""

    def __init__(self, module: object, **replaced: object) -> None:
        self._module = module
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the module has
        return getattr(self._module, name)


def take_requests_eagerly(device: int) -> Turnstile:
    """Have pyfuse3 take requests from ``device`` as described above.

    Must be called after ``pyfuse3.init`` and before ``pyfuse3.main``.
    """
    turnstile = Turnstile(device)
    lowlevel = _StandIn(trio.lowlevel, wait_readable=turnstile.wait_readable)
    stand_in = _StandIn(
        trio,
        lowlevel=lowlevel,
        Lock=lambda: turnstile,
        open_nursery=lambda: _Nursery(turnstile),
    )
    pyfuse3.trio = stand_in  # type: ignore[attr-defined]  # not among the names it declares
    return turnstile
