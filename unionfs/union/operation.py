"""How an operation of the core waits: it hands out a job, or waits for another operation.

The core is synchronous and knows neither threads nor an event loop. An operation that may take long
is a generator. It yields

* a :class:`Job`, a function that may run in a worker thread (copying data, fsync). Its result is
  sent back in. A job touches only descriptors that it owns, never the state of the union;
* a :class:`Latch`, when it must wait until another operation has finished something.

Everything between two yields runs in the request thread without interruption, and so needs no lock.
What holds across a yield must be checked again afterwards.

Order of waiting (whoever waits for several takes them in this order, so nobody waits in a circle):
first all copy-ups in flight, for a rename that moves a directory; then the copy-up of one node,
parent before child. A copy-up itself waits for nobody while it holds its latch: parents are copied
up before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Job:
    """Work that a thread may do while other requests are served."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run

    def alone(self) -> Operation[Any]:
        """Return an operation that consists of this job."""
        return (yield self)


class Latch:
    """Something unfinished that others may wait for; it opens once and stays open."""

    __slots__ = ("_waiters", "done")

    def __init__(self) -> None:
        self.done = False
        self._waiters: list[Callable[[], None]] = []

    def open(self) -> None:
        """Let everybody through."""
        self.done = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter()

    def on_open(self, waiter: Callable[[], None]) -> None:
        """Have ``waiter`` called when the latch opens (at once if it is open)."""
        if self.done:
            waiter()
        else:
            self._waiters.append(waiter)


Pending = Job | Latch
Operation = Generator[Pending, Any, T]


class StuckError(RuntimeError):
    """An operation run on its own waits for another one that will never go on."""


def run_now(operation: Operation[T]) -> T:
    """Drive an operation to its end, running its jobs in place.

    For tests, for tools and for whoever serves one request at a time.
    """
    try:
        pending = next(operation)
        while True:
            if isinstance(pending, Latch):
                if not pending.done:
                    operation.throw(StuckError("waits for an operation that is not running"))
                pending = operation.send(None)
                continue
            try:
                result = pending.run()
            except BaseException as error:  # noqa: BLE001 - it goes on inside the operation
                pending = operation.throw(error)
            else:
                pending = operation.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # StopIteration is not generic


def immediate(operation: Callable[P, Operation[T]]) -> Callable[P, T]:
    """Turn an operation into a plain function (see :func:`run_now`)."""

    @functools.wraps(operation)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_now(operation(*args, **kwargs))

    return call
