"""Operations that meet while a copy-up is on its way (``operation.py`` and ``copyup.py``).

The copying is a job that was handed out and is not done yet; the other operation comes between.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from tests.support.cores import ROOT, Core, Running
from tests.support.trees import fails, fill, paths
from unionfs.syscalls import RENAME_NOREPLACE
from unionfs.union import copyup
from unionfs.union.core import Change, FileHandle, Latch, run_now
from unionfs.union.operation import StuckError


@pytest.fixture(autouse=True)
def every_copy_is_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a small file, so that it can be held up."""
    monkeypatch.setattr(copyup, "_SMALL", -1)


@pytest.fixture
def lower(core: Core) -> Core:
    """R:f, R:d/f and R:a = R:b (one file); W:e/ and W:w only there."""
    fill(core.branch("R"), "f", "d/f", "a")
    os.link(core.base / "R/a", core.base / "R/b")
    fill(core.branch("W"), "e/x", "w")
    core.start()
    return core


def opened(core: Core, path: str, flags: int = os.O_RDWR) -> FileHandle:
    return run_now(core.union.open(core.file(path), flags))


def starting_to_write(core: Core, path: str, data: bytes = b"1") -> tuple[Running[int], FileHandle]:
    """Return a write whose copy-up is under way."""
    handle = opened(core, path)
    write = Running(core.union.write(handle, 0, data))
    assert write.job
    return write, handle


def test_the_old_file_is_seen_until_the_copy_is_complete(lower: Core) -> None:
    write, handle = starting_to_write(lower, "f", b"W!")
    assert lower.read("f") == b"R"
    assert set(lower.names()) == set("ewfdab")
    assert not (lower.base / "W/f").exists()
    assert write.finish() == 2
    lower.union.release(handle)
    assert lower.read("f") == b"W!"


def test_a_second_writer_waits_for_the_one_copy(lower: Core) -> None:
    first, one = starting_to_write(lower, "f", b"12")
    two = opened(lower, "f")
    second = Running(lower.union.write(two, 2, b"34"))
    assert second.waiting
    first.finish()
    assert second.ended
    assert second.result == 2
    assert lower.read("f") == b"1234"
    lower.union.release(one)
    lower.union.release(two)


def test_a_writer_through_another_link_waits_too(lower: Core) -> None:
    first, one = starting_to_write(lower, "a", b"12")
    two = opened(lower, "b")
    second = Running(lower.union.write(two, 2, b"34"))
    assert second.waiting
    first.finish()
    assert second.ended
    lower.union.release(one)
    lower.union.release(two)
    assert (lower.read("a"), lower.read("b"), lower.nlink("a")) == (b"1234", b"1234", 2)
    lower.start()
    assert (lower.read("a"), lower.read("b"), lower.nlink("a")) == (b"1234", b"1234", 2)


def test_unlink_waits_and_the_open_file_lives_on(lower: Core) -> None:
    write, handle = starting_to_write(lower, "f", b"1234")
    unlink = Running(lower.union.unlink(*lower.at("f")))
    assert unlink.waiting
    write.finish()
    assert unlink.ended
    assert unlink.error is None
    assert bytes(lower.union.read(handle, 0, 9)) == b"1234"  # type: ignore[arg-type]
    assert lower.union.getattr(handle.node).nlink == 0
    lower.union.release(handle)
    assert paths(lower.base / "W") == {"e", "e/x", "w", ".wh.f"}


@pytest.mark.parametrize("old", ["f", "w"])
def test_renaming_from_or_onto_it_waits(lower: Core, old: str) -> None:
    write, handle = starting_to_write(lower, "f", b"1234")
    new = "new" if old == "f" else "f"
    rename = Running(lower.union.rename(*lower.at(old), *lower.at(new)))
    assert rename.waiting
    write.finish()
    assert rename.ended
    assert rename.error is None
    lower.union.release(handle)
    assert lower.read(new) == (b"1234" if old == "f" else b"W")
    assert old not in lower.names()
    lower.start()
    assert lower.read(new) == (b"1234" if old == "f" else b"W")
    assert old not in lower.names()


def test_renaming_a_directory_waits_for_every_copy_up(lower: Core) -> None:
    write, handle = starting_to_write(lower, "d/f")
    other, another = starting_to_write(lower, "f")
    moved = Running(lower.union.rename(*lower.at("e"), *lower.at("moved")))
    assert moved.waiting
    write.finish()
    assert moved.waiting
    other.finish()
    assert moved.ended
    assert moved.error is None
    lower.union.release(handle)
    lower.union.release(another)
    assert lower.names("moved") == ["x"]


def test_linking_waits(lower: Core) -> None:
    write, handle = starting_to_write(lower, "f", b"1234")
    link = Running(lower.union.link(lower.node("f"), *lower.at("g")))
    assert link.waiting
    write.finish()
    assert link.ended
    lower.union.release(handle)
    assert (lower.read("g"), lower.nlink("f"), lower.nlink("g")) == (b"1234", 2, 2)
    assert lower.file("f") is lower.file("g")


@pytest.mark.parametrize("first", ["write", "truncate"])
def test_truncation_and_writing_in_both_orders(lower: Core, first: str) -> None:
    (lower.base / "R/f").write_bytes(b"0123456789")
    handle = opened(lower, "f")
    operations: dict[str, Callable[[], Running[object]]] = {
        "write": lambda: Running(lower.union.write(handle, 2, b"X")),
        "truncate": lambda: Running(lower.union.setattr(handle.node, Change(size=5))),
    }
    second = "truncate" if first == "write" else "write"
    running = operations[first]()
    waiting = operations[second]()
    assert waiting.waiting
    running.finish()
    waiting.finish()
    lower.union.release(handle)
    assert lower.read("f") == b"01X34"


def test_opening_with_truncation_waits_for_the_writer(lower: Core) -> None:
    write, handle = starting_to_write(lower, "f", b"1234")
    truncating = Running(lower.union.open(lower.file("f"), os.O_WRONLY | os.O_TRUNC))
    assert truncating.waiting
    write.finish()
    other = truncating.finish()
    lower.union.release(handle)
    lower.union.release(other)
    assert lower.read("f") == b""


def test_a_rename_looks_again_after_its_own_copy_up(lower: Core) -> None:
    """What happened at the new name meanwhile counts."""
    rename = Running(lower.union.rename(*lower.at("f"), *lower.at("new"), RENAME_NOREPLACE))
    assert rename.job
    lower.create("new", b"first")
    rename.run_job()
    assert rename.error
    assert rename.error.errno == errno.EEXIST
    assert (lower.read("new"), lower.read("f")) == (b"first", b"R")


def test_a_failing_job_leaves_nothing_and_wakes_who_waits(
    lower: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    first, one = starting_to_write(lower, "d/f", b"12")
    two = opened(lower, "d/f")
    second = Running(lower.union.write(two, 0, b"34"))
    with monkeypatch.context() as broken:
        broken.setattr(copyup, "copy_content", full)
        first.run_job()
    assert first.error
    assert first.error.errno == errno.ENOSPC
    assert paths(lower.base / "W") - {"d"} == {"e", "e/x", "w"} | {
        path for path in paths(lower.base / "W") if ".wh..wh." in path
    }
    # The one that waited makes its own attempt.
    assert second.job
    assert second.finish() == 2
    assert lower.read("d/f") == b"34"
    lower.union.release(one)
    lower.union.release(two)
    assert paths(lower.base / "W") == {"e", "e/x", "w", "d", "d/f"}


@pytest.mark.parametrize("action", ["write", "rename", "link", "chmod", "unlinked"])
def test_nothing_is_left_of_a_failed_copy(
    lower: Core, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = opened(lower, "a")
    if action == "unlinked":
        lower.unlink("a")
        lower.unlink("b")
    before = paths(lower.base / "W")
    private = sorted(os.listdir(lower.base / "W/.wh..wh.plnk"))
    operation: Running[object]
    if action == "rename":
        operation = Running(lower.union.rename(*lower.at("a"), *lower.at("new")))
    elif action == "link":
        operation = Running(lower.union.link(lower.node("a"), *lower.at("new")))
    elif action == "chmod":
        operation = Running(lower.union.setattr(handle.node, Change(mode=0o600)))
    else:
        operation = Running(lower.union.write(handle, 0, b"1"))
    monkeypatch.setattr(os, "utime", _refusing(os.utime))
    operation.run_job()
    monkeypatch.undo()
    assert operation.error
    assert operation.error.errno == errno.EDQUOT
    assert paths(lower.base / "W") == before
    assert sorted(os.listdir(lower.base / "W/.wh..wh.plnk")) == private
    assert bytes(lower.union.read(handle, 0, 9)) == b"R"  # type: ignore[arg-type]
    lower.union.release(handle)


def _refusing(real: Callable[..., None]) -> Callable[..., None]:
    """Refuse to set the times of an open file, as the job does; directories are let through."""

    def utime(path: object, *arguments: object, **options: object) -> None:
        if isinstance(path, int) or (isinstance(path, bytes) and path.startswith(b"/proc/")):
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        real(path, *arguments, **options)

    return utime


def test_unmounting_gives_a_copy_up(lower: Core) -> None:
    (lower.base / "R/f").write_bytes(b"x" * 100)
    write, handle = starting_to_write(lower, "f")
    lower.union.state.cancelled = True
    write.run_job()
    assert write.error
    assert paths(lower.base / "W") == {"e", "e/x", "w"}
    lower.union.release(handle)


def test_a_directory_in_which_a_copy_is_made_cannot_be_removed(lower: Core) -> None:
    write, handle = starting_to_write(lower, "d/f")
    with fails("ENOTEMPTY"):
        lower.rmdir("d")
    write.finish()
    lower.union.release(handle)
    assert lower.names("d") == ["f"]


def test_names_come_and_go_beside_a_copy_that_is_being_made(lower: Core) -> None:
    write, handle = starting_to_write(lower, "d/f", b"1234")
    lower.create("d/new")
    lower.unlink("d/new")
    lower.mkdir("d/sub")
    assert set(lower.names("d")) == {"f", "sub"}
    write.finish()
    lower.union.release(handle)
    assert lower.read("d/f") == b"1234"


def test_directories_closed_meanwhile_are_opened_again(lower: Core) -> None:
    write, handle = starting_to_write(lower, "d/f", b"1234")
    lower.union.state.directories.close_all()
    write.finish()
    lower.union.release(handle)
    assert (lower.base / "W/d/f").read_bytes() == b"1234"


def test_a_file_that_loses_its_names_before_its_copy_up(lower: Core) -> None:
    """All names go while a write waits for the first one's copy."""
    first, one = starting_to_write(lower, "a", b"1234")
    others: list[Running[None] | Running[int]] = [
        Running(lower.union.unlink(*lower.at(name))) for name in ("a", "b")
    ]
    others.append(Running(lower.union.write(one, 4, b"56")))
    assert all(running.waiting for running in others)
    first.finish()
    assert all(running.ended and not running.error for running in others)
    assert bytes(lower.union.read(one, 0, 9)) == b"123456"  # type: ignore[arg-type]
    lower.union.release(one)
    assert paths(lower.base / "W") == {"e", "e/x", "w", ".wh.a", ".wh.b"}
    assert not os.listdir(lower.base / "W/.wh..wh.plnk")


def test_a_latch_opens_once_for_all() -> None:
    latch = Latch()
    woken: list[str] = []
    latch.on_open(lambda: woken.append("early"))
    assert not latch.done
    latch.open()
    latch.on_open(lambda: woken.append("late"))
    latch.open()
    assert woken == ["early", "late"]


def test_an_operation_that_can_never_go_on_is_an_error_not_a_hang(lower: Core) -> None:
    write, handle = starting_to_write(lower, "f")
    with pytest.raises(StuckError):
        lower.unlink("f")
    write.finish()
    lower.union.release(handle)


def test_forgetting_during_a_copy_up(lower: Core) -> None:
    node = lower.file("f")
    change = Running(lower.union.setattr(node, Change(mode=0o600)))
    lower.union.forget(node.number)
    change.finish()
    assert (lower.base / "W/f").stat().st_mode & 0o777 == 0o600
    for other in list(lower.union.state.nodes):
        if other is not lower.union.root:
            lower.union.forget(other.number, other.lookups)
    assert [*lower.union.state.nodes] == [lower.union.root]


def test_creating_while_it_is_copied_tells_that_it_exists(lower: Core) -> None:
    write, handle = starting_to_write(lower, "f")
    with fails("EEXIST"):
        lower.create("f")
    with fails("EEXIST"):
        lower.union.mkdir(*lower.at("f"), 0o755, ROOT)
    write.finish()
    lower.union.release(handle)
