"""The n-th system call fails: for every n in turn, to see that nothing is done by half."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from unionfs import syscalls

# What changes something. ``os.open`` belongs to them where it creates.
_CHANGING = (
    (os, "chmod"),
    (os, "chown"),
    (os, "fchmod"),
    (os, "fchown"),
    (os, "fsync"),
    (os, "ftruncate"),
    (os, "link"),
    (os, "mkdir"),
    (os, "mknod"),
    (os, "pwrite"),
    (os, "removexattr"),
    (os, "rename"),
    (os, "rmdir"),
    (os, "setxattr"),
    (os, "symlink"),
    (os, "unlink"),
    (os, "utime"),
    (syscalls, "link_fd"),
    (syscalls, "renameat2"),
)
# What needs a descriptor, and of these there may be no more.
_OPENING = (
    (os, "dup"),
    (os, "scandir"),
    (syscalls, "openat2"),
)


class Killed(BaseException):
    """The process has come to its end here; nothing it still tries has an effect."""


class Faults:
    """Lets one system call fail while it is active: one that changes something, or one that opens.

    Attributes:
        failed: the name of the call that was let fail, empty when there were not so many.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, opening: bool = False) -> None:
        self._monkeypatch = monkeypatch
        self._calls = _OPENING if opening else _CHANGING
        self._only_opening = opening
        self._left = 0
        self.failed = ""

    @contextmanager
    def at(self, count: int, number: int) -> Iterator[None]:
        """Let the call number ``count`` (the first is 1) fail with the errno ``number``.

        For the number 0 the process is killed there, as far as its calls can tell.
        """
        self._left, self.failed = count, ""
        with self._monkeypatch.context() as patch:
            for module, name in self._calls:
                patch.setattr(module, name, self._failing(getattr(module, name), name, number))
            patch.setattr(os, "open", self._open(os.open, number))
            yield

    def _due(self, name: str) -> bool:
        self._left -= 1
        if self._left == 0:
            self.failed = name
        return self._left == 0

    def _raise(self, number: int) -> None:
        if number == 0:
            raise Killed
        raise OSError(number, os.strerror(number))

    def _is_dead(self, number: int) -> bool:
        return number == 0 and self._left <= 0

    def _failing(self, real: Callable[..., Any], name: str, number: int) -> Callable[..., Any]:
        def call(*arguments: object, **options: object) -> Any:
            if self._due(name) or self._is_dead(number):
                self._raise(number)
            return real(*arguments, **options)

        return call

    def _open(self, real: Callable[..., int], number: int) -> Callable[..., int]:
        def call(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            creates = bool(flags & os.O_CREAT) or flags & os.O_TMPFILE == os.O_TMPFILE
            if creates is not self._only_opening and (self._due("open") or self._is_dead(number)):
                self._raise(number)
            return real(path, flags, *arguments, **options)

        return call
