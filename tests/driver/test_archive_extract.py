"""What an extracted entry looks like: types, owners, modes, times, attributes (driver.md 7.3)."""

import errno
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.archive import layer_chunks
from driver.beneath import kernel_resolves
from driver.errors import IdMappingError, InvalidArchiveError
from driver.idmap import IdentityMapping
from tests.support.layers import EXTRACTORS, Extract, Layer, apply, listing, snapshot, unpack
from tests.support.overlay_trees import ANYBODY, acl
from unionfs import syscalls

SHIFTED = IdentityMapping([(0, 100_000, 65_536)], [(0, 200_000, 65_536)])


@pytest.fixture(params=EXTRACTORS, ids=lambda extract: extract.__name__)
def extract(request: pytest.FixtureRequest) -> Extract:
    chosen: Extract = request.param
    return chosen


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


def test_every_type(extract: Extract, root: Path) -> None:
    layer = Layer().file("file", b"x" * 1000, mode=0o6755, uid=3, gid=4)
    layer.directory("dir", mode=0o1777, uid=3, gid=4).symlink("sym", "text", uid=3, gid=4)
    layer.entry("char", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o620, uid=3, gid=4)
    layer.entry("block", tarfile.BLKTYPE, devmajor=7, devminor=70_000, mode=0o600)
    layer.entry("fifo", tarfile.FIFOTYPE, mode=0o1755).link("hard", "file")
    extract(root, layer.bytes())
    found = snapshot(root)
    assert {name: fields[:4] for name, fields in found.items()} == {
        "file": (stat.S_IFREG, 0o6755, 3, 4),
        "hard": (stat.S_IFREG, 0o6755, 3, 4),
        "dir": (stat.S_IFDIR, 0o1777, 3, 4),
        "sym": (stat.S_IFLNK, 0o777, 3, 4),
        "char": (stat.S_IFCHR, 0o620, 3, 4),
        "block": (stat.S_IFBLK, 0o600, 0, 0),
        "fifo": (stat.S_IFIFO, 0o1755, 0, 0),
    }
    assert os.lstat(root / "block").st_rdev == os.makedev(7, 70_000)
    assert found["hard"][6] == found["file"][6]


def test_times(extract: Extract, root: Path) -> None:
    layer = Layer().directory("d", mtime=1000).file("d/f", pax={"mtime": "2000.123456789"})
    layer.symlink("d/s", "x", mtime=3000).entry("d/p", tarfile.FIFOTYPE, mtime=4000)
    layer.directory("d/e", mtime=5000).file("d/e/late", pax={"mtime": "1", "atime": "7.5"})
    layer.link("d/hard", "d/f", mtime=9000).file("early", pax={"mtime": "9", "atime": "7.5"})
    extract(root, layer.bytes())
    times = {
        name: (os.lstat(root / name).st_atime_ns, os.lstat(root / name).st_mtime_ns)
        for name in ("d", "d/f", "d/s", "d/p", "d/e", "d/e/late", "early")
    }
    second = 10**9
    assert times == {
        "d": (1000 * second, 1000 * second),
        "d/f": (2000 * second + 123456789,) * 2,
        "d/s": (3000 * second,) * 2,
        "d/p": (4000 * second,) * 2,
        "d/e": (5000 * second,) * 2,
        "d/e/late": (7_500_000_000, second),
        "early": (9 * second, 9 * second),
    }


def test_times_out_of_range_are_clamped(extract: Extract, root: Path) -> None:
    for number, text in enumerate(("99999999999999999999", "-99999999999999999999")):
        extract(root, Layer().file(f"f{number}", pax={"mtime": text}).bytes())
        extract(root, Layer().directory(f"d{number}", pax={"mtime": text}).bytes())
    assert len(os.listdir(root)) == 4


def test_extended_attributes(extract: Extract, root: Path, caplog: object) -> None:
    pax = {
        "SCHILY.xattr.user.bin": "\udc80\x00\n",
        "SCHILY.xattr.user.empty": "",
        "SCHILY.xattr.security.selinux": "a label of another host",
        "SCHILY.xattr.user.overlay.redirect": "/etc",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
    }
    extract(root, Layer().file("f", pax=pax).directory("d", pax=pax).bytes())
    for name in ("f", "d"):
        assert {key: os.getxattr(root / name, key) for key in os.listxattr(root / name)} == {
            "user.bin": b"\x80\0\n",
            "user.empty": b"",
        }


def test_capability_survives_its_chown(extract: Extract, root: Path) -> None:
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    pax = {"SCHILY.xattr.security.capability": os.fsdecode(value)}
    extract(root, Layer().file("f", uid=5, pax=pax, mode=0o755).bytes())
    assert os.getxattr(root / "f", "security.capability") == value


def test_attributes_that_cannot_be_set(
    extract: Extract, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extract(root, Layer().symlink("s", "x", pax={"SCHILY.xattr.user.a": "1"}).bytes())
    assert "user.a" in caplog.text
    for name in ("user.", "user." + "x" * 300):
        with pytest.raises(OSError):
            extract(root, Layer().file("f", pax={f"SCHILY.xattr.{name}": "1"}).bytes())


def test_merging_replaces_attributes_and_keeps_content(extract: Extract, root: Path) -> None:
    extract(root, Layer().directory("d", mode=0o700, uid=1).file("d/old").bytes())
    extract(root, Layer().directory("d", mode=0o755, uid=2).file("d/new").bytes())
    assert listing(root) == ["d/", "d/new", "d/old"]
    assert snapshot(root)["d"][:3] == (stat.S_IFDIR, 0o755, 2)


TYPES = ("file", "directory", "symlink", "fifo")


def of_type(layer: Layer, kind: str) -> Layer:
    if kind == "directory":
        return layer.directory("x").file("x/inside")
    if kind == "symlink":
        return layer.symlink("x", "/etc")
    return layer.entry("x", tarfile.FIFOTYPE) if kind == "fifo" else layer.file("x")


@pytest.mark.parametrize("new", TYPES)
@pytest.mark.parametrize("old", TYPES)
def test_the_later_entry_wins(extract: Extract, root: Path, old: str, new: str) -> None:
    extract(root, of_type(of_type(Layer(), old), new).bytes())
    fresh = root / "fresh"
    fresh.mkdir()
    extract(fresh, of_type(Layer(), new).bytes())
    found = snapshot(fresh)
    expected = {name: fields for name, fields in snapshot(root).items() if name[0] == "x"}
    assert found == expected


def test_children_before_their_parent(extract: Extract, root: Path) -> None:
    layer = Layer().file("a/b/f").directory("a/b", mode=0o700, uid=4, mtime=77)
    extract(root, layer.bytes())
    found = snapshot(root)
    assert found["a"][:3] == (stat.S_IFDIR, 0o755, 0)
    assert found["a/b"][:5] == (stat.S_IFDIR, 0o700, 4, 0, 77)


def test_a_default_acl_is_not_inherited_by_what_the_archive_holds(
    extract: Extract, root: Path
) -> None:
    named = acl(
        *((0x01, 7, ANYBODY), (0x02, 7, 12), (0x04, 5, ANYBODY), (0x10, 7, ANYBODY)),
        (0x20, 5, ANYBODY),
    )
    attributes = {"SCHILY.xattr.system.posix_acl_default": os.fsdecode(named)}
    extract(
        root,
        Layer().directory("d", pax=attributes).file("d/f").directory("d/sub").bytes(),
    )
    assert os.getxattr(root / "d", "system.posix_acl_default") == named
    assert os.listxattr(root / "d/f") == os.listxattr(root / "d/sub") == []


def test_times_do_not_go_to_what_took_the_place_of_a_directory(
    extract: Extract, root: Path
) -> None:
    layer = Layer().directory("c").directory("c/b", mtime=2222)
    layer.directory("a").directory("a/b", mtime=4444).symlink("a", "c")
    extract(root, layer.bytes())
    assert (root / "c/b").stat().st_mtime == 2222


def test_depth_has_a_limit(extract: Extract, root: Path) -> None:
    """What is made of a layer later takes time that grows with the square of the depth."""
    extract(root, Layer().file("d/" * 2048 + "f").bytes())
    with pytest.raises(InvalidArchiveError, match="deeper than 4096"):
        extract(root, Layer().file("e/" * 5000 + "f").bytes())
    assert not (root / "e").exists()
    subprocess.run(["rm", "-rf", root], check=True)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL])
def test_an_owner_that_cannot_be_set_is_told_with_the_remedy(
    extract: Extract, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fchown(_fd: int, _uid: int, _gid: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fchown", fchown)
    with pytest.raises(OSError, match=r"owner 5:6 cannot .*ignore_chown_errors=true") as caught:
        extract(root, Layer().file("f", uid=5, gid=6).bytes())
    assert (caught.value.errno, caught.value.filename) == (number, "f")


def test_owners_are_mapped_to_the_host(root: Path) -> None:
    layer = Layer().file("p/f", uid=5, gid=6).symlink("s", "x", uid=5).directory("d", gid=7)
    layer.file(".wh.w", b"", uid=4_000_000).file("mapped", uid=100_000, gid=200_000)
    unpack(root, layer.bytes(), id_map=SHIFTED)
    owners = {name: fields[2:4] for name, fields in snapshot(root).items()}
    assert owners == {
        "p": (100_000, 200_000),
        "p/f": (100_005, 200_006),
        "s": (100_005, 200_000),
        "d": (100_000, 200_007),
        ".wh.w": (100_000, 200_000),
        "mapped": (100_000, 200_000),
    }


def test_unmappable_owner_ends_the_extraction(root: Path) -> None:
    for function in (unpack, apply):
        with pytest.raises(IdMappingError, match="Container ID 70000 cannot be mapped"):
            function(root, Layer().file("f", uid=70_000).bytes(), id_map=SHIFTED)


def test_root_entry(root: Path) -> None:
    os.chmod(root, 0o755)
    data = Layer().directory(".", mode=0o700, uid=9, mtime=77).file("./f").bytes()
    unpack(root, data)
    assert (stat.S_IMODE(root.stat().st_mode), root.stat().st_uid) == (0o755, 0)
    apply(root, data)
    status = root.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime) == (0o700, 9, 77)


def test_applying_returns_the_sizes_of_all_headers(root: Path) -> None:
    layer = Layer().file("a", b"12345").file("a", b"123").file(".wh.b", b"1").directory("d")
    layer.file(".wh..wh.skipped", b"1234567").file(".wh..wh.plnk/1.2", b"12").symlink("s", "long")
    assert apply(root, layer.bytes()) == 5 + 3 + 1 + 7 + 2


def test_global_header_makes_no_parents_and_malformed_is_no_matter(root: Path) -> None:
    layer = Layer().entry("x/y", b"g", b"this is no record").file("f")
    for function in (unpack, apply):
        function(root, layer.bytes())
    assert listing(root) == ["f"]


def test_errors_name_the_entry(extract: Extract, root: Path) -> None:
    with pytest.raises(OSError) as caught:
        extract(root, Layer().file("a" * 300).bytes())
    assert caught.value.filename == "a" * 300
    with pytest.raises(InvalidArchiveError, match=r"'d/\.wh\.'"):
        extract(root, Layer().file("d/.wh.").bytes())


@pytest.mark.parametrize("target", ["nope", "nope/deeper", "f/deeper"])
def test_errors_of_hard_links_name_both_ends(extract: Extract, root: Path, target: str) -> None:
    with pytest.raises(OSError, match=f"cannot be linked to '{target}': No") as caught:
        extract(root, Layer().file("f").link("b", target).bytes())
    assert caught.value.filename == "b"
    assert isinstance(caught.value, NotADirectoryError if "f/" in target else FileNotFoundError)


def test_nothing_stays_open(extract: Extract, root: Path) -> None:
    before = os.listdir("/proc/self/fd")
    extract(root, Layer().file("a/b/c").link("d", "a/b/c").directory("e").bytes())
    for bad in (
        Layer().file("a/b/c").file("../x"),
        Layer().file("a/b/c/d"),
        Layer().link("x", "a/b/missing"),
        Layer().file("f/" * 1000 + "f"),
        Layer().file(".wh..wh.plnk/1.2").file("a/b/.wh."),
    ):
        try:
            extract(root, bad.bytes()[:-1024])
        except (OSError, InvalidArchiveError):
            pass
    assert os.listdir("/proc/self/fd") == before
    subprocess.run(["rm", "-rf", root], check=True)  # too deep for pytest


def test_paths_of_any_length(extract: Extract, root: Path) -> None:
    name = "/".join(["component" * 10] * 200)
    layer = Layer().file(name + "/f", b"deep").directory(name, mode=0o700)
    layer.link("top", name + "/f").symlink("s", "component" * 10).link(
        "s" + name[90:] + "/g", name + "/f"
    )
    layer.file(name + "/.wh.gone", b"")
    extract(root, layer.bytes())
    assert (root / "top").read_bytes() == b"deep"
    assert (root / "top").stat().st_nlink == 3
    subprocess.run(["rm", "-rf", root], check=True)


@pytest.fixture
def old_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take openat2 away, as kernels before 5.6 and some sandboxes do."""

    def missing(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    kernel_resolves.cache_clear()
    monkeypatch.setattr(syscalls, "openat2", missing)
    assert not kernel_resolves()
    yield
    kernel_resolves.cache_clear()


def test_without_openat2(root: Path, old_kernel: None) -> None:
    name = "/".join(["deep"] * 200)
    layer = Layer().directory("etc").symlink("l", "/etc").file("l/f", b"x").file(name + "/f")
    data = layer.names(name + "/.wh.gone", "etc/.wh..wh..opq", ".wh.x", "x/").bytes()
    unpack(root, data)
    assert (root / "etc/f").read_bytes() == b"x"
    written = b"".join(layer_chunks(root))
    copy = root / "copy"
    copy.mkdir()
    unpack(copy, written)
    assert b"".join(layer_chunks(copy)) == written
    apply(root, Layer().names(".wh.deep", ".wh.copy", ".wh..wh..opq").bytes())
    assert listing(root) == []
    with pytest.raises(InvalidArchiveError, match="outside"):
        unpack(root, Layer().file("../x").bytes())


USER_NAMESPACE = """
import sys
sys.path[:0] = sys.argv[2:]
import logging, os, subprocess, tarfile
from pathlib import Path
from tests.support.layers import Layer, apply, listing, unpack
logging.basicConfig(stream=sys.stdout, format="%(message)s")
root = Path(sys.argv[1])
layer = Layer().entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3).link("again", "null")
layer.file("f", mode=0o4755).entry("p", tarfile.FIFOTYPE)
made_again = Layer().entry("n", tarfile.CHRTYPE, devmajor=1, devminor=3).file("n").link("l", "n")
for function in (unpack, apply):
    home = root / function.__name__
    home.mkdir()
    function(home, made_again.bytes())
    print(listing(home))
    subprocess.run(["rm", "-r", home])
for function in (unpack, apply):
    function(root, layer.bytes())
    print(listing(root))
foreign = Layer().file("foreign", uid=1234).bytes()
try:
    unpack(root, foreign)
except OSError as error:
    print("refused", error.filename)
unpack(root, foreign, ignore_chown_errors=True)
print(os.lstat(root / "foreign").st_uid)
"""


def test_inside_a_user_namespace(root: Path) -> None:
    here = str(Path(__file__).parents[2])
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", USER_NAMESPACE, root, here],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "device b'n' left out: not allowed in a user namespace",
        "['l', 'n']",
        "device b'n' left out: not allowed in a user namespace",
        "['l', 'n']",
        "device b'null' left out: not allowed in a user namespace",
        "['f', 'p']",
        "device b'null' left out: not allowed in a user namespace",
        "['f', 'p']",
        "refused foreign",
        "owner 1234:0 of b'foreign' cannot be set here",
        "0",
    ]
