"""What is written and unpacked again is equal, and the same each time: laws for any tree."""

import contextlib
import dataclasses
import io
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from driver.archive import unpack_layer
from driver.archive.headers import BLOCK
from tests.support.effort import examples
from tests.support.layers import Layer, apply, make, members, snapshot, unpack, written

NAME = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"x" * 120, "é".encode(), b"\xff\x80", b"new\nline", b" "]),
    st.binary(min_size=1, max_size=20),
).filter(
    lambda name: (
        not (b"/" in name or b"\0" in name or name in (b".", b".."))
        and not name.startswith(b".wh.")
    )  # those have laws of their own
)
LAWS = examples(40)


@dataclasses.dataclass(frozen=True)
class Step:
    """One object of a tree to be built."""

    kind: str
    names: list[bytes]
    data: bytes
    mode: int
    uid: int
    gid: int
    time: int
    attributes: dict[str, bytes]


OWNER = st.sampled_from([0, 1, 1000, 3_000_000, (1 << 32) - 2])
TREES = st.lists(
    st.builds(
        Step,
        kind=st.sampled_from(["file", "directory", "symlink", "fifo", "device", "link"]),
        names=st.lists(NAME, min_size=1, max_size=3),
        data=st.binary(max_size=700),
        mode=st.integers(0, 0o7777),
        uid=OWNER,
        gid=OWNER,
        time=st.integers(-(1 << 31), 1 << 33),
        attributes=st.dictionaries(
            st.sampled_from(["user.a", "user.b" * 10, "user.a=b", "user.%3D", "user.50%25=%"]),
            st.binary(max_size=30),
            max_size=2,
        ),
    ),
    max_size=12,
)


def grow(root: bytes, steps: list[Step]) -> None:
    """Build the tree as far as the steps fit together."""
    files: list[bytes] = []
    made: list[tuple[bytes, int]] = []
    for step in steps:
        path = os.path.join(root, *step.names)
        if step.kind == "link" and not files:
            continue
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            place(step, path, files)
        except (FileExistsError, FileNotFoundError, NotADirectoryError):
            continue
        if step.kind == "link":
            continue
        os.chown(path, step.uid, step.gid, follow_symlinks=False)
        if step.kind in ("file", "directory"):
            for key, value in step.attributes.items():
                os.setxattr(path, key, value)
        if step.kind != "symlink":
            os.chmod(path, step.mode)
        made.append((path, step.time))
    for path, time in made:
        os.utime(path, (time, time), follow_symlinks=False)


def place(step: Step, path: bytes, files: list[bytes]) -> None:
    if step.kind == "file":
        with open(path, "xb") as file:
            file.write(step.data)
        files.append(path)
    elif step.kind == "directory":
        os.mkdir(path)
    elif step.kind == "symlink":
        # No path may lead through it: this very function would follow.
        os.symlink(b"?/" + step.data.translate(None, b"\0/") + b"/?", path)
    elif step.kind == "fifo":
        os.mkfifo(path)
    elif step.kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(len(step.data), 3))
    else:
        os.link(files[-1], path)


@contextlib.contextmanager
def folders(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    try:
        yield source, copy
    finally:
        subprocess.run(["rm", "-rf", source, copy], check=True)


@LAWS
@given(steps=TREES)
def test_a_tree_comes_back_as_it_was(tmp_path: Path, steps: list[Step]) -> None:
    with folders(tmp_path) as (source, copy):
        grow(os.fsencode(source), steps)
        data = written(source)
        assert len(data) % BLOCK == 0
        unpack(copy, data)
        assert snapshot(copy) == snapshot(source)
        assert written(copy) == data
        for function in (apply, unpack):  # once more over what is there
            function(copy, data)
            assert snapshot(copy) == snapshot(source)


@LAWS
@given(steps=TREES)
def test_gnu_tar_understands_what_we_write(tmp_path: Path, steps: list[Step]) -> None:
    with folders(tmp_path) as (source, copy):
        grow(os.fsencode(source), steps)
        subprocess.run(
            ["tar", "-xp", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", copy],
            input=written(source),
            check=True,
            capture_output=True,
        )
        assert snapshot(copy) == snapshot(source)


@LAWS
@given(steps=TREES, form=st.sampled_from(["gnu", "posix"]))
def test_we_understand_what_gnu_tar_writes(tmp_path: Path, steps: list[Step], form: str) -> None:
    with folders(tmp_path) as (source, copy):
        grow(os.fsencode(source), steps)
        flags = ["--xattrs", "--xattrs-include=*"] if form == "posix" else []
        data = subprocess.run(
            ["tar", "-c", f"--format={form}", "--numeric-owner", *flags, "-C", source, "."],
            check=True,
            capture_output=True,
        ).stdout
        fd = os.open(copy, os.O_RDONLY)
        try:
            unpack_layer(fd, io.BytesIO(data))
        finally:
            os.close(fd)
        expected, found = snapshot(source), snapshot(copy)
        if form == "gnu":  # that format has no extended attributes
            expected, found = (
                {name: fields[:-1] for name, fields in tree.items()} for tree in (expected, found)
            )
        assert found == expected


@LAWS
@given(steps=TREES)
def test_python_understands_what_we_write(tmp_path: Path, steps: list[Step]) -> None:
    with folders(tmp_path) as (source, _):
        grow(os.fsencode(source), steps)
        found = {member.name: member for member in members(written(source))}
        expected = snapshot(source)
        assert sorted(found) == sorted(expected)
        for name, (_, mode, uid, gid, mtime, *_) in expected.items():
            member = found[name]
            assert (member.mode, member.uid, member.gid) == (mode, uid, gid)
            assert int(member.mtime) == mtime


def test_a_diff_carries_whiteouts_and_links_to_a_sibling(tmp_path: Path, branch: Path) -> None:
    make(branch, "d/.wh.gone", "d/.wh..wh..opq", ".wh.top", "d/new")
    os.setxattr(branch / "d/new", "user.x", b"1")
    sibling = tmp_path / "sibling"
    sibling.mkdir()
    unpack(sibling, written(branch))
    assert sorted(snapshot(sibling)) == [
        *(".wh.top", "d", "d/.wh..wh..opq", "d/.wh.gone", "d/new"),
    ]
    assert written(sibling) == written(branch)
    assert Layer().bytes()[:1024] == bytes(1024)
