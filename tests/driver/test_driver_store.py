"""Directories, owners and ids of the store (driver.md 1.1, 1.2, 1.11)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import driver
from driver.idmap import IdentityMapping
from driver.store import Store, check_id, make_directory
from tests.support.processes import as_user


def fill(base: Path, *names: str) -> Path:
    for name in names:
        path = base / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("foobar")
    return base


def test_make_directory_makes_parents_alike(tmp_path: Path) -> None:
    make_directory(str(tmp_path / "a/b/c"), 0o710, 5, 7)
    for path in (tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/c"):
        status = path.stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o710, 5, 7)


def test_make_directory_owns_an_existing_one(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    make_directory(str(tmp_path / "a/b"), 0o755, 5, 7)
    assert (tmp_path / "a/b").stat().st_uid == 5
    assert (tmp_path / "a").stat().st_uid == 0


def test_a_plain_user_is_told_what_a_store_takes(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 1000, 1000)

    def make() -> str:
        try:
            make_directory("new/store", 0o710, 1000, 0)
        except PermissionError as error:
            return str(error)
        return ""

    assert "unshare -Urm" in as_user(1000, 1000, make, directory=home)
    assert os.listdir(home) == []


def test_make_directory_over_a_file(tmp_path: Path) -> None:
    fill(tmp_path, "file")
    with pytest.raises(NotADirectoryError):
        make_directory(str(tmp_path / "file"), 0o755, 0, 0)


@pytest.mark.parametrize("id_map", [IdentityMapping(), IdentityMapping([(0, 7, 9)], [(0, 8, 9)])])
def test_modes_and_owners_of_the_store(tmp_path: Path, id_map: IdentityMapping) -> None:
    root = tmp_path / "aufs"
    uid, gid = id_map.root_pair()
    old = os.umask(0o077)
    try:
        store = driver.init(root, id_map=id_map)
        store.create("1")
    finally:
        os.umask(old)
    for name in ("", "mnt", "diff", "layers"):
        status = (root / name).stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o710, 0, gid)
    for name in ("mnt/1", "diff/1"):
        status = (root / name).stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o755, uid, gid)
    assert (root / "layers/1").stat().st_mode & 0o7777 == 0o600


GOOD = [
    "1",
    "Base",
    "empty",
    "a" * 64,
    "a" * 64 + "-init",
    "x" * 246,
    ".hidden",
    "ä",
    "a b",
    "a\rb",
]
BAD = ["", ".", "..", "\ud800", "a/b", "a\0b", "a\nb", "a:b", "a,b", "a=b", ".wh.x", "x-removing"]


@pytest.mark.parametrize("layer", GOOD)
def test_good_ids(store: driver.Driver, layer: str) -> None:
    check_id(layer)
    store.create(layer)
    assert store.exists(layer)
    assert store.list_layers() == [layer]
    store.create("child", layer)
    assert store.parents("child") == (layer,)


@pytest.mark.parametrize("layer", [*BAD, "x" * 247, "ä" * 124])
def test_bad_ids(store: driver.Driver, layer: str) -> None:
    with pytest.raises(driver.InvalidLayerIdError):
        store.create(layer)
    assert not store.exists(layer)
    with pytest.raises(driver.LayerNotFoundError):
        store.get(layer)
    with pytest.raises(driver.LayerNotFoundError):
        store.diff(layer)
    store.put(layer)
    store.remove(layer)
    assert store.list_layers() == []
    assert os.listdir(os.path.join(store.root, "diff")) == []


def test_a_layer_that_is_made_meanwhile_was_not_there(
    store: driver.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the layer's lock nothing may be done to it, even if it exists a moment later."""
    store.create("base")

    @contextmanager
    def hold(_: Store, layer: str) -> Iterator[bool]:
        store.create(layer, "base")
        yield False

    monkeypatch.setattr(Store, "hold", hold)
    with pytest.raises(driver.LayerNotFoundError):
        store.get("layer")
    assert not os.path.ismount(os.path.join(store.root, "mnt/layer"))


def test_a_layer_that_does_not_exist_is_not_made_while_it_is_held(root: str) -> None:
    stores = [Store(root), Store(root)]
    maker = threading.Thread(target=stores[1].create, args=("layer",))
    with stores[0].hold("layer") as exists:
        assert not exists
        maker.start()
        maker.join(0.2)
        assert maker.is_alive()
        stores[0].remove("layer")  # itself it may work on it
    maker.join()
    assert stores[0].exists("layer")
