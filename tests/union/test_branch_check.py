"""The offline check of a writable branch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from unionfs.branch import WritableBranch, open_branches
from unionfs.branch.check import check_branch
from unionfs.branch.permission import Access, Permission
from unionfs.union.options import BranchSpec


@pytest.fixture
def branch(tmp_path: Path) -> Iterator[WritableBranch]:
    specs = [BranchSpec(os.fsencode(tmp_path), Permission(Access.RW))]
    (opened,) = open_branches(specs, warn=lambda _: None)
    assert isinstance(opened, WritableBranch)
    opened.prepare(plink=True)
    yield opened
    opened.close()


def found(branch: WritableBranch, *, repair: bool = False) -> list[tuple[str, str, bool]]:
    return [(f.kind, os.fsdecode(f.path), f.repaired) for f in check_branch(branch, repair=repair)]


def names(tmp_path: Path) -> set[str]:
    return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}


def test_a_clean_branch(tmp_path: Path, branch: WritableBranch) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").touch()
    (tmp_path / "d" / ".wh.gone").hardlink_to(tmp_path / ".wh..wh.aufs")
    (tmp_path / "d" / ".wh..wh..opq").hardlink_to(tmp_path / ".wh..wh.aufs")
    before = names(tmp_path)
    assert found(branch, repair=True) == []
    assert names(tmp_path) == before


def test_a_whiteout_beside_its_entry(tmp_path: Path, branch: WritableBranch) -> None:
    (tmp_path / "f").write_text("kept")
    (tmp_path / ".wh.f").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / ".wh.d").touch()
    assert found(branch) == [
        ("whiteout-and-entry", "d", False),
        ("whiteout-and-entry", "f", False),
    ]
    assert [repaired for *_, repaired in found(branch, repair=True)] == [True, True]
    assert found(branch) == []
    assert (tmp_path / "f").read_text() == "kept"
    # the whiteout did hide what is below the directory, and that stays hidden
    assert (tmp_path / "d" / ".wh..wh..opq").exists()


def test_temporaries(tmp_path: Path, branch: WritableBranch) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / ".wh..wh.f.0aF1").touch()  # capital: somebody's own
    (tmp_path / "deep" / "er" / ".wh..wh.f.0af1").write_text("half")
    (tmp_path / ".wh..wh.d.ffff" / "sub").mkdir(parents=True)
    (tmp_path / ".wh..wh.d.ffff" / "sub" / ".wh.x").touch()
    assert found(branch, repair=True) == [
        ("temporary", ".wh..wh.d.ffff", True),
        ("temporary", "deep/er/.wh..wh.f.0af1", True),
    ]
    assert "deep/er/.wh..wh.f.0aF1" in names(tmp_path)
    assert found(branch) == []


def test_a_temporary_that_was_a_pseudo_link_already(tmp_path: Path, branch: WritableBranch) -> None:
    plinks = tmp_path / ".wh..wh.plnk"
    (tmp_path / ".wh..wh.f.0001").write_text("copied")
    (plinks / "12.34.0123456789abcdef.1").hardlink_to(tmp_path / ".wh..wh.f.0001")
    (plinks / "13.35.0123456789abcdef.1").write_text("another")
    assert found(branch, repair=True) == [("temporary", ".wh..wh.f.0001", True)]
    assert [path.name for path in plinks.iterdir()] == ["13.35.0123456789abcdef.1"]


def test_pseudo_links(tmp_path: Path, branch: WritableBranch) -> None:
    plinks = tmp_path / ".wh..wh.plnk"
    (tmp_path / "f").write_text("in use")
    (plinks / "12.34.0123456789abcdef.1").hardlink_to(tmp_path / "f")
    (plinks / "13.35.0123456789abcdef.0").write_text("for nobody")
    (plinks / "14.36").hardlink_to(tmp_path / "f")
    (plinks / "15.37").write_text("the only copy")
    (plinks / "other").touch()
    assert found(branch, repair=True) == [
        ("plink", ".wh..wh.plnk/13.35.0123456789abcdef.0", True),
        ("plink", ".wh..wh.plnk/14.36", True),
        ("plink", ".wh..wh.plnk/15.37", False),
        ("plink", ".wh..wh.plnk/other", False),
    ]
    assert {path.name for path in plinks.iterdir()} == {
        "12.34.0123456789abcdef.1",
        "15.37",
        "other",
    }


def test_orphans(tmp_path: Path, branch: WritableBranch) -> None:
    orphans = tmp_path / ".wh..wh.orph"
    (orphans / "12").write_text("deleted but open")
    (orphans / "dir").mkdir()
    assert found(branch, repair=True) == [
        ("orphan", ".wh..wh.orph/12", True),
        ("orphan", ".wh..wh.orph/dir", True),
    ]
    assert list(orphans.iterdir()) == []


def test_marks_of_a_wrong_type_are_only_reported(tmp_path: Path, branch: WritableBranch) -> None:
    (tmp_path / ".wh.x").mkdir()
    (tmp_path / ".wh.x" / "data").write_text("somebody's")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".wh..wh..opq").symlink_to("nowhere")
    assert found(branch, repair=True) == [
        ("bad-whiteout", ".wh.x", False),
        ("bad-whiteout", "d/.wh..wh..opq", False),
    ]
    assert (tmp_path / ".wh.x" / "data").exists()


def test_a_deep_tree_and_a_link_out(tmp_path: Path, branch: WritableBranch) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        deeper = os.open("d", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.mkdir(".wh..wh.last.0000", dir_fd=fd)
    os.symlink("/", "out", dir_fd=fd)
    os.close(fd)
    ((kind, path, repaired),) = found(branch, repair=True)
    assert (kind, path, repaired) == ("temporary", "d/" * 1500 + ".wh..wh.last.0000", True)
    branch.root.remove_tree(b"d")
