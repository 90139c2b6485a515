"""Two unions do not write one branch, whatever goes wrong on the way to finding that out."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from unionfs.branch import lock
from unionfs.branch.errors import BranchError
from unionfs.servers import servers


@pytest.fixture
def branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A branch that somebody has locked."""
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(lock, "_ASK_EVERY_S", 0.05)
    holder, fd = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    fcntl.flock(holder, fcntl.LOCK_EX)
    yield fd
    os.close(holder)
    os.close(fd)


def refused(branch: int) -> bool:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BranchError, match="EBUSY"):
        lock.lock(branch, "/branch", ask=True)
    return os.listdir("/proc/self/fd") == before


def test_nobody_can_be_asked(branch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(lock, "_ask_holders", fail)
    assert refused(branch)


def test_we_hold_it_ourselves_and_are_no_server(branch: int) -> None:
    assert refused(branch)


def test_a_filesystem_without_locks(branch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: int) -> None:
        raise OSError(37, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    os.close(lock.lock(branch, "/branch", ask=True))


def test_a_lock_on_another_descriptor_is_found(branch: int, tmp_path: Path) -> None:
    own = os.getpid()
    assert lock._holds(own, tmp_path.stat().st_ino)
    assert not lock._holds(own, tmp_path.parent.stat().st_ino)
    assert own not in dict(servers())
