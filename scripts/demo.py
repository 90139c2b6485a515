"""The main job, told while it is done: a container root from image layers.

Layers go in as tars, a container root comes out as a mount, a program runs inside it, and what it
changed comes out again as a tar that makes the same root elsewhere. `scripts/demo` starts this.

Lines that begin with ``>>>`` are calls of the `driver` package, made as printed; lines that begin
with ``$`` are commands. Everything happens in one temporary directory, which is removed at the end,
also when a step fails or Ctrl-C comes.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from types import FrameType
from typing import NoReturn

import driver
from scripts import demo_debian, demo_image, demo_rootless
from scripts.debian_sources import DebianError
from scripts.demo_compare import differences, facts_of
from scripts.demo_image import LAYERS, layer_tar, printable
from scripts.demo_telling import call, heading, result, say, shell
from scripts.reachable import ImpossibleError

_BIN = os.path.dirname(sys.executable)  # where aufsctl and fuse-aufs are

# What is done inside the container. Each line changes something that a layer below holds.
_COMMANDS = """\
cat /etc/motd
hello
echo "changed in the container" >> /etc/motd
rm /etc/hosts
mv /srv/data /srv/renamed
ln /srv/first /srv/third
mkdir /srv/new && echo fresh > /srv/new/file
chmod 600 /srv/labelled
ls -l /srv
"""

_WHERE = [
    ("/bin/busybox", "never touched: read from layer 1"),
    ("/usr/bin/hello", "never touched: read from layer 2"),
    ("/srv/first", "linked to: copied up, and still one file with its other names"),
    ("/etc/motd", "written to: copied up, layers 1 and 2 hold older versions"),
    ("/srv/new/file", "made in the container"),
    ("/etc/hosts", "deleted in the container"),
]


def main() -> int:
    """Run the demo, as root or as an ordinary user."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rootless", action="store_true", help="as an ordinary user, in a user namespace"
    )
    parser.add_argument(
        "--debian",
        action="store_true",
        help="a whole Debian in place of the little image, and apt-get in it; about 1 GB,"
        " with --rootless for users who have subordinate ids",
    )
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # how demo_rootless calls us again
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    try:
        debian = arguments.debian
        if arguments.rootless:
            if debian and os.geteuid() == 0:
                demo_debian.install_tools()
            return demo_rootless.run(
                arguments.stage,
                lambda: demo(rootless=True, debian=debian),
                *(["--debian"] if debian else []),
                many_ids=debian,
            )
        if os.geteuid() != 0:
            print("demo: mounting takes root; as an ordinary user: scripts/demo --rootless")
            return 1
        return demo(rootless=False, debian=debian)
    except (ImpossibleError, DebianError, driver.DriverError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything is cleaned up", file=sys.stderr)
        return 128 + signal.SIGINT


def demo(*, rootless: bool, debian: bool = False) -> int:
    """Do all steps in a temporary directory and remove it.

    Args:
        rootless: it is an ordinary user's: some things cannot be done.
        debian: the steps of `demo_debian`.
    """
    logging.basicConfig(format="    (%(message)s)", level=logging.WARNING)
    began = time.monotonic()
    # /tmp may be a tmpfs, which keeps user xattrs only since Linux 6.6.
    place = tempfile.mkdtemp(prefix="fuse-aufs-demo-", dir=os.environ.get("TMPDIR", "/var/tmp"))
    # Where a mount tells aufsctl about itself; usually a folder of /run.
    os.environ["FUSE_AUFS_STATE"] = os.path.join(place, "state")
    store = None
    try:
        store = driver.init(os.path.join(place, "layers"), _options(one_id=rootless and not debian))
        if debian:
            good = demo_debian.steps(store, place)
        else:
            good = _steps(store, place, rootless=rootless)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nor is cleaning up interrupted
        if store is not None:
            store.cleanup()
        shutil.rmtree(place)
    say(f"\nDone in {time.monotonic() - began:.1f} s; {place} is gone, nothing is mounted.")
    return 0 if good else 1


def _steps(store: driver.Driver, place: str, *, rootless: bool) -> bool:
    _build_and_apply(store, rootless=rootless)
    root = _mount(store)
    _run_inside(root)
    _where(store, root)
    changes = _changes(store)
    equal = _replay(store, changes, root)
    _unmount(store, place)
    return equal


def _options(*, one_id: bool) -> list[str]:
    # An ordinary user with one user id can give files to no other. The driver takes that for
    # an error unless told that it is expected; it then reports each owner that it could not set.
    return ["aufs.ignore_chown_errors=true"] if one_id else []


def _stop(signum: int, _frame: FrameType | None) -> NoReturn:
    """End by an exception, so that everything is cleaned up."""
    raise SystemExit(128 + signum)


# --- the steps -----------------------------------------------------------------------------------


def _build_and_apply(store: driver.Driver, *, rootless: bool) -> None:
    heading(
        "Three layers, each a tar, unpacked into a directory each",
        """\
        The driver keeps every layer in a directory of its own, a "branch", and remembers what
        lies below it. Whiteouts and opaque marks stay files in there: they act in the union.""",
    )
    parent = ""
    missing: list[str] = []
    for layer, entries in LAYERS.items():
        tar = layer_tar(entries())
        call(f"driver.create({layer!r}, parent={parent!r})")
        store.create(layer, parent)
        size = store.apply_diff(layer, parent, io.BytesIO(tar))
        call(f"driver.apply_diff({layer!r}, {parent!r}, {layer}_tar)", f"{size} bytes")
        for entry in entries():
            if entry.note:
                result(f"{printable(entry.name):30} {entry.note}")
        missing += demo_image.not_as_written(layer, os.path.join(store.root, "diff", layer))
        parent = layer
    if missing:
        say("What could not be set here" + (", as an ordinary user:" if rootless else ":"))
        for line in missing:
            result(line)


def _mount(store: driver.Driver) -> str:
    heading(
        "A container on top of them",
        """\
        One more branch, empty and writable, and all four seen as one directory. Nothing is
        copied: a second container would share the three layers.""",
    )
    call("driver.create_read_write('container', parent='application')")
    store.create_read_write("container", "application")
    root = store.get("container")
    call("driver.get('container')", root)
    say(f"By hand that would be, in {store.root}:")
    branches = [f"diff/{layer}=ro+wh" for layer in reversed(LAYERS)]
    shell(f"fuse-aufs mnt/container -o profile=driver,br:diff/container=rw:{':'.join(branches)}")
    say("What the layers make together: etc/issue is gone, of srv/data only the newest is left.")
    for path in sorted(facts_of(root)):
        if path.startswith(("etc", "srv")):
            result(printable(path))
    return root


def _run_inside(root: str) -> None:
    heading(
        "A program runs inside it",
        """\
        Its root directory is the mount (chroot), its mounts are its own (unshare). It believes
        to have a whole system for itself.""",
    )
    shell("unshare --mount chroot mnt/container /bin/sh")
    enter = ["unshare", "--mount", "--propagation=private", "chroot", root, "/bin/sh", "-c"]
    for line in _COMMANDS.splitlines():
        print(f"       # {line}", flush=True)
        done = subprocess.run(
            [*enter, line],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        for text in (done.stdout + done.stderr).decode(errors="backslashreplace").splitlines():
            result(text)
        if done.returncode:
            raise SystemExit(f"demo: that command failed with status {done.returncode}")


def _where(store: driver.Driver, root: str) -> None:
    heading(
        "Which layer does a path come from?",
        """\
        The topmost branch that has the name answers, unless a whiteout above says that there is
        none. What is changed is first copied to the writable branch: "copy-up".""",
    )
    for path, why in _WHERE:
        result(f"{path:18} {why}")
    command = ["aufsctl", "where", root, *(path for path, _ in _WHERE)]
    shell(" ".join(command).replace(root, "mnt/container"))
    done = subprocess.run(
        [os.path.join(_BIN, command[0]), *command[1:]], capture_output=True, check=False
    )
    text = (done.stdout + done.stderr).decode(errors="backslashreplace")
    for line in text.replace(f"{store.root}/", "").splitlines():
        result(line)
    if done.returncode > 1:  # 1: one of them does not exist, which is so
        raise SystemExit(f"demo: aufsctl failed with status {done.returncode}")


def _changes(store: driver.Driver) -> bytes:
    heading(
        "What did the container change?",
        """\
        All of it is in its branch, so nothing needs to be compared. The same as a tar is a layer
        again: committing a container is no more than this.""",
    )
    call("driver.changes('container', 'application')")
    for change in store.changes("container", "application"):
        result(printable(str(change)))
    call("driver.diff('container', 'application')")
    with store.diff("container", "application") as stream:
        tar = stream.read()
    with tarfile.open(fileobj=io.BytesIO(tar)) as listing:
        for member in listing:
            link = f" -> {member.linkname}" if member.linkname else ""
            name = printable(member.name + link)
            result(f"{member.mode:04o} {member.uid}:{member.gid} {member.size:>8} {name}")
    return tar


def _replay(store: driver.Driver, changes: bytes, root: str) -> bool:
    heading(
        "The same changes on a sibling make the same root",
        """\
        A second layer on the same parent gets the diff. Then both roots are compared: names,
        kinds, modes, owners, times, contents, xattrs, hard links.""",
    )
    call("driver.create('sibling', parent='application')")
    store.create("sibling", "application")
    size = store.apply_diff("sibling", "application", io.BytesIO(changes))
    call("driver.apply_diff('sibling', 'application', diff)", f"{size} bytes")
    other = store.get("sibling")
    call("driver.get('sibling')", other)
    lines = differences(root, other)
    for line in lines:
        result(printable(line))
    count = len(facts_of(root))
    say(f"{len(lines)} differences." if lines else f"Both roots are equal: {count} paths each.")
    return not lines


def _unmount(store: driver.Driver, place: str) -> None:
    heading("Unmounted, and removed", "A layer goes when nobody uses it any more.")
    for layer in ("sibling", "container", *reversed(LAYERS)):
        if layer in ("sibling", "container"):
            call(f"driver.put({layer!r})")
            store.put(layer)
        call(f"driver.remove({layer!r})")
        store.remove(layer)
    shell("grep fuse.aufs /proc/self/mounts")
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as table:
        left = [line for line in table if place in line]
    result("".join(left) or "(nothing)")


if __name__ == "__main__":
    sys.exit(main())
