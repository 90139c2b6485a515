"""Writing a branch as a tar (driver.md 7.2), checked by readers that are not ours."""

import io
import logging
import os
import socket
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from driver.archive import layer_chunks, write_layer
from driver.archive.headers import BLOCK
from driver.archive.levels import ExtraLink
from driver.changes import layer_changes
from driver.errors import ArchiveError
from driver.idmap import IdentityMapping
from tests.support.layers import make, members, raw_names, unpack, written

END = bytes(1024)


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


# --- marks of other union filesystems ----------------------------------------------------------

OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque")


def foreign(branch: Path) -> None:
    """Fill a branch with marks in all forms, and with what only looks like one."""
    make(branch, "a", "d/", "d/new", "d/sub/", "x/", "x/full", "x/gone", "x/empty", "y/", "y/.wh.z")
    os.mknod(branch / "gone", stat.S_IFCHR, 0)
    os.mknod(branch / "twice", stat.S_IFCHR, 0)
    (branch / ".wh.twice").touch()
    os.link(branch / "gone", branch / "d/gone")
    os.mknod(branch / "d/null", stat.S_IFCHR, os.makedev(1, 3))
    os.setxattr(branch / "x", "trusted.overlay.opaque", b"x")
    for name in ("x/full", "x/gone", "d/new"):
        os.setxattr(branch / name, "trusted.overlay.whiteout", b"")
    for name in ("x/gone", "x/empty", "d/new"):
        os.truncate(branch / name, 0)


FOREIGN = [".wh.gone", ".wh.twice", "a", "d/", "d/.wh.gone", "d/new", "d/null", "d/sub/", "x/"]
FOREIGN += ["x/.wh.gone", "x/empty", "x/full", "y/", "y/.wh.z"]


def test_whiteouts_in_the_forms_of_others_are_written_in_ours(branch: Path) -> None:
    foreign(branch)
    data = written(branch)
    assert raw_names(data) == FOREIGN
    for member in members(data):
        if "/.wh." in "/" + member.name:
            assert member.isreg()
            assert (member.size, member.mode) == (0, 0o444)


@pytest.mark.parametrize("what", ["metacopy", "redirect"])
@pytest.mark.parametrize("prefix", ["trusted", "user"])
def test_references_of_overlayfs_are_no_content(branch: Path, what: str, prefix: str) -> None:
    """As files of zeros and empty directories they would be data lost without a word."""
    name = "file" if what == "metacopy" else "directory/"
    make(branch, "before", name, "last")
    os.setxattr(branch / name, f"{prefix}.overlay.{what}", b"/elsewhere")
    with pytest.raises(ArchiveError, match=f"content lies elsewhere.*{name.rstrip('/')}"):
        written(branch)


@pytest.mark.parametrize("attribute", OPAQUE)
def test_opaque_directories_in_the_forms_of_others(branch: Path, attribute: str) -> None:
    make(branch, "d/", "d/.wh.x", "d/f", "d/sub/", "e/.wh..wh..opq", "n/")
    for name in ("d", "d/sub", "e"):
        os.setxattr(branch / name, attribute, b"y")
    os.setxattr(branch / "n", attribute, b"n")
    data = written(branch)
    assert raw_names(data) == [
        *("d/", "d/.wh..wh..opq", "d/.wh.x", "d/f", "d/sub/", "d/sub/.wh..wh..opq"),
        *("e/", "e/.wh..wh..opq", "n/"),
    ]
    os.setxattr(branch, attribute, b"y")
    assert raw_names(written(branch))[0] == ".wh..wh..opq"


def test_a_sibling_made_of_the_tar_has_the_same_changes(branch: Path, tmp_path: Path) -> None:
    """What the list of changes says of a branch, its tar has to say as well."""
    foreign(branch)
    os.setxattr(branch / "d", "user.overlay.opaque", b"y")
    below = make(tmp_path / "below", "gone", "twice", "d/old", "d/gone", "x/gone", "y/z", "z")
    copy = make(tmp_path / "copy")
    unpack(copy, written(branch))
    expected = [str(change) for change in layer_changes(str(branch), [str(below)])]
    assert sorted(expected) == sorted(
        str(change) for change in layer_changes(str(copy), [str(below)])
    )
    assert {"D /gone", "D /d/old", "D /x/gone"} < set(expected)


def test_marks_are_not_asked_for_where_there_are_none(
    branch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a mounted union every question costs a request."""
    make(branch, "d/", "d/f")
    monkeypatch.delattr(os, "getxattr")
    assert raw_names(written(branch, marked=False)) == ["d/", "d/f"]


# --- the order of paths ------------------------------------------------------------------------


def test_order_of_whole_paths(branch: Path) -> None:
    make(branch, "!a", "dir/", "fz", "k/", "k/x", "k/d/e", "k/d.e", "k/z", "k-a/", "k-a/y", "k.b")
    marks = [b".wh.gone", b"dir/.wh.a", b"k/.wh..wh..opq", b"k/.wh.d-", b"k/.wh.xy"]
    assert raw_names(written(branch, extra_whiteouts=marks, by_path=True)) == [
        *("!a", "dir/", "dir/.wh.a", "fz", ".wh.gone", "k/", "k-a/", "k-a/y", "k.b"),
        *("k/.wh..wh..opq", "k/d/", "k/.wh.d-", "k/d.e", "k/d/e", "k/x", "k/.wh.xy", "k/z"),
    ]


def test_links_follow_the_order_of_whole_paths(branch: Path) -> None:
    make(branch, "k/x")
    os.link(branch / "k/x", branch / "k-a")
    found = {member.name: member.linkname for member in members(written(branch, by_path=True))}
    assert found == {"k": "", "k-a": "", "k/x": "k-a"}


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
