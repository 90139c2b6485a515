"""The lock on a writable branch: two unions that change one branch would ruin each other's work.

A union that was unmounted lazily, or has a copy in some container's mount namespace, lives on for
those who use it, and so does its lock. Nobody could then mount the branch again, and nobody could
tell who uses the old mount. So whoever wants the branch asks for it, by a signal to the process
that holds the lock. That one gives it up if its mount is no longer in the tree, and changes nothing
from then on.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from errno import EBUSY, EINVAL, errorcode
from typing import Final

from unionfs.branch.errors import BranchError

GIVE_UP: Final = signal.SIGUSR1  # asks a server whose mount has left the tree for its branch

_PATIENCE_S: Final = 3.0  # a union that is just being unmounted gets so long
_BEFORE_ASKING_S: Final = 0.3
_PAUSE_S: Final = 0.02


def lock(fd: int, shown: str) -> int:
    """Keep other unions off a branch for as long as the returned descriptor is open.

    Args:
        fd: descriptor of the branch, ``O_PATH`` will do.
        shown: its name in messages.

    Raises:
        BranchError: ``EBUSY`` when another union has it, or it cannot be opened.
    """
    try:
        lock_fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    except OSError as error:
        name = errorcode.get(error.errno or 0, "?")
        raise BranchError(
            error.errno or EINVAL, f"branch {shown} cannot be read ({name}): check its permissions"
        ) from error
    try:
        _insist(lock_fd)
    except BlockingIOError as error:
        os.close(lock_fd)
        raise BranchError(
            EBUSY,
            f"branch {shown} is the writable branch of another union (EBUSY): unmount that one "
            f"first, or use {shown}=ro",
        ) from error
    except OSError:
        pass  # a filesystem without locks: nothing can be promised there
    return lock_fd


def _insist(lock_fd: int) -> None:
    """Try for a while to lock, and ask for it on the way."""
    began = time.monotonic()
    asked = False
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - began
            if waited > _PATIENCE_S:
                raise
            if waited > _BEFORE_ASKING_S and not asked:
                asked = True
                _ask_holders(os.fstat(lock_fd).st_ino)
            time.sleep(_PAUSE_S)
        else:
            return


def _ask_holders(inode: int) -> None:
    """Ask the processes that hold a lock on this inode, if they understand the question.

    The inode alone is enough: a server that is asked by mistake gives up only what nobody has
    mounted any more.
    """
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            if _understands(process) and _holds(process, inode):
                os.kill(int(process), GIVE_UP)
        except OSError:
            continue  # it has ended, or is somebody else's


def _understands(process: str) -> bool:
    """Tell whether the process has a handler for the signal; it would kill any other."""
    with open(f"/proc/{process}/status", "rb") as status:
        for line in status:
            if line.startswith(b"SigCgt:"):
                return bool(int(line.split()[1], 16) >> (GIVE_UP - 1) & 1)
    return False


def _holds(process: str, inode: int) -> bool:
    """Tell whether one of the process's descriptors carries an exclusive lock of the inode."""
    folder = f"/proc/{process}/fdinfo"
    wanted = b":%d" % inode
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as info:
            for line in info:
                # lock: 1: FLOCK  ADVISORY  WRITE 1234 fe:01:5678 0 EOF
                words = line.split()
                exclusive = b"FLOCK" in words and b"WRITE" in words
                if exclusive and any(word.endswith(wanted) for word in words):
                    return True
    return False
