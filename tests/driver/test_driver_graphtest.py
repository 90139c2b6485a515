"""The cases that every graph driver of an engine is put through (driver.md 6.1)."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import driver
from driver import Change, ChangeKind, Driver

Using = Callable[[str], AbstractContextManager[Path]]


def content(seed: int, size: int = 64) -> bytes:
    return random.Random(seed).randbytes(size)


def add_files(base: Path, count: int, seed: int) -> None:
    for first in range(0, count, 100):
        directory = base / f"directory-{first}"
        directory.mkdir(exist_ok=True)
        for number in range(first, min(first + 100, count)):
            write(directory / f"file-{number}", content(seed + number))


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o755)


def check_files(base: Path, count: int, seed: int) -> None:
    for number in range(count):
        path = base / f"directory-{number // 100 * 100}" / f"file-{number}"
        assert path.read_bytes() == content(seed + number), path


def make_base(store: Driver, using: Using, name: str) -> None:
    old = os.umask(0)
    try:
        store.create_read_write(name)
        with using(name) as root:
            (root / "a subdir").mkdir()
            (root / "a subdir").chmod(0o705 | stat.S_ISVTX)
            os.chown(root / "a subdir", 1, 2)
            (root / "a file").write_text("Some data")
            (root / "a file").chmod(0o222 | stat.S_ISUID)
    finally:
        os.umask(old)


def check_base(root: Path) -> None:
    subdir, file = (root / "a subdir").stat(), (root / "a file").stat()
    assert stat.S_ISDIR(subdir.st_mode)
    assert stat.S_IMODE(subdir.st_mode) == 0o705 | stat.S_ISVTX
    assert (subdir.st_uid, subdir.st_gid) == (1, 2)
    assert stat.S_ISREG(file.st_mode)
    assert stat.S_IMODE(file.st_mode) == 0o222 | stat.S_ISUID
    assert (file.st_uid, file.st_gid) == (0, 0)
    assert (root / "a file").read_text() == "Some data"
    assert sorted(os.listdir(root)) == ["a file", "a subdir"]


def test_create_empty(store: Driver, using: Using) -> None:
    store.create("empty")
    assert store.exists("empty")
    with using("empty") as root:
        status = root.stat()
        assert stat.S_ISDIR(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o755
        assert (status.st_uid, status.st_gid) == (0, 0)
        assert os.listdir(root) == []
    store.remove("empty")
    assert not store.exists("empty")


def test_create_base(store: Driver, using: Using) -> None:
    make_base(store, using, "Base")
    with using("Base") as root:
        check_base(root)
    store.remove("Base")


def test_create_snap(store: Driver, using: Using) -> None:
    make_base(store, using, "Base")
    store.create("Snap", "Base")
    with using("Snap") as root:
        check_base(root)
    store.remove("Snap")
    store.remove("Base")


def test_deep_layer_read(store: Driver, using: Using) -> None:
    depth = 128
    store.create("Base")
    with using("Base") as root:
        (root / "testfile.txt").write_text("test content")
    parent = "Base"
    for number in range(1, depth + 1):
        layer = f"layer-id-{number}"
        store.create(layer, parent)
        # What each layer adds goes straight into its branch: mounting all of them to get there is
        # the case of its own in the driver's suite.
        branch = Path(store.root, "diff", layer)
        (branch / "top-id").write_text(layer)
        (branch / f"layer-{number}").mkdir()
        (branch / f"layer-{number}" / "layer-id").write_text(layer)
        (branch / f"layer-{number}" / "parent-id").write_text(parent)
        parent = layer
    with using(parent) as root:
        assert (root / "top-id").read_text() == parent
        expected = parent
        for number in range(depth, 0, -1):
            assert (root / f"layer-{number}" / "layer-id").read_text() == expected
            expected = (root / f"layer-{number}" / "parent-id").read_text()
        assert expected == "Base"
        assert (root / "testfile.txt").read_text() == "test content"


def test_diff_apply(store: Driver, using: Using) -> None:
    count = 10
    store.create("base")
    with using("base") as root:
        add_files(root, count, 3)
        (root / "file-remove.txt").write_text("remove me")
        (root / "var/lib").mkdir(parents=True)
    store.create("upper", "base")
    with using("upper") as root:
        add_files(root, count, 6)
        (root / "file-remove.txt").unlink()
        shutil.rmtree(root / "var/lib")
    expected = store.diff_size("upper", "")
    store.create("diff", "base")
    with using("diff") as root:
        check_files(root, count, 3)
        assert (root / "file-remove.txt").exists()
    with store.diff("upper", "base") as archive:
        size = store.apply_diff("diff", "base", archive)
    assert size == expected
    with using("diff") as root:
        check_files(root, count, 6)
        assert not (root / "file-remove.txt").exists()
        assert not (root / "var/lib").exists()
        assert (root / "var").is_dir()


def test_changes(store: Driver, using: Using) -> None:
    count = 20
    store.create("base")
    with using("base") as root:
        add_files(root, count, 3)
    store.create("upper", "base")
    expected = {Change("/directory-0", ChangeKind.MODIFY)}
    with using("upper") as root:
        for number in range(count):
            path = f"directory-0/file-{number}"
            if number % 3 == 0:
                (root / path).write_bytes(content(6 + number, 128))
                expected.add(Change(f"/{path}", ChangeKind.MODIFY))
            elif number % 3 == 1:
                path = f"directory-0/file-6-{number}"
                (root / path).write_bytes(content(number))
                expected.add(Change(f"/{path}", ChangeKind.ADD))
            else:
                (root / path).unlink()
                expected.add(Change(f"/{path}", ChangeKind.DELETE))
    changes = store.changes("upper", "base")
    assert set(changes) == expected
    assert len(changes) == len(expected)


def test_set_quota(store: Driver, using: Using) -> None:
    make_base(store, using, "Base")
    with pytest.raises(
        driver.StorageOptNotSupportedError, match="--storage-opt is not supported for aufs"
    ):
        store.create_read_write("zfsTest", "Base", driver.CreateOpts(storage_opt={"size": "50M"}))
    assert not store.exists("zfsTest")
    assert not Path(store.root, "diff/zfsTest").exists()


def test_a_shared_driver_cleans_up(store: Driver) -> None:
    store.create("1")
    store.create("2", "1")
    store.get("2")
    store.cleanup()
    assert not os.path.ismount(Path(store.root, "mnt/2"))
