"""aufsctl, run on live mounts and on what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import AUFSCTL, Commands, wait_for_end


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Commands]:
    for name in ("changes", "base", "mnt", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "file").write_text("from the base")
    (tmp_path / "base" / "gone").touch()
    commands = Commands(tmp_path)
    yield commands
    commands.clean_up()


def mount(run: Commands, options: str = "profile=driver") -> None:
    run.mount("src", "mnt", "-o", options + ",br:changes=rw:base=ro+wh")


def json_of(run: Commands, *arguments: str) -> Any:
    done = run(AUFSCTL, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def fails(run: Commands, *arguments: str, status: int, symbol: str) -> None:
    done = run(AUFSCTL, *arguments)
    assert done.returncode == status, done
    assert done.stdout == ""
    assert done.stderr.startswith("aufsctl: ")
    assert done.stderr.count("\n") == 1
    assert f"({symbol})" in done.stderr


def test_status_and_branches(run: Commands) -> None:
    mount(run)
    mnt, changes, base = (str(run.root / name) for name in ("mnt", "changes", "base"))
    (status,) = json_of(run, "status", "mnt")
    assert status["mountpoint"] == mnt
    assert status["source"] == "src"
    assert status["pid"] == run.pid()
    assert status["branches"] == [
        {"path": changes, "permission": "rw"},
        {"path": base, "permission": "ro+wh"},
    ]
    assert status in json_of(run, "status")
    text = run(AUFSCTL, "status", "mnt").stdout.splitlines()
    assert text[0].startswith(f"{mnt}  source=src  pid={run.pid()}  acl,si=")
    assert text[1:] == [f"  br0  {changes}=rw", f"  br1  {base}=ro+wh"]
    assert run(AUFSCTL, "branches", "mnt").stdout == f"{changes}=rw\n{base}=ro+wh\n"


def test_status_of_a_mount_whose_state_is_elsewhere(run: Commands) -> None:
    mount(run)
    run.environment["FUSE_AUFS_STATE"] = str(run.root / "elsewhere")
    mnt = str(run.root / "mnt")
    assert {"mountpoint": mnt, "source": "src"} in json_of(run, "status")
    fails(run, "branches", "mnt", status=1, symbol="EACCES")


def test_the_upper_of_two_mounts_on_one_place(run: Commands) -> None:
    mount(run)
    run.mount("above", "mnt", "-o", "br:other=rw:base=ro")
    assert run(AUFSCTL, "branches", "mnt").stdout.splitlines() == [
        f"{run.root}/other=rw",
        f"{run.root}/base=ro",
    ]


def test_where(run: Commands) -> None:
    mount(run)
    (run.root / "mnt" / "new").touch()
    (run.root / "mnt" / "gone").unlink()
    file, new, gone = json_of(run, "where", "mnt", "/file", "new", "gone")
    assert (file["visible"], file["branch"]) == (True, 1)
    assert file["branch_path"] == str(run.root / "base")
    assert (new["type"], new["branch"]) == ("file", 0)
    assert (gone["visible"], gone["error"], gone["branch"]) == (False, "ENOENT", None)
    assert [branch["state"] for branch in gone["branches"]] == ["whiteout", "hidden"]
    done = run(AUFSCTL, "where", "mnt", "file", "gone")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"file: file from branch 1, {run.root}/base=ro+wh",
        "gone: ENOENT",
        f"  br0  {run.root}/changes=rw  a whiteout, hides what is below",
        f"  br1  {run.root}/base=ro+wh  file, hidden by the whiteout of /gone on br0",
    ]


def test_where_follows_pseudo_links(run: Commands) -> None:
    (run.root / "base" / "second").hardlink_to(run.root / "base" / "file")
    mount(run)
    with (run.root / "mnt" / "file").open("a") as file:
        file.write("more")
    (second,) = json_of(run, "where", "mnt", "second")
    assert (second["branch"], second["pseudo_link"]) == (0, True)


def test_where_writes_nothing(run: Commands) -> None:
    mount(run)
    before = {path: path.lstat().st_mtime_ns for path in (run.root / "changes").rglob("*")}
    json_of(run, "where", "mnt", "/", "file")
    assert before == {p: p.lstat().st_mtime_ns for p in (run.root / "changes").rglob("*")}


def test_check(run: Commands) -> None:
    mount(run)
    for busy in ("changes", "base", "mnt"):
        fails(run, "check", busy, status=2, symbol="EBUSY")
    pid = run.pid()
    (run.root / "mnt" / "new").touch()
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    subprocess.run(["umount", run.root / "mnt"], check=True)
    done = run(AUFSCTL, "check", "changes")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (run.root / "changes" / ".wh.new").touch()
    done = run(AUFSCTL, "check", "changes")
    assert done.returncode == 1
    assert done.stdout.startswith("changes/new: whiteout-and-entry: ")
    done = run(AUFSCTL, "check", "--repair", "changes", "--json")
    assert done.returncode == 0
    assert [finding["repaired"] for finding in json.loads(done.stdout)] == [True]
    assert json_of(run, "check", "changes") == []


def test_what_cannot_be_done(run: Commands) -> None:
    fails(run, "branches", "mnt", status=1, symbol="EINVAL")
    fails(run, "where", "nowhere", "x", status=1, symbol="EINVAL")
    fails(run, "status", "mnt", status=1, symbol="EINVAL")
    fails(run, "check", "nowhere", status=2, symbol="ENOENT")
    for arguments in ((), ("frob",), ("where", "mnt"), ("check",), ("status", "a", "b")):
        done = run(AUFSCTL, *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("usage: aufsctl")


def test_a_dead_mount_is_called_dead(run: Commands) -> None:
    mount(run)
    pid = run.pid()
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    for command in ("status", "branches"):
        fails(run, command, "mnt", status=1, symbol="ENOTCONN")
