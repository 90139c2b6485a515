"""Running the installed commands the way a user does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from unionfs.control.state import OVERRIDE
from unionfs.mount_table import MountLine, mount_table

BIN = Path(sys.executable).parent
FUSE_AUFS = str(BIN / "fuse-aufs")
AUFSCTL = str(BIN / "aufsctl")


class Commands:
    """A folder with branches and mount points, and commands that keep their state in it.

    Attributes:
        root: the folder.
        environment: what the commands run with.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        self.environment = {**os.environ, OVERRIDE: str(self.state)}

    def __call__(
        self, *command: str | Path, prefix: Sequence[str] = (), cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; ``prefix`` is what it is run by, such as ``unshare``."""
        return subprocess.run(
            [*prefix, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            stdin=subprocess.DEVNULL,
            env=self.environment,
            cwd=cwd or self.root,
        )

    def mount(self, *arguments: str | Path) -> None:
        """Mount; an error is a failure of the test."""
        done = self(FUSE_AUFS, *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def mounts(self) -> list[MountLine]:
        """Return what is mounted below the folder."""
        inside = os.fsencode(self.root) + b"/"
        return [line for line in mount_table() if line.mountpoint.startswith(inside)]

    def state_of(self, index: int = 0) -> Mapping[str, str]:
        """Return the state files of one live mount."""
        folder = sorted(self.state.glob("si_*"))[index]
        return {file.name: file.read_text().removesuffix("\n") for file in folder.iterdir()}

    def pid(self) -> int:
        """Return the process that serves the only mount."""
        return int(self.state_of()["pid"])

    def tree(self) -> dict[str, tuple[int, int, bytes]]:
        """Return everything in the folder: mode, modification time, content."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
        return found

    def clean_up(self) -> None:
        """Unmount everything and see the daemons off."""
        pids = [int(file.read_text()) for file in self.state.glob("si_*/pid")]
        for line in reversed(self.mounts()):
            subprocess.run(["umount", "-l", line.mountpoint], check=True)
        for pid in pids:
            # Somebody's mount namespace made meanwhile may hold a copy of the mount.
            try:
                wait_for_end(pid, seconds=3)
            except AssertionError:
                os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be collected by init does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # gone, or gone between open and read
        return False
    return state not in "ZX"


def wait_for_end(pid: int, seconds: float = 10) -> None:
    """Wait until a process has ended; not to end in time is a failure."""
    deadline = time.monotonic() + seconds
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)
