"""Diffs relative to any layer, and carried out on any (driver.md 1.8, 1.10, 1.12)."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import driver
from driver import Driver, mounttable
from tests.support.layers import Layer, listing, members

Using = Callable[[str], AbstractContextManager[Path]]


def test_a_foreign_parent_of_a_bottom_layer(stacked: Driver) -> None:
    """Q11."""
    assert [str(change) for change in stacked.changes("1", "2")] == ["A /file"]


def test_diff_relative_to_a_grandparent(stacked: Driver, using: Using) -> None:
    with using("1") as root:
        (root / "dir").mkdir()
        (root / "dir" / "gone").write_text("x")
        (root / "dir" / "kept").write_text("k")
        (root / "kind").mkdir()
        (root / "kind" / "inside").write_text("i")
    with using("2") as root:
        (root / "dir" / "gone").unlink()
        (root / "second").write_text("2")
    stacked.create("3", "2")
    with using("3") as root:
        (root / "kind" / "inside").unlink()
        (root / "kind").rmdir()
        (root / "kind").write_text("a file now")
        (root / "new").mkdir()
        (root / "new" / "a").write_text("a")
        os.link(root / "new" / "a", root / "new" / "b")
    with stacked.diff("3", "1") as stream:
        tar = stream.read()
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = {member.name: member for member in archive}
    assert list(members) == ["dir", "dir/.wh.gone", "kind", "new", "new/a", "new/b", "second"]
    assert members["new/b"].linkname == "new/a"
    assert members["kind"].isreg()
    stacked.create("4", "1")
    stacked.apply_diff("4", "1", io.BytesIO(tar))
    assert stacked.changes("4", "3") == []
    assert not mounttable.mounts_below(stacked.root)


def test_a_comparison_comes_in_the_order_of_paths(stacked: Driver, using: Using) -> None:
    with using("1") as root:
        (root / "gone").write_text("x")
        (root / "dir").mkdir()
        (root / "dir" / "a").write_text("x")
    stacked.create("3", "2")
    with using("3") as root:
        (root / "gone").unlink()
        (root / "dir" / "a").unlink()
        (root / "k").mkdir()
        for name in ("!a", "fz", "k-a", "k.b", "k/x"):
            (root / name).touch()
    with stacked.diff("3", "1") as stream, tarfile.open(fileobj=io.BytesIO(stream.read())) as tar:
        names = tar.getnames()
    assert [name for name in names if name != "second"] == [
        *("!a", "dir", "dir/.wh.a", "fz", ".wh.gone", "k", "k-a", "k.b", "k/x")
    ]


@pytest.mark.parametrize("before", ["file", "symlink"])
def test_diff_of_a_directory_that_took_a_files_place(
    store: Driver, using: Using, before: str
) -> None:
    """What an older layer has below the file must not come back with the directory."""
    store.create("z")
    with using("z") as root:
        (root / "d").mkdir()
        (root / "d/old").touch()
    store.create("a", "z")
    with using("a") as root:
        (root / "d/old").unlink()
        (root / "d").rmdir()
        (root / "d").touch() if before == "file" else (root / "d").symlink_to("nowhere")
    store.create("b", "a")
    store.create("c", "b")
    with using("c") as root:
        (root / "d").unlink()
        (root / "d/e").mkdir(parents=True)
        (root / "d/new").touch()
    with store.diff("c", "a") as stream:
        tar = stream.read()
    assert [member.name for member in members(tar)] == ["d", "d/.wh..wh..opq", "d/e", "d/new"]
    store.create("x", "a")
    store.apply_diff("x", "a", io.BytesIO(tar))
    store.create("y", "a")
    store.apply_diff("y", "z", io.BytesIO(tar))  # carried out on the union
    for layer in ("c", "x", "y"):
        with using(layer) as root:
            assert sorted(os.listdir(root / "d")) == ["e", "new"], layer


def test_a_layer_shows_the_same_applied_and_unpacked(
    store: Driver, using: Using, caplog: pytest.LogCaptureFixture
) -> None:
    """A file, then a directory of its name; a directory with the name of a whiteout."""
    store.create("base")
    with using("base") as root:
        (root / "c").mkdir()
        (root / "c/below").touch()
    tar = Layer().names("a/", ".wh.etc/some/file", "c", "c/", "c/new", "z").link("l", "z")
    tar.link("a/l", ".wh.etc/some/file").names("a/.wh.x/.wh..wh..opq", "a/.wh.x/.wh.y")
    data = tar.bytes()
    for layer, parent in (("unpacked", "base"), ("applied", "unpacked")):
        store.create(layer, "base")
        store.apply_diff(layer, parent, io.BytesIO(data))
    assert "'.wh.etc' is reserved here" in caplog.text
    with using("applied") as root:
        assert listing(root) == ["a/", "c/", "c/new", "l", "z"]
    with using("unpacked") as root:
        assert listing(root) == ["a/", "a/l", "c/", "c/new", "l", "z"]


def test_apply_relative_to_another_layer(stacked: Driver, using: Using) -> None:
    with using("2") as root:
        (root / "more").write_text("more")
        (root / "file").unlink()
    with stacked.diff("2", "1") as stream:
        tar = stream.read()
    stacked.create("3", "1")
    assert stacked.apply_diff("3", "", io.BytesIO(tar)) == 4
    with using("3") as root:
        assert os.listdir(root) == ["more"]
    assert [str(change) for change in stacked.changes("3", "2")] == []
    assert mounttable.mounts_below(stacked.root) == []


def test_id_maps_both_ways(root: str) -> None:
    mapping = driver.IdentityMapping([(0, 100000, 1000)], [(0, 200000, 1000)])
    store = driver.init(root, id_map=mapping)
    store.create("1")
    path = Path(root, "diff/1/file")
    path.touch()
    os.chown(path, 100005, 200007)
    with store.diff("1") as stream:
        tar = stream.read()
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert [(m.uid, m.gid) for m in archive] == [(5, 7)]
    store.create("2")
    store.apply_diff("2", "", io.BytesIO(tar))
    status = Path(root, "diff/2/file").stat()
    assert (status.st_uid, status.st_gid) == (100005, 200007)
