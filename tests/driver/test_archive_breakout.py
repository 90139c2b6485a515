"""Archives that try to get out of the directory they are extracted to (driver.md 7.4).

Every vector goes through both extractors, and each of these with the kernel's path resolution and
with our own. Passed is what raises ``BreakoutError`` or succeeds, and leaves the victim alone.
"""

import io
import os
import socket
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from driver.archive import apply_layer, layer_chunks, unpack_layer
from driver.errors import BreakoutError, InvalidArchiveError
from tests.support.layers import EXTRACTORS, Extract, Layer, apply, listing, unpack, unpack_by_steps

SECRET = b"a text that nobody inside may ever see or change"


@pytest.fixture(params=EXTRACTORS, ids=lambda extract: extract.__name__)
def extract(request: pytest.FixtureRequest) -> Extract:
    chosen: Extract = request.param
    return chosen


@pytest.fixture
def dest(tmp_path: Path) -> Iterator[Path]:
    """Give an empty directory beside a victim, and judge afterwards."""
    box = tmp_path / "box"
    destination, victim = box / "dest", box / "victim"
    destination.mkdir(mode=0o755, parents=True)
    victim.mkdir(mode=0o755)
    (victim / "hello").write_bytes(SECRET)
    os.chmod(victim / "hello", 0o640)
    before = os.lstat(victim / "hello"), os.lstat(victim)
    yield destination
    after = os.lstat(victim / "hello"), os.lstat(victim)
    assert os.listdir(victim) == ["hello"]
    assert (victim / "hello").read_bytes() == SECRET
    for old, new in zip(before, after, strict=True):
        kept = ("st_ino", "st_mode", "st_uid", "st_gid", "st_nlink", "st_size", "st_mtime_ns")
        assert [getattr(old, name) for name in kept] == [getattr(new, name) for name in kept]
    assert sorted(os.listdir(box)) == ["dest", "victim"]
    for where, _, files in os.walk(destination):
        for name in files:
            path = os.path.join(where, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, "rb") as file:
                    assert SECRET not in file.read()


def outcome(extract: Extract, dest: Path, layer: Layer) -> bool:
    """Extract; tell whether it was refused as a breakout. Any other error is one."""
    try:
        extract(dest, layer.bytes())
    except BreakoutError as error:
        assert "outside" in str(error)
        return True
    return False


def test_vector_1_regular_file_above(extract: Extract, dest: Path) -> None:
    assert outcome(extract, dest, Layer().file("../victim/dotdot", b"x", mode=0o777))


def test_vector_2_regular_file_above_with_slash(extract: Extract, dest: Path) -> None:
    assert not outcome(extract, dest, Layer().file("/../victim/slash-dotdot", b"x"))
    assert (dest / "victim/slash-dotdot").read_bytes() == b"x"


@pytest.mark.parametrize("target", ["../victim/hello", "/../victim/hello"])
def test_vectors_3_4_hard_link_to_a_file_outside(extract: Extract, dest: Path, target: str) -> None:
    assert outcome(extract, dest, Layer().link("dotdot", target))
    assert os.listdir(dest) == []


FOLLOWING: dict[str, Callable[[Layer], Layer]] = {
    "regular": lambda layer: layer.file("loophole-victim/file", b"x"),
    "symlink": lambda layer: layer.symlink("symlink", "loophole-victim/hello"),
    "hardlink": lambda layer: layer.link("hardlink", "loophole-victim/hello"),
    "same-name": lambda layer: layer.file("loophole-victim", b"x"),
}


@pytest.mark.parametrize("following", FOLLOWING)
def test_vectors_5_to_8_through_a_hard_link(extract: Extract, dest: Path, following: str) -> None:
    layer = FOLLOWING[following](Layer().link("loophole-victim", "../victim"))
    assert outcome(extract, dest, layer)


@pytest.mark.parametrize("target", ["../victim/hello", "/../victim/hello"])
def test_vectors_9_10_symlink_to_a_file_outside(extract: Extract, dest: Path, target: str) -> None:
    assert not outcome(extract, dest, Layer().symlink("link", target))
    assert os.readlink(dest / "link") == target


@pytest.mark.parametrize("following", ["regular", "symlink", "same-name"])
def test_vectors_11_12_14_through_a_symlink(extract: Extract, dest: Path, following: str) -> None:
    layer = FOLLOWING[following](Layer().symlink("loophole-victim", "../victim"))
    assert not outcome(extract, dest, layer)
    if following == "regular":
        assert (dest / "victim/file").read_bytes() == b"x"
    if following == "same-name":
        assert not (dest / "loophole-victim").is_symlink()


def test_vector_13_hard_link_through_a_symlink(extract: Extract, dest: Path) -> None:
    layer = FOLLOWING["hardlink"](Layer().symlink("loophole-victim", "../victim"))
    # Inside of the root there is no such file; that is neither a breakout nor a success.
    with pytest.raises((BreakoutError, FileNotFoundError)):
        extract(dest, layer.bytes())


def test_vector_15_new_directory_through_a_symlink(extract: Extract, dest: Path) -> None:
    layer = Layer().symlink("dir/loophole", "../../victim")
    layer.file("dir/loophole/newdir/newfile", b"x")
    assert not outcome(extract, dest, layer)
    assert (dest / "victim/newdir/newfile").read_bytes() == b"x"


def test_vector_16_hard_link_to_a_symlink_before_its_target(extract: Extract, dest: Path) -> None:
    layer = Layer().symlink("symlink1", "regfile", mode=0o777)
    layer.link("symlink2", "symlink1", mode=0o777).file("regfile", b"text", mode=0o644)
    assert not outcome(extract, dest, layer)
    assert os.readlink(dest / "symlink2") == "regfile"
    assert os.lstat(dest / "symlink2").st_ino == os.lstat(dest / "symlink1").st_ino
    assert (dest / "regfile").read_bytes() == b"text"


def test_vector_17_root_that_is_reached_through_a_symlink(extract: Extract, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "host-file").write_bytes(SECRET)
    root = tmp_path / "root"
    root.mkdir()
    (root / "safe").symlink_to(outside)
    # The tar names the way into the symlink itself; it ends inside of the root.
    extract(root, Layer().file("safe/host-file", b"pwned").bytes())
    assert (outside / "host-file").read_bytes() == SECRET


@pytest.mark.parametrize("spelling", ["safe", "safe/", "safe//", "safe/.", "safe/./", "safe/.//."])
def test_vector_17_archiving_a_symlink_does_not_leak(tmp_path: Path, spelling: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "host-file").write_bytes(SECRET)
    (tmp_path / "safe").symlink_to(outside)
    with pytest.raises(OSError):
        b"".join(layer_chunks(f"{tmp_path}/{spelling}"))


def test_vector_17_archiving_the_parent_keeps_the_symlink(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "host-file").write_bytes(SECRET)
    root = tmp_path / "root"
    root.mkdir()
    (root / "safe").symlink_to(outside)
    data = b"".join(layer_chunks(root))
    assert SECRET not in data
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [(member.name, member.linkname) for member in tar] == [("safe", str(outside))]


def test_vector_18_two_dots_begin_a_name(extract: Extract, dest: Path) -> None:
    assert not outcome(extract, dest, Layer().file("..gitme", b"x").file("..d/...", b"y"))
    assert (dest / "..gitme").read_bytes() == b"x"
    assert (dest / "..d/...").read_bytes() == b"y"


def test_vector_19_global_header_makes_nothing(extract: Extract, dest: Path) -> None:
    layer = Layer().entry("foo/bar", b"g", b"30 comment=nothing of interest\n")
    assert not outcome(extract, dest, layer)
    assert os.listdir(dest) == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_vector_20_implied_and_explicit_modes(extract: Extract, dest: Path, umask: int) -> None:
    layer = Layer().file("a/b/file", mode=0o600)
    for name, mode in (("d1", 0o644), ("d2", 0o600), ("d3", 0o400)):
        layer.directory(f"a/{name}", mode=mode).file(f"a/{name}/f", mode=mode)
    old = os.umask(umask)
    try:
        assert not outcome(extract, dest, layer)
    finally:
        os.umask(old)
    modes = {"a": 0o755, "a/b": 0o755, "a/b/file": 0o600}
    for name, mode in (("d1", 0o644), ("d2", 0o600), ("d3", 0o400)):
        modes |= {f"a/{name}": mode, f"a/{name}/f": mode}
    assert {name: stat.S_IMODE((dest / name).stat().st_mode) for name in modes} == modes


def test_vector_21_very_many_exclude_patterns(dest: Path) -> None:
    layer = Layer().names("keep", "name-17", "name-65533", "name-17-longer/", "other/")
    unpack(dest, layer.bytes(), exclude=[b"name-%d" % number for number in range(65_534)])
    assert sorted(os.listdir(dest)) == ["keep", "other"]


def test_vector_22_no_stream(dest: Path) -> None:
    fd = os.open(dest, os.O_RDONLY)
    try:
        for function in (unpack_layer, apply_layer):
            with pytest.raises(ValueError, match="no stream"):
                function(fd, None)
    finally:
        os.close(fd)


# --- containerd's list: links are resolved with the layer's root as "/" ---------------------------


def base() -> Layer:
    """Begin as that list does."""
    return Layer().directory("etc").file("etc/passwd", b"root").directory("dummy")


SYMLINKED_PARENTS = {
    "absolute": [("localetc", "/etc")],
    "relative": [("localetc", "etc")],
    "climbing": [("localetc", "../../../../etc")],
    "absolute climbing": [("localetc", "/../../etc")],
    "through a directory": [("localetc", "/dummy/../etc")],
    "through a missing directory": [("localetc", "/missing/../etc")],
    "a chain": [("one", "/etc"), ("two", "one"), ("localetc", "../two")],
    "slashes and dots": [("localetc", "//.//etc/.//")],
}


@pytest.mark.parametrize("links", SYMLINKED_PARENTS)
def test_writing_through_a_symlink_ends_inside(extract: Extract, dest: Path, links: str) -> None:
    layer = base()
    for name, target in SYMLINKED_PARENTS[links]:
        layer.symlink(name, target)
    layer.file("localetc/unbroken", b"x").directory("localetc/sub").file("localetc/sub/f")
    assert not outcome(extract, dest, layer)
    assert (dest / "etc/unbroken").read_bytes() == b"x"
    assert (dest / "etc/sub/f").is_file()
    assert sorted(os.listdir(dest / "etc")) == ["passwd", "sub", "unbroken"]


def test_writing_through_a_symlink_to_the_root(extract: Extract, dest: Path) -> None:
    layer = Layer().directory("tmp").symlink("foo", "/").file("foo/tmp/inside", b"x")
    assert not outcome(extract, dest, layer)
    assert (dest / "tmp/inside").read_bytes() == b"x"


def test_symlinks_in_a_circle_are_an_error(extract: Extract, dest: Path) -> None:
    layer = Layer().symlink("a", "b").symlink("b", "a").file("a/file")
    with pytest.raises(OSError, match="symbolic links"):
        extract(dest, layer.bytes())


def test_a_storm_of_dots_in_symlinks_is_an_error(extract: Extract, dest: Path) -> None:
    """Going back is dear where the kernel does not do it; a few headers must not cost hours."""
    deep, base_of_links = "/".join(["d"] * 150), "/".join(["d"] * 10)
    text = "/".join(["", deep, *[".."] * 140])
    layer = Layer().directory(deep)
    for number in range(39):
        layer.symlink(f"{base_of_links}/l{number}", f"{text}/l{number + 1}")
    layer.file(f"{base_of_links}/l0/missing/file")
    with pytest.raises(OSError, match="symbolic links"):
        extract(dest, layer.bytes())


@pytest.mark.parametrize("through", ["localetc", "absolute"])
def test_hard_link_through_a_symlink_reaches_the_inner_file(
    extract: Extract, dest: Path, through: str
) -> None:
    layer = base().symlink("localetc", "etc").symlink("absolute", "/etc")
    layer.link("copy", f"{through}/passwd").file("copy2", b"")
    layer.link("copy2", f"/{through}/passwd")
    assert not outcome(extract, dest, layer)
    inode = os.lstat(dest / "etc/passwd").st_ino
    assert os.lstat(dest / "copy").st_ino == os.lstat(dest / "copy2").st_ino == inode


@pytest.mark.parametrize("name", ["", ".", "./", "/", "/..", "x/sub/../..", "//./"])
def test_names_of_the_root(extract: Extract, dest: Path, name: str) -> None:
    extract(dest, Layer().directory("x/sub").directory(name).bytes())
    with pytest.raises(InvalidArchiveError, match="root"):
        extract(dest, Layer().symlink(name, "/victim").bytes())
    with pytest.raises(InvalidArchiveError, match="root"):
        extract(dest, Layer().file(name).bytes())


@pytest.mark.parametrize("name", ["..", "../", "x/../..", "./..", "x/sub/../../../y"])
def test_names_above_the_root(extract: Extract, dest: Path, name: str) -> None:
    assert outcome(extract, dest, Layer().directory("x/sub").file(name))


def test_name_that_is_cleaned_to_its_directory(extract: Extract, dest: Path) -> None:
    assert not outcome(extract, dest, Layer().directory("x").directory("x/sub/..", mode=0o700))
    assert stat.S_IMODE(os.lstat(dest / "x").st_mode) == 0o700


def test_symlink_replaces_directory(extract: Extract, dest: Path) -> None:
    layer = base().file("dir/file").symlink("dir", "etc").file("dir/new", b"x")
    assert not outcome(extract, dest, layer)
    assert os.readlink(dest / "dir") == "etc"
    assert sorted(os.listdir(dest / "etc")) == ["new", "passwd"]


def test_directory_replaces_symlink(extract: Extract, dest: Path) -> None:
    layer = base().symlink("dir", "etc").file("dir/first")
    layer.directory("dir").file("dir/second")
    assert not outcome(extract, dest, layer)
    assert not (dest / "dir").is_symlink()
    assert os.listdir(dest / "dir") == ["second"]
    assert sorted(os.listdir(dest / "etc")) == ["first", "passwd"]


def test_symlink_to_the_outside_is_replaced_not_followed(extract: Extract, dest: Path) -> None:
    (dest / "out").symlink_to(dest.parent / "victim")
    assert not outcome(extract, dest, Layer().directory("out", mode=0o777).file("out/hello"))
    assert not (dest / "out").is_symlink()


def test_rewriting_a_name_leaves_its_hard_link_alone(extract: Extract, dest: Path) -> None:
    layer = base().link("link", "etc/passwd").file("link", b"new", mode=0o600)
    assert not outcome(extract, dest, layer)
    assert (dest / "etc/passwd").read_bytes() == b"root"
    assert (dest / "link").read_bytes() == b"new"
    assert os.lstat(dest / "etc/passwd").st_nlink == 1


def test_whiteout_of_a_symlink_takes_the_symlink(dest: Path) -> None:
    apply(dest, base().symlink("localetc", "etc").bytes())
    apply(dest, Layer().file(".wh.localetc", b"").bytes())
    assert sorted(os.listdir(dest)) == ["dummy", "etc"]
    assert os.listdir(dest / "etc") == ["passwd"]


def test_whiteout_through_a_symlink(dest: Path) -> None:
    apply(dest, base().symlink("localetc", "/etc").file("etc/whitedout").bytes())
    apply(dest, Layer().file("localetc/.wh.whitedout", b"").bytes())
    assert os.listdir(dest / "etc") == ["passwd"]


def test_whiteout_through_a_symlink_to_the_outside(dest: Path) -> None:
    (dest / "out").symlink_to(dest.parent / "victim")
    apply(dest, Layer().file("out/.wh.hello", b"").file("out/.wh..wh..opq", b"").bytes())


def test_whiteout_name_as_a_directory(extract: Extract, dest: Path) -> None:
    assert not outcome(extract, dest, base().file(".wh.etc/somefile", b"x"))
    assert (dest / ".wh.etc/somefile").read_bytes() == b"x"
    assert (dest / "etc/passwd").read_bytes() == b"root"


def test_whiteout_behind_dots(dest: Path) -> None:
    apply(dest, base().bytes())
    apply(dest, Layer().file("dne/../.wh.etc", b"").bytes())
    assert os.listdir(dest) == ["dummy"]


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh..."])
@pytest.mark.parametrize("where", ["", "etc/", "dne/../"])
def test_malformed_whiteouts(extract: Extract, dest: Path, where: str, name: str) -> None:
    with pytest.raises(InvalidArchiveError, match="malformed whiteout"):
        extract(dest, base().file(where + name, b"").bytes())
    assert (dest / "etc/passwd").is_file()


def test_whiteouts_above_the_root(extract: Extract, dest: Path) -> None:
    for name in ("../.wh.victim", "../victim/.wh.hello", "../victim/.wh..wh..opq"):
        assert outcome(extract, dest, Layer().file(name, b""))


def test_attributes_through_a_link_to_a_symlink(extract: Extract, dest: Path) -> None:
    victim = dest.parent / "victim/hello"
    layer = Layer().symlink("sym", str(victim)).link("hard", "sym", mode=0o777, uid=7, mtime=5)
    assert not outcome(extract, dest, layer)
    assert os.readlink(dest / "hard") == str(victim)


def test_attributes_of_a_symlink_are_its_own(extract: Extract, dest: Path) -> None:
    victim = str(dest.parent / "victim/hello")
    pax = {"SCHILY.xattr.trusted.mark": "x"}
    assert not outcome(
        extract, dest, Layer().symlink("sym", victim, uid=7, mtime=5, mode=0o777, pax=pax)
    )
    status = os.lstat(dest / "sym")
    assert (status.st_uid, status.st_mtime) == (7, 5)
    assert os.getxattr(dest / "sym", "trusted.mark", follow_symlinks=False) == b"x"


def test_times_of_a_directory_that_became_a_symlink(extract: Extract, dest: Path) -> None:
    victim = str(dest.parent / "victim")
    assert not outcome(extract, dest, Layer().directory("d", mtime=5).symlink("d", victim))
    assert os.readlink(dest / "d") == victim


def test_hard_link_to_a_directory(extract: Extract, dest: Path) -> None:
    with pytest.raises(IsADirectoryError):
        extract(dest, base().link("link", "etc").bytes())
    with pytest.raises(InvalidArchiveError, match="root"):
        extract(dest, base().link("link", "/").bytes())


def test_hard_link_to_itself_loses_nothing(extract: Extract, dest: Path) -> None:
    assert not outcome(extract, dest, base().link("etc/passwd", "etc/passwd"))
    assert (dest / "etc/passwd").read_bytes() == b"root"


def test_hard_link_to_nothing_keeps_what_is_there(extract: Extract, dest: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        extract(dest, base().link("etc/passwd", "missing").bytes())
    assert caught.value.filename == "etc/passwd"
    assert (dest / "etc/passwd").read_bytes() == b"root"


def test_a_file_is_no_directory(extract: Extract, dest: Path) -> None:
    with pytest.raises(NotADirectoryError):
        extract(dest, base().file("etc/passwd/x").bytes())


def test_a_way_that_removes_itself(extract: Extract, dest: Path) -> None:
    """Through a link to the root an entry can replace the very directory the link lies in."""
    assert not outcome(extract, dest, Layer().symlink("p/l", "/").names("p/l/p", "p/l/y"))
    assert listing(dest) == ["p/", "p/l/", "p/l/p", "p/l/y"]


def test_an_opaque_mark_that_removes_its_own_way(dest: Path) -> None:
    apply(dest, Layer().symlink("p/l", "/").bytes())
    apply(dest, Layer().names("p/l/.wh..wh..opq", "p/l/y").bytes())
    assert os.listdir(dest) == ["p"]
    assert os.listdir(dest / "p/l") == ["y"]


def test_fifos_and_sockets_in_the_way_are_not_opened(extract: Extract, dest: Path) -> None:
    os.mkfifo(dest / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(dest / "socket"))
    assert not outcome(extract, dest, Layer().file("fifo", b"1").file("socket", b"2"))
    assert (dest / "fifo").read_bytes() == b"1"
    assert (dest / "socket").read_bytes() == b"2"


def test_mounts_inside_are_not_entered(extract: Extract, tmp_path: Path) -> None:
    """In a mount namespace of its own, so that nothing can stay mounted."""
    script = """
import os, subprocess, sys
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from tests.support import layers
root = Path(sys.argv[1])
extract = getattr(layers, sys.argv[2])
(root / "d/mnt").mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "none", root / "d/mnt"], check=True)
(root / "d/mnt/precious").write_text("x")
for layer in (
    layers.Layer().file("d/mnt/new"),
    layers.Layer().file("d", b"replaces all of it"),
    layers.Layer().file("d/mnt", b"replaces the mount"),
    layers.Layer().file("d/mnt/.wh.precious", b""),
    layers.Layer().file("d/.wh.mnt", b""),
    layers.Layer().file("d/.wh..wh..opq", b""),
):
    try:
        extract(root, layer.bytes())
    except OSError as error:
        print(error.strerror)
    assert os.listdir(root / "d/mnt") == ["precious"], os.listdir(root / "d/mnt")
"""
    here = str(Path(__file__).parents[2])
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", script, str(tmp_path), extract.__name__, here],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert "Invalid cross-device link" in done.stdout


def test_the_root_itself_may_be_a_mount_or_reached_by_any_path(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "way").symlink_to("real")
    for function in (unpack, unpack_by_steps):
        function(tmp_path / "way", base().symlink("l", "/etc").file("l/x").bytes())
    assert (tmp_path / "real/etc/x").is_file()
