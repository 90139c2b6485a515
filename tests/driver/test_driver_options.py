"""Options of ``driver.init`` (driver.md 1.3)."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

import driver


def layer_of_somebody_else() -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo("file")
        info.uid = info.gid = 1000
        tar.addfile(info)
    stream.seek(0)
    return stream


@pytest.fixture
def no_foreign_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have chown refuse as it does where only one id is mapped."""

    def fchown(_fd: int, uid: int, _gid: int) -> None:
        if uid:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fchown", fchown)


@pytest.mark.usefixtures("no_foreign_owners")
def test_an_owner_that_cannot_be_set_fails_the_layer(root: str) -> None:
    store = driver.init(root)
    store.create("layer")
    with pytest.raises(OSError, match="owner 1000:1000 cannot be set here"):
        store.apply_diff("layer", "", layer_of_somebody_else())


@pytest.mark.usefixtures("no_foreign_owners")
def test_with_ignore_chown_errors_it_is_logged(root: str, caplog: pytest.LogCaptureFixture) -> None:
    store = driver.init(root, ["aufs.ignore_chown_errors=true"])
    store.create("layer")
    store.apply_diff("layer", "", layer_of_somebody_else())
    assert os.stat(os.path.join(root, "diff/layer/file")).st_uid == 0
    assert "owner 1000:1000" in caplog.text


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("aufs.ignore_chown_errors=perhaps", "say true or false"),
        ("aufs.ignore_chown_errors", "unknown driver option"),
        ("overlay.mountopt=x", "unknown driver option"),
    ],
)
def test_what_is_no_option_is_refused_before_anything_is_made(
    tmp_path: Path, option: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        driver.init(tmp_path / "root", [option])
    assert not (tmp_path / "root").exists()
