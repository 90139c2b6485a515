"""Making a directory tree disappear for good (driver.md 1.9, second half).

Two steps, so that a crash between them does no harm: the tree is renamed to a name that marks it as
half removed (``…-removing``), then that is deleted. What a crash leaves is found by its name and
deleted when the driver starts.

Deleting goes by descriptor and needs no recursion: a directory is emptied by unlinking its files
and lifting its sub-directories up to the top of the tree, where their turn comes later. So a tree
of any depth costs two open descriptors, and no path ever grows long. A mount found inside is taken
out of the way. Several processes may delete one tree at the same time.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator

from driver import mounttable
from driver.beneath import find, open_directory, open_root

SUFFIX = "-removing"

_log = logging.getLogger(__name__)

_ROUNDS = 50  # tries per busy path
_PAUSE = 0.1  # seconds between them


def set_aside(path: str) -> bool:
    """Rename ``path`` to its half-removed name.

    Returns:
        False when neither name exists, so that nothing is left to be done.

    Raises:
        OSError: ``EBUSY`` while it is a mount point; ``EEXIST`` when an earlier removal of the same
            name never finished and has to be looked at by a person.
    """
    aside = path + SUFFIX
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return os.path.lexists(aside)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR):
            raise
        raise FileExistsError(
            errno.EEXIST,
            f"{aside} is left of an earlier removal: delete it by hand, then try again",
        ) from error
    return True


def remove_atomically(path: str) -> None:
    """Set ``path`` aside and delete it; missing is fine.

    Raises:
        OSError: as `set_aside` and `remove_by_force`.
    """
    if set_aside(path):
        remove_by_force(path + SUFFIX)


def remove_by_force(path: str) -> None:
    """Delete ``path`` whatever it is, with every mount inside it; missing is fine.

    Args:
        path: absolute; the last component is not followed when it is a symbolic link.

    Raises:
        OSError: a path stayed busy for 50 rounds of 100 ms, or the system refuses (``EPERM``,
            ``EROFS``).
    """
    for point in mounttable.mounts_below(path):
        try:
            mounttable.detach(point, lazy=True)
        except OSError as error:
            _log.debug("cannot unmount %s before its removal: %s", point, error)
    try:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(path)
            return
        top = open_root(path)
    except FileNotFoundError:
        return
    try:
        _empty(top, path)
    finally:
        os.close(top)
    _insist(lambda: os.rmdir(path), path)


def _empty(top: int, path: str) -> None:
    """Delete everything in the directory behind ``top``, whose path is ``path``."""
    # Nobody else's names: another process may be at the same tree. Whatever that one has taken away
    # counts as deleted, but a directory of its lifted over one of ours would be in our way.
    own = secrets.token_hex(8).encode()
    lifted = (b"%s-%d" % (own, number) for number in itertools.count())
    while names := os.listdir(top):
        for name in map(os.fsencode, names):
            if _unlink(top, name, path):
                continue
            inner = os.path.join(path, os.fsdecode(name))
            fd = _enter(top, name, inner)
            if fd < 0:
                continue
            try:
                for child in map(os.fsencode, os.listdir(fd)):
                    if not _unlink(fd, child, inner):
                        _lift(fd, child, inner, top, lifted)
            finally:
                os.close(fd)
            _insist(lambda n=name: os.rmdir(n, dir_fd=top), inner)  # type: ignore[misc]


def _enter(top: int, name: bytes, path: str) -> int:
    """Open a sub-directory, but never what is mounted on it; -1 when it has vanished."""
    opened = [-1]

    def enter() -> None:
        try:
            opened[0] = open_directory(top, name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # Somebody's files are mounted here: deleting them would be the worst of all bugs.
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path) from error

    _insist(enter, path)
    return opened[0]


def _unlink(dir_fd: int, name: bytes, path: str) -> bool:
    """Delete one entry unless it is a directory; tell whether it is out of the way."""
    status = find(dir_fd, name)
    if status is None:
        return True
    if stat.S_ISDIR(status.st_mode):
        return False
    _insist(lambda: os.unlink(name, dir_fd=dir_fd), os.path.join(path, os.fsdecode(name)))
    return True


def _lift(fd: int, child: bytes, path: str, top: int, fresh: Iterator[bytes]) -> None:
    """Move the directory ``child`` of ``fd`` up into ``top``, under any name that is free."""

    def move() -> None:
        for name in fresh:
            try:
                os.rename(child, name, src_dir_fd=fd, dst_dir_fd=top)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
            else:
                return

    _insist(move, os.path.join(path, os.fsdecode(child)))


def _insist(action: Callable[[], None], path: str) -> None:
    """Run ``action`` until nothing is busy; what has vanished by itself is as good as deleted."""
    for round_number in range(1, _ROUNDS + 1):
        try:
            action()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or round_number == _ROUNDS:
                raise
            _unmount_busy(path)
            time.sleep(_PAUSE)
        else:
            return


def _unmount_busy(path: str) -> None:
    try:
        mounttable.detach(path, lazy=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
