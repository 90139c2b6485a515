"""How fuse-aufs becomes a daemon: when it returns, what it keeps, and how it ends."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import FUSE_AUFS, Commands, wait_for_end
from tests.support.processes import eventually

GOOD = "br:changes=rw:base=ro+wh"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Commands]:
    for name in ("changes", "base", "mnt"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "file").write_text("from the base")
    commands = Commands(tmp_path)
    yield commands
    commands.clean_up()


def umount(run: Commands) -> None:
    subprocess.run(["umount", run.root / "mnt"], check=True, timeout=20)


def read_until_closed(fd: int) -> bytes:
    """Read a pipe to its end, which comes when nobody holds the other end any more."""
    read = b""
    while True:
        ready, _, _ = select.select([fd], [], [], 5)
        assert ready, "somebody still holds the other end of the pipe"
        piece = os.read(fd, 4096)
        if not piece:
            return read
        read += piece


def test_returns_when_the_mount_answers(run: Commands) -> None:
    run.mount("mnt", "-o", GOOD)
    (line,) = run.mounts()
    assert line.kind == "fuse.aufs"
    assert line.source == b"none"
    assert (run.root / "mnt" / "file").read_text() == "from the base"


def test_source_is_shown_as_given(run: Commands) -> None:
    run.mount("my source: a,b", "mnt", "-o", GOOD)
    assert [line.source for line in run.mounts()] == [b"my source: a,b"]
    umount(run)
    run.mount("mnt", "-o", GOOD + ",fsname=here")
    assert [line.source for line in run.mounts()] == [b"here"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-o", GOOD, "none", "mnt", "-o", "noexec"),
        ("none", "-o", GOOD, "mnt", "-o", "noexec"),
        ("none", "-onoexec", "mnt", "-o" + GOOD),
        ("mnt", "-o", "noexec,br:changes=rw", "-o", "dirs=base=ro+wh"),
    ],
)
def test_options_before_between_and_behind(run: Commands, arguments: tuple[str, ...]) -> None:
    run.mount(*arguments)
    (line,) = run.mounts()
    assert line.mountpoint == os.fsencode(run.root / "mnt")
    assert (run.root / "mnt" / "file").exists()
    flags = os.statvfs(run.root / "mnt").f_flag
    assert flags & os.ST_NOEXEC
    assert not flags & os.ST_NODEV


def test_holds_nothing_of_its_caller(run: Commands) -> None:
    reading, writing = os.pipe()
    other_reading, other_writing = os.pipe()
    try:
        done = subprocess.Popen(
            [FUSE_AUFS, "mnt", "-o", GOOD],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            pass_fds=[other_writing],
            env=run.environment,
            cwd=run.root,
        )
        os.close(writing)
        os.close(other_writing)
        assert done.wait(timeout=20) == 0
        assert read_until_closed(reading) == b""
        assert read_until_closed(other_reading) == b""
    finally:
        os.close(reading)
        os.close(other_reading)
    proc = Path(f"/proc/{run.pid()}")
    assert (proc / "cwd").readlink() == Path("/")
    assert {(proc / "fd" / fd).readlink() for fd in "012"} == {Path("/dev/null")}
    session = int((proc / "stat").read_text().rpartition(")")[2].split()[3])
    assert session == run.pid()


def test_limits_of_the_shell_are_not_its_limits(run: Commands) -> None:
    script = 'umask 077; ulimit -S -n 40; ulimit -S -f 0; trap "" TERM HUP; exec "$0" "$@"'
    done = run(FUSE_AUFS, "mnt", "-o", GOOD, prefix=("bash", "-c", script))
    assert (done.returncode, done.stderr) == (0, "")
    status = Path(f"/proc/{run.pid()}/status").read_text()
    assert re.search(r"^Umask:\s*0000$", status, re.MULTILINE)
    assert re.search(r"^SigBlk:\s*0+$", status, re.MULTILINE)
    limits = Path(f"/proc/{run.pid()}/limits").read_text()
    assert re.search(r"^Max file size +unlimited +unlimited", limits, re.MULTILINE)
    files = re.search(r"^Max open files +(\d+) +(\d+)", limits, re.MULTILINE)
    assert files
    assert files[1] == files[2]
    (run.root / "mnt" / "file").write_text("x" * 100_000)
    assert (run.root / "changes" / "file").stat().st_size == 100_000
    os.kill(run.pid(), signal.SIGTERM)
    wait_for_end(run.pid())
    assert run.mounts() == []


def test_ends_with_the_mount(run: Commands) -> None:
    run.mount("mnt", "-o", GOOD)
    pid = run.pid()
    umount(run)
    wait_for_end(pid)
    assert list(run.state.iterdir()) == []


def test_sigterm_unmounts(run: Commands) -> None:
    run.mount("mnt", "-o", GOOD)
    pid = run.pid()
    os.kill(pid, signal.SIGTERM)
    wait_for_end(pid)
    assert run.mounts() == []
    assert list(run.state.iterdir()) == []


def test_sigterm_detaches_a_mount_in_use(run: Commands) -> None:
    run.mount("mnt", "-o", GOOD)
    pid = run.pid()
    with (run.root / "mnt" / "file").open() as used:
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not run.mounts(), "the mount is out of the tree")
        assert used.read() == "from the base"
    wait_for_end(pid)


def test_sighup_opens_the_log_again(run: Commands) -> None:
    (run.root / "logs").mkdir()
    run.mount("mnt", "-o", GOOD + ",log=logs/log")
    assert list((run.root / "logs").iterdir()) == []  # made for the first message only
    os.kill(run.pid(), signal.SIGHUP)
    assert (run.root / "mnt" / "file").read_text() == "from the base"
    umount(run)


def test_sighup_without_a_log_is_nothing(run: Commands) -> None:
    run.mount("mnt", "-o", GOOD)
    os.kill(run.pid(), signal.SIGHUP)
    assert (run.root / "mnt" / "file").read_text() == "from the base"
    umount(run)


def test_in_the_foreground(run: Commands) -> None:
    process = subprocess.Popen(
        [FUSE_AUFS, "--foreground", "mnt", "-o", GOOD],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=run.environment,
        cwd=run.root,
    )
    eventually(lambda: bool(list(run.state.glob("si_*"))), "the mount is announced")
    assert (run.root / "mnt" / "file").read_text() == "from the base"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=20)
    assert (process.returncode, out, errors) == (0, b"", b"")
    assert run.mounts() == []


def test_state_files(run: Commands) -> None:
    run.mount("src", "mnt", "-o", GOOD + ",noplink,udba=none")
    (folder,) = run.state.iterdir()
    assert folder.stat().st_mode & 0o7777 == 0o700
    state = run.state_of()
    si = folder.name.removeprefix("si_")
    assert re.fullmatch("[0-9a-f]{16}", si)
    assert state["br0"] == f"{run.root}/changes=rw"
    assert state["br1"] == f"{run.root}/base=ro+wh"
    assert (state["brid0"], state["brid1"]) == ("64", "65")
    assert state["xi_path"] == f"{run.root}/changes/.aufs.xino"
    assert state["mountpoint"] == f"{run.root}/mnt"
    assert state["source"] == "src"
    assert state["options"] == f"si={si},udba=none,noplink,dirperm1"


def test_default_permissions_show_in_the_state(run: Commands) -> None:
    run.mount("mnt", "-o", "br:changes:base")
    assert run.state_of()["br0"].endswith("changes=rw")
    assert run.state_of()["br1"].endswith("base=ro")
    pid = run.pid()
    umount(run)
    wait_for_end(pid)
    done = run(FUSE_AUFS, "mnt", "-o", "ro,br:changes:base")
    assert done.returncode == 0
    assert run.state_of()["br0"].endswith("changes=ro")


def test_odd_names_in_the_state(run: Commands) -> None:
    odd = run.root / "a b\n\\c=d,e:f"
    odd.mkdir()
    escaped = os.fspath(odd)
    for special in "\\,:=":
        escaped = escaped.replace(special, "\\" + special)
    run.mount("mnt", "-o", f"br:{escaped}=rw:base=ro")
    assert run.state_of()["br0"] == rf"{run.root}/a\040b\012\134c=d,e:f=rw"
    (run.root / "mnt" / "new").touch()
    assert (odd / "new").exists()


def test_what_a_killed_daemon_left_is_swept(run: Commands) -> None:
    run.mount("mnt", "-o", GOOD)
    pid = run.pid()
    (left,) = run.state.iterdir()
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    umount(run)
    assert left.exists()
    run.mount("mnt", "-o", GOOD)
    (folder,) = run.state.iterdir()
    assert folder != left


def test_a_state_folder_that_cannot_be_made_is_a_warning(run: Commands) -> None:
    run.state.write_text("in the way")
    done = run(FUSE_AUFS, "mnt", "-o", GOOD)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "warning: no state folder" in done.stderr
    assert (run.root / "mnt" / "file").exists()
    umount(run)


def test_a_state_folder_others_could_change_is_not_used(run: Commands) -> None:
    run.state.mkdir()
    os.chown(run.state, 1234, 1234)
    done = run(FUSE_AUFS, "mnt", "-o", GOOD)
    assert done.returncode == 0
    assert "warning: no state folder" in done.stderr
    assert list(run.state.iterdir()) == []
    umount(run)


def test_warnings_reach_the_caller(run: Commands) -> None:
    done = run(FUSE_AUFS, "mnt", "-o", "br:changes=rw+frob:base=foo")
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("fuse-aufs: warning: branch ") for line in lines)


@pytest.mark.parametrize("closed", ["0<&-", "0<&- 1>&-", "0<&- 1>&- 2>&-", "2>&-"])
def test_a_caller_without_standard_streams(run: Commands, closed: str) -> None:
    """What is opened then gets their numbers, unless care is taken."""
    prefix = ("sh", "-c", f'exec "$@" {closed}', "sh")
    done = run(FUSE_AUFS, "mnt", "-o", f"{GOOD},log={run.root}/log", prefix=prefix)
    assert done.returncode == 0
    assert os.listdir(run.root / "mnt") == ["file"]
    (run.root / "mnt/new").write_text("x")
    assert (run.root / "changes/new").read_text() == "x"


@pytest.mark.parametrize("words", [("none", "mnt"), ("none", "missing")])
def test_a_stderr_that_cannot_be_written(run: Commands, words: tuple[str, ...]) -> None:
    prefix = ("sh", "-c", 'exec "$@" 2>/dev/full', "sh")
    layers = "lowerdir=base,upperdir=changes,workdir=mnt,nonsense"  # the last is warned about
    done = run(FUSE_AUFS, *words, "-o", layers, prefix=prefix)
    assert done.returncode == (0 if "mnt" in words else 1)
    assert len(run.mounts()) == (1 if "mnt" in words else 0)


def test_a_version_that_cannot_be_written(run: Commands) -> None:
    done = run(FUSE_AUFS, "--version", prefix=("sh", "-c", 'exec "$@" >/dev/full', "sh"))
    assert (done.returncode, done.stderr) == (
        1,
        "fuse-aufs: No space left on device (ENOSPC)\n",
    )


def test_names_that_look_like_options(run: Commands) -> None:
    (run.root / "-o").mkdir()
    run.mount("-o", GOOD, "--", "-x", "-o")
    (line,) = run.mounts()
    assert (line.source, line.mountpoint) == (b"-x", os.fsencode(run.root / "-o"))


def test_in_a_user_namespace(run: Commands) -> None:
    script = """
        set -e
        "$0" none mnt -o br:changes=rw:base=ro+wh
        cat mnt/file
        echo changed > mnt/file
        pid=$(cat state/si_*/pid)
        umount mnt
        n=0
        while [ -e state/si_* ] && [ $n -lt 100 ]; do n=$((n + 1)); sleep 0.05; done
        ls state
    """
    done = run("unshare", "-Urm", "sh", "-c", script, FUSE_AUFS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "from the base"
    assert (run.root / "changes" / "file").read_text() == "changed\n"
    assert (run.root / "base" / "file").read_text() == "from the base"


def test_a_caller_that_gave_up_leaves_no_mount(run: Commands) -> None:
    process = subprocess.Popen(
        [FUSE_AUFS, "mnt", "-o", GOOD],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=run.environment,
        cwd=run.root,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    eventually(lambda: children.read_text() != "", "the command forks")
    child = int(children.read_text())
    process.kill()
    process.wait()
    wait_for_end(child)
    assert run.mounts() == []
