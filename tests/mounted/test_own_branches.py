"""A union on top of its own branches, and branches that leave the mount table.

Engines do both: a container's volume is mounted over the directory it changes, and a layer is
unmounted behind our back. The daemon looked at the paths once, when it started.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.mounting import Union
from tests.support.oracle import symbol_of
from tests.support.trees import fill, paths

pytestmark = pytest.mark.both_spellings


@pytest.mark.parametrize("where", ["R", "R/d", "W", "W/d"])
@pytest.mark.parametrize("udba", ["", "udba=none"])
def test_on_top_of_a_branch(union: Union, where: str, udba: str) -> None:
    fill(union.R, "f", "gone", "d/x")
    fill(union.W, "w", "d/y")
    union.mount = union.base / where
    top = union.start(options=udba)
    assert sorted(os.listdir(top)) == ["d", "f", "gone", "w"]
    # Below the mount point is what the branch has there, not the union once more.
    assert sorted(os.listdir(top / "d")) == ["x", "y"]
    (top / "f").write_text("changed")
    (top / "gone").unlink()
    (top / "d/x").rename(top / "d/z")
    (top / "d/new").mkdir()
    assert sorted(os.listdir(top)) == ["d", "f", "w"]
    assert sorted(os.listdir(top / "d")) == ["new", "y", "z"]
    union.stop()
    assert (union.W / "f").read_text() == "changed"
    assert (union.R / "f").read_text() == "R"
    assert {"d/new", "d/z", "f"} <= paths(union.W)
    union.start(options=udba)


def test_twice_at_one_place(union: Union) -> None:
    """The second union covers the first, which is one of its branches."""
    fill(union.R, "f")
    first = Union(union.branch("first"))
    fill(first.R, "below")
    first.mount = union.R
    first.start()
    try:
        assert os.listdir(union.R) == ["below"]
        union.mount = union.R
        union.ignore_branches("the lower branch is a union of its own")
        union.no_comparison("the same")
        top = union.start()
        assert os.listdir(top) == ["below"]
        (top / "below").write_text("changed")
        union.stop()
        assert (union.R / "below").read_text() == "R"
    finally:
        if union.pid:
            union.stop()
        first.finish()
    assert os.listdir(union.R) == ["f"]


def test_branches_that_leave_the_mount_table(union: Union) -> None:
    """What the union shows, and where changes go, is not looked for by path again."""
    for name in ("W", "M"):
        union.tmpfs(name, "4m")
    fill(union.W, "w", "d/w")
    fill(union.branch("M"), "m", "d/m")
    fill(union.R, "r", "d/r")
    upper = os.open(union.W, os.O_RDONLY)
    union.ignore_branches("one of them goes")
    union.no_comparison("the writable branch is not there any more")
    top = union.start("W=rw", "M=ro+wh", "R=ro+wh")
    union.detach("W")
    union.detach("M")
    assert os.listdir(union.W) == os.listdir(union.branch("M")) == []
    assert sorted(os.listdir(top)) == ["d", "m", "r", "w"]
    assert sorted(os.listdir(top / "d")) == ["m", "r", "w"]
    assert [(top / name).read_text() for name in ("w", "m", "r")] == ["W", "M", "R"]
    for name in ("w", "m", "r", "d/m", "d/r", "new"):
        (top / name).write_text("changed")
    (top / "d/w").unlink()
    (top / "d/r").rename(top / "moved")
    (top / "e").mkdir()
    held = Path(f"/proc/self/fd/{upper}")
    assert {"d/m", "e", "m", "moved", "new", "r", "w"} <= paths(held)
    assert (held / "moved").read_text() == "changed"
    assert symbol_of(os.stat, top / "d/r") == "ENOENT"
    os.close(upper)
    assert os.listdir(union.W) == []
