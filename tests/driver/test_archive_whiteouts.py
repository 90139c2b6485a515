"""What whiteouts do: in a branch they stay, on a tree they delete (driver.md 7.1, 7.5)."""

import os
import stat
import tarfile
from pathlib import Path

import pytest

from driver.archive import whiteouts
from driver.archive.whiteouts import Role
from driver.errors import InvalidArchiveError
from tests.support.layers import EXTRACTORS, Extract, Layer, apply, listing, unpack

START = (
    ".baz bar/ bar/bax bar/bay/ baz foo/ foo/.abc foo/.bcd/ foo/.bcd/a foo/cde/ foo/cde/def"
    " foo/cde/efg foo/fgh foobar"
)
VECTORS = (
    (
        ".bay .wh.baz foo/ foo/.bce foo/.wh..wh..opq foo/cde/ foo/cde/efg",
        ".bay .baz bar/ bar/bax bar/bay/ foo/ foo/.bce foo/cde/ foo/cde/efg foobar",
    ),
    (
        ".bay .wh..baz .wh.foobar foo/ foo/.abc foo/.wh.cde bar/",
        ".bay bar/ bar/bax bar/bay/ foo/ foo/.abc foo/.bce",
    ),
    (".abc .wh..wh..opq foobar", ".abc foobar"),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


def test_application_vectors(root: Path) -> None:
    """7.5: three layers, one after the other, on one tree."""
    apply(root, Layer().names(*START.split()).bytes())
    assert listing(root) == sorted(START.split())
    for layer, expected in VECTORS:
        apply(root, Layer().names(*layer.split()).bytes())
        assert listing(root) == sorted(expected.split())


@pytest.mark.parametrize("vector", [layer for layer, _ in VECTORS])
def test_unpacking_keeps_the_same_layers_as_they_are(root: Path, vector: str) -> None:
    unpack(root, Layer().names(*vector.split()).bytes())
    assert set(vector.split()) <= set(listing(root))


TYPES = {
    "regular": {"kind": tarfile.REGTYPE, "data": b"not empty"},
    "old regular": {"kind": tarfile.AREGTYPE},
    "hard link": {"kind": tarfile.LNKTYPE, "linkname": ".wh..wh.aufs"},
    "symlink": {"kind": tarfile.SYMTYPE, "linkname": "anywhere"},
    "device": {"kind": tarfile.CHRTYPE},
    "fifo": {"kind": tarfile.FIFOTYPE},
}


@pytest.mark.parametrize("mode", [0, 0o600, 0o6755])
@pytest.mark.parametrize("kind", TYPES)
def test_whiteouts_are_known_by_name_whatever_they_are(root: Path, kind: str, mode: int) -> None:
    layer = Layer()
    layer.entry(".wh.x", **TYPES[kind], mode=mode, uid=4711)  # type: ignore[arg-type]
    layer.entry("d/.wh..wh..opq", **TYPES[kind], mode=mode)  # type: ignore[arg-type]
    data = layer.bytes()
    unpack(root, data)
    for name in (".wh.x", "d/.wh..wh..opq"):
        status = os.lstat(root / name)
        assert stat.S_ISREG(status.st_mode)
        assert (status.st_size, status.st_uid, status.st_nlink) == (0, 0, 1)
    tree = root / "tree"
    tree.mkdir()
    apply(tree, Layer().names("x", "d/", "d/old", "y").bytes())
    apply(tree, data)
    assert listing(tree) == ["d/", "y"]


@pytest.mark.parametrize("before", ["file", "directory", "nothing"])
def test_a_device_that_is_a_whiteout_deletes(root: Path, before: str) -> None:
    """The form of overlay filesystems, whose whiteouts may be names of one device."""
    names = {"file": ["x", "d/x"], "directory": ["x/y", "d/x/y"], "nothing": []}[before]
    apply(root, Layer().names("d/", *names).bytes())
    layer = Layer().entry("x", tarfile.CHRTYPE, mode=0).link("d/x", "x").link("d/no", "d/x")
    assert apply(root, layer.file("f").bytes()) == len(b"data")
    assert listing(root) == ["d/", "f"]


def test_a_device_that_is_a_whiteout_and_made_again(root: Path) -> None:
    layer = Layer().file("x", b"old").entry("x", tarfile.CHRTYPE).file("x", b"new").link("l", "x")
    apply(root, layer.bytes())
    assert (root / "x").read_bytes() == (root / "l").read_bytes() == b"new"
    null = Layer().entry("x", tarfile.CHRTYPE, devmajor=1, devminor=3)
    apply(root, null.bytes())
    assert os.lstat(root / "x").st_rdev == os.makedev(1, 3)


def test_opaque_mark_spares_what_its_layer_made_in_any_order(root: Path) -> None:
    before = Layer().names("d/", "d/old", "d/sub/", "d/sub/old", "d/dir/", "d/dir/x", "e/", "e/f")
    for layer in (
        Layer().names("d/sub/new", "d/.wh..wh..opq", "d/late").link("d/linked", "e/f"),
        Layer().names("d/.wh..wh..opq", "d/sub/new", "d/late").link("d/linked", "e/f"),
        Layer().names("d/late").link("d/linked", "e/f").names("d/sub/new", "d/.wh..wh..opq"),
    ):
        apply(root, before.bytes())
        apply(root, layer.bytes())
        assert listing(root) == ["d/", "d/late", "d/linked", "d/sub/", "d/sub/new", "e/", "e/f"]


def test_opaque_mark_tells_names_of_one_file_apart(root: Path) -> None:
    apply(root, Layer().names("d/", "d/old").bytes())
    apply(root, Layer().link("new", "d/old").names("d/.wh..wh..opq").bytes())
    assert listing(root) == ["d/", "new"]


def test_opaque_mark_through_a_symlink_knows_the_directory_again(root: Path) -> None:
    apply(root, Layer().names("etc/", "etc/old").symlink("l", "etc").bytes())
    apply(root, Layer().names("l/new", "etc/.wh..wh..opq").bytes())
    assert listing(root) == ["etc/", "etc/new", "l"]


def test_opaque_mark_makes_its_directory_and_refuses_a_file(root: Path) -> None:
    apply(root, Layer().names("d/.wh..wh..opq", "file").bytes())
    assert listing(root) == ["d/", "file"]
    with pytest.raises(NotADirectoryError):
        apply(root, Layer().names("file/.wh..wh..opq").bytes())


def test_order_decides_when_a_layer_is_applied(root: Path) -> None:
    apply(root, Layer().names("x/", "x/old").bytes())
    apply(root, Layer().names(".wh.x").file("x", b"new").bytes())
    assert (root / "x").read_bytes() == b"new"
    apply(root, Layer().file("x", b"newer").names(".wh.x").bytes())
    assert listing(root) == []


def test_whiteout_and_entry_stay_side_by_side_in_a_branch(root: Path) -> None:
    unpack(root, Layer().names(".wh.x", "x", "y", ".wh.y").bytes())
    assert listing(root) == [".wh.x", ".wh.y", "x", "y"]


@pytest.mark.parametrize(
    "deeper", ["x/.wh.y", "x/sub/.wh.y", "x/y/z/.wh.a"], ids=lambda name: name.count("/")
)
def test_whiteout_below_a_whiteout(root: Path, deeper: str) -> None:
    layer = Layer().names(".wh.x", deeper).bytes()
    unpack(root, layer)
    assert listing(root) == [".wh.x"]
    tree = root / "tree"
    tree.mkdir()
    apply(tree, Layer().names("x/", "x/y").bytes())
    apply(tree, layer)
    assert listing(tree) == []


def test_whiteout_below_a_file_of_the_same_layer(root: Path) -> None:
    for function in (unpack, apply):
        function(root, Layer().names("x", "x/.wh.y", "x/sub/.wh.z").bytes())
        assert listing(root) == ["x"]


@pytest.mark.parametrize("first", ["file", "symlink"])
def test_directory_after_a_file_of_its_name_covers_the_layers_below(root: Path, first: str) -> None:
    """What the file hid, the directory in its place must not show again."""
    layer = Layer().directory("other")
    layer = layer.file("x") if first == "file" else layer.symlink("x", "other")
    data = layer.names("x/", "x/new", "other/", "x/").bytes()
    unpack(root, data, layers_below=True)
    assert listing(root) == ["other/", "x/", "x/.wh..wh..opq", "x/new"]
    assert (root / "x").stat().st_mtime == 1_000_000_000
    unpack(root, data, layers_below=True)
    assert listing(root) == ["other/", "x/", "x/.wh..wh..opq", "x/new"]
    unpack(root, Layer().file("x").bytes(), layers_below=True)
    assert listing(root) == ["other/", "x"]
    unpack(root, data)
    assert listing(root) == ["other/", "x/", "x/new"]


def test_directory_after_a_directory_covers_nothing(root: Path) -> None:
    unpack(root, Layer().names("x/", "x/y", "x/", "z", "z").bytes(), layers_below=True)
    assert listing(root) == ["x/", "x/y", "z"]


def test_whiteout_in_a_directory_of_the_layers_below(root: Path) -> None:
    unpack(root, Layer().names("a/b/.wh.c").bytes())
    assert listing(root) == ["a/", "a/b/", "a/b/.wh.c"]
    tree = root / "tree"
    tree.mkdir()
    apply(tree, Layer().names("a/b/.wh.c").bytes())
    assert listing(tree) == []


def test_whiteout_replaces_what_has_its_own_name(root: Path) -> None:
    (root / ".wh.x").mkdir()
    (root / ".wh.x/inside").touch()
    unpack(root, Layer().names(".wh.x").bytes())
    assert stat.S_ISREG(os.lstat(root / ".wh.x").st_mode)


def test_directory_with_the_name_of_a_whiteout_stays_one(root: Path) -> None:
    unpack(root, Layer().names(".wh.x/", ".wh.x/inside").bytes())
    assert listing(root) == [".wh.x/", ".wh.x/inside"]


def test_missing_name_may_be_whited_out(root: Path) -> None:
    apply(root, Layer().names(".wh.nothing", "d/", "d/.wh.nothing").bytes())
    assert listing(root) == ["d/"]


def test_whole_trees_go(root: Path) -> None:
    deep = "/".join(["d" * 200] * 40)
    apply(root, Layer().names("x/" + deep + "/file").symlink("x/out", "/").bytes())
    apply(root, Layer().names(".wh.x").bytes())
    assert listing(root) == []


PRIVATE = (".wh..wh.aufs", ".wh..wh.orph/", ".wh..wh.orph/file", ".wh..wh.hino")


def test_private_names_at_the_top(root: Path) -> None:
    layer = Layer().names(*PRIVATE, "d/", "d/.wh..wh.aufs", "kept").bytes()
    unpack(root, layer)
    assert listing(root) == [".wh..wh.hino", "d/", "d/.wh..wh.aufs", "kept"]
    tree = root / "tree"
    tree.mkdir()
    (tree / ".wh..wh.hino").write_text("our own")
    apply(tree, layer)
    assert listing(tree) == [".wh..wh.hino", "d/", "kept"]
    assert (tree / ".wh..wh.hino").read_text() == "our own"


def test_pseudo_links_of_old_layers(root: Path) -> None:
    layer = Layer().names(".wh..wh.plnk/")
    layer.file(".wh..wh.plnk/12.34", b"the data", mode=0o4755, uid=5)
    layer.link("a", ".wh..wh.plnk/12.34").link("d/b", "/.wh..wh.plnk/12.34", mode=0o600)
    data = layer.bytes()
    unpack(root, data)
    kept = root / ".wh..wh.plnk/12.34"
    assert os.lstat(root / "a").st_ino == os.lstat(root / "d/b").st_ino == os.lstat(kept).st_ino
    tree = root / "tree"
    tree.mkdir()
    assert apply(tree, data) == len(b"the data")
    assert listing(tree) == ["a", "d/", "d/b"]
    for name in ("a", "d/b"):
        status = os.lstat(tree / name)
        assert (tree / name).read_bytes() == b"the data"
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_nlink) == (0o4755, 5, 1)


def test_unknown_pseudo_link(root: Path) -> None:
    with pytest.raises(InvalidArchiveError, match="Invalid aufs hardlink"):
        apply(root, Layer().link("a", ".wh..wh.plnk/1.2").bytes())


def test_pseudo_link_directory_that_is_a_trap(root: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    layer = Layer().symlink(".wh..wh.plnk", str(victim)).file(".wh..wh.plnk/1.2", b"x").bytes()
    with pytest.raises(InvalidArchiveError, match="pseudo-links"):
        unpack(root, layer)
    apply(root, layer)
    assert listing(root) == []
    assert os.listdir(victim) == []


@pytest.mark.parametrize("extract", EXTRACTORS, ids=lambda extract: extract.__name__)
def test_long_names_of_whiteouts(root: Path, extract: Extract) -> None:
    extract(root, Layer().names(".wh." + "x" * 251).bytes())
    with pytest.raises(OSError, match="too long"):
        extract(root, Layer().names("d/.wh." + "x" * 252, "x" * 256).bytes())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a", Role.ORDINARY),
        ("a/.whx", Role.ORDINARY),
        (".wh.a/b", Role.ORDINARY),
        (".wh.a", Role.WHITEOUT),
        ("a/.wh..a", Role.WHITEOUT),
        ("a/.wh....", Role.WHITEOUT),
        ("a/.wh..wh.aufs", Role.WHITEOUT),
        (".wh..wh..opq", Role.OPAQUE),
        ("a/.wh..wh..opq", Role.OPAQUE),
        (".wh..wh..opq/a", Role.ORDINARY),
        (".wh..wh.aufs", Role.SCRATCH),
        (".wh..wh.orph/a/b", Role.SCRATCH),
        (".wh..wh.plnk", Role.PSEUDO_LINK),
        (".wh..wh.plnk/1.2", Role.PSEUDO_LINK),
        (".wh..wh.else", Role.RESERVED),
    ],
)
def test_roles(path: str, expected: Role) -> None:
    components = tuple(os.fsencode(path).split(b"/"))
    assert whiteouts.role(components) is expected
