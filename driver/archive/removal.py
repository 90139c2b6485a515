"""Removing what a layer replaces or deletes, by descriptor, whatever its depth.

Deletion deserves the care that creation gets: a path that was joined and followed a symbolic link
would delete the host's files (BuildKit, CVE-2024-23652). Here each name is removed from a directory
that is open, and a symbolic link is only ever unlinked.
"""

import contextlib
import os
from collections.abc import Callable

from driver.beneath import open_child
from driver.descent import Descent


def remove(dir_fd: int, name: bytes) -> bool:
    """Remove ``name`` below ``dir_fd``, with everything in it if it is a directory.

    Returns:
        False when there was nothing of that name.

    Raises:
        OSError: ``EXDEV`` when a mount lies inside, otherwise as unlink(2) and rmdir(2).
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    except (IsADirectoryError, PermissionError):
        # Linux says EISDIR; POSIX, and filesystems that follow it, EPERM.
        try:
            fd = open_child(dir_fd, name, os.O_PATH | os.O_DIRECTORY)
        except NotADirectoryError:
            os.unlink(name, dir_fd=dir_fd)  # a plain refusal: let the caller see it
            return True
        try:
            empty(fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=dir_fd)
    return True


def _nothing(dir_fd: int, name: bytes) -> bool:
    return False


def empty(dir_fd: int, keep: Callable[[int, bytes], bool] = _nothing) -> None:
    """Remove everything in a directory, except what is to be kept and the directories above that.

    Args:
        dir_fd: the directory.
        keep: tells, given a directory and a name in it, whether that entry stays. What lies in a
            directory that stays is asked about one by one.

    Raises:
        OSError: as `remove`.
    """
    with Descent(dir_fd) as at:
        # One level is the names still to do in it, and whether the directory has to stay.
        levels = [_Level(at.fd)]
        while True:
            level = levels[-1]
            if level.names:
                name, is_directory = level.names.pop()
                kept = keep(at.fd, name)
                level.kept |= kept
                if is_directory:
                    at.enter(name)
                    levels.append(_Level(at.fd, kept=kept))
                elif not kept:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=at.fd)
                continue
            levels.pop()
            if not levels:
                return
            name = at.leave()
            levels[-1].kept |= level.kept
            if not level.kept:
                os.rmdir(name, dir_fd=at.fd)


class _Level:
    __slots__ = ("kept", "names")

    def __init__(self, fd: int, *, kept: bool = False) -> None:
        with os.scandir(fd) as entries:
            self.names = [
                (os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries
            ]
        self.kept = kept
