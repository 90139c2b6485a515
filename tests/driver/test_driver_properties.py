"""What must hold whatever is done in whatever order (driver.md part 2, "Invariants")."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import driver
from driver import Driver, mounttable, removal
from driver import store as store_module
from tests.support.effort import examples
from unionfs.mount_table import answers

Using = Callable[[str], AbstractContextManager[Path]]

FEW = examples(8)


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Describe a tree: everything a user can tell two trees apart by, links included."""
    shown: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for where, directories, files in os.walk(root):
        directories.sort()
        for name in sorted([*directories, *files]):
            path = Path(where, name)
            status = path.lstat()
            relative = str(path.relative_to(root))
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            is_directory = stat.S_ISDIR(status.st_mode)
            linked = None if is_directory else first.setdefault(status.st_ino, relative)
            attributes = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if key == "security.capability"
            }
            shown[relative] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_rdev,
                None if is_directory else status.st_mtime_ns // 10**9,
                content,
                linked,
                tuple(sorted(attributes.items())),
            )
    return shown


# --- threads and processes -----------------------------------------------------------------------


def test_balanced_uses_leave_nothing(store: Driver) -> None:
    store.create("base")
    layers = [f"layer{number}" for number in range(3)]
    for layer in layers:
        store.create(layer, "base")

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(6):
            layer = chance.choice(layers)
            path = Path(store.get(layer))
            assert answers(str(path))
            (path / f"{seed}").touch()
            assert (path / f"{seed}").exists()
            store.put(layer)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert mounttable.mounts_below(store.root) == []
    assert store._uses.snapshot() == {}
    assert store._locks._locks == {}


def test_unrelated_layers_do_not_wait_for_each_other(store: Driver) -> None:
    store.create("base")
    store.create("1", "base")
    store.create("2", "base")
    # The pool is the outer one: it waits for its thread, which waits for the lock.
    with ThreadPoolExecutor(1) as pool:
        with store._locks.hold("1"):
            waiting = pool.submit(store.get, "1")
            store.get("2")
            store.put("2")
            assert not waiting.done()
        assert waiting.result() == os.path.join(store.root, "mnt/1")
        store.put("1")


def test_one_of_many_creators_wins(store: Driver) -> None:
    def create(_number: int) -> bool:
        try:
            store.create("1")
        except driver.LayerExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(32))) == 1
    assert os.path.isdir(os.path.join(store.root, "diff/1"))


def test_creating_and_removing_at_once(store: Driver) -> None:
    def churn(number: int) -> None:
        for _ in range(20):
            layer = str(number % 3)
            try:
                store.create(layer)
                Path(store.root, "diff", layer, f"{number}").touch()
            except (driver.LayerExistsError, FileNotFoundError):
                store.remove(layer)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(churn, range(6)))
    for layer in store.list_layers():
        assert os.path.isdir(os.path.join(store.root, "diff", layer))
        store.remove(layer)
    for name in ("mnt", "diff", "layers"):
        assert os.listdir(os.path.join(store.root, name)) == []


def get_in_another_process(root: str) -> None:
    driver.init(root).get("2")


def test_processes_mount_a_layer_once(store: Driver) -> None:
    store.create("1")
    store.create("2", "1")
    start = multiprocessing.get_context("spawn")
    others = [start.Process(target=get_in_another_process, args=(store.root,)) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert len(mounttable.mounts_below(store.root)) == 1
    store.put("2")
    assert mounttable.mounts_below(store.root) == []


# --- a diff is the layer -------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "d" * 120, "ü"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["file", "dir", "remove", "link", "symlink", "chmod", "fifo", "rename", "append"]
        ),
        PATHS,
        PATHS,
        st.integers(0, 4000),
    ),
    min_size=3,
    max_size=14,
)


def perform(root: Path, steps: list[tuple[str, str, str, int]]) -> None:
    """Do what can be done of the steps."""
    for action, path, other, number in steps:
        here, there = root / path, root / other
        if here.is_fifo() and action in ("file", "append"):
            continue  # opening it would wait for a reader
        try:
            if action == "file":
                here.parent.mkdir(parents=True, exist_ok=True)
                here.write_bytes(bytes(number))
            elif action == "append":
                with here.open("ab") as file:
                    file.write(b"more")
            elif action == "dir":
                here.mkdir(parents=True, exist_ok=True)
            elif action == "remove":
                shutil.rmtree(here) if here.is_dir() else here.unlink()
            elif action == "link":
                os.link(there, here, follow_symlinks=False)
            elif action == "symlink":
                here.symlink_to(other)
            elif action == "chmod":
                here.chmod(number % 0o7777 & ~0o4000, follow_symlinks=True)
            elif action == "fifo":
                os.mkfifo(here)
            else:
                here.rename(there)
        except OSError:
            continue


@contextmanager
def layers(store: Driver, *steps: list[tuple[str, str, str, int]]) -> Iterator[list[str]]:
    """Stack layers, each made through its mount by some steps; remove them afterwards."""
    ids: list[str] = []
    try:
        for number, todo in enumerate(steps):
            layer = f"{number}"
            store.create(layer, ids[-1] if ids else "")
            ids.append(layer)
            root = Path(store.get(layer))
            try:
                perform(root, todo)
            finally:
                store.put(layer)
        yield ids
    finally:
        for layer in ["sibling", *reversed(ids)]:
            store.remove(layer)


@FEW
@given(STEPS, STEPS)
def test_a_diff_reproduces_the_union(
    store: Driver,
    below: list[tuple[str, str, str, int]],
    above: list[tuple[str, str, str, int]],
) -> None:
    with layers(store, below, above) as (parent, layer):
        store.create("sibling", parent)
        with store.diff(layer, parent) as tar:
            size = store.apply_diff("sibling", parent, tar)
        assert size == store.diff_size(layer, parent) == store.diff_size("sibling", parent)
        assert [c for c in store.changes("sibling", parent) if c.kind] == [
            c for c in store.changes(layer, parent) if c.kind
        ]
        roots = [Path(store.get(name)) for name in (layer, "sibling")]
        try:
            assert snapshot(roots[0]) == snapshot(roots[1])
        finally:
            for name in (layer, "sibling"):
                store.put(name)


@FEW
@given(STEPS, STEPS)
def test_both_ways_of_comparing_agree(
    store: Driver,
    below: list[tuple[str, str, str, int]],
    above: list[tuple[str, str, str, int]],
) -> None:
    """The branch alone says the same as both unions compared, up to what only seems changed."""
    with layers(store, below, above) as (parent, layer):
        fast = store.changes(layer, parent)
        with store._open_union(layer) as new, store._open_union(parent) as old:
            naive = driver.compare.compare_trees(new, old).changes
        for kind in (driver.ChangeKind.ADD, driver.ChangeKind.DELETE):
            assert {c.path for c in fast if c.kind is kind} == {
                c.path for c in naive if c.kind is kind
            }
        assert len({c.path for c in fast}) == len(fast)


def test_hard_links_survive_a_diff(store: Driver, using: Using) -> None:
    """Of a linked file only one name is copied up; the diff has to bring the other along."""
    store.create("base")
    base = Path(store.root, "diff/base")
    (base / "far/away").mkdir(parents=True)
    (base / "far").chmod(0o711)
    os.chown(base / "far/away", 5, 7)
    (base / "one").write_text("old")
    os.link(base / "one", base / "two")
    os.link(base / "one", base / "far/away/three")
    store.create("layer", "base")
    with using("layer") as root:
        with (root / "one").open("w") as file:
            file.write("changed")
        assert (root / "two").read_text() == "changed"
        before = snapshot(root)
    assert [str(change) for change in store.changes("layer", "base")] == [
        "C /one",
        "C /far/away/three",
        "C /two",
    ]
    assert store.diff_size("layer", "base") == 7
    store.create("sibling", "base")
    with store.diff("layer", "base") as tar:
        assert store.apply_diff("sibling", "base", tar) == 7
    with using("sibling") as root:
        assert snapshot(root) == before
        assert (root / "two").stat().st_nlink == 3


def test_a_layer_in_use_gives_its_diff(store: Driver, using: Using) -> None:
    store.create("base")
    store.create("layer", "base")
    with using("layer") as root:
        (root / "file").write_text("now")
        assert [str(change) for change in store.changes("layer", "base")] == ["A /file"]
        store.create("sibling", "base")
        with store.diff("layer", "base") as tar:
            assert store.apply_diff("sibling", "base", tar) == 3


# --- crashes -------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here."""


def crash(*_args: object, **_keywords: object) -> None:
    raise Crash


@pytest.mark.parametrize("place", ["diff", "mnt"])
def test_crash_between_rename_and_delete(
    store: Driver, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    store.create("1")
    Path(store.root, "diff/1/file").touch()
    real = removal.remove_by_force
    with monkeypatch.context() as patch:
        patch.setattr(
            store_module,
            "remove_by_force",
            lambda path: crash() if f"/{place}/" in path else real(path),
        )
        with pytest.raises(Crash):
            store.remove("1")
    assert not store.exists("1")
    assert os.listdir(os.path.join(store.root, place)) == ["1-removing"]
    again = driver.init(store.root)
    for name in ("mnt", "diff", "layers"):
        assert os.listdir(os.path.join(store.root, name)) == []
    again.create("1")
    assert os.listdir(os.path.join(store.root, "diff/1")) == []


@pytest.mark.parametrize("step", ["mkdir", "chmod", "fsync", "rename"])
@pytest.mark.parametrize("failure", [Crash, OSError])
def test_creation_fails_whole(
    store: Driver, monkeypatch: pytest.MonkeyPatch, step: str, failure: type[BaseException]
) -> None:
    """Whatever fails on the way leaves nothing, and the id stays free."""
    calls = []
    real = getattr(os, step)

    def fail_once(*args: object, **keywords: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            raise failure
        return real(*args, **keywords)

    old = os.umask(0o077)  # so that there is a mode to be changed
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail_once)
            with pytest.raises(failure):
                store.create("1")
    finally:
        os.umask(old)
    assert calls
    assert not store.exists("1")
    for name in ("mnt", "diff", "layers"):
        assert os.listdir(os.path.join(store.root, name)) == []
    store.create("1")
    assert store.exists("1")


KILLED_AT = ("open", "fsync", "rename", "mkdir", "chmod", "rmdir", "unlink")


def killed_at_call(number: int, action: Callable[[], None]) -> bool:
    """Kill a fork in which ``action`` runs just before its n-th change; False: it came through."""
    child = os.fork()
    if child == 0:
        calls = itertools.count(1)

        def watched(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **keywords: object) -> object:
                if next(calls) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **keywords)

            return call

        for name in KILLED_AT:
            setattr(os, name, watched(getattr(os, name)))
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


@pytest.mark.parametrize("action", ["create", "remove"])
def test_a_kill_at_any_step_leaves_nothing_that_stays(store: Driver, action: str) -> None:
    def act() -> None:
        if action == "create":
            store.create("1", "base")
        else:
            store.remove("1")

    store.create("base")
    for number in itertools.count(1):
        if action == "remove" and not store.exists("1"):
            store.create("1", "base")
            Path(store.root, "diff/1/big").touch()
        killed = killed_at_call(number, act)
        driver.init(store.root)
        layers = store.list_layers()
        for name in ("mnt", "diff", "layers"):
            assert sorted(os.listdir(os.path.join(store.root, name))) == layers, number
        if "1" in layers:
            assert store.parents("1") == ("base",)
            assert Path(store.root, "diff/1/big").exists() == (action == "remove")
        if not killed:
            break
        if action == "create":
            store.remove("1")
    assert number > 6


def test_debris_of_a_killed_creation_is_swept(root: str, caplog: pytest.LogCaptureFixture) -> None:
    driver.init(root)
    Path(root, "diff/1").mkdir()
    Path(root, "diff/1/stranger").touch()
    Path(root, "layers/1-removing").touch()
    driver.init(root)
    for name in ("mnt", "diff", "layers"):
        assert os.listdir(os.path.join(root, name)) == []
    assert "layer 1 is half made" in caplog.text


def test_debris_is_not_inherited(store: Driver) -> None:
    Path(store.root, "diff/1").mkdir()
    Path(store.root, "diff/1/stranger").touch()
    Path(store.root, "mnt/1").mkdir()
    Path(store.root, "layers/1-removing").write_text("stranger")
    assert not store.exists("1")
    assert store.list_layers() == []
    store.create("1")
    assert os.listdir(os.path.join(store.root, "layers")) == ["1"]
    assert store.parents("1") == ()
    assert os.listdir(os.path.join(store.root, "diff/1")) == []


def test_what_may_be_no_debris_stays(root: str) -> None:
    """Only what the store itself has marked goes, and nothing that somebody mounted something on.

    A root given by mistake may well have a directory ``mnt`` with the host's disks below it.
    """
    store = driver.init(root)
    store.create("1")
    Path(root, "mnt/usb/photos").mkdir(parents=True)
    Path(root, "diff/lost+found/rescued").mkdir(parents=True)
    for name in ("1-removing", "disk-removing", "=-removing", "note"):
        Path(root, "layers", name).touch()
    disk = Path(root, "mnt/disk")
    disk.mkdir()
    subprocess.run(["mount", "--bind", Path(root, "diff/lost+found"), disk], check=True)
    driver.init(root)
    assert store.exists("1")
    assert Path(root, "diff/1").is_dir()
    assert Path(root, "mnt/usb/photos").exists()
    assert (disk / "rescued").exists()
    subprocess.run(["umount", disk], check=True)
    driver.init(root)
    assert not disk.exists()
    assert Path(root, "diff/lost+found/rescued").exists()
    assert sorted(os.listdir(os.path.join(root, "layers"))) == ["1", "=-removing", "note"]
