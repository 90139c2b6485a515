"""A mounted union for a test: made with the real ``fuse-aufs`` command, taken down with ``umount``.

Whatever a test is about, the following is checked at its end, because every peer has broken one of
these at some time:

* the live view equals the view after unmount and mount (names, types, modes, owners, times,
  contents, extended attributes, link counts, which names are one file);
* nothing was written to a read-only branch;
* the daemon ended by itself, with status 0, and left neither mount nor state folder behind;
* the daemon logged no warning and no error;
* ``aufsctl check`` finds nothing wrong with the writable branch.

A test for which one of them makes no sense says so, with the reason.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import select
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from tests.support.processes import adopting_orphans, as_user, eventually
from tests.support.trees import Seen, describe, differences, temporaries
from unionfs.cli import aufsctl

T = TypeVar("T")

COMMAND = Path(sys.executable).parent / "fuse-aufs"
DEFAULT_LAYOUT = ("W=rw", "R=ro+wh")
_PATIENCE_S = 20.0


class Union:
    """Branches, a mount point and, once started, a daemon.

    base: an empty directory; everything lives below it. Branches ``W`` and ``R`` are there from the
    beginning, others appear when they are named.
    spelling: ``br`` or ``overlay``, how the layout is written down, and with it the profile.
    """

    def __init__(self, base: Path, spelling: str = "br") -> None:
        self.base = base
        self.spelling = spelling
        self.mount = base / "mnt"
        self.log = base / "log"
        self.state = base / "state"
        self.pid = 0
        self.preexec: Callable[[], None] | None = None
        self.forked = False  # start without the command itself, by a fork of this process
        self._layout: tuple[str, ...] = DEFAULT_LAYOUT
        self._options = ""
        self._expected_log: list[str] = []
        self._no_comparison = ""
        self._ignore_branches = ""
        self._flawed = ""
        self._clear = False
        self._tmpfs: list[Path] = []
        self._read_only: dict[str, dict[str, Seen]] = {}
        for path in (self.mount, self.W, self.R):
            path.mkdir(exist_ok=True)
        self.state.mkdir(mode=0o700)

    # places

    @property
    def W(self) -> Path:  # noqa: N802 - the specification calls it so
        """The writable branch."""
        return self.base / "W"

    @property
    def R(self) -> Path:  # noqa: N802
        """The read-only branch."""
        return self.base / "R"

    def branch(self, name: str) -> Path:
        """Return the directory of a branch, which is made if need be."""
        path = self.base / name
        path.mkdir(exist_ok=True)
        return path

    def tmpfs(self, name: str, size: str) -> Path:
        """Put a branch on a small filesystem of its own; ``size`` as mount(8) takes it."""
        path = self.branch(name)
        options = f"size={size},mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
        self._tmpfs.append(path)
        return path

    def detach(self, name: str) -> None:
        """Unmount a branch that ``tmpfs`` has mounted, although it is in use."""
        path = self.branch(name)
        subprocess.run(["umount", "-l", path], check=True)
        self._tmpfs.remove(path)

    # the daemon

    def start(self, *layout: str, options: str = "") -> Path:
        """Mount and return the mount point.

        layout: branches as ``NAME=permission``, top first; ``[W=rw, R=ro+wh]`` without any.
        options: further mount options, separated by commas.
        """
        self._layout = layout or DEFAULT_LAYOUT
        self._options = options
        if not self._ignore_branches:
            self._remember_read_only_branches()
        if self.forked and self.preexec is None:
            self._start_by_fork()
        else:
            done = self.command()
            assert done.returncode == 0, f"fuse-aufs failed: {done.stderr}"
            self._find_daemon()
        return self.mount

    def arguments(self) -> list[str]:
        """Return the arguments of ``fuse-aufs`` for the present layout and options."""
        options = [self._spelled_layout(), f"log={self.log}"]
        if self._options:
            options.insert(0, self._options)
        return ["none", str(self.mount), "-o", ",".join(options)]

    def _spelled_layout(self) -> str:
        branches = [
            (str(self.branch(name)), permission)
            for name, _, permission in (word.partition("=") for word in self._layout)
        ]
        listed = "br:" + ":".join(f"{path}={permission}" for path, permission in branches)
        if self.spelling == "br":
            return listed
        top, *lower = (permission for _, permission in branches)
        if top not in ("rw", "ro+wh") or {*lower} - {"ro+wh"}:
            return f"profile=overlay,{listed}"  # lowerdir= cannot say it
        directories = [path for path, _ in branches]
        upper = directories.pop(0) if top == "rw" else ""
        options = "lowerdir=" + ":".join(directories)
        return f"{options},upperdir={upper},workdir={self.branch('work')}" if upper else options

    def command(self) -> subprocess.CompletedProcess[str]:
        """Run ``fuse-aufs`` with the present layout and options, whatever comes out of it."""
        with adopting_orphans():
            return subprocess.run(
                [COMMAND, *self.arguments()],
                env={**os.environ, "FUSE_AUFS_STATE": str(self.state)},
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
                check=False,
                preexec_fn=self.preexec,
            )

    def stop(self) -> None:
        """Unmount, and wait for the end of the daemon."""
        done = subprocess.run(
            ["umount", self.mount], capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
        assert done.returncode == 0, f"umount failed: {done.stderr}"
        status = self.wait()
        assert status == 0, f"the daemon ended with status {status}"
        assert not list(self.state.iterdir()), "the state folder was left behind"

    def remount(self) -> Path:
        """Unmount and mount again with the same branches and options."""
        self.stop()
        self._start_by_fork()
        return self.mount

    def _find_daemon(self) -> None:
        (pid_file,) = self.state.glob("si_*/pid")
        self.pid = int(pid_file.read_text())

    def _start_by_fork(self) -> None:
        """Mount by the function behind the command, in a fork of this process.

        Most mounts are made for a comparison; without starting Python for them the tests take half
        of the time.
        """
        messages = self.base / "messages"
        with adopting_orphans():
            child = os.fork()
            if child == 0:
                status = 99
                try:
                    status = _run_main(self.arguments(), self.state, messages)
                finally:
                    os._exit(status)
            _, status = os.waitpid(child, 0)
        assert status == 0, f"fuse-aufs failed: {messages.read_text()}"
        self._find_daemon()

    def kill(self) -> None:
        """Kill the daemon as a crash would, and clear the dead mount away."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL
        subprocess.run(["umount", self.mount], check=True, timeout=_PATIENCE_S)
        for folder in self.state.iterdir():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()

    def wait(self) -> int:
        """Wait for the end of the daemon; returns its exit status, negative for a signal."""
        fd = os.pidfd_open(self.pid)
        try:
            ready, _, _ = select.select([fd], [], [], _PATIENCE_S)
            assert ready, f"the mount is gone, the daemon is not; its threads: {self._threads()}"
        finally:
            os.close(fd)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def _threads(self) -> list[str]:
        """Return where in the kernel each thread of the daemon waits."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return [
            f"{(task / 'comm').read_text().strip()} {(task / 'wchan').read_text()}"
            for task in tasks
        ]

    def resident(self) -> int:
        """Return the daemon's memory in KiB."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
        assert found
        return int(found[1])

    def bytes_read(self) -> int:
        """Return how many bytes the daemon has read so far, requests included."""
        text = Path(f"/proc/{self.pid}/io").read_text()
        found = re.search(r"^rchar: (\d+)", text, re.MULTILINE)
        assert found
        return int(found[1])

    def as_user(
        self, uid: int, gid: int, action: Callable[[], T], *, groups: tuple[int, ...] = ()
    ) -> T:
        """Run ``action`` in the mount point with other ids; paths in it are relative."""
        return as_user(uid, gid, action, directory=self.mount, groups=groups)

    # what the end of the test is to expect

    def expect_log(self, pattern: str) -> None:
        """Lines in which this regular expression is found may stand in the log."""
        self._expected_log.append(pattern)

    def no_comparison(self, reason: str) -> None:
        """Do not compare the live view with the one after a new mount."""
        assert reason
        self._no_comparison = reason

    def ignore_branches(self, reason: str) -> None:
        """Do not look whether the read-only branches are as they were; said before the start."""
        assert reason
        self._ignore_branches = reason

    def branch_is_flawed(self, reason: str) -> None:
        """The writable branch holds what ``aufsctl check`` complains about."""
        assert reason
        self._flawed = reason

    def clear_afterwards(self, reason: str) -> None:
        """Remove everything at the end: pytest cannot."""
        assert reason
        self._clear = True

    # the end

    def finish(self) -> None:
        """Check what is true at the end of every test, then take everything down."""
        if self.pid:
            if not self._no_comparison:
                self._compare_with_a_new_mount()
            if self.pid:
                self.stop()
        if not self._ignore_branches:
            for name, before in self._read_only.items():
                changed = differences(before, describe(self.branch(name)))
                assert not changed, f"read-only branch {name} was changed: {changed}"
        self._check_log()
        if not self._flawed:
            for name in self._writable():
                found = self.check(name)
                assert not found, f"aufsctl check {name}: {found}"
        self._unmount_tmpfs()
        left = mounts_below(self.base)
        assert not left, f"still mounted: {left}"

    def take_down(self) -> None:
        """Leave nothing behind, come what may; checks nothing."""
        if self.pid:  # it goes first: nothing can hang on a daemon that is not there
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.pid = 0
        for point in reversed(mounts_below(self.mount)):
            subprocess.run(["umount", "-l", point], check=False, timeout=_PATIENCE_S)
        self._unmount_tmpfs()
        if self._clear and not mounts_below(self.base):
            subprocess.run(["rm", "-rf", self.base], check=True)
            self.base.mkdir()

    def settle(self) -> None:
        """Wait for what the daemon does in the background."""
        for name in self._writable():
            eventually(partial(_is_settled, self.branch(name)), f"temporary names in {name}")

    def check(self, name: str, *options: str) -> str:
        """Run ``aufsctl check`` on a branch that is not mounted; returns what it found."""
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            status = aufsctl.main(["check", *options, str(self.branch(name))])
        assert status in (0, 1), output.getvalue()
        return output.getvalue() if status else ""

    def _compare_with_a_new_mount(self) -> None:
        self.settle()
        live = describe(self.mount)
        self.remount()
        changed = differences(live, describe(self.mount))
        assert not changed, f"another view after unmount and mount: {changed}"

    def _check_log(self) -> None:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        unexpected = [
            line
            for line in lines
            if " INFO " not in line
            and " DEBUG " not in line
            and not any(re.search(pattern, line) for pattern in self._expected_log)
        ]
        assert not unexpected, "unexpected lines in the log:\n" + "\n".join(unexpected)

    def _writable(self) -> list[str]:
        return [word.partition("=")[0] for word in self._layout if "=rw" in word]

    def _remember_read_only_branches(self) -> None:
        for word in self._layout:
            name = word.partition("=")[0]
            if "=rw" not in word and name not in self._read_only:
                self._read_only[name] = describe(self.branch(name))

    def _unmount_tmpfs(self) -> None:
        while self._tmpfs:
            # The descriptor of a daemon that has just ended may take a moment to go.
            path = self._tmpfs.pop()
            eventually(partial(_unmounts, path), f"umount {path}")


def _unmounts(path: Path) -> bool:
    return subprocess.run(["umount", path], check=False).returncode == 0


def _is_settled(branch: Path) -> bool:
    return not temporaries(branch)


def _run_main(arguments: list[str], state: Path, messages: Path) -> int:
    """Be the ``fuse-aufs`` command; for a fork of the test process only."""
    from unionfs.cli.mount import main

    fd = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.dup2(fd, 2)
    os.close(fd)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    warnings.resetwarnings()  # the test's are errors, the daemon's are not
    os.environ["FUSE_AUFS_STATE"] = str(state)
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


def warm_up() -> None:
    """Import what a daemon needs, so that forks of this process have it."""
    # Before trio, whose source of random numbers it wants to know.
    import hypothesis  # noqa: F401

    import unionfs.cli.mount
    import unionfs.fuse.serve
    import unionfs.union  # noqa: F401

    # The daemon collects garbage once at its start; what is there now it need not look at.
    gc.collect()
    gc.freeze()


def mounts_below(top: Path) -> list[str]:
    """Return the mount points at and below a directory, in the order in which they were made."""
    wanted = os.path.realpath(top)
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point == wanted or point.startswith(wanted + "/"):
            found.append(point)
    return found
