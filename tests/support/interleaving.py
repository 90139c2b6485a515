"""Two actions at once, interleaved by hand: each makes its next system call when it is told to."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from unionfs import syscalls

_CALLS = (
    (os, "listdir"),
    (os, "open"),
    (os, "rename"),
    (os, "rmdir"),
    (os, "scandir"),
    (os, "unlink"),
    (syscalls, "openat2"),
)


class Stepped(threading.Thread):
    """An action in a thread of its own, which stops before each system call.

    Attributes:
        ended: it has come to its end.
        error: the exception that ended it.
    """

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.ended = False
        self.error: BaseException | None = None
        self._action = action
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self.start()
        self._stopped.acquire()

    def run(self) -> None:
        """Be the thread."""
        try:
            self.pause()
            self._action()
        except BaseException as error:  # noqa: BLE001 - it is the other thread that wants to know
            self.error = error
        self.ended = True
        self._stopped.release()

    def pause(self) -> None:
        """Wait to be told to go on; called by the thread itself."""
        self._stopped.release()
        self._go.acquire()

    def step(self) -> None:
        """Go on to the next system call; nothing happens when it has ended."""
        if not self.ended:
            self._go.release()
            self._stopped.acquire()

    def finish(self) -> None:
        """Go on to the end.

        Raises:
            BaseException: what has ended the action.
        """
        while not self.ended:
            self.step()
        self.join()
        if self.error is not None:
            raise self.error


@contextmanager
def stepwise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the system calls of :class:`Stepped` actions wait; those of others go on as ever."""

    def waiting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: object, **options: object) -> Any:
            thread = threading.current_thread()
            if isinstance(thread, Stepped):
                thread.pause()
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for module, name in _CALLS:
            patch.setattr(module, name, waiting(getattr(module, name)))
        yield
