"""Counting uses: who mounts, who unmounts, and when (driver.md 1.4, 1.7, 6.3)."""

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
from driver.counter import UseCounter
from tests.support.layers import Layer, listing, make, members
from tests.support.servers import is_mounted

Using = Callable[[str], AbstractContextManager[Path]]


def test_counter() -> None:
    counter = UseCounter()
    counter.begin("/a")
    counter.begin("/a")
    assert counter.snapshot() == {"/a": 2}
    assert not counter.end("/a")
    assert counter.end("/a")
    assert counter.end("/a")
    assert counter.snapshot() == {}
    counter.begin("/a")
    counter.drop("/a")
    assert counter.snapshot() == {}


def test_counter_of_what_was_mounted_before(tmp_path: Path) -> None:
    record = str(make(tmp_path, "record") / "record")
    counter = UseCounter()
    counter.begin("/m", record, mounted=True)
    assert not counter.end("/m", record)
    assert counter.end("/m", record)
    counter.begin("/m", record, mounted=True)
    counter.begin("/m", record, mounted=False)  # somebody has unmounted it
    assert not counter.end("/m", record)
    assert counter.end("/m", record)
    with pytest.raises(FileNotFoundError):
        counter.begin("/m", str(tmp_path / "none"))
    assert counter.snapshot() == {}


def test_the_last_put_unmounts(stacked: Driver) -> None:
    path = stacked.get("2")
    device = os.stat(path).st_dev
    assert stacked.get("2") == path
    stacked.put("2")
    assert os.stat(path).st_dev == device
    stacked.put("2")
    assert not is_mounted(path)
    assert stacked._uses.snapshot() == {}


def test_put_of_anything_is_fine(stacked: Driver) -> None:
    for layer in ("1", "2", "unknown", "../x"):
        stacked.put(layer)


def test_put_before_get_without_parent(stacked: Driver) -> None:
    """Q3."""
    stacked.put("1")
    assert stacked.get("1") == os.path.join(stacked.root, "diff/1")


def test_mounts_of_an_earlier_run_are_in_use(stacked: Driver) -> None:
    path = stacked.get("2")
    later = driver.init(stacked.root)
    assert later.get("2") == path
    later.put("2")
    assert is_mounted(path)
    later.put("2")
    assert not is_mounted(path)


def test_one_put_ends_a_mount_of_an_earlier_run(stacked: Driver) -> None:
    path = stacked.get("2")
    driver.init(stacked.root).put("2")
    assert not is_mounted(path)


def test_a_failed_get_does_not_count(stacked: Driver) -> None:
    """Q4."""
    branch = Path(stacked.root, "diff/1")
    branch.rename(branch.with_name("away"))
    with pytest.raises(driver.MountError, match="error creating aufs mount to") as caught:
        stacked.get("2")
    assert str(branch) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not is_mounted(os.path.join(stacked.root, "mnt/2"))
    branch.with_name("away").rename(branch)
    assert is_mounted(stacked.get("2"))
    stacked.put("2")
    assert not is_mounted(os.path.join(stacked.root, "mnt/2"))


@pytest.mark.parametrize("layer", ["unknown", ""])
def test_unknown_layers(stacked: Driver, layer: str) -> None:
    """Q5."""
    for method in (stacked.get, stacked.diff, stacked.changes, stacked.diff_size, stacked.parents):
        with pytest.raises(driver.LayerNotFoundError):
            method(layer)
    with pytest.raises(driver.LayerNotFoundError):
        stacked.apply_diff(layer, "", io.BytesIO())
    with pytest.raises(driver.LayerNotFoundError):
        stacked.changes("2", "unknown")
    assert mounttable.mounts_below(stacked.root) == []


def test_remove_forgets_the_count(stacked: Driver) -> None:
    """Q6."""
    for _ in range(3):
        stacked.get("2")
    stacked.remove("2")
    stacked.create("2", "1")
    path = stacked.get("2")
    stacked.put("2")
    assert not is_mounted(path)


def test_create_does_not_overwrite(stacked: Driver) -> None:
    """Q2."""
    with pytest.raises(driver.LayerExistsError):
        stacked.create("2")
    assert stacked.parents("2") == ("1",)
    assert Path(stacked.root, "diff/1/file").exists()


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
