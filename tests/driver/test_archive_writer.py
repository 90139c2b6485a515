"""Writing a branch as a tar (driver.md 7.2), checked by readers that are not ours."""

import contextlib
import dataclasses
import io
import logging
import os
import socket
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.archive import layer_chunks, unpack_layer, write_layer, writer
from driver.archive.headers import BLOCK
from driver.archive.levels import ExtraLink
from driver.errors import ArchiveError
from driver.idmap import IdentityMapping
from tests.support.effort import examples
from tests.support.layers import Layer, apply, snapshot, unpack

END = bytes(1024)


@pytest.fixture
def branch(tmp_path: Path) -> Path:
    branch = tmp_path / "branch"
    branch.mkdir()
    return branch


def written(branch: Path, **options: object) -> bytes:
    return b"".join(layer_chunks(branch, **options))  # type: ignore[arg-type]


def members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        return tar.getmembers()


def raw_names(data: bytes) -> list[str]:
    """Return the names as stored, trailing slashes included."""
    done = subprocess.run(
        ["tar", "-t", "--quoting-style=literal"], input=data, check=True, capture_output=True
    )
    return [os.fsdecode(line) for line in done.stdout.splitlines()]


def make(branch: Path, *names: str) -> None:
    for name in names:
        path = branch / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)


# --- order, names, format ----------------------------------------------------------------------


def test_order_is_that_of_the_bytes_directory_by_directory(branch: Path) -> None:
    make(branch, "b", "a/", "a/z", "a/c/", "a/c/x", "a.b", "a-b", "B", "é", "a0")
    assert raw_names(written(branch)) == [
        "B",
        *("a/", "a/c/", "a/c/x", "a/z"),
        *("a-b", "a.b", "a0", "b", "é"),
    ]


def test_plain_members_need_no_extended_header(branch: Path) -> None:
    make(branch, "d/", "d/f")
    (branch / "l").symlink_to("x" * 100)
    (branch / ("n" * 100)).touch()
    os.utime(branch / "d/f", ns=(0, 1_234_567_890_987_654_321))
    data = written(branch)
    assert len(data) == 5 * BLOCK + len(END)
    file = members(data)[1]
    assert (file.name, file.mtime, file.uname, file.gname) == ("d/f", 1_234_567_890, "", "")
    assert data[257 : 257 + 8] == b"ustar\x0000"
    assert data.endswith(END)


def test_extended_header_only_for_what_needs_it(branch: Path) -> None:
    names = {
        "n" * 101: {"path"},
        "é": {"path"},
        "uid": {"uid"},
        "gid": {"gid"},
        "old": {"mtime"},
        "late": {"mtime"},
        "xattr": {"SCHILY.xattr.user.x"},
        "link": {"linkpath"},
    }
    for name in names:
        if name != "link":
            (branch / name).touch()
    (branch / "link").symlink_to("é")
    os.chown(branch / "uid", 1 << 21, 0)
    os.chown(branch / "gid", 0, (1 << 32) - 2)
    os.utime(branch / "old", (0, -5))
    os.utime(branch / "late", (0, 1 << 33))
    os.setxattr(branch / "xattr", "user.x", b"\0\n\xff")
    found = {member.name: set(member.pax_headers) for member in members(written(branch))}
    assert found == names
    again = {member.name: member for member in members(written(branch))}
    assert (again["uid"].uid, again["gid"].gid) == (1 << 21, (1 << 32) - 2)
    assert (again["old"].mtime, again["late"].mtime) == (-5, 1 << 33)


def test_size_beyond_octal_digits(branch: Path) -> None:
    with (branch / "huge").open("wb") as file:
        file.truncate((1 << 33) + 1)
    chunks = layer_chunks(branch)
    head = b""
    while len(head) < 4 * BLOCK:
        head += next(chunks)
    chunks.close()
    with tarfile.open(fileobj=io.BytesIO(head), mode="r|") as tar:
        member = tar.next()
    assert member is not None
    assert member.size == (1 << 33) + 1


def test_all_kinds_and_modes(branch: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(branch, "file")
    os.chmod(branch / "file", 0o6751)
    (branch / "dir").mkdir()
    os.chmod(branch / "dir", 0o3777)
    (branch / "sym").symlink_to("any where")
    os.mkfifo(branch / "fifo", 0o600)
    os.mknod(branch / "char", stat.S_IFCHR | 0o660, os.makedev(511, 70_000))
    os.mknod(branch / "block", stat.S_IFBLK | 0o660, os.makedev(8, 1))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(branch / "socket"))
    with caplog.at_level(logging.INFO):
        found = {member.name: member for member in members(written(branch))}
    assert sorted(found) == ["block", "char", "dir", "fifo", "file", "sym"]
    assert "socket" in caplog.text
    assert (found["file"].mode, found["dir"].mode) == (0o6751, 0o3777)
    assert (found["char"].devmajor, found["char"].devminor) == (511, 70_000)
    assert (found["sym"].linkname, found["sym"].size) == ("any where", 0)
    assert found["fifo"].isfifo()
    assert found["block"].isblk()


def test_same_tree_same_bytes(branch: Path, tmp_path: Path) -> None:
    make(branch, "b/", "b/x", "a")
    os.link(branch / "a", branch / "b/link")
    data = written(branch)
    assert data == written(branch)
    copy = tmp_path / "copy"
    copy.mkdir()
    unpack(copy, data)
    assert written(copy) == data


def test_root_by_descriptor_by_path_and_missing(branch: Path, tmp_path: Path) -> None:
    make(branch, "f")
    fd = os.open(branch, os.O_PATH)
    try:
        by_descriptor = b"".join(layer_chunks(fd))
        os.fstat(fd)  # still the caller's
    finally:
        os.close(fd)
    out = io.BytesIO()
    write_layer(os.fsencode(branch), out)
    assert by_descriptor == out.getvalue() == written(branch)
    assert written(tmp_path / "missing") == END
    with pytest.raises(NotADirectoryError):
        written(branch / "f")


def test_deep_trees_and_few_descriptors(branch: Path, tmp_path: Path) -> None:
    def deepen(where: Path, depth: int) -> None:
        here = os.open(where, os.O_RDONLY)
        for level in range(depth):
            os.mkdir(b"level", dir_fd=here)
            with open(os.open("z", os.O_CREAT | os.O_WRONLY, dir_fd=here), "w") as file:
                file.write(str(level))
            below = os.open(b"level", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)

    deepen(branch, 1000)
    copy = tmp_path / "copy"
    copy.mkdir()
    # Our own process has many files open already; the limit counts from there.
    script = """
import os, resource, sys
sys.path[:0] = sys.argv[3:]
resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))
from driver.archive import apply_layer, layer_chunks
from tests.support.layers import Layer, Trickle, apply, unpack
from pathlib import Path
data = b"".join(layer_chunks(sys.argv[1]))
unpack(Path(sys.argv[2]), data)
assert b"".join(layer_chunks(sys.argv[2])) == data
apply(Path(sys.argv[2]), Layer().names(".wh.level").bytes())
print(len(data), os.listdir(sys.argv[2]))
"""
    here = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, branch, copy, here],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.endswith("['z']\n")
    assert int(done.stdout.split()[0]) > 2 * 1000 * 3000
    subprocess.run(["rm", "-rf", branch], check=True)


# --- links and whiteouts -----------------------------------------------------------------------


def test_hard_links_point_to_the_first_name(branch: Path, tmp_path: Path) -> None:
    make(branch, "m", "a/")
    os.link(branch / "m", branch / "z")
    os.link(branch / "m", branch / "a/k")
    (branch / "s").symlink_to("x")
    os.link(branch / "s", branch / "t", follow_symlinks=False)
    os.link(branch / "z", tmp_path / "elsewhere")
    (tmp_path / "outside").write_text("o")
    os.link(tmp_path / "outside", branch / "outside")
    found = {member.name: (member.type, member.linkname) for member in members(written(branch))}
    assert found == {
        "a": (tarfile.DIRTYPE, ""),
        "a/k": (tarfile.REGTYPE, ""),
        "m": (tarfile.LNKTYPE, "a/k"),
        "outside": (tarfile.REGTYPE, ""),
        "s": (tarfile.SYMTYPE, "x"),
        "t": (tarfile.LNKTYPE, "s"),
        "z": (tarfile.LNKTYPE, "a/k"),
    }


def test_whiteouts_are_plain_empty_files(branch: Path) -> None:
    make(branch, "d/")
    (branch / ".wh..wh.aufs").touch(0o444)
    for name in (".wh.x", "d/.wh.y", "d/.wh..wh..opq", ".wh..wh..opq"):
        os.link(branch / ".wh..wh.aufs", branch / name)
    (branch / "d/.wh.full").write_text("content is never looked at")
    os.chown(branch / "d/.wh.full", 4711, 4711)
    (branch / "d/.wh.sym").symlink_to("x")
    mapping = IdentityMapping([(0, 0, 10)], [(0, 0, 10)])
    found = members(written(branch, id_map=mapping))
    assert [member.name for member in found] == [
        *(".wh..wh..opq", ".wh.x", "d"),
        *("d/.wh..wh..opq", "d/.wh.full", "d/.wh.sym", "d/.wh.y"),
    ]
    for member in found:
        if member.name != "d":
            assert member.isreg()
            assert (member.size, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)


def test_private_names_are_left_out_at_the_top_only(branch: Path) -> None:
    kept = (".wh..wh..opq", "a/", "a/.wh..wh..opq", "a/.wh..wh.aufs", "a/.wh..wh.plnk/x")
    make(branch, *kept, ".wh..wh.aufs", ".wh..wh.plnk/1.2", ".wh..wh.orph/f", ".wh..wh.x.12ab")
    assert raw_names(written(branch)) == sorted({*kept, "a/.wh..wh.plnk/"})


def test_other_exclusions(branch: Path) -> None:
    make(branch, "a/b/c", "a/d", "e")
    assert raw_names(written(branch, exclude=lambda path: path == b"a/b")) == ["a/", "a/d", "e"]


def test_malformed_whiteouts_are_left_out(branch: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(branch, ".wh.", ".wh..", ".wh...", "kept")
    assert raw_names(written(branch)) == ["kept"]
    assert caplog.text.count("malformed whiteout") == 3


# --- pseudo-links ------------------------------------------------------------------------------


def pseudo_link(branch: Path, entry: str, *names: str) -> ExtraLink:
    """Lay a file down as a copied-up hard link: in the branch's private place, and as names."""
    kept = branch / ".wh..wh.plnk" / entry
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("the data")
    for name in names:
        (branch / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(kept, branch / name)
    status = kept.stat()
    return status.st_dev, status.st_ino, os.fsencode(entry)


def test_pseudo_links_stand_where_they_belong(branch: Path, tmp_path: Path) -> None:
    link = pseudo_link(branch, "1.2", "m", "d/real")
    extra = {b"a": link, b"d/b": link, b"e/f/g": link, b"z": link}
    data = written(branch, extra_links=extra)
    assert [(member.name, member.type, member.linkname) for member in members(data)] == [
        ("a", tarfile.REGTYPE, ""),
        ("d", tarfile.DIRTYPE, ""),
        ("d/b", tarfile.LNKTYPE, "a"),
        ("d/real", tarfile.LNKTYPE, "a"),
        ("e/f/g", tarfile.LNKTYPE, "a"),
        ("m", tarfile.LNKTYPE, "a"),
        ("z", tarfile.LNKTYPE, "a"),
    ]
    copy = tmp_path / "copy"
    copy.mkdir()
    unpack(copy, data)
    assert (copy / "e/f/g").read_text() == "the data"
    assert (copy / "a").stat().st_nlink == 6


def test_pseudo_link_behind_its_real_name(branch: Path) -> None:
    link = pseudo_link(branch, "1.2", "a")
    found = members(written(branch, extra_links={b"b": link, b"a": link}))
    assert [(member.name, member.linkname) for member in found] == [("a", ""), ("b", "a")]


def test_pseudo_link_without_a_real_name(branch: Path) -> None:
    link = pseudo_link(branch, "1.2")
    found = members(written(branch, extra_links={b"x": link, b"y": link}))
    assert [(member.name, member.size, member.linkname) for member in found] == [
        ("x", 8, ""),
        ("y", 0, "x"),
    ]


def test_directories_of_pseudo_links_when_given(branch: Path, tmp_path: Path) -> None:
    link = pseudo_link(branch, "1.2")
    home = tmp_path / "home"
    home.mkdir()
    os.chmod(home, 0o700)
    os.chown(home, 1000, 1000)
    status = os.stat(home)
    data = written(
        branch,
        extra_links={b"home/user/x": link, b"real/x": link},
        extra_directories={b"home": status, b"home/user": status},
    )
    assert [(member.name, member.uid, member.mode) for member in members(data)] == [
        ("home", 1000, 0o700),
        ("home/user", 1000, 0o700),
        ("home/user/x", 0, 0o644),
        ("real/x", 0, 0o644),
    ]


def test_pseudo_link_that_is_gone(branch: Path, caplog: pytest.LogCaptureFixture) -> None:
    device, inode, entry = pseudo_link(branch, "1.2")
    extra = {b"x": (device, inode + 1, entry), b"y": (device, inode, b"3.4")}
    assert members(written(branch, extra_links=extra)) == []
    assert caplog.text.count("left out") == 2


# --- attributes and owners ---------------------------------------------------------------------

CAPABILITY_2 = bytes.fromhex("0100000200200000000000000000000000000000")
CAPABILITY_3 = bytes.fromhex("0100000300200000000000000000000000000000a0860100")


def xattrs(data: bytes, name: str) -> dict[str, bytes]:
    (member,) = (member for member in members(data) if member.name == name)
    return {
        key.removeprefix("SCHILY.xattr."): value.encode("utf-8", "surrogateescape")
        for key, value in member.pax_headers.items()
    }


def test_which_extended_attributes_are_written(branch: Path) -> None:
    make(branch, "f", "d/")
    for path in (branch / "f", branch / "d"):
        os.setxattr(path, "user.mine", b"\0\xff\n=")
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user.overlay.opaque", b"y")
        os.setxattr(path, "user.fuseoverlayfs.origin", b"y")
        os.setxattr(path, "trusted.overlay.opaque", b"y")
        os.setxattr(path, "trusted.other", b"y")
    (branch / "l").symlink_to("x")
    os.setxattr(branch / "l", "trusted.other", b"y", follow_symlinks=False)
    data = written(branch)
    for name in ("f", "d"):
        assert xattrs(data, name) == {"user.mine": b"\0\xff\n=", "user.empty": b""}
    assert xattrs(data, "l") == {}
    everything = written(branch, attributes=lambda name: name.startswith(b"trusted.other"))
    for name in ("f", "d", "l"):
        assert xattrs(everything, name) == {"trusted.other": b"y"}


def test_capabilities_lose_their_namespace(branch: Path, tmp_path: Path) -> None:
    make(branch, "two", "three")
    os.setxattr(branch / "two", "security.capability", CAPABILITY_2)
    os.setxattr(branch / "three", "security.capability", CAPABILITY_3)
    data = written(branch)
    assert xattrs(data, "two") == xattrs(data, "three") == {"security.capability": CAPABILITY_2}
    copy = tmp_path / "copy"
    copy.mkdir()
    unpack(copy, data)
    assert os.getxattr(copy / "three", "security.capability") == CAPABILITY_2


def test_owners_are_those_of_the_container(branch: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(branch, "a", "b", "d/", "d/e")
    for name, owner in (("a", 100_000), ("b", 50), ("d", 50), ("d/e", 100_005)):
        os.chown(branch / name, owner, owner)
    mapping = IdentityMapping([(0, 100_000, 10)], [(0, 100_000, 10)])
    found = members(written(branch, id_map=mapping))
    assert [(member.name, member.uid, member.gid) for member in found] == [
        ("a", 0, 0),
        ("d/e", 5, 5),
    ]
    assert caplog.text.count("cannot be mapped") == 2


# --- trees that change while they are read -----------------------------------------------------


def fill(path: Path, size: int) -> None:
    path.write_bytes(b"x" * size)


def test_large_file_that_shrinks_ends_the_stream(branch: Path) -> None:
    fill(branch / "a", 4 << 20)
    (branch / "b").touch()
    got = b""
    chunks = layer_chunks(branch)
    got += next(chunks)
    os.truncate(branch / "a", 1 << 20)
    with pytest.raises(ArchiveError, match="shrank") as caught:
        got += b"".join(chunks)
    assert caught.value.name == b"a"
    assert len(got) <= 4 << 20


def test_large_file_that_grows_is_cut(branch: Path) -> None:
    fill(branch / "a", 2 << 20)
    (branch / "b").touch()
    got = b""
    for chunk in layer_chunks(branch):
        got += chunk
        with (branch / "a").open("ab") as file:
            file.write(b"more")
    assert [(member.name, member.size) for member in members(got)] == [("a", 2 << 20), ("b", 0)]


def test_what_vanishes_is_left_out(branch: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(branch / "a", 2 << 20)
    make(branch, "b", "c/", "c/d", "e")
    chunks = layer_chunks(branch)
    got = next(chunks)
    os.unlink(branch / "b")
    (branch / "c").rename(branch / "moved")
    got += b"".join(chunks)
    assert raw_names(got) == ["a", "e"]


def test_directory_that_vanishes_when_it_is_entered(
    branch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(branch, "c/d", "e")

    def remove_it(name: bytes) -> bool:
        with contextlib.suppress(FileNotFoundError):
            (branch / "c").rename(branch.parent / "moved")
        return False

    os.setxattr(branch / "c", "user.trap", b"")
    assert raw_names(written(branch, attributes=remove_it)) == ["c/", "e"]
    assert "left out" in caplog.text


def test_file_that_becomes_a_symlink_is_not_followed(branch: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret of the host")
    make(branch, "f")

    def swap(name: bytes) -> bool:
        os.unlink(branch / "f")
        (branch / "f").symlink_to(tmp_path / "secret")
        return False

    os.setxattr(branch / "f", "user.trap", b"")
    data = written(branch, attributes=swap)
    assert b"secret" not in data
    assert b"f" in data


def test_file_replaced_between_look_and_open(
    branch: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(branch, "f", "g")

    def look_then_replace(dir_fd: int, name: bytes) -> os.stat_result:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if name == b"f":
            os.rename(branch / "f", branch / "old")
            os.mkfifo(branch / "f")
        return status

    monkeypatch.setattr(writer, "_status", look_then_replace)
    assert raw_names(written(branch)) == ["g"]
    assert "replaced while it was read" in caplog.text


def test_closing_early_stops_and_gives_everything_back(branch: Path) -> None:
    make(branch, *(f"d{number}/f" for number in range(50)))
    fill(branch / "big", 4 << 20)
    before = os.listdir("/proc/self/fd")
    for count in (0, 1, 3):
        chunks = layer_chunks(branch)
        for _ in range(count):
            next(chunks)
        chunks.close()
        assert list(chunks) == []
    assert os.listdir("/proc/self/fd") == before


# --- there and back ----------------------------------------------------------------------------

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
            st.sampled_from(["user.a", "user.b" * 10]), st.binary(max_size=30), max_size=2
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
    assert Layer().bytes()[:1024] == END
