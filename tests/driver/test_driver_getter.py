"""Single files of a layer, by name (driver.md part 2, ``FileGetter``)."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

import driver
from driver.getter import FileGetter


def fill(base: Path, *names: str) -> Path:
    for name in names:
        path = base / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("foobar")
    return base


def test_getter(store: driver.Driver, tmp_path: Path) -> None:
    store.create("1")
    branch = fill(Path(store.root, "diff/1"), "usr/lib/file")
    fill(tmp_path, "secret")
    (branch / "lib").symlink_to("/usr/lib")
    (branch / "out").symlink_to(f"../../../{tmp_path}/secret")
    (branch / "outdir").symlink_to(tmp_path)
    os.mkfifo(branch / "fifo")
    with store.diff_getter("1") as getter:
        for name in ("usr/lib/file", "/usr/lib/file", "lib/file", "usr/../lib/../lib/file"):
            with getter.get(name) as file:
                assert file.read() == b"foobar"
        for name in ("missing", "out", "outdir/secret", "../../../etc/passwd", "usr/lib/file\0x"):
            with pytest.raises(FileNotFoundError):
                getter.get(name)
        with pytest.raises(IsADirectoryError):
            getter.get("usr")
        with pytest.raises(OSError):
            getter.get("fifo")
    with pytest.raises(OSError):
        getter.get("usr/lib/file")
    with pytest.raises(driver.LayerNotFoundError):
        store.diff_getter("2")
    assert isinstance(getter, FileGetter)


def test_apply_nothing(store: driver.Driver) -> None:
    store.create("1")
    with pytest.raises(ValueError, match="no diff"):
        store.apply_diff("1", "", None)
    assert store.apply_diff("1", "", io.BytesIO(b"")) == 0
