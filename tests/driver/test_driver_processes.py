"""Several processes at one store, some of which are killed (driver.md 1.4, 1.7)."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

import driver
from driver import Driver, claims, mounttable
from tests.support.processes import in_child

PROGRAM = """
import sys
import driver
store = driver.init(sys.argv[1])
for line in sys.stdin:
    print(repr(eval(line)), flush=True)
"""

WORK = """
import os, random, sys
import driver
store = driver.init(sys.argv[1])
chance = random.Random(int(sys.argv[2]))
for _ in range(6):
    layer = chance.choice(["2", "3"])
    if chance.random() < 0.4:
        store.changes(layer, "other")
        continue
    path = store.get(layer)
    assert "file" in os.listdir(path), path
    store.put(layer)
assert store._uses.snapshot() == {}
"""


class Process:
    """Another process with a driver of its own for the same store."""

    def __init__(self, root: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(driver.__file__).parents[1],
        )

    def do(self, method: str, *arguments: str) -> str:
        """Call a method of the driver there and return what its result looks like."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(f"store.{method}{arguments!r}", file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().strip()
        assert answer, f"{method} failed there"
        return answer

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.communicate()


@pytest.fixture
def store(root: str) -> Driver:
    """A driver whose layers 2 and 3 lie on 1, and one that has nothing to do with them."""
    store = driver.init(root)
    store.create("1")
    Path(root, "diff/1/file").write_bytes(bytes(200_000))
    store.create("2", "1")
    store.create("3", "1")
    store.create("other")
    return store


@pytest.fixture
def other(store: Driver) -> Iterator[Process]:
    with Process(store.root) as process:
        yield process


def mounted(store: Driver) -> list[str]:
    return [os.path.basename(point) for point in mounttable.mounts_below(store.root)]


def leave_mounted(store: Driver) -> None:
    """Mount layer 2 as a process that is killed while it uses it."""
    with Process(store.root) as process:
        process.do("get", "2")
        process.kill()
    assert mounted(store) == ["2"]


# --- living processes ----------------------------------------------------------------------------


def test_a_short_use_leaves_the_mount_to_who_has_got_it_since(
    store: Driver, other: Process
) -> None:
    with store.diff("2", "other") as stream:
        stream.read(100)
        path = other.do("get", "2").strip("'")
    assert mounted(store) == ["2"]
    Path(path, "precious").write_text("of the container")
    assert Path(store.root, "diff/2/precious").exists()
    store.changes("2", "other")
    store.diff_size("2", "other")
    assert mounted(store) == ["2"]
    other.do("put", "2")
    assert mounted(store) == []


def test_a_mount_of_somebody_else_counts_while_it_is_there(store: Driver, other: Process) -> None:
    store.get("2")
    other.do("changes", "2", "other")
    other.do("get", "2")
    store.put("2")
    assert mounted(store) == ["2"]
    other.do("put", "2")
    assert mounted(store) == []
    for _ in range(2):
        other.do("changes", "2", "other")
        assert mounted(store) == []
    assert other.do("_uses.snapshot") == "{}"


def test_a_put_without_get_leaves_a_layer_in_use_mounted(
    store: Driver, other: Process, caplog: pytest.LogCaptureFixture
) -> None:
    other.do("get", "2")
    store.put("2")
    assert mounted(store) == ["2"]
    assert "another process uses it" in caplog.text
    other.do("put", "2")
    assert mounted(store) == []


def test_balanced_processes_leave_nothing(store: Driver) -> None:
    others = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, store.root, str(seed)],
            cwd=Path(driver.__file__).parents[1],
        )
        for seed in range(3)
    ]
    assert [other.wait() for other in others] == [0, 0, 0]
    assert mounted(store) == []
    for layer in ("2", "3"):
        assert os.listdir(os.path.join(store.root, "mnt", layer)) == []


def test_a_layer_made_anew_elsewhere_has_new_counts(store: Driver, other: Process) -> None:
    store.get("2")
    other.do("remove", "2")
    other.do("create", "2", "1")
    other.do("get", "2")
    store.put("2")  # of the layer that was
    assert mounted(store) == ["2"]
    store.get("2")
    other.do("put", "2")
    assert mounted(store) == ["2"]
    store.put("2")
    assert mounted(store) == []


# --- killed processes ----------------------------------------------------------------------------


def test_what_a_killed_process_used_counts_once(store: Driver) -> None:
    leave_mounted(store)
    for _ in range(2):
        store.get("2")
        store.get("2")
        store.put("2")
        store.put("2")
        assert mounted(store) == ["2"]
    store.put("2")
    assert mounted(store) == []


def test_all_who_use_a_mount_know_that_it_was_left(store: Driver, other: Process) -> None:
    """The second one meets a mount in use, and yet must not undo it as the last one."""
    leave_mounted(store)
    store.get("2")
    other.do("get", "2")
    store.put("2")
    other.do("put", "2")
    assert mounted(store) == ["2"]
    store.put("2")
    assert mounted(store) == []


def test_a_killed_process_does_not_keep_others_from_unmounting(store: Driver) -> None:
    store.get("2")
    with Process(store.root) as process:
        process.do("get", "2")
        process.kill()
    store.put("2")
    assert mounted(store) == []


def test_what_was_left_is_forgotten_with_its_mount(store: Driver) -> None:
    leave_mounted(store)
    path = store.get("2")
    subprocess.run(["umount", path], check=True)
    store.get("2")
    store.put("2")
    store.put("2")
    assert mounted(store) == []


# --- in one process ------------------------------------------------------------------------------


def test_two_drivers_of_one_process(store: Driver) -> None:
    second = driver.init(store.root)
    with store.diff("2", ""):
        second.get("2")
    assert mounted(store) == ["2"]
    second.put("2")
    assert mounted(store) == []


def test_a_program_about_to_start_keeps_nothing_mounted(store: Driver) -> None:
    """Between fork and exec, which another thread may be at, it has a copy of every descriptor."""
    claim = store._uses._uses[store.get("2")].claim
    assert claim is not None
    copy = os.dup(claim._fd)
    try:
        store.put("2")
        assert mounted(store) == []
        assert not claims.used_elsewhere(os.path.join(store.root, "layers/2"))
    finally:
        os.close(copy)


def test_uses_end_with_the_mount(store: Driver) -> None:
    """What one driver had got is gone; the other's use of the new mount is not undone by it."""
    second = driver.init(store.root)
    subprocess.run(["umount", store.get("2")], check=True)
    second.get("2")
    store.put("2")
    assert mounted(store) == ["2"]
    second.put("2")
    assert mounted(store) == []
    subprocess.run(["umount", store.get("2")], check=True)
    second.get("2")
    second.put("2")
    assert mounted(store) == []


def test_a_fork_uses_nothing(store: Driver) -> None:
    store.get("2")

    def fork() -> list[list[str]]:
        seen = []
        for method in (store.put, store.get, store.put, store.put, driver.init(store.root).put):
            method("2")
            seen.append(mounted(store))
        return seen

    assert in_child(fork) == [["2"]] * 5
    store.put("2")
    assert mounted(store) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_filesystem_without_such_locks(
    store: Driver, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Then a mount that is there already is somebody's, whoever lives."""

    def refuse(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    real: Callable[..., object] = fcntl.fcntl
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    store.get("2")
    store.put("2")
    assert mounted(store) == []
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", real)
        leave_mounted(store)
    store.get("2")
    store.put("2")
    assert mounted(store) == ["2"]
    store.put("2")
    assert mounted(store) == []


def test_locking_that_fails_otherwise_fails_the_get(
    store: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", refuse)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError):
            store.get("2")
        assert len(os.listdir("/proc/self/fd")) == before
    assert mounted(store) == []
    assert store._uses.snapshot() == {}
    store.get("2")
    store.put("2")
    assert mounted(store) == []
