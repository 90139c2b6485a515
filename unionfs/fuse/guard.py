"""The one door between requests and the core: whatever happens inside, the caller gets an errno.

An exception that escapes from a request handler ends the daemon, and with it every container that
lives on the mount. So each handler passes through :func:`guarded`: an ``OSError`` becomes its
errno; anything else is a fault of ours, is logged with the request, and the caller gets EIO.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import pyfuse3
import trio

from unionfs.union.operation import Latch

if TYPE_CHECKING:
    from unionfs.union.operation import Operation

T = TypeVar("T")
Handler = TypeVar("Handler", bound=Callable[..., Coroutine[Any, Any, Any]])

log = logging.getLogger(__name__)


class Settling(Protocol):
    """Whoever has request handlers that change something."""

    async def settle(self) -> None:
        """See to what the change entails, before the answer."""


def guarded(handler: Handler) -> Handler:
    """Wrap a request handler so that nothing but ``FUSEError`` leaves it."""

    @functools.wraps(handler)
    async def call(self: object, *args: Any) -> Any:  # noqa: ANN401 - whatever the handler takes
        try:
            return await handler(self, *args)
        except OSError as error:
            number = error.errno
            if number is None or number <= 0:
                log.exception("%s%r failed without an errno", handler.__name__, args)
                number = errno.EIO
            log.debug("%s%r: %s", handler.__name__, args, error)
            raise pyfuse3.FUSEError(number) from None
        except pyfuse3.FUSEError:
            raise
        except Exception:
            log.exception("%s%r failed unexpectedly", handler.__name__, args)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return cast("Handler", call)


def changing(handler: Handler) -> Handler:
    """Wrap a request handler that may change the union: as :func:`guarded`, then ``settle``."""

    @guarded
    @functools.wraps(handler)
    async def call(self: Settling, *args: Any) -> Any:  # noqa: ANN401 - as above
        try:
            return await handler(self, *args)
        finally:
            try:
                await self.settle()
            except Exception:
                log.exception("%s: what it entails failed", handler.__name__)

    return cast("Handler", call)


async def drive(operation: Operation[T], before_waiting: Callable[[], None]) -> T:
    """Run an operation of the core: its jobs in worker threads, its waits as waits of this task.

    Args:
        before_waiting: called before each wait, so that another task can serve requests.

    Returns:
        What the operation returns.

    Raises:
        OSError: what the operation raises.
    """
    try:
        pending = next(operation)
        while True:
            result: Any = None
            try:
                before_waiting()
                if isinstance(pending, Latch):
                    event = trio.Event()
                    pending.on_open(event.set)
                    await event.wait()
                else:
                    result = await trio.to_thread.run_sync(pending.run)
            except BaseException as error:  # noqa: BLE001 - it goes on inside the operation
                pending = operation.throw(error)
            else:
                pending = operation.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # StopIteration is not generic
