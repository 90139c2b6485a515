"""A store of layers for each test, with everything unmounted at its end, come what may."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import driver
from driver import mounts, mounttable


@pytest.fixture(autouse=True)
def no_mount_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unmount whatever the test leaves below its own directory, and wait for the servers."""
    monkeypatch.setenv("FUSE_AUFS_STATE", str(tmp_path / "state"))
    (tmp_path / "state").mkdir(mode=0o700)
    yield
    for point in mounttable.mounts_below(os.path.realpath(tmp_path)):
        mounts.unmount(point)


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Where the layers of this test are kept."""
    return os.path.join(os.path.realpath(tmp_path), "aufs")


@pytest.fixture
def store(root: str) -> driver.Driver:
    """A fresh driver."""
    return driver.init(root)


@pytest.fixture
def using(store: driver.Driver) -> Callable[[str], object]:
    """A context manager: the path of a layer, got and put."""

    @contextmanager
    def use(layer: str) -> Iterator[Path]:
        path = Path(store.get(layer))
        try:
            yield path
        finally:
            store.put(layer)

    return use


@pytest.fixture
def branch(tmp_path: Path) -> Path:
    """An empty branch, to be written as a tar."""
    branch = tmp_path / "branch"
    branch.mkdir()
    return branch


@pytest.fixture
def stacked(store: driver.Driver) -> driver.Driver:
    """A driver with a layer 2 on a layer 1, which holds a file."""
    store.create("1")
    Path(store.root, "diff/1/file").write_text("below")
    store.create("2", "1")
    return store
