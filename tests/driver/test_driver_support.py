"""Where a driver can work, and how it mounts (driver.md 1.3)."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

import pytest

import driver
from driver import backing, mounts
from unionfs.fuse import preflight
from unionfs.union.options import parse_options


def fill(base: Path, *names: str) -> Path:
    for name in names:
        path = base / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("foobar")
    return base


def test_backing_name(tmp_path: Path) -> None:
    assert backing.backing_name(str(tmp_path / "not/yet/there")) == backing.backing_name(
        str(tmp_path)
    )
    assert backing.backing_name("/proc") == "<unknown>"


def test_backing_on_tmpfs(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "t"], check=True)
    assert dict(driver.init(tmp_path / "t" / "x").status())["Backing Filesystem"] == "tmpfs"


def test_our_own_filesystem_is_refused(store: driver.Driver) -> None:
    store.create("1")
    store.create("2", "1")
    path = store.get("2")
    with pytest.raises(driver.IncompatibleFilesystemError, match=r"fuse\.aufs"):
        driver.init(os.path.join(path, "inner"))
    assert os.listdir(path) == []
    store.put("2")


@pytest.mark.parametrize(
    ("content", "good"),
    [
        ("", True),
        ("mnt/", True),
        ("lost+found/", True),
        ("diff/", True),
        ("mnt/ diff/ layers/ notes", True),
        ("notes", False),
        ("home/ mnt/ tmp/", False),
        (".hidden", False),
    ],
)
def test_a_directory_with_other_things_in_it_is_left_alone(
    tmp_path: Path, content: str, good: bool
) -> None:
    (tmp_path / "place").mkdir()
    place = fill(tmp_path / "place", *content.split())
    place.chmod(0o1777)
    if good:
        driver.init(place).create("1")
        return
    with pytest.raises(driver.NotAStoreError, match="other things than layers"):
        driver.init(place)
    assert place.stat().st_mode & 0o7777 == 0o1777
    assert sorted(os.listdir(place)) == sorted(content.replace("/", "").split())


def test_no_root_is_not_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="the root is empty"):
        driver.init("")
    assert os.listdir(tmp_path / "here") == []


def test_device_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight, "DEVICE", str(tmp_path / "none"))
    with pytest.raises(driver.AufsNotSupportedError) as caught:
        driver.init(tmp_path / "aufs")
    assert str(caught.value).startswith("AUFS was not found in /proc/filesystems")
    assert "ENOENT" in str(caught.value)
    assert not (tmp_path / "aufs").exists()


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        ([], "None"),
        (["--user", "--map-root-user", "--mount"], "None"),
        (["--user", "--map-root-user"], "AufsNestedError"),
    ],
)
def test_user_namespaces(flags: list[str], answer: str) -> None:
    program = (
        "import driver.support as s\n"
        "try: print(s.check_support())\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    # Importing needs more than a namespace without rights may see, so it is done before.
    wrapper = ["unshare", *flags] if flags else []
    done = subprocess.run(
        [*wrapper, os.sys.executable, "-c", program],  # type: ignore[attr-defined]
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(driver.__file__).parents[1],
    )
    assert done.stdout.strip() == answer


def test_unknown_option(root: str) -> None:
    with pytest.raises(ValueError, match=r"aufs\.mountopt"):
        driver.init(root, ["overlay.mountopt=x"])
    assert not os.path.exists(root)


def test_mount_options_are_passed_on(root: str) -> None:
    store = driver.init(root, ["AUFS.mountopt=noexec"])
    store.create("1")
    store.create("2", "1")
    path = store.get("2")
    assert os.statvfs(path).f_flag & os.ST_NOEXEC
    store.put("2")


def test_no_argument_is_too_long(tmp_path: Path) -> None:
    branches = [f"/{'x' * 200}/{number}:,=" for number in range(3000)]
    texts = list(mounts._option_arguments(branches, ["ro"]))
    assert texts[0] == "profile=driver,ro"
    assert max(map(len, texts)) < 128 * 1024
    assert len(texts) > 5
    read = parse_options([os.fsencode(text) for text in texts], lambda _line: None)
    assert [os.fsdecode(spec.path) for spec in read.branches] == branches
    assert [str(spec.permission) for spec in read.branches] == ["rw"] + ["ro+wh"] * 2999


def test_mount_label_that_is_not_supported_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert mounts._label_option("") == []
        label = mounts._label_option("system_u:object_r:container_file_t:s0:c1,c2")
    assert label == [] or label[0].startswith('context="')
    assert bool(label) != bool(caplog.records)
