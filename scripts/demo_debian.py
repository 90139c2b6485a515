"""A whole Debian as a container root: made by debootstrap, changed by apt-get, checked by dpkg.

Where the little image of the demo shows every trick once, this shows the daily work of a union
filesystem: a distribution of some thousand files as the base layer, a package manager that renames,
links, syncs and locks on top of it, and a checksum of everything in the end. dpkg is a hard judge:
it stops at the first call that does not do as on a disk.

Debian's mirror, and everything else about the way to it, is what the host's own apt uses; see
`scripts.demo_debian_base`. In a user namespace it takes as many ids as a distribution uses.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from collections import Counter
from pathlib import Path

import driver
from scripts import demo_debian_base as base
from scripts.debian_sources import DebianError
from scripts.demo_image import printable
from scripts.demo_telling import call, heading, result, say, shell

PACKAGE = "hello"  # small, and it can be asked whether it works
_LISTED = 12  # changes that are shown; there are about a hundred
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "HOME": "/root",
}

_KINDS = {
    stat.S_IFREG: "files",
    stat.S_IFDIR: "directories",
    stat.S_IFLNK: "symlinks",
    stat.S_IFCHR: "devices",
}

# What a container has of the kernel's: its own processes in /proc, devices, its own terminals. exec
# makes the command process 1 of the namespace, so that nothing of it outlives it.
_ENTER = f"""\
set -e
{base.DEVICES}
mkdir "$1/dev/pts"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$1/dev/pts"
ln -s pts/ptmx "$1/dev/ptmx"
ln -s /proc/self/fd "$1/dev/fd"
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=755 tmpfs "$1/run"
exec chroot "$1" /bin/sh -c "$2"
"""


def install_tools() -> None:
    """Install what makes a Debian; only root can.

    Raises:
        DebianError: it cannot be installed.
    """
    base.need_tools()


def steps(store: driver.Driver, place: str) -> bool:
    """Do all steps with an empty store of layers.

    Args:
        store: where the layers go; the caller cleans it up.
        place: a temporary directory on a filesystem with room for a Debian, about 1 GB.

    Returns:
        Whether dpkg found everything in order.

    Raises:
        DebianError: there is no base to be had.
        driver.DriverError: see there.
    """
    if lack := _missing_room(place):
        raise DebianError(lack)
    suite = base.host_suite()
    _apply(store, suite, _build(suite, Path(place)))
    root = _mount(store)
    good = _work(root)
    _changes(store)
    _unmount(store, place)
    return good


def _build(suite: base.Suite, place: Path) -> Path:
    heading(
        "A Debian, made by debootstrap",
        """\
        The smallest one that has apt ("minbase"), of the same release and from the same mirror
        as this host. It is made once; the tar of it is kept for the next time, if this user may
        write to the checkout. Device nodes are not in it: a container gets the host's.""",
    )
    tar = base.kept_tar(suite, place)
    if tar.exists():
        say(f"It is there: {tar.name}, {_megabytes(tar.stat().st_size)}")
        return tar
    began = time.monotonic()
    shell(f"debootstrap --variant=minbase {suite.name} base MIRROR")
    base.build(suite, place, tar, progress=result)
    shell("tar --numeric-owner --xattrs --acls -C base -c .")
    result(f"{_megabytes(tar.stat().st_size)} in {time.monotonic() - began:.0f} s")
    return tar


def _apply(store: driver.Driver, suite: base.Suite, tar: Path) -> None:
    heading(
        "Two layers: Debian, and how to reach its mirror from here",
        """\
        The second one holds what this host's apt is told: sources, its own settings, the
        resolver. So the base stays what everybody gets, and says nothing about this host.""",
    )
    call("driver.create('debian')")
    store.create("debian")
    began = time.monotonic()
    with tar.open("rb") as stream:
        size = store.apply_diff("debian", "", stream)
    seconds = time.monotonic() - began
    call("driver.apply_diff('debian', '', tar)", f"{_megabytes(size)} in {seconds:.1f} s")
    _kinds(os.path.join(store.root, "diff", "debian"))
    call("driver.create('site', parent='debian')")
    store.create("site", "debian")
    size = store.apply_diff("site", "debian", base.site_layer(suite))
    call("driver.apply_diff('site', 'debian', site_tar)", f"{size} bytes")


def _kinds(branch: str) -> None:
    """Say what a Debian consists of."""
    kinds: Counter[str] = Counter()
    for folder, directories, files in os.walk(branch):
        for name in directories + files:
            status = os.lstat(os.path.join(folder, name))
            kinds[_KINDS.get(stat.S_IFMT(status.st_mode), "others")] += 1
            kinds["setuid or setgid"] += bool(status.st_mode & 0o6000)
            kinds["not root's"] += bool(status.st_uid or status.st_gid)
    result(", ".join(f"{count} {kind}" for kind, count in kinds.most_common() if count))


def _mount(store: driver.Driver) -> str:
    heading("A container on top of it", "Empty, writable, and there at once: nothing is copied.")
    call("driver.create_read_write('container', parent='site')")
    store.create_read_write("container", "site")
    began = time.monotonic()
    root = store.get("container")
    call("driver.get('container')", f"{root}, {(time.monotonic() - began) * 1000:.0f} ms")
    return root


def _work(root: str) -> bool:
    heading(
        f"apt-get installs a package in it: {PACKAGE}",
        """\
        In mount and process namespaces of its own. In the end dpkg compares every file of the
        whole system with the checksum that its package came with: no line is a good one.""",
    )
    shell("unshare --mount --pid --fork chroot mnt/container /bin/sh")
    good = True
    for line in (
        "cat /etc/debian_version",
        "apt-get update -qq",
        f"apt-get install --yes -qq --no-install-recommends {PACKAGE}",
        PACKAGE,
        "dpkg --verify",
        "dpkg --audit",
    ):
        print(f"       # {line}", flush=True)
        began = time.monotonic()
        done = _inside(root, line)
        text = (done.stdout + done.stderr).decode(errors="backslashreplace")
        for output in text.splitlines():
            if output.strip() and not output.startswith("(Reading database"):
                result(output)
        result(f"[{time.monotonic() - began:.1f} s]")
        # These two also say by their output what they found.
        silent = line.startswith("dpkg --")
        if done.returncode:
            say(f"That command failed with status {done.returncode}.")
        good = good and done.returncode == 0 and not (silent and text.strip())
    say("dpkg has no complaint." if good else "That is not as it should be.")
    return good


def _inside(root: str, line: str) -> subprocess.CompletedProcess[bytes]:
    enter = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]
    return subprocess.run(
        [*enter, "/bin/sh", "-c", _ENTER, "sh", root, line],
        env=_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def _changes(store: driver.Driver) -> None:
    heading(
        "What did that change?",
        "The lists of packages that apt-get update fetched, the package, dpkg's records of it.",
    )
    began = time.monotonic()
    changes = store.changes("container", "site")
    call("driver.changes('container', 'site')", f"{len(changes)} in {_since(began)}")
    # Folders on the way to a change are changes as well; the package's own files say more.
    telling = [
        change
        for change in changes
        if PACKAGE in change.path or change.path == "/var/lib/dpkg/status"
    ]
    for change in telling[:_LISTED]:
        result(printable(str(change)))
    if len(changes) > _LISTED:
        result(f"... and {len(changes) - len(telling[:_LISTED])} more")
    began = time.monotonic()
    with store.diff("container", "site") as stream:
        size = 0
        while chunk := stream.read(1 << 20):
            size += len(chunk)
    call("driver.diff('container', 'site')", f"a tar of {_megabytes(size)} in {_since(began)}")
    began = time.monotonic()
    size = store.diff_size("container", "site")
    call("driver.diff_size('container', 'site')", f"{_megabytes(size)} in {_since(began)}")


def _unmount(store: driver.Driver, place: str) -> None:
    heading("Unmounted, and removed", "Debian's own layer was never written to.")
    call("driver.put('container')")
    store.put("container")
    for layer in ("container", "site", "debian"):
        call(f"driver.remove({layer!r})")
        store.remove(layer)
    shell("grep fuse.aufs /proc/self/mounts")
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as table:
        result("".join(line for line in table if place in line) or "(nothing)")


def _missing_room(place: str) -> str:
    """Return why a Debian has no room in ``place``, "" when it has."""
    free = shutil.disk_usage(place).free
    return "" if free > 1 << 30 else f"{place} has {_megabytes(free)} left; about 1 GB is needed"


def _megabytes(size: int) -> str:
    return f"{size / 1_000_000:.1f} MB"


def _since(began: float) -> str:
    return f"{(time.monotonic() - began) * 1000:.0f} ms"
