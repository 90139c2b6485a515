"""A union without a writable branch can be read and not changed (aufs.md 11, case 72)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import pytest

from tests.support.branches import fingerprint
from tests.support.cores import ROOT, Core
from tests.support.trees import fails, fill
from unionfs.union.core import Change, FileHandle, run_now


@pytest.fixture
def tree(core: Core) -> Core:
    fill(core.branch("R1"), "f", "d/x", ".wh.gone")
    fill(core.branch("R2"), "gone", "d/y", "empty/", "a")
    os.link(core.base / "R2/a", core.base / "R2/b")
    core.start("R1=ro+wh", "R2=ro+wh")
    return core


def opened(core: Core, flags: int) -> FileHandle:
    return run_now(core.union.open(core.file("f"), flags))


CALLS: dict[str, Callable[[Core], object]] = {
    "create": lambda core: core.create("new"),
    "create where a whiteout stands": lambda core: core.create("gone"),
    "mkdir": lambda core: core.mkdir("d/new"),
    "symlink": lambda core: core.union.symlink(*core.at("new"), b"text", ROOT),
    "mknod": lambda core: core.union.mknod(*core.at("new"), stat.S_IFIFO | 0o600, 0, ROOT),
    "link": lambda core: core.link("f", "new"),
    "unlink": lambda core: core.unlink("f"),
    "rmdir": lambda core: core.rmdir("empty"),
    "rename a file": lambda core: core.rename("f", "new"),
    "rename onto a file": lambda core: core.rename("f", "d/x"),
    "rename a directory": lambda core: core.rename("empty", "new"),
    "open for writing": lambda core: opened(core, os.O_WRONLY),
    "open for both": lambda core: opened(core, os.O_RDWR),
    "truncate": lambda core: opened(core, os.O_WRONLY | os.O_TRUNC),
    "chmod": lambda core: run_now(core.union.setattr(core.node("f"), Change(mode=0o600))),
    "chmod a directory": lambda core: run_now(
        core.union.setattr(core.node("d"), Change(mode=0o700))
    ),
    "set an attribute": lambda core: run_now(core.union.set_xattr(core.node("f"), b"user.k", b"v")),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_change_is_refused_and_changes_nothing(tree: Core, name: str) -> None:
    before = fingerprint(tree.base / "R1"), fingerprint(tree.base / "R2")
    with fails("EROFS"):
        CALLS[name](tree)
    assert (fingerprint(tree.base / "R1"), fingerprint(tree.base / "R2")) == before


def test_what_is_wrong_anyway_is_told_first(tree: Core) -> None:
    with fails("EEXIST"):
        tree.create("f")
    with fails("ENOENT"):
        tree.unlink("gone")
    with fails("EISDIR"):
        run_now(tree.union.unlink(*tree.at("d")))
    with fails("ENOTDIR"):
        tree.union.rmdir(*tree.at("f"))


def test_everything_can_be_read(tree: Core) -> None:
    assert set(tree.names()) == {"f", "d", "empty", "a", "b"}
    assert tree.names("d") == ["x", "y"]
    assert (tree.read("f"), tree.read("d/y")) == (b"R1", b"R2")
    assert tree.node("a") is tree.node("b")
    assert tree.nlink("a") == 2


def test_numbers_stay_over_forget_without_a_record(tree: Core) -> None:
    paths = ("f", "d", "d/x", "d/y", "a", "b")
    before = {path: tree.node(path).number for path in paths}
    for node in list(tree.union.state.nodes):
        if node is not tree.union.root:
            tree.union.forget(node.number, node.lookups)
    assert {path: tree.node(path).number for path in paths} == before


def test_one_branch_alone(core: Core) -> None:
    fill(core.branch("R"), "d/f")
    core.start("R=ro")
    assert core.read("d/f") == b"R"
    with fails("EROFS"):
        core.create("new")
