"""What a removed directory leaves to the background, when more than one removal gets at it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from errno import ENOENT
from pathlib import Path

import pytest

from tests.support.cores import Core
from tests.support.interleaving import Stepped, stepwise
from tests.support.trees import fails, fill, paths
from unionfs.branch import WritableDirectory
from unionfs.union.core import Job, run_now


def removals(core: Core) -> list[Job]:
    """Remove a tree name by name as rm(1) does; return what was left to do, innermost first."""
    fill(core.branch("R"), "d/x/y/f", "d/x/f", "d/f")
    state = core.start().state
    state.rules = replace(state.rules, background_above=0)  # one whiteout is enough
    for directory in ("d/x/y", "d/x", "d"):
        run_now(core.union.unlink(*core.at(f"{directory}/f")))
        core.union.rmdir(*core.at(directory))
    jobs = core.union.take_background()
    assert len(jobs) == 3
    return jobs


@pytest.mark.parametrize("last", range(3))
def test_removals_of_one_tree_do_not_disturb_each_other(
    tmp_path: Path,
    last: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two removals change places twice, at every pair of system calls; the third comes after."""
    until_first = 0
    ended = False
    while not ended:
        until_second = 0
        while True:
            core = Core(tmp_path)
            left_over = removals(core)
            third = left_over.pop(last)
            with stepwise(monkeypatch):
                # The outer one begins: what it finds is taken away by the inner one, and then
                # the other way round.
                inner, outer = Stepped(left_over[0].run), Stepped(left_over[1].run)
                for _ in range(until_first):
                    outer.step()
                ended = outer.ended
                for _ in range(until_second):
                    inner.step()
                inner_ended = inner.ended
                outer.finish()
                inner.finish()
            third.run()
            core.stop()
            where = f"{until_first} calls, then {until_second}"
            assert not caplog.records, f"{where}: {caplog.messages}"
            assert paths(tmp_path / "W") == {".wh.d"}, where
            (tmp_path / "W/.wh.d").unlink()
            if inner_ended:
                break
            until_second += 1
        until_first += 1
    assert until_first > 10


def test_a_directory_that_cannot_be_opened_any_more_is_gone(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So some filesystems say it of a directory that was removed while it was held."""
    fill(core.branch("W"), "d/x/", "d/f")
    top = core.start().state.writable
    assert top is not None
    scan = WritableDirectory.scan

    def gone(self: WritableDirectory, *, quietly: bool = False) -> Iterator[os.DirEntry[str]]:
        monkeypatch.setattr(WritableDirectory, "scan", scan)
        shutil.rmtree(core.branch("W") / "d")
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT))

    monkeypatch.setattr(WritableDirectory, "scan", gone)
    top.root.remove_tree(b"d")
    assert paths(core.branch("W")) == set()


def test_what_can_only_be_listed_does_not_hold_up_for_ever(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged directory, or one of a network filesystem that does not know what it wants."""
    fill(core.branch("W"), "d/f")
    top = core.start().state.writable
    assert top is not None

    def gone(_: WritableDirectory, name: bytes) -> None:
        raise OSError(ENOENT, "no such file", name)

    monkeypatch.setattr(WritableDirectory, "unlink", gone)
    with fails("ENOTEMPTY"):
        top.root.remove_tree(b"d")
