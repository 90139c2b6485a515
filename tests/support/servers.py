"""The server behind a layer's mount: whether there is one, which process it is, its death."""

from __future__ import annotations

import os
import signal

from driver import mounts, mounttable
from driver.mounttable import MountState


def is_mounted(path: str) -> bool:
    return mounttable.state(path) is not MountState.ABSENT


def server_of(path: str) -> int:
    """Return the process number of the server of a mount."""
    fd = mounts._server_of(path)
    assert fd is not None
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
            return next(int(line.split()[1]) for line in info if line.startswith("Pid:"))
    finally:
        os.close(fd)


def kill(path: str) -> None:
    """Kill the server of a mount and wait until it is gone."""
    fd = mounts._server_of(path)
    assert fd is not None
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        mounts._wait_for_end(fd, path)
    finally:
        os.close(fd)
