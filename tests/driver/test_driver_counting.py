"""Counting uses: who mounts, who unmounts, and when (driver.md 1.4, 1.7, 6.3)."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

import driver
from driver import Driver, mounttable
from driver.counter import UseCounter
from tests.support.layers import make
from tests.support.servers import is_mounted


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
