"""Bookkeeping that threads share: use counts, and one lock per layer (driver.md 1.4).

The counter is keyed by path. A path that is already mounted when this process first meets it counts
as used once: the mount was made by an earlier run, or by another process, that still wants it. So
one get and put here leaves it in place, and a lone put takes it away. Entries that fall to zero are
forgotten, so that the next use looks at the mount table again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UseCounter:
    """How often each path is in use.

    Args:
        is_mounted: tells whether something is mounted at a path; asked once per path and life.
    """

    def __init__(self, is_mounted: Callable[[str], bool]) -> None:
        self._is_mounted = is_mounted
        self._counts: dict[str, int] = {}
        self._mutex = threading.Lock()

    def increment(self, path: str) -> int:
        """Count one more use and return the new count."""
        return self._add(path, 1)

    def decrement(self, path: str) -> int:
        """Count one use less and return the new count, which may be negative."""
        return self._add(path, -1)

    def drop(self, path: str) -> None:
        """Forget a path."""
        with self._mutex:
            self._counts.pop(path, None)

    def snapshot(self) -> dict[str, int]:
        """Return a copy of all counts."""
        with self._mutex:
            return dict(self._counts)

    def _add(self, path: str, step: int) -> int:
        # The table is read before the mutex is taken; the caller's lock on the layer keeps two
        # first uses of one path apart.
        start = 0 if path in self._counts else int(self._is_mounted(path))
        with self._mutex:
            count = self._counts.get(path, start) + step
            if count > 0:
                self._counts[path] = count
            else:
                self._counts.pop(path, None)
            return count


class LayerLocks:
    """One mutex per layer id, kept only while somebody holds or wants it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def hold(self, layer_id: str) -> Iterator[None]:
        """Be the only thread that gets, puts or removes this layer."""
        with self._mutex:
            lock, users = self._locks.get(layer_id, (threading.Lock(), 0))
            self._locks[layer_id] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._mutex:
                lock, users = self._locks[layer_id]
                if users == 1:
                    del self._locks[layer_id]
                else:
                    self._locks[layer_id] = (lock, users - 1)
