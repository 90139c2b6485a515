"""``aufs-driver`` as people and scripts run it: each command a process of its own."""

from __future__ import annotations

import gzip
import io
import json
import os
import pty
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from driver import cli, mounttable

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def run(root: str) -> Run:
    def call(*arguments: str, status: int = 0, **keywords: object) -> object:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "driver.cli", "--root", root, *arguments],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
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
