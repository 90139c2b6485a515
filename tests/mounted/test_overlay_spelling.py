"""Overlay mounts as engines make them: forms of the call, layers on disk, what must stay untouched.

The option strings are those that podman, buildah, containerd and Docker were seen to send, with
other paths. (Specification: driver.md 4.1, 4.2, 4.5, 5.4.)
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import FUSE_AUFS, Commands, wait_for_end

ROOT = "pr/root/overlay"
MERGED = f"{ROOT}/4ee2c97e/merged"
CONTAINER = f"upperdir={ROOT}/4ee2c97e/diff,workdir={ROOT}/4ee2c97e/work"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Commands]:
    """A store as containers/storage lays it out: two image layers and one container."""
    home = tmp_path / ROOT
    (home / "l").mkdir(parents=True)
    for layer, link in (("058c7fb0", "SFRFQG"), ("f0c43e9e", "6JYCAA")):
        (home / layer / "diff").mkdir(parents=True)
        (home / layer / "empty").mkdir()
        (home / "l" / link).symlink_to(f"../{layer}/diff")
    for name in ("diff", "work", "merged"):
        (home / "4ee2c97e" / name).mkdir(parents=True)
    (home / "058c7fb0/diff/base").write_text("of the base")
    (home / "058c7fb0/diff/both").write_text("of the base")
    (home / "f0c43e9e/diff/both").write_text("of the second layer")
    commands = Commands(tmp_path)
    yield commands
    commands.clean_up()


def mount(run: Commands, options: str, target: str = MERGED, cwd: Path | None = None) -> Path:
    """Mount as containers/storage does, which must go without a word; return the mount point."""
    done = run(FUSE_AUFS, "-o", options, target, cwd=cwd)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return (cwd or run.root) / target


def umount(run: Commands, target: Path) -> None:
    """Unmount; the daemons of other mounts go on."""
    states = {state.parent.name for state in run.state.glob("si_*/mountpoint")}
    folder = next(
        run.state / name
        for name in states
        if (run.state / name / "mountpoint").read_text().rstrip("\n") == str(target)
    )
    pid = int((folder / "pid").read_text())
    subprocess.run(["umount", target], check=True, timeout=20)
    wait_for_end(pid)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def flags(path: Path) -> int:
    return os.statvfs(path).f_flag


@pytest.mark.parametrize(
    "more",
    [
        ",,volatile",  # podman run --rm: two commas
        ",",  # podman create: a comma at the end
        ",volatile",  # overlay.mountopt=nodev,metacopy=on
        ",fsync=0,volatile",
        ",private",  # podman run -v DIR:DST:O
        "",  # dockerd -s fuse-overlayfs
        ",volatile,timeout=1,threaded,fast_ino,writeback,noacl,redirect_dir=off,xino=off",
    ],
)
def test_the_container_of_an_engine(run: Commands, more: str) -> None:
    home = run.root / ROOT
    merged = mount(run, f"lowerdir={ROOT}/l/6JYCAA:{ROOT}/l/SFRFQG,{CONTAINER}{more}")
    assert names(merged) == ["base", "both"]
    assert (merged / "both").read_text() == "of the second layer"
    (merged / "base").write_text("changed")
    (merged / "both").unlink()
    (line,) = run.mounts()
    assert line.kind == "fuse.aufs"
    assert flags(merged) & (os.ST_NODEV | os.ST_NOSUID | os.ST_RDONLY) == os.ST_NODEV
    assert flags(merged) & os.ST_NOATIME
    umount(run, merged)
    # What happened is in the upper when the unmount returns, and only there.
    upper = home / "4ee2c97e/diff"
    assert (upper / "base").read_text() == "changed"
    assert (upper / ".wh.both").exists()
    assert names(home / "4ee2c97e/work") == []
    assert names(merged) == []
    assert (home / "058c7fb0/diff/base").read_text() == "of the base"


def test_mounted_again_at_once(run: Commands) -> None:
    """As for a diff: what was just unmounted, without volatile, and its parent beside it."""
    options = f"lowerdir={ROOT}/l/6JYCAA:{ROOT}/l/SFRFQG,{CONTAINER}"
    merged = mount(run, options + ",,volatile")
    (merged / "base").write_text("changed")
    (merged / "both").unlink()
    subprocess.run(["umount", merged], check=True, timeout=20)
    mount(run, options)
    parent = f"{ROOT}/f0c43e9e/merged"
    (run.root / parent).mkdir()
    mount(run, f"lowerdir={ROOT}/f0c43e9e/diff:{ROOT}/l/SFRFQG", parent)
    assert names(merged) == ["base"]
    assert (merged / "base").read_text() == "changed"
    assert names(run.root / parent) == ["base", "both"]


def test_an_image_cannot_be_changed(run: Commands) -> None:
    before = run.tree()
    merged = mount(run, f"lowerdir={ROOT}/058c7fb0/diff:{ROOT}/058c7fb0/empty")
    assert names(merged) == ["base", "both"]
    assert flags(merged) & os.ST_RDONLY
    with pytest.raises(OSError, match="Read-only file system"):
        (merged / "new").touch()
    umount(run, merged)
    assert {k: v for k, v in run.tree().items() if k.startswith(str(run.root / ROOT))} == {
        k: v for k, v in before.items() if k.startswith(str(run.root / ROOT))
    }


def test_the_form_of_containerd(run: Commands) -> None:
    """One -o for each option, or all behind the target, after a source."""
    options = ["workdir=w", "upperdir=u", "lowerdir=pr/root/overlay/058c7fb0/diff", "dev,suid"]
    for name in ("u", "w", "mnt"):
        (run.root / name).mkdir()
    target = run.root / "mnt"
    apart = [word for option in options for word in ("-o", option)]
    for words in (["-o", ",".join(options)], apart):
        run.mount("overlay", target, *words)
        (line,) = run.mounts()
        assert line.source == b"overlay"
        assert not flags(target) & (os.ST_NODEV | os.ST_NOSUID)
        assert names(target) == ["base", "both"]
        umount(run, target)


def test_read_only_beside_a_live_container(run: Commands) -> None:
    """What containerd does for a diff: the same mount with ``ro``, while the container runs."""
    lower = f"lowerdir={ROOT}/l/SFRFQG,{CONTAINER}"
    live = mount(run, lower)
    (live / "new").write_text("new")
    (live / "base").unlink()
    (run.root / "mnt").mkdir()
    os.rmdir(run.root / ROOT / "4ee2c97e/work")  # with ro it need not even be there
    view = mount(run, lower + ",ro", "mnt")
    assert flags(view) & os.ST_RDONLY
    assert names(view) == names(live) == ["both", "new"]
    (live / "newer").write_text("newer")
    umount(run, view)
    assert (live / "newer").read_text() == "newer"


def test_a_read_only_mount_writes_nothing(run: Commands) -> None:
    upper = run.root / ROOT / "4ee2c97e/diff"
    view = mount(run, f"lowerdir={ROOT}/l/SFRFQG,{CONTAINER},ro")
    assert names(view) == ["base", "both"]
    umount(run, view)
    assert names(upper) == []


def test_an_upper_may_be_mounted_twice(run: Commands) -> None:
    (run.root / "mnt").mkdir()
    options = f"lowerdir={ROOT}/l/SFRFQG,{CONTAINER}"
    first, second = mount(run, options), mount(run, options, "mnt")
    (first / "new").write_text("new")
    umount(run, first)
    assert (second / "both").read_text() == "of the base"


def test_paths_are_those_of_the_caller(run: Commands) -> None:
    home = run.root / ROOT
    merged = mount(
        run,
        "lowerdir=l/6JYCAA:./l/../l/SFRFQG,upperdir=4ee2c97e/diff,workdir=4ee2c97e/work",
        "4ee2c97e/merged",
        cwd=home,
    )
    assert names(merged) == ["base", "both"]
    # The links are made anew by the engine whenever it likes.
    (home / "l/SFRFQG").unlink()
    (merged / "base").write_text("changed")
    assert (home / "4ee2c97e/diff/base").read_text() == "changed"


def test_odd_names_of_layers(run: Commands) -> None:
    for name in ("with:colon", "with,comma", "up=per", "work:dir", "mnt"):
        (run.root / name).mkdir()
    (run.root / "with:colon" / "a").touch()
    (run.root / "with,comma" / "b").touch()
    merged = mount(run, r"lowerdir=with\:colon:with\,comma,upperdir=up=per,workdir=work:dir", "mnt")
    assert names(merged) == ["a", "b"]
    (merged / "c").touch()
    assert (run.root / "up=per" / "c").exists()
    umount(run, merged)
    merged = mount(run, r'lowerdir="with,comma:with\:colon"', "mnt")
    assert names(merged) == ["a", "b"]


def test_lowers_that_are_unmounted_right_away(run: Commands) -> None:
    """Mapped containers: the lowers are bind mounts that the engine takes away after the mount."""
    mapped = run.root / ROOT / "4ee2c97e/mapped/0/l/SFRFQG"
    mapped.mkdir(parents=True)
    subprocess.run(["mount", "--bind", run.root / ROOT / "058c7fb0/diff", mapped], check=True)
    try:
        merged = mount(run, f"lowerdir={mapped},{CONTAINER},,volatile")
    finally:
        subprocess.run(["umount", "-l", mapped], check=True)
    mapped.rmdir()
    assert (merged / "base").read_text() == "of the base"
    (merged / "base").chmod(0o600)
    assert (run.root / ROOT / "4ee2c97e/diff/base").read_text() == "of the base"


def test_a_lower_that_is_another_mount_of_ours(run: Commands) -> None:
    """podman run --mount type=image, and the same with rw=true."""
    image = mount(run, f"lowerdir={ROOT}/f0c43e9e/diff:{ROOT}/l/SFRFQG")
    for name in ("lower", "upper", "work", "merge", "merge-rw"):
        (run.root / name).mkdir()
    view = mount(run, f"lowerdir={image}:lower,private", "merge")
    assert (view / "both").read_text() == "of the second layer"
    umount(run, view)
    view = mount(run, f"lowerdir={image},upperdir=upper,workdir=work,private", "merge-rw")
    (view / "both").unlink()
    (view / "base").write_text("changed")
    assert names(view) == ["base"]
    assert names(image) == ["base", "both"]
    assert (run.root / "upper/base").read_text() == "changed"
    umount(run, view)
    umount(run, image)


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def test_an_upper_of_fuse_overlayfs(run: Commands) -> None:
    """Both styles of whiteouts, opaque directories marked three times, notes on what was copied."""
    base, upper = run.root / ROOT / "058c7fb0/diff", run.root / ROOT / "4ee2c97e/diff"
    for name in ("opaque", "rootless", "overlay", "userxattr", "kept"):
        (base / name).mkdir()
        (base / name / "old").touch()
        (upper / name).mkdir()
        (upper / name / "new").touch()
    whiteout(upper / "base")
    (upper / ".wh.both").touch(0)
    os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    (upper / "opaque/.wh..wh..opq").touch(0o700)
    whiteout(upper / "opaque/.wh..opq")
    os.setxattr(upper / "rootless", "user.fuseoverlayfs.opaque", b"y")
    os.setxattr(upper / "overlay", "trusted.overlay.opaque", b"y")
    os.setxattr(upper / "userxattr", "user.overlay.opaque", b"y")
    os.setxattr(upper / "kept/new", "user.fuseoverlayfs.origin", b"kept/old")
    os.setxattr(upper / "kept/new", "user.mine", b"1")
    merged = mount(run, f"lowerdir={ROOT}/l/SFRFQG,{CONTAINER}")
    for _ in range(2):
        assert names(merged) == ["kept", "opaque", "overlay", "rootless", "userxattr"]
        for name in ("opaque", "rootless", "overlay", "userxattr"):
            assert names(merged / name) == ["new"], name
            assert os.listxattr(merged / name) == []
        assert names(merged / "kept") == ["new", "old"]
        assert os.listxattr(merged / "kept/new") == ["user.mine"]
        with pytest.raises(FileNotFoundError):
            (merged / "base").stat()
        umount(run, merged)
        # The same marks in a lower, as when an upper becomes a layer.
        merged = mount(run, f"lowerdir={ROOT}/4ee2c97e/diff:{ROOT}/l/SFRFQG")
    umount(run, merged)
    merged = mount(run, f"lowerdir={ROOT}/l/SFRFQG,{CONTAINER}")
    for name in ("base", "both"):
        (merged / name).write_text("again")
    umount(run, merged)
    merged = mount(run, f"lowerdir={ROOT}/l/SFRFQG,{CONTAINER}")
    assert (merged / "base").read_text() == (merged / "both").read_text() == "again"


def test_a_name_and_its_whiteout_in_one_layer(run: Commands) -> None:
    """What is really there wins; the whiteout hides what is below."""
    second = run.root / ROOT / "f0c43e9e/diff"
    (second / ".wh.both").touch(0)
    merged = mount(run, f"lowerdir={ROOT}/l/6JYCAA:{ROOT}/l/SFRFQG")
    assert (merged / "both").read_text() == "of the second layer"


def test_what_is_unknown_is_ignored_with_a_warning(run: Commands) -> None:
    words = 'context="system_u:object_r:container_file_t:s0:c1,c2",frobnicate=1,frobnicate=2'
    done = run(FUSE_AUFS, "-o", f"lowerdir={ROOT}/l/SFRFQG,{CONTAINER},{words}", MERGED)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "fuse-aufs: warning: option 'context' has no effect: ignored",
        "fuse-aufs: warning: unknown option 'frobnicate': ignored",
    ]
    assert names(run.root / MERGED) == ["base", "both"]


def test_five_hundred_layers(run: Commands) -> None:
    layers = run.root / "layers"
    for number in range(500):
        (layers / str(number) / "d").mkdir(parents=True)
        (layers / str(number) / "d" / f"f{number:03}").write_text(str(number))
        (layers / str(number) / "d" / "all").write_text(str(number))
    (run.root / "mnt").mkdir()
    listed = ":".join(str(number) for number in range(500))
    merged = mount(
        run, f"lowerdir={listed},upperdir=../u,workdir=../w", "../mnt", cwd=with_upper(layers)
    )
    assert names(merged / "d") == ["all", *(f"f{number:03}" for number in range(500))]
    assert (merged / "d/all").read_text() == "0"
    (merged / "d/f499").write_text("changed")
    assert (run.root / "u/d/f499").read_text() == "changed"


def with_upper(layers: Path) -> Path:
    """Make upper and work directory beside the layers."""
    for name in ("u", "w"):
        (layers.parent / name).mkdir()
    return layers


def test_more_layers_than_descriptors_of_the_shell(run: Commands) -> None:
    for number in range(100):
        (run.root / str(number)).mkdir()
    (run.root / "mnt").mkdir()
    listed = ":".join(str(number) for number in range(100))
    limited = ("sh", "-c", 'ulimit -S -n 50; exec "$0" "$@"')
    done = run(FUSE_AUFS, "-o", f"lowerdir={listed}", "mnt", prefix=limited)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(run: Commands, flag: str) -> None:
    done = run(FUSE_AUFS, flag)
    assert done.returncode == 0
    assert done.stdout.startswith("fuse-aufs ")
    assert done.stderr == ""
