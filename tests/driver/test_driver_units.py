"""Parts of the driver by themselves: sizes, forced removal, id maps, ids (driver.md 6.6)."""

from __future__ import annotations

import errno
import io
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import driver
from driver import backing, mounts, mounttable, removal
from driver.counter import UseCounter
from driver.diff import DiffStream
from driver.getter import FileGetter
from driver.idmap import IdentityMapping, IdMap
from driver.size import branch_size
from driver.store import check_id, make_directory
from tests.support.processes import as_user
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


# --- size -------------------------------------------------------------------------------------


def test_size_of_an_empty_directory(tmp_path: Path) -> None:
    assert branch_size(str(tmp_path / "state" / "..")) == 0


def test_size_of_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert branch_size(str(tmp_path)) == 0


def test_size_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("abcde")
    assert branch_size(str(tmp_path)) == 5


def test_size_of_nested_directories(tmp_path: Path) -> None:
    fill(tmp_path, "a/b/")
    assert branch_size(str(tmp_path)) == 0


def test_size_of_a_file_and_a_directory(tmp_path: Path) -> None:
    fill(tmp_path, "file", "a/")
    assert branch_size(str(tmp_path)) == 6


def test_size_of_nested_files(tmp_path: Path) -> None:
    fill(tmp_path, "a/file", "a/b/file")
    assert branch_size(str(tmp_path)) == 12


def test_size_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        branch_size(str(tmp_path / "missing"))


def test_size_counts_an_inode_once_and_a_symlink_by_its_text(tmp_path: Path) -> None:
    fill(tmp_path, "a/file")
    os.link(tmp_path / "a/file", tmp_path / "again")
    (tmp_path / "link").symlink_to("12345")
    assert branch_size(str(tmp_path)) == 11


def test_size_leaves_out_what_is_private(tmp_path: Path) -> None:
    fill(tmp_path, ".wh..wh.orph/x", ".wh..wh.plnk/.keep/", "a/.wh..wh.b.0001", "a/file")
    (tmp_path / ".wh.gone").touch()
    (tmp_path / ".wh..wh.plnk/.keep").rmdir()
    assert branch_size(str(tmp_path)) == 6


# --- forced removal ---------------------------------------------------------------------------


def test_removal_of_nothing(tmp_path: Path) -> None:
    removal.remove_by_force(str(tmp_path / "missing"))
    removal.remove_atomically(str(tmp_path / "missing"))


def test_removal_of_a_file(tmp_path: Path) -> None:
    fill(tmp_path, "file")
    removal.remove_by_force(str(tmp_path / "file"))
    assert not (tmp_path / "file").exists()


def test_removal_of_a_symlink_leaves_its_target(tmp_path: Path) -> None:
    fill(tmp_path, "target/file")
    (tmp_path / "link").symlink_to("target")
    removal.remove_by_force(str(tmp_path / "link"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state", "target"]
    assert (tmp_path / "target/file").exists()


def test_removal_of_a_tree(tmp_path: Path) -> None:
    tree = fill(tmp_path / "tree", "a/b/c/d/", "a/b/file", "0/1/0/file", "1", "2/0/1/2/", "a/0")
    (tree / "a/link").symlink_to("/")
    removal.remove_atomically(str(tree))
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_removal_of_a_tree_deeper_than_descriptors_go(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for level in range(1500):
        os.mkdir("deep", dir_fd=fd)
        os.mkdir(f"{level}", dir_fd=fd)
        deeper = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)
    removal.remove_by_force(str(tmp_path / "deep"))
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("where", ["inside", "deep/er/inside"])
def test_removal_with_a_mount_inside(tmp_path: Path, where: str) -> None:
    outside = fill(tmp_path / "outside", "precious")
    inside = tmp_path / "tree" / where
    inside.mkdir(parents=True)
    subprocess.run(["mount", "--bind", outside, inside], check=True)
    before = time.monotonic()
    removal.remove_by_force(str(tmp_path / "tree"))
    assert time.monotonic() - before < 5
    assert not (tmp_path / "tree").exists()
    assert (outside / "precious").exists()
    assert mounttable.mounts_below(str(tmp_path)) == []


def test_removal_with_a_file_mounted_inside(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", "precious")
    tree = fill(tmp_path / "tree", "a/file")
    subprocess.run(["mount", "--bind", outside / "precious", tree / "a/file"], check=True)
    removal.remove_by_force(str(tree))
    assert not tree.exists()
    assert (outside / "precious").read_text() == "foobar"


def test_removal_never_enters_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = fill(tmp_path / "outside", "a/precious")
    inside = tmp_path / "tree" / "inside"
    inside.mkdir(parents=True)
    subprocess.run(["mount", "--bind", outside, inside], check=True)
    monkeypatch.setattr(mounttable, "mounts_below", lambda _path: [])
    monkeypatch.setattr(removal, "_PAUSE", 0)
    removal.remove_by_force(str(tmp_path / "tree"))
    assert (outside / "a/precious").exists()
    assert not (tmp_path / "tree").exists()


def test_removal_gives_up_on_what_stays_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = fill(tmp_path / "tree", "a/file")
    tries = []

    def busy(*_args: object, **_keywords: object) -> None:
        tries.append(1)
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(removal, "_PAUSE", 0)
    monkeypatch.setattr(os, "rmdir", busy)
    with pytest.raises(OSError) as caught:
        removal.remove_by_force(str(tree))
    assert caught.value.errno == errno.EBUSY
    assert len(tries) == 50


def test_atomic_removal_of_a_half_removed_tree(tmp_path: Path) -> None:
    fill(tmp_path, "tree-removing/file")
    removal.remove_atomically(str(tmp_path / "tree"))
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_atomic_removal_refuses_an_occupied_name(tmp_path: Path) -> None:
    fill(tmp_path, "tree-removing/file", "tree/file")
    with pytest.raises(FileExistsError, match="by hand"):
        removal.remove_atomically(str(tmp_path / "tree"))
    assert (tmp_path / "tree/file").exists()


# --- id maps ----------------------------------------------------------------------------------


def test_no_map_is_identity() -> None:
    mapping = IdentityMapping()
    assert mapping.empty
    assert mapping.root_pair() == (0, 0)
    assert mapping.to_host(5, 7) == mapping.to_container(5, 7) == (5, 7)


def test_root_pair_of_one_entry() -> None:
    mapping = IdentityMapping([(0, 1000, 1)], [IdMap(0, 2000, 1)])
    assert not mapping.empty
    assert mapping.root_pair() == (1000, 2000)


def test_root_pair_of_a_map_without_root() -> None:
    with pytest.raises(driver.IdMappingError, match="Container ID 0 cannot be mapped to a host"):
        IdentityMapping([(1, 1000, 1)]).root_pair()


def test_to_container() -> None:
    mapping = IdentityMapping([(2, 2, 1)], [(2, 2, 1)])
    assert mapping.to_container(2, 2) == (2, 2)
    with pytest.raises(driver.IdMappingError, match="Host ID 3 cannot be mapped to a container"):
        mapping.to_container(2, 3)


def test_to_host_takes_the_first_range_that_fits() -> None:
    mapping = IdentityMapping([(0, 100, 10), (5, 900, 10)])
    assert mapping.to_host(5, 5) == (105, 5)
    assert mapping.to_host(14, 5) == (909, 5)
    with pytest.raises(driver.IdMappingError):
        mapping.to_host(15, 0)


def test_to_host_leaves_remapped_root_alone() -> None:
    mapping = IdentityMapping([(0, 1000, 1)], [(0, 2000, 1)])
    assert mapping.to_host(1000, 2000) == (1000, 2000)
    assert mapping.to_host(0, 2000) == (1000, 2000)


# --- directories ------------------------------------------------------------------------------


def test_make_directory_makes_parents_alike(tmp_path: Path) -> None:
    make_directory(str(tmp_path / "a/b/c"), 0o710, 5, 7)
    for path in (tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/c"):
        status = path.stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o710, 5, 7)


def test_make_directory_owns_an_existing_one(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    make_directory(str(tmp_path / "a/b"), 0o755, 5, 7)
    assert (tmp_path / "a/b").stat().st_uid == 5
    assert (tmp_path / "a").stat().st_uid == 0


def test_a_plain_user_is_told_what_a_store_takes(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 1000, 1000)

    def make() -> str:
        try:
            make_directory("new/store", 0o710, 1000, 0)
        except PermissionError as error:
            return str(error)
        return ""

    assert "unshare -Urm" in as_user(1000, 1000, make, directory=home)
    assert os.listdir(home) == []


def test_make_directory_over_a_file(tmp_path: Path) -> None:
    fill(tmp_path, "file")
    with pytest.raises(NotADirectoryError):
        make_directory(str(tmp_path / "file"), 0o755, 0, 0)


@pytest.mark.parametrize("id_map", [IdentityMapping(), IdentityMapping([(0, 7, 9)], [(0, 8, 9)])])
def test_modes_and_owners_of_the_store(tmp_path: Path, id_map: IdentityMapping) -> None:
    root = tmp_path / "aufs"
    uid, gid = id_map.root_pair()
    old = os.umask(0o077)
    try:
        store = driver.init(root, id_map=id_map)
        store.create("1")
    finally:
        os.umask(old)
    for name in ("", "mnt", "diff", "layers"):
        status = (root / name).stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o710, 0, gid)
    for name in ("mnt/1", "diff/1"):
        status = (root / name).stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o755, uid, gid)
    assert (root / "layers/1").stat().st_mode & 0o7777 == 0o600


# --- ids --------------------------------------------------------------------------------------

GOOD = ["1", "Base", "empty", "a" * 64, "a" * 64 + "-init", "x" * 246, ".hidden", "ä", "a b"]
BAD = ["", ".", "..", "a/b", "a\0b", "a\nb", "a:b", "a,b", "a=b", ".wh.x", "x-removing"]


@pytest.mark.parametrize("layer", GOOD)
def test_good_ids(store: driver.Driver, layer: str) -> None:
    check_id(layer)
    store.create(layer)
    assert store.exists(layer)
    assert store.list_layers() == [layer]


@pytest.mark.parametrize("layer", [*BAD, "x" * 247, "ä" * 124])
def test_bad_ids(store: driver.Driver, layer: str) -> None:
    with pytest.raises(driver.InvalidLayerIdError):
        store.create(layer)
    assert not store.exists(layer)
    with pytest.raises(driver.LayerNotFoundError):
        store.get(layer)
    with pytest.raises(driver.LayerNotFoundError):
        store.diff(layer)
    store.put(layer)
    store.remove(layer)
    assert store.list_layers() == []
    assert os.listdir(os.path.join(store.root, "diff")) == []


# --- what lies below --------------------------------------------------------------------------


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


# --- options ----------------------------------------------------------------------------------


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


# --- counters and streams ---------------------------------------------------------------------


def test_counter() -> None:
    counter = UseCounter()
    counter.begin("/a")
    counter.begin("/a")
    assert counter.snapshot() == {"/a": 2}
    assert not counter.end("/a")
    assert counter.end("/a")
    assert counter.end("/a")
    assert counter.snapshot() == {}
    counter.begin("/a")
    counter.drop("/a")
    assert counter.snapshot() == {}


def test_counter_of_what_was_mounted_before(tmp_path: Path) -> None:
    record = str(fill(tmp_path, "record") / "record")
    counter = UseCounter()
    counter.begin("/m", record, mounted=True)
    assert not counter.end("/m", record)
    assert counter.end("/m", record)
    counter.begin("/m", record, mounted=True)
    counter.begin("/m", record, mounted=False)  # somebody has unmounted it
    assert not counter.end("/m", record)
    assert counter.end("/m", record)
    with pytest.raises(FileNotFoundError):
        counter.begin("/m", str(tmp_path / "none"))
    assert counter.snapshot() == {}


def chunks(log: list[str]) -> Iterator[bytes]:
    try:
        yield b"abc"
        yield b"defg"
        yield b""
        yield b"h"
    finally:
        log.append("ended")


def test_stream_reads_what_is_asked_for() -> None:
    log: list[str] = []
    stream = DiffStream(chunks(log), lambda: log.append("released"))  # type: ignore[arg-type]
    assert stream.readable()
    assert stream.read(0) == b""
    assert [stream.read(2), stream.read(4), stream.read(9), stream.read(1)] == [
        b"ab",
        b"cdef",
        b"gh",
        b"",
    ]
    assert log == ["ended"]
    stream.close()
    stream.close()
    assert stream.closed
    assert log == ["ended", "released"]
    with pytest.raises(ValueError, match="closed"):
        stream.read()


def test_stream_can_be_iterated_and_read_at_once() -> None:
    with DiffStream(chunks([])) as stream:  # type: ignore[arg-type]
        assert stream.read(1) == b"a"
        assert list(stream) == [b"bc", b"defg", b"", b"h"]
    with DiffStream(chunks([])) as stream:  # type: ignore[arg-type]
        assert stream.read() == b"abcdefgh"


def test_stream_closed_early_ends_its_producer() -> None:
    log: list[str] = []
    with DiffStream(chunks(log), lambda: log.append("released")) as stream:  # type: ignore[arg-type]
        stream.read(1)
    assert log == ["ended", "released"]


def test_stream_dropped_is_released() -> None:
    log: list[str] = []
    stream = DiffStream(chunks(log), lambda: log.append("released"))  # type: ignore[arg-type]
    stream.read(1)
    del stream
    assert log == ["ended", "released"]


# --- single files -----------------------------------------------------------------------------


def test_getter(store: driver.Driver, tmp_path: Path) -> None:
    store.create("1")
    branch = fill(Path(store.root, "diff/1"), "usr/lib/file")
    fill(tmp_path, "secret")
    (branch / "lib").symlink_to("/usr/lib")
    (branch / "out").symlink_to(f"../../../{tmp_path}/secret")
    (branch / "outdir").symlink_to(tmp_path)
    os.mkfifo(branch / "fifo")
    with store.diff_getter("1") as getter:
        for name in ("usr/lib/file", "/usr/lib/file", "lib/file", "usr/../lib/../lib/file"):
            with getter.get(name) as file:
                assert file.read() == b"foobar"
        for name in ("missing", "out", "outdir/secret", "../../../etc/passwd"):
            with pytest.raises(FileNotFoundError):
                getter.get(name)
        with pytest.raises(IsADirectoryError):
            getter.get("usr")
        with pytest.raises(OSError):
            getter.get("fifo")
    with pytest.raises(OSError):
        getter.get("usr/lib/file")
    with pytest.raises(driver.LayerNotFoundError):
        store.diff_getter("2")
    assert isinstance(getter, FileGetter)


def test_apply_nothing(store: driver.Driver) -> None:
    store.create("1")
    with pytest.raises(ValueError, match="no diff"):
        store.apply_diff("1", "", None)
    assert store.apply_diff("1", "", io.BytesIO(b"")) == 0
