"""The AUFS driver's own cases, on real mounts (driver.md 6.3); fixes of its quirks (1.10)."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

import driver
from driver import Driver, mounts, mounttable
from driver.errors import MountError
from driver.mounttable import MountState
from tests.support.commands import is_running, wait_for_end
from tests.support.servers import is_mounted, kill, server_of

Using = Callable[[str], AbstractContextManager[Path]]


# --- made, found, removed ------------------------------------------------------------------------


def test_new_driver(root: str) -> None:
    store = driver.init(root)
    assert store is not None
    assert store.string() == str(store) == "aufs"
    assert sorted(os.listdir(root)) == ["diff", "layers", "mnt"]


def test_init_twice(root: str) -> None:
    first, second = driver.init(root), driver.init(root)
    first.create("1")
    assert second.exists("1")


def test_create(store: Driver) -> None:
    store.create("1")
    for name in ("mnt", "diff", "layers"):
        assert Path(store.root, name, "1").exists()
    assert Path(store.root, "layers/1").read_text() == ""


def test_ancestry_is_written_nearest_first(store: Driver) -> None:
    store.create("1")
    store.create("2", "1")
    store.create("3", "2")
    assert Path(store.root, "layers/3").read_text() == "2\n1\n"
    assert store.parents("3") == ("2", "1")


def test_create_and_remove(store: Driver) -> None:
    store.create("1")
    store.remove("1")
    for name in ("mnt", "diff", "layers"):
        assert os.listdir(os.path.join(store.root, name)) == []
    store.remove("1")


def test_get_without_parent(store: Driver) -> None:
    store.create("1")
    assert store.get("1") == os.path.join(store.root, "diff/1")
    assert not is_mounted(os.path.join(store.root, "diff/1"))
    store.put("1")


def test_cleanup_without_layers(store: Driver) -> None:
    store.cleanup()


def test_cleanup_with_a_layer(store: Driver) -> None:
    store.create("1")
    store.cleanup()


def test_mounted_with_parent(store: Driver) -> None:
    store.create("1")
    store.create("2", "1")
    path = store.get("2")
    assert path == os.path.join(store.root, "mnt/2")
    assert is_mounted(path)
    store.put("2")
    assert not is_mounted(path)


def test_remove_while_mounted(store: Driver) -> None:
    store.create("1")
    store.create("2", "1")
    path = store.get("2")
    assert is_mounted(path)
    store.remove("2")
    assert not os.path.exists(path)
    assert not store.exists("2")


def test_create_with_missing_parent(store: Driver) -> None:
    with pytest.raises(driver.LayerNotFoundError, match="docker"):
        store.create("1", "docker")
    for name in ("mnt", "diff", "layers"):
        assert os.listdir(os.path.join(store.root, name)) == []


def test_get_diff(store: Driver, using: Using) -> None:
    store.create_read_write("1")
    with using("1") as root:
        (root / "test_file").write_bytes(bytes(1024))
    with store.diff("1") as archive:
        assert len(archive.read()) > 1024


def test_changes(store: Driver, using: Using) -> None:
    store.create("1")
    store.create_read_write("2", "1")
    with using("2") as root:
        (root / "test.txt").touch()
    assert [str(change) for change in store.changes("2", "")] == ["A /test.txt"]
    store.create_read_write("3", "2")
    with using("3") as root:
        (root / "test2.txt").touch()
    assert [str(change) for change in store.changes("3", "2")] == ["A /test2.txt"]
    assert [str(change) for change in store.changes("3", "1")] == ["A /test.txt", "A /test2.txt"]
    assert mounttable.mounts_below(store.root) == []


def test_diff_size(store: Driver, using: Using) -> None:
    store.create_read_write("1")
    with using("1") as root:
        (root / "test_file").touch()
        os.truncate(root / "test_file", 1024)
    assert store.diff_size("1", "") == 1024


def test_child_diff_size(store: Driver, using: Using) -> None:
    store.create_read_write("1")
    with using("1") as root:
        (root / "test_file").write_bytes(bytes(1024))
    store.create("2", "1")
    assert store.diff_size("2", "1") == 0
    assert store.diff_size("2", "") == 1024


def test_exists(store: Driver) -> None:
    store.create("1")
    assert not store.exists("none")
    assert not store.exists("")
    assert store.exists("1")


def test_status(store: Driver) -> None:
    store.create("1")
    status = store.status()
    assert len(status) == 4
    assert status[0] == ("Root Dir", store.root)
    assert status[1][0] == "Backing Filesystem"
    assert status[2] == ("Dirs", "1")
    assert status[3] == ("Dirperm1 Supported", "true")
    assert store.get_metadata("1") == {}
    assert store.capabilities() == driver.Capabilities(reproduces_exact_diffs=False)


def test_apply_diff(store: Driver, using: Using) -> None:
    store.create_read_write("1")
    with using("1") as root:
        (root / "test_file").write_bytes(bytes(1024))
    with store.diff("1", "") as archive:
        tar = archive.read()
    store.create("2")
    store.create("3", "2")
    assert store.apply_diff("3", "2", io.BytesIO(tar)) == 1024
    with using("3") as root:
        assert (root / "test_file").stat().st_size == 1024


def test_stale_removals_are_swept(root: str) -> None:
    for name in ("diff/123-removing", "mnt/123-removing"):
        Path(root, name, "inside").mkdir(parents=True)
    store = driver.init(root)
    assert os.listdir(os.path.join(store.root, "diff")) == []
    assert os.listdir(os.path.join(store.root, "mnt")) == []


# --- many layers ---------------------------------------------------------------------------------


def stack_of_126(root: str, first_mounted: int) -> None:
    """Stack layers with a file each, every tenth deleting its parent's; count what is left.

    Args:
        first_mounted: from this layer on files are added through the mount; before that only the
            deletions go through one, to save the time that starting 126 servers takes.
    """
    store = driver.init(root)
    last = ""
    for number in range(1, 127):
        layer = hashlib.sha256(str(number).encode()).hexdigest()
        store.create(layer, last)
        deletes = number % 10 == 0
        mounted = deletes or number >= first_mounted
        path = Path(store.get(layer)) if mounted else Path(root, "diff", layer)
        (path / layer).touch()
        if deletes:
            (path / last).unlink()
        if mounted:
            store.put(layer)
        last = layer
    started = time.monotonic()
    path = Path(store.get(last))
    print(f"get of 126 layers: {time.monotonic() - started:.3f} s")
    assert len(os.listdir(path)) == 126 - 12
    assert len(mounttable.mounts_below(root)) == 1
    store.put(last)
    assert mounttable.mounts_below(root) == []


def test_126_layers(root: str) -> None:
    stack_of_126(root, first_mounted=118)


@pytest.mark.parametrize("cut_in", ["between", "permission"])
def test_126_layers_around_a_page(root: str, cut_in: str) -> None:
    """The 4096th byte of the branch list falls between two entries, or into a permission word."""

    def offset(pad: int) -> tuple[int, int]:
        """Return where in a lower branch's entry the page ends, and how long the entry is."""
        path = len(root) + 1 + pad + len("/diff/") + 64
        entry = path + len("=ro+wh:")
        return (4096 - len("br:") - path - len("=rw:")) % entry, entry

    if cut_in == "between":
        pad = next(pad for pad in range(1, 200) if offset(pad)[0] == 0)
    else:
        pad = next(pad for pad in range(1, 200) if 1 < offset(pad)[1] - offset(pad)[0] < 7)
    stack_of_126(os.path.join(root, "p" * pad), first_mounted=127)


# --- the whole tree ------------------------------------------------------------------------------


def test_diff_of_the_whole_tree(stacked: Driver, using: Using) -> None:
    with using("2") as root:
        (root / "own").write_text("above")
    stream = stacked.diff("2", "")
    path = os.path.join(stacked.root, "mnt/2")
    assert is_mounted(path)
    stacked.create("copy")
    assert stacked.apply_diff("copy", "", stream) == 10
    stream.close()
    assert not is_mounted(path)
    assert sorted(os.listdir(os.path.join(stacked.root, "diff/copy"))) == ["file", "own"]


def test_diff_closed_early_unmounts(stacked: Driver) -> None:
    Path(stacked.root, "diff/1/big").write_bytes(bytes(8 << 20))
    with stacked.diff("2", "") as stream:
        stream.read(100)
        assert is_mounted(os.path.join(stacked.root, "mnt/2"))
    assert not is_mounted(os.path.join(stacked.root, "mnt/2"))
    stream.close()


def test_diff_of_a_lost_branch_is_empty(store: Driver) -> None:
    store.create("1")
    os.rmdir(os.path.join(store.root, "diff/1"))
    with store.diff("1") as stream:
        assert stream.read() == bytes(1024)
    assert store.changes("1") == []
    store.apply_diff("1", "", io.BytesIO(bytes(1024)))
    assert os.path.isdir(os.path.join(store.root, "diff/1"))


# --- unmounting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["{}/", "{}/../2", "relative", "linked"])
def test_the_server_is_gone_when_unmount_returns(
    stacked: Driver, spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stacked.get("2")
    server = server_of(path)
    (tmp_path / "link").symlink_to(os.path.dirname(path))
    monkeypatch.chdir(os.path.dirname(path))
    texts = {"relative": "2", "linked": f"{tmp_path}/link/2"}
    driver.unmount(texts.get(spelling) or spelling.format(path))
    assert not is_running(server)
    assert not is_mounted(path)


def test_a_mount_that_a_killed_driver_had_begun_is_no_obstacle(
    stacked: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command goes on, and mounts while the next one waits for the branch."""
    run, calls = mounts._run, []

    def late(command: Sequence[str], target: str) -> None:
        calls.append(target)
        run(command, target)
        if len(calls) == 1:
            raise MountError("the branch is in use", errno.EBUSY)

    monkeypatch.setattr(mounts, "_run", late)
    path = stacked.get("2")
    assert len(calls) == 2
    assert os.listdir(path) == ["file"]
    stacked.put("2")
    assert not is_mounted(path)


def test_the_server_is_gone_when_put_returns(stacked: Driver) -> None:
    process = server_of(stacked.get("2"))
    stacked.put("2")
    assert not is_running(process)


def test_unmount_of_what_is_not_mounted(stacked: Driver) -> None:
    driver.unmount(os.path.join(stacked.root, "mnt/2"))


def test_unmount_of_a_busy_mount_waits(stacked: Driver) -> None:
    path = stacked.get("2")
    with subprocess.Popen(["sleep", "0.25"], cwd=path) as user:
        stacked.put("2")
        assert user.wait() == 0
    assert not is_mounted(path)


def test_unmount_of_a_busy_mount_is_lazy_at_last(stacked: Driver) -> None:
    path = stacked.get("2")
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], cwd=path, stdin=subprocess.PIPE
    ) as user:
        before = time.monotonic()
        stacked.put("2")
        assert 0.4 <= time.monotonic() - before < 2
        assert not is_mounted(path)
        server = mounts._server_of(path)
        # Who is still in there must not keep others from the layer.
        Path(stacked.get("2"), "new").touch()
        assert [str(change) for change in stacked.changes("2", "1")] == ["A /new"]
        before = time.monotonic()
        stacked.put("2")
        assert time.monotonic() - before < 2  # it is the new server that has to end
        user.communicate(b"\n")
    if server is not None:
        mounts._wait_for_end(server, path)
        os.close(server)


def test_a_layer_can_be_removed_while_somebody_uses_it(stacked: Driver) -> None:
    path = Path(stacked.get("2"))
    (path / "d").mkdir()
    with (path / "d/new").open("w") as user:
        server = server_of(str(path))
        stacked.remove("2")
        assert not stacked.exists("2")
        assert os.listdir(os.path.join(stacked.root, "diff")) == ["1"]
        user.write("still there")
        user.flush()
        driver.init(stacked.root)
        stacked.create("2", "1")
        with closing(stacked.diff("2", "1")) as stream:
            assert len(stream.read()) == 1024
    wait_for_end(server)


def test_a_dead_mount_is_mounted_again(stacked: Driver) -> None:
    path = stacked.get("2")
    kill(path)
    assert mounttable.state(path) is MountState.DEAD
    assert stacked.get("2") == path
    assert Path(path, "file").read_text() == "below"
    stacked.put("2")
    stacked.put("2")
    assert not is_mounted(path)


def test_a_dead_mount_can_be_put_and_removed(stacked: Driver) -> None:
    for end in (stacked.put, stacked.remove):
        path = stacked.get("2")
        kill(path)
        end("2")
        assert not is_mounted(path)


def test_init_detaches_dead_mounts(stacked: Driver) -> None:
    path = stacked.get("2")
    kill(path)
    later = driver.init(stacked.root)
    assert not is_mounted(path)
    assert later.get("2") == path
    later.put("2")
    assert not is_mounted(path)


def test_cleanup_unmounts_and_reports_nothing(stacked: Driver) -> None:
    path = stacked.get("2")
    stacked.cleanup()
    assert not is_mounted(path)
    assert stacked._uses.snapshot() == {path: 1}


def test_cleanup_leaves_the_disk_that_the_layers_lie_on(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        store = driver.init(place)
        store.create("1")
        store.cleanup()
        assert store.exists("1")
    finally:
        subprocess.run(["umount", place], check=True)


def test_cleanup_undoes_a_root_that_is_bound_on_itself(stacked: Driver) -> None:
    """As engines do, perhaps more than once, for the sake of its propagation."""
    for _ in range(2):
        subprocess.run(["mount", "--bind", stacked.root, stacked.root], check=True)
    path = stacked.get("2")
    stacked.cleanup()
    table = [line for line in mounttable.entries() if line.mount_point.startswith(stacked.root)]
    assert table == []
    assert not is_mounted(path)
    assert stacked.exists("2")
