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
from typing import TYPE_CHECKING, Any, Final

import pyfuse3
import trio

if TYPE_CHECKING:
    from types import TracebackType

_TURNS: Final = 32  # requests between two turns of the event loop
_GONE: Final = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Turnstile:
    """The lock under which one task at a time reads the descriptor; unfair on purpose.

    Args:
        device: the FUSE descriptor.
    """

    def __init__(self, device: int) -> None:
        self._device = device
        self._poll = select.poll()
        self._poll.register(device, select.POLLIN)
        self._held = False
        self._gone = False
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
        if self._gone or error is not None:
            self._waiting.unpark_all()

    def let_another_in(self) -> None:
        """Let another task take requests: the caller is going to wait for something else."""
        if not self._held:
            self._waiting.unpark()

    async def wait_readable(self, fd: int) -> None:
        """Wait until there is a request, or until the mount is gone."""
        if fd == self._device and self._taken < _TURNS:
            ready = self._poll.poll(0)
            if ready:
                self._taken += 1
                self._gone = bool(ready[0][1] & _GONE)
                return
        self._taken = 0
        await trio.lowlevel.wait_readable(fd)
        self._gone = any(events & _GONE for _, events in self._poll.poll(0))


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
    stand_in = _StandIn(trio, lowlevel=lowlevel, Lock=lambda: turnstile)
    pyfuse3.trio = stand_in  # type: ignore[attr-defined]  # not among the names it declares
    return turnstile
