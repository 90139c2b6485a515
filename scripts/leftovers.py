"""What a test run has left behind: mounts in its namespace, and processes that outlive it.

    leftovers.py before FILE    note the mounts that are there
    leftovers.py after FILE     print what has come since, clear it away, exit 1 if there was any

A process belongs to the run when it has the run's FUSE_AUFS_TEST_RUN in its environment, whatever
it is; scripts/test sets the variable, and only the processes above this one may have it by now.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

_VARIABLE = "FUSE_AUFS_TEST_RUN"
_PATIENCE = 3.0  # seconds: a server ends a moment after its mount


def main() -> int:
    """Do one of the two."""
    task, file = sys.argv[1:]
    if task == "before":
        with open(file, "wb") as notes:
            notes.write(b"\n".join(mounts()))
        return 0
    with open(file, "rb") as notes:
        before = set(notes.read().split(b"\n"))
    end = time.monotonic() + _PATIENCE
    while True:
        mounted = [line for line in mounts() if line not in before]
        running = list(processes())
        if not mounted and not running:
            return 0
        if time.monotonic() > end:
            break
        time.sleep(0.1)
    print("left behind (cleared away now):", file=sys.stderr)
    for line in reversed(mounted):
        print(f"  mount {os.fsdecode(line)}", file=sys.stderr)
        point = line.split()[4].decode("unicode_escape").encode("latin-1")
        subprocess.run(["umount", "--lazy", point], check=False)
    for number, command in running:
        print(f"  process {number}: {command}", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM)
    return 1


def mounts() -> list[bytes]:
    """Return the lines of the mount table."""
    with open("/proc/self/mountinfo", "rb") as table:
        return table.read().splitlines()


def processes() -> Iterator[tuple[int, str]]:
    """Yield number and command of every process of the run that is not above this one."""
    mark = f"{_VARIABLE}={os.environ[_VARIABLE]}".encode()
    above = set(_ancestors())
    for number in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if number in above:
            continue
        try:
            with open(f"/proc/{number}/environ", "rb") as environment:
                if mark not in environment.read().split(b"\0"):
                    continue
            with open(f"/proc/{number}/cmdline", "rb") as arguments:
                command = arguments.read().replace(b"\0", b" ")
        except OSError:
            continue  # it has ended, or is none of ours
        yield number, command.decode(errors="backslashreplace").strip()


def _ancestors() -> Iterator[int]:
    number = os.getpid()
    while number:
        yield number
        with open(f"/proc/{number}/stat", "rb") as status:
            number = int(status.read().rpartition(b")")[2].split()[1])


if __name__ == "__main__":
    sys.exit(main())
