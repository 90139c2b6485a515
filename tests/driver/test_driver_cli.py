"""``aufs-driver`` as people and scripts run it: each command a process of its own."""

from __future__ import annotations

import gzip
import io
import json
import os
import pty
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import driver
from driver import cli, mounttable

Run = Callable[..., subprocess.CompletedProcess[bytes]]


COMMAND = [sys.executable, "-P", "-m", "driver.cli"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}


@pytest.fixture
def run(root: str) -> Run:
    """Run a command on the test's store; ``redirect`` is done by a shell."""

    def call(*arguments: str, status: int = 0, redirect: str = "", **keywords: object) -> object:
        command = [*COMMAND, "--root", root, *arguments]
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {redirect}', "sh", *command] if redirect else command,
            capture_output=True,
            check=False,
            env={**ENVIRONMENT, "FUSE_AUFS_STATE": os.environ["FUSE_AUFS_STATE"]},
            **keywords,  # type: ignore[call-overload]
        )
        assert done.returncode == status, done.stderr
        assert b"Traceback" not in done.stderr
        return done

    return call  # type: ignore[return-value]


def layer_tar(**files: str) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return output.getvalue()


def test_a_life(run: Run, root: str, tmp_path: Path) -> None:
    (tmp_path / "base.tar").write_bytes(layer_tar(hello="world", gone="x"))
    run("create", "base")
    assert run("apply", "base", str(tmp_path / "base.tar")).stdout == b"6\n"
    run("create", "box", "base")
    run("create", "sibling", "--parent", "base")
    path = run("get", "box").stdout.decode().strip()
    assert path == os.path.join(root, "mnt/box")
    assert Path(path, "hello").read_text() == "world"
    Path(path, "new").write_text("four")
    Path(path, "gone").unlink()
    assert run("changes", "box").stdout == b"D /gone\nA /new\n"
    assert run("changes", "box", "--parent", "").stdout == b"A /hello\nA /new\n"
    assert run("size", "box").stdout == b"4\n"
    run("put", "box")
    assert mounttable.mounts_below(root) == []
    run("diff", "box", "-o", str(tmp_path / "box.tar"))
    tar = run("diff", "box").stdout
    assert tar == (tmp_path / "box.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert archive.getnames() == [".wh.gone", "new"]
    assert run("apply", "sibling", input=tar).stdout == b"4\n"
    assert run("changes", "sibling").stdout == b"D /gone\nA /new\n"
    assert run("list").stdout == b"base\nbox\nsibling\n"
    status = run("status").stdout.decode().splitlines()
    assert status[0] == f"Root Dir: {root}"
    assert status[2] == "Dirs: 3"
    run("remove", "box", "sibling")
    assert run("list").stdout == b"base\n"
    run("cleanup")


def test_mount_and_umount_are_get_and_put(run: Run, root: str) -> None:
    run("create", "base")
    run("create", "box", "base")
    path = run("mount", "box").stdout.decode().strip()
    assert run("mount", "box").stdout.decode().strip() == path
    assert mounttable.mounts_below(root) == [path]
    run("umount", "box")
    assert mounttable.mounts_below(root) == []
    run("umount", "box")


def test_json(run: Run, root: str) -> None:
    def read(*arguments: str) -> object:
        return json.loads(run(*arguments).stdout)

    assert read("--json", "create", "base") == {"id": "base", "parent": ""}
    assert read("create", "--json", "box", "base") == {"id": "box", "parent": "base"}
    assert read("get", "box", "--json") == {"id": "box", "path": f"{root}/mnt/box"}
    Path(root, "mnt/box/a\nb").touch()
    assert read("changes", "box", "--json") == [{"path": "/a\nb", "kind": "add"}]
    assert run("changes", "box").stdout == b"A /a\\nb\n"
    assert read("size", "box", "--json") == {"id": "box", "size": 0}
    assert read("put", "box", "--json") == {"id": "box"}
    assert read("list", "--json") == [
        {"id": "base", "parents": []},
        {"id": "box", "parents": ["base"]},
    ]
    assert read("status", "--json")["Dirs"] == "2"  # type: ignore[index]
    assert read("remove", "box", "--json") == {"removed": ["box"]}
    assert read("cleanup", "--json") == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get", "none"], "aufs-driver: no such layer: none (ENOENT)"),
        (["put", "none"], "aufs-driver: no such layer: none (ENOENT)"),
        (["diff", "none"], "aufs-driver: no such layer: none (ENOENT)"),
        (["create", "a", "none"], "aufs-driver: no such layer: none (ENOENT)"),
        (["create", "base"], "aufs-driver: layer exists already: base (EEXIST)"),
        (["create", "a:b"], "aufs-driver: invalid layer id 'a:b': it contains ':'"),
        (["apply", "base", "/nonexistent"], "aufs-driver: /nonexistent: No such file or directory"),
        (["-o", "x=y", "list"], "aufs-driver: unknown driver option 'x=y'"),
    ],
)
def test_what_goes_wrong_is_one_line(run: Run, arguments: list[str], message: str) -> None:
    run("create", "base")
    error = run(*arguments, status=1).stderr.decode()
    assert error.startswith(message)
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["get"], ["get", "a", "b"]])
def test_wrong_usage(run: Run, arguments: list[str]) -> None:
    assert b"usage:" in run(*arguments, status=2).stderr


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in (
        *("create", "get", "put", "mount", "umount", "diff", "changes", "apply", "size"),
        *("remove", "list", "status", "cleanup"),
    ):
        assert name in text


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (gzip.compress(layer_tar(a="b")), b"gzip"),
        (b"BZh91AY&SY....", b"bzip2"),
        (b"\xfd7zXZ\x00....", b"xz"),
        (b"\x28\xb5\x2f\xfd....", b"zstd"),
        (b"\x5a\x2a\x4d\x18....", b"zstd"),
    ],
)
def test_compressed_layers_are_refused_by_name(
    run: Run, root: str, data: bytes, name: bytes
) -> None:
    run("create", "base")
    assert b"compressed with " + name in run("apply", "base", input=data, status=1).stderr
    assert os.listdir(os.path.join(root, "diff/base")) == []


def test_a_tar_whose_first_name_looks_like_a_magic_number(run: Run, root: str) -> None:
    run("create", "base")
    run("apply", "base", input=layer_tar(BZhello="there"))
    assert os.listdir(os.path.join(root, "diff/base")) == ["BZhello"]


def test_list_does_without_layers_that_go_meanwhile(
    root: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = driver.init(root)
    store.create("base")
    monkeypatch.setattr(driver.Driver, "list_layers", lambda _: ["base", "gone"])
    assert cli.main(["--root", root, "list"]) == 0
    assert capsys.readouterr().out == "base\n"


def test_no_tar_on_a_terminal(run: Run, root: str) -> None:
    run("create", "base")
    master, slave = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "driver.cli", "--root", root, "diff", "base"],
            stdout=slave,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
            check=False,
        )
    finally:
        os.close(slave)
        os.close(master)
    assert done.returncode == 2
    assert b"terminal" in done.stderr


def test_a_reader_that_goes_away(run: Run, root: str) -> None:
    run("create", "base")
    Path(root, "diff/base/big").write_bytes(bytes(4 << 20))
    command = [sys.executable, "-P", "-m", "driver.cli", "--root", root, "diff", "base"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_a_failed_diff_leaves_no_file(run: Run, tmp_path: Path) -> None:
    run("diff", "none", "-o", str(tmp_path / "out.tar"), status=1)
    assert not (tmp_path / "out.tar").exists()


# --- in which order ------------------------------------------------------------------------------


def test_options_before_and_after_the_command(root: str) -> None:
    def read(*arguments: str, status: int = 0) -> bytes:
        done = subprocess.run(
            [*COMMAND, *arguments], capture_output=True, check=False, env=ENVIRONMENT
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    read("create", "base", "--root", root)
    assert read("list", "--root", root) == b"base\n"
    assert json.loads(read("list", "--json", f"--root={root}"))[0]["id"] == "base"
    assert b"required: --root" in read("list", status=2)
    for place in (["--root", root, "-o", "x=1", "list"], ["list", "-o", "x=1", "--root", root]):
        assert b"unknown driver option 'x=1'" in read(*place, status=1)
    both = ["-o", "aufs.mountopt=noatime", "list", "-o", "y=1"]
    assert b"unknown driver option 'y=1'" in read("--root", root, *both, status=1)
    after = ["diff", "base", "--option", "x=1", "-o", "/dev/null"]
    assert b"unknown driver option 'x=1'" in read("--root", root, *after, status=1)


def test_arguments_may_stand_behind_options(run: Run, tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(layer_tar(hello="world"))
    run("create", "base")
    run("create", "box", "--json", "base")
    layers = json.loads(run("list", "--json").stdout)
    assert layers[1] == {"id": "box", "parents": ["base"]}
    tar = str(tmp_path / "layer.tar")
    assert run("apply", "box", "--parent", "base", tar).stdout == b"5\n"
    assert run("apply", "--parent", "base", "box", tar).stdout == b"5\n"
    assert run("apply", "box", tar, "--parent", "base").stdout == b"5\n"
    assert run("apply", "box", "--parent", "base", "-", input=layer_tar(a="b")).stdout == b"6\n"
    run("create", "third")
    assert json.loads(run("remove", "box", "--json", "third", "base").stdout) == {
        "removed": ["box", "third", "base"]
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "a", "base", "--parent", "other"], "the parent is given twice"),
        (["create", "a", "--parent", "other", "base"], "the parent is given twice"),
        (["create", "a", "--json", "base", "more"], "unrecognized arguments: more"),
        (["get", "a", "--json", "b"], "unrecognized arguments: b"),
        (["apply", "a", "f", "--bogus"], "unrecognized arguments: --bogus"),
        (["--root", "", "list"], "--root is empty"),
        (["list", "--root="], "--root is empty"),
    ],
)
def test_what_cannot_be_meant(
    root: str,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = Path(root).parent / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(SystemExit) as ended:
        cli.main(["--root", root, *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_removing_what_is_not_there(run: Run) -> None:
    """It is done, but a person has perhaps mistyped."""
    run("create", "base")
    done = run("remove", "bsae", "base")
    assert done.stderr == b"aufs-driver: no such layer: bsae; nothing to remove\n"
    assert run("list").stdout == b""


# --- where there is no store ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        *(["list"], ["status"], ["cleanup"], ["changes", "a"], ["size", "a"], ["diff", "a"]),
        *(["put", "a"], ["umount", "a"], ["remove", "a"], ["get", "a"], ["apply", "a"]),
    ],
)
def test_only_create_makes_a_store(
    root: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--root", root, *arguments]) == 1
    message = f"aufs-driver: {root}: no layers are kept there, it does not exist\n"
    assert capsys.readouterr().err == message
    assert not os.path.exists(root)


def test_a_directory_with_other_things_in_it_is_no_store(run: Run, root: str) -> None:
    Path(root).mkdir()
    Path(root, "notes").touch()
    for arguments in (["list"], ["create", "a"]):
        assert b"holds other things than layers" in run(*arguments, status=1).stderr
    assert os.listdir(root) == ["notes"]


# --- nowhere to write, nothing to read -----------------------------------------------------------


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full"])
@pytest.mark.parametrize(
    "arguments", [["list"], ["get", "box"], ["changes", "box", "--json"], ["diff", "box"]]
)
def test_an_answer_that_cannot_be_written(
    run: Run, root: str, arguments: list[str], redirect: str
) -> None:
    run("create", "base")
    run("create", "box", "base")
    error = run(*arguments, status=1, redirect=redirect).stderr
    assert error.startswith(b"aufs-driver: ")
    assert error.count(b"\n") == 1
    assert mounttable.mounts_below(root) == []


def test_without_standard_streams(run: Run, root: str, tmp_path: Path) -> None:
    run("create", "base", redirect="<&- >&- 2>&-")
    (tmp_path / "layer.tar").write_bytes(layer_tar(hello="world"))
    assert b"standard input" in run("apply", "base", status=1, redirect="<&-").stderr
    tar = str(tmp_path / "layer.tar")
    assert b"standard output" in run("apply", "base", tar, status=1, redirect=">&-").stderr
    assert os.listdir(os.path.join(root, "diff/base")) == []
    run("get", "none", status=1, redirect="2>&-")
    assert run("apply", "base", tar, redirect="<&- 2>&-").stdout == b"5\n"
    run("create", "box", "base")
    path = run("get", "box", redirect="<&- 2>&-").stdout.decode().strip()
    assert Path(path, "hello").read_text() == "world"
    run("put", "box", redirect="<&- >&- 2>&-")
    assert mounttable.mounts_below(root) == []


# --- told to end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_told_to_end_in_a_comparison_it_unmounts(run: Run, root: str, number: int) -> None:
    run("create", "base")
    run("create", "middle", "base")
    run("create", "top", "middle")
    Path(root, "diff/top/big").write_bytes(bytes(4 << 20))
    command = [*COMMAND, "--root", root, "diff", "top", "--parent", "base"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, "FUSE_AUFS_STATE": os.environ["FUSE_AUFS_STATE"]},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1024)
        assert mounttable.mounts_below(root) == [os.path.join(root, "mnt/top")]
        process.send_signal(number)
        process.send_signal(number)  # the second one must not cut short what the first began
        assert process.wait(30) == 128 + number
        assert process.stderr.read() == b""
    assert mounttable.mounts_below(root) == []


def test_told_to_end_while_it_mounts(run: Run, root: str) -> None:
    """Whenever the signal comes, what was mounted is unmounted."""
    run("create", "base")
    run("create", "box", "base")
    seen = set()
    for delay in (0.0, 0.05, 0.1, 0.15):
        with subprocess.Popen(
            [*COMMAND, "--root", root, "get", "box"],
            stdout=subprocess.PIPE,
            env={**ENVIRONMENT, "FUSE_AUFS_STATE": os.environ["FUSE_AUFS_STATE"]},
        ) as process:
            while process.poll() is None and not _has_children(process.pid):
                time.sleep(0.001)
            time.sleep(delay)
            process.terminate()
            assert process.stdout is not None
            answer = process.stdout.read()
            seen.add(process.wait(30))
        if answer:
            run("put", "box")
        assert mounttable.mounts_below(root) == []
    assert 128 + signal.SIGTERM in seen


def _has_children(process: int) -> bool:
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return bool(children)


def test_an_ignored_hangup_stays_ignored(run: Run, root: str) -> None:
    """As with nohup(1)."""
    run("create", "base")
    Path(root, "diff/base/big").write_bytes(bytes(4 << 20))
    command = [*COMMAND, "--root", root, "diff", "base"]
    with subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command],
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1024)
        process.send_signal(signal.SIGHUP)
        process.stdout.read()
        assert process.wait(30) == 0
