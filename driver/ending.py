"""Being told to end: a command that is interrupted puts back what it has mounted.

SIGTERM kills a Python program on the spot, and so does SIGHUP. A mount that the program made for a
moment then stays for ever, and everybody after it takes the layer for used. So a command line has
the signals raise an exception (`told_to_end`), as Python itself does with SIGINT, and the
``finally`` of whoever holds a mount takes it away.

An exception out of nowhere would be no better in the middle of mounting: the mount comes, but
nobody knows of it. Those few steps are taken in one piece (`in_one_piece`): a signal waits for
their end. In a program that has not asked for any of this it has no effect.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ToldToEnd(BaseException):
    """A signal has asked the program to end.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Watch:
    """What has come in, and whether it has to wait. Only the main thread is ever told."""

    def __init__(self) -> None:
        self._pieces = 0  # how many steps that belong together are under way, one in the other
        self._waiting = 0  # the signal that came meanwhile
        self._told = False

    def notice(self, number: int, _frame: FrameType | None) -> None:
        if self._told:
            return  # the first one is being obeyed: putting back must not be cut short
        if self._pieces:
            self._waiting = self._waiting or number
            return
        self._tell(number)

    def begin(self) -> None:
        self._pieces += 1

    def end(self) -> None:
        self._pieces -= 1
        if self._waiting and not self._pieces and not self._told:
            self._tell(self._waiting)

    def _tell(self, number: int) -> None:
        self._told = True
        raise ToldToEnd(number)


_watches: list[_Watch] = []  # one while `told_to_end` is in force


@contextmanager
def told_to_end() -> Iterator[None]:
    """Have the signals that end a program raise `ToldToEnd` meanwhile.

    Those that are ignored, as by nohup(1), stay so. Beside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _Watch()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _watches.append(watch)
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, watch.notice)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _watches.pop()


@contextmanager
def in_one_piece() -> Iterator[None]:
    """Let a signal wait until what is done meanwhile is done; then it is raised."""
    if not _watches or threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _watches[-1]
    watch.begin()
    try:
        yield
    finally:
        watch.end()
