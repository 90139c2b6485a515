"""Which processes use a mounted layer, in locks that the kernel keeps (driver.md 1.4, 1.7).

Counts in memory say how often one process uses a layer. Whether another process does must be known
too before it is unmounted, and must be right even after a ``kill -9``. So a process locks bytes of
the layer's record, ``layers/<id>``, and the locks end with the process, however it ends:

    byte 0   this process uses the mount
    byte 1   the mount was there before any living process used it: it was left by an earlier run,
             or by a command that mounts and ends. Whoever made it has not given it back, so it
             stays when the last living process is through

Both are read locks, so that many can hold them. Nobody ever takes a write lock: asking whether one
could be had is enough, for claims are made, looked at and given up only while the layer is held
exclusively. The locks belong to an open file description (``F_OFD_SETLK``). They do not meet those
of flock(2), with which the store holds a layer, and no other descriptor that is closed ends them.

A process has one claim on a layer, shared by all its drivers. A fork is a process of its own, and
has none.

Some filesystems cannot lock so. There nothing is known of other processes: what is mounted when a
process first uses it counts as left by somebody, anything else as this process's own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading

_USED = 0
_OWED = 1

# struct flock: type, whence, start, length, process; the last one is 0 for these locks.
_FLOCK = struct.Struct("hhqqi4x")
_UNSUPPORTED = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Claim:
    """What this process has to do with one layer's mount. Made by `claim`.

    Attributes:
        owed: the mount is somebody's who is not there any more, and stays.
    """

    def __init__(self, record: str, *, mounted: bool) -> None:
        self._record = record
        self._users = 0
        self._fd = os.open(record, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self.owed = mounted and (_is_locked(self._fd, _OWED) or not self.used_elsewhere())
            _lock(self._fd, fcntl.F_RDLCK, _USED, 1)
            if self.owed:
                _lock(self._fd, fcntl.F_RDLCK, _OWED, 1)
        except BaseException:
            os.close(self._fd)
            raise

    def is_valid(self) -> bool:
        """Tell whether the claim stands: for this very layer, and made by this very process."""
        try:
            return self._fd >= 0 and os.path.samestat(os.fstat(self._fd), os.lstat(self._record))
        except FileNotFoundError:
            return False

    def used_elsewhere(self) -> bool:
        """Tell whether another process uses the layer."""
        return _is_locked(self._fd, _USED)

    def join(self) -> None:
        """Let one more driver of this process share the claim."""
        with _mutex:
            self._users += 1

    def settle(self) -> None:
        """Owe the mount to nobody: it has gone."""
        if self.owed:
            self.owed = False
            _lock(self._fd, fcntl.F_UNLCK, _OWED, 1)

    def leave(self) -> bool:
        """Give up one driver's share.

        Returns:
            Whether the mount is nobody's now, neither here nor in another process.
        """
        with _mutex:
            self._users -= 1
            if self._users or self._fd < 0:
                return False
            if _claims.get(self._record) is self:
                del _claims[self._record]
            fd, self._fd = self._fd, -1
        try:
            free = not self.owed and not _is_locked(fd, _USED)
            # Closing is not enough: a program that another thread is just about to start still has
            # the descriptor, and with it the lock.
            _lock(fd, fcntl.F_UNLCK, _USED, 2)
        finally:
            os.close(fd)
        return free

    def void(self) -> None:
        """End the claim of all who share it."""
        _lock(self._fd, fcntl.F_UNLCK, _USED, 2)
        self.disown()

    def disown(self) -> None:
        """Close the descriptor. One that a fork has inherited leaves the parent's locks alone."""
        os.close(self._fd)
        self._fd = -1


_claims: dict[str, Claim] = {}
_mutex = threading.Lock()


def claim(record: str, *, mounted: bool) -> Claim:
    """Use a layer, as one more driver of this process.

    Args:
        record: the layer's record, held exclusively by the caller.
        mounted: whether the layer is mounted already, and answers.

    Raises:
        OSError: the record cannot be opened or locked.
    """
    found = _existing(record)
    if found is not None and not mounted:
        found.void()  # what the process's other drivers used has gone
        found = None
    if found is None:
        found = Claim(record, mounted=mounted)
        with _mutex:
            _claims[record] = found
    found.join()
    return found


def used_elsewhere(record: str) -> bool:
    """Tell whether another process uses a layer; the caller holds it exclusively."""
    found = _existing(record)
    if found is not None:
        return found.used_elsewhere()
    try:
        fd = os.open(record, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return _is_locked(fd, _USED)
    finally:
        os.close(fd)


def _existing(record: str) -> Claim | None:
    with _mutex:
        found = _claims.get(record)
    return found if found is not None and found.is_valid() else None


def _lock(fd: int, kind: int, start: int, length: int) -> None:
    """Lock bytes, or unlock them; where the filesystem cannot, nothing happens."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _is_locked(fd: int, byte: int) -> bool:
    """Tell whether anybody has locked a byte through another open file."""
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def _disown_all() -> None:
    for inherited in _claims.values():
        inherited.disown()
    _claims.clear()
    _mutex.release()


os.register_at_fork(
    before=_mutex.acquire, after_in_parent=_mutex.release, after_in_child=_disown_all
)
