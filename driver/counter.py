"""Bookkeeping that threads share: use counts, and one lock per layer (driver.md 1.4).

A driver counts its own uses of each layer, by the path where the layer is to be found. Its first
use makes a claim on the layer that other processes can see, its last one gives the claim up, and
only when the mount is nobody's then may it be undone.

A mount that no living process uses belongs to somebody all the same: to an earlier run, or to a
command that has ended and wants it to stay. It counts as one use of somebody else. So one get and
put here leaves it in place, and a lone put takes it away.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from driver.claims import Claim, claim, used_elsewhere

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Use:
    """One path in use.

    Attributes:
        count: uses by this driver, at least one.
        claim: what other processes see of it; None for a layer that is never mounted.
    """

    count: int
    claim: Claim | None

    def is_over(self) -> bool:
        """Tell whether what was used has gone, so that giving it back has no effect.

        Another process may have removed the layer, and made one of the same id. Another driver may
        have mounted it afresh. And what a process used does not pass on to its forks.
        """
        return self.claim is not None and not self.claim.is_valid()


class UseCounter:
    """How often one driver uses each path.

    The caller holds the layer exclusively, so nobody else is at the same entry.
    """

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}

    def begin(self, path: str, record: str | None = None, *, mounted: bool = False) -> None:
        """Count one more use.

        Args:
            path: where the layer is to be found.
            record: the layer's record; None for a layer that is never mounted.
            mounted: whether it is mounted already, and answers.

        Raises:
            OSError: the record cannot be opened or locked. The use does not count then.
        """
        use = self._uses.get(path)
        if use is not None and use.is_over():
            self.drop(path)
            use = None
        if use is None:
            shared = None if record is None else claim(record, mounted=mounted)
            self._uses[path] = _Use(1, shared)
            return
        if use.claim is not None and not mounted:
            use.claim.settle()
        use.count += 1

    def end(self, path: str, record: str | None = None) -> bool:
        """Count one use less; without any it is a put of what somebody else got.

        Returns:
            Whether nobody uses the layer now, so that it may be unmounted.
        """
        use = self._uses.get(path)
        if use is None:
            if record is None or not used_elsewhere(record):
                return True
            _log.warning("%s stays mounted: another process uses it", path)
            return False
        use.count -= 1
        if use.count:
            return False
        del self._uses[path]
        if use.claim is None:
            return True
        was_over = use.is_over()
        return use.claim.leave() and not was_over

    def drop(self, path: str) -> None:
        """Forget a path."""
        use = self._uses.pop(path, None)
        if use is not None and use.claim is not None:
            use.claim.leave()

    def snapshot(self) -> dict[str, int]:
        """Return a copy of all counts."""
        return {path: use.count for path, use in dict(self._uses).items()}


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
