"""The processes that serve unions, found by their command lines.

A server is a fork of the command that was called to mount, and keeps its arguments.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_PROGRAM_ARGUMENTS = 4  # python -P -c PROGRAM, or python SCRIPT


def servers() -> Iterator[tuple[int, list[bytes]]]:
    """Yield process number and command line of each server that can be seen from here.

    Raises:
        OSError: /proc cannot be read.
    """
    if os.readlink("/proc/self") != str(os.getpid()):
        return  # these are the processes of another PID namespace
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{process}/cmdline", "rb") as file:
            arguments = file.read().split(b"\0")
            if any(map(_is_command, arguments[:_PROGRAM_ARGUMENTS])):
                yield int(process), arguments


def _is_command(argument: bytes) -> bool:
    return os.path.basename(argument) == b"fuse-aufs" or b"unionfs.cli.mount" in argument
