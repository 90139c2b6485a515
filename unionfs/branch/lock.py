"""The lock on a writable branch: two unions that change one branch would ruin each other's work.

A union that was unmounted lazily, or has a copy in some container's mount namespace, lives on for
those who use it, and so does its lock. Nobody could then mount the branch again, and nobody could
tell who uses the old mount. So whoever wants the branch asks for it, by a signal to the process
that holds the lock. That one gives it up if its mount is no longer in the tree, and from then on
changes nothing but what is open for writing already.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from errno import EBUSY, EINVAL, errorcode
from typing import Final

from unionfs.branch.errors import BranchError
from unionfs.servers import servers

GIVE_UP: Final = signal.SIGUSR1  # asks a server whose mount has left the tree for its branch

_PATIENCE_S: Final = 3.0  # a union that is just being unmounted gets so long
_ASK_EVERY_S: Final = 0.4
_PAUSE_S: Final = 0.02


def lock(fd: int, shown: str, *, ask: bool) -> int:
    """Keep other unions off a branch for as long as the returned descriptor is open.

    Args:
        fd: descriptor of the branch, ``O_PATH`` will do.
        shown: its name in messages.
        ask: ask for the branch, too.

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
    inode = os.fstat(lock_fd).st_ino
    began = asked = time.monotonic()
    while not _try(lock_fd):
        now = time.monotonic()
        if now - began > _PATIENCE_S:
            os.close(lock_fd)
            raise _refusal(shown, inode)
        if ask and now - asked > _ASK_EVERY_S:
            with contextlib.suppress(OSError):
                _ask_holders(inode)
            asked = time.monotonic()
        time.sleep(_PAUSE_S)
    return lock_fd


def _refusal(shown: str, inode: int) -> BranchError:
    """Say who has the branch: the mount may be in a namespace where it cannot be seen from here."""
    holder = None
    with contextlib.suppress(OSError):
        holder = _holder(inode)
    advice = f"unmount that one first (kill {holder} does)" if holder else "unmount that one first"
    return BranchError(
        EBUSY,
        f"branch {shown} is the writable branch of another union (EBUSY): {advice}, or use "
        f"{shown}=ro",
    )


def _try(lock_fd: int) -> bool:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a filesystem without locks: nothing can be promised there
    return True


def _ask_holders(inode: int) -> None:
    """Ask the servers that hold a lock on this inode, if they understand the question.

    The inode alone is enough: a server that is asked by mistake gives up only what nobody has
    mounted any more.
    """
    for process, _ in servers():
        try:
            # Whoever has the number by the time of the signal, it reaches this process or none.
            asked = os.pidfd_open(process)
        except OSError:
            continue
        try:
            if _understands(process) and _holds(process, inode):
                signal.pidfd_send_signal(asked, GIVE_UP)
        except OSError:
            continue  # it has ended, or is somebody else's
        finally:
            os.close(asked)


def _holder(inode: int) -> int | None:
    """Return the process that holds a lock on this inode, if it is found."""
    for process, _ in servers():
        with contextlib.suppress(OSError):
            if _holds(process, inode):
                return process
    return None


def _understands(process: int) -> bool:
    """Tell whether a server has a handler for the signal.

    It would kill one that has none: one that is about to end, say, or one of old.
    """
    with open(f"/proc/{process}/status", "rb") as status:
        for line in status:
            if line.startswith(b"SigCgt:"):
                return bool(int(line.split()[1], 16) >> (GIVE_UP - 1) & 1)
    return False


def _holds(process: int, inode: int) -> bool:
    """Tell whether one of the process's descriptors carries an exclusive lock of the inode."""
    folder = f"/proc/{process}/fdinfo"
    wanted = b":%d" % inode
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError), open(f"{folder}/{name}", "rb") as info:
            for line in info:
                # lock: 1: FLOCK  ADVISORY  WRITE 1234 fe:01:5678 0 EOF
                words = line.split()
                exclusive = b"FLOCK" in words and b"WRITE" in words
                if exclusive and any(word.endswith(wanted) for word in words):
                    return True
    return False
