"""Becoming an ordinary user for the demo, and what that user does to be able to mount.

An ordinary user makes a user namespace, in which the user's own id appears as 0 (root), and a mount
namespace that belongs to it. In there mount(2) works for FUSE, and chroot(2) works; what stays
impossible is what would concern others: making devices, giving files to ids that the user does not
own.

Started by a user, one step does it. Started by root there is no user yet, so root first sets the
stage: an id that nobody has, and a private mount namespace in which that id can read this checkout
and open /dev/fuse. The host keeps its permissions.

A whole distribution has files of more owners than one. For that a user needs subordinate ids
(subuid(5)), which newuidmap(1) maps; for the made-up user root does what newuidmap does.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TypedDict

from scripts.reachable import ImpossibleError, make_reachable
from scripts.reachable import run as run_command

_PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_FIRST_ID = 61_184  # Debian leaves 61184 to 65519 to ids that are made up while running
# Of the range that Debian leaves to containers' ids, far above what adduser gives to users.
_FIRST_SUBORDINATE_ID = 1_800_000_000
_IDS = 65_536  # what a distribution uses: 0 to 65535
_PATIENCE = 10.0  # seconds that unshare(1) may take for its first step


def run(stage: str | None, demo: Callable[[], int], *flags: str, many_ids: bool = False) -> int:
    """Go to the next stage; in the last one run the demo.

    Args:
        stage: None at first, else the argument of ``--stage``: "inside", or what root has made
            for the user.
        demo: what to run as root of the user namespace.
        flags: arguments of the demo that every stage gets.
        many_ids: the namespace needs the ids 0 to 65535, not just 0.

    Raises:
        ImpossibleError.
    """
    if stage == "inside":
        return demo()
    again = [sys.executable, "-m", "scripts.demo", "--rootless", *flags]
    if stage is not None:
        return _in_view(stage, again, many_ids=many_ids)
    if os.geteuid() == 0:
        return _with_user(again)
    return _enter(again, os.environ.copy(), many_ids=many_ids)


def _enter(
    again: list[str], environment: dict[str, str], user: int | None = None, *, many_ids: bool
) -> int:
    """Run the last stage in namespaces of the user's own.

    Args:
        again: the command of the demo.
        environment: of the demo.
        user: id to become before, None when it is the process's own.
        many_ids: see `run`.
    """
    print(f"An ordinary user (id {os.geteuid() if user is None else user}) makes namespaces:")
    ids = ["--map-root-user"]
    if user is not None and many_ids:
        ids = []  # they are given to it from outside
    elif user is None and _has_subordinate_ids():
        ids.append("--map-auto")
    elif many_ids:
        raise ImpossibleError(
            "a Debian has files of many owners: install the package uidmap, and give this user"
            " subordinate ids in /etc/subuid and /etc/subgid (usermod --add-subuids)"
        )
    command = ["unshare", "--user", *ids, "--mount"]
    print(f"   $ {' '.join(command)}", flush=True)
    try:
        subprocess.run(
            [*command, "true"], check=True, capture_output=True, text=True, **_identity(user)
        )
    except subprocess.CalledProcessError as error:
        raise ImpossibleError(
            f"users may not make namespaces here ({error.stderr.strip()}): see the sysctls"
            " user.max_user_namespaces, kernel.unprivileged_userns_clone and"
            " kernel.apparmor_restrict_unprivileged_userns; a chroot forbids it, too"
        ) from error
    inside = [*again, "--stage=inside"]
    if user is not None and many_ids:
        return _wait_with_ids(inside, environment, user)
    return _wait([*command, *inside], environment, user)


def _has_subordinate_ids() -> bool:
    if shutil.which("newuidmap") is None:
        return False
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
        with open("/etc/subuid", encoding="utf-8") as users:
            return any(line.partition(":")[0] in (name, str(os.geteuid())) for line in users)
    except (KeyError, OSError):
        return False


# --- as root: a stage for a user that does not exist ---------------------------------------------


def _with_user(again: list[str]) -> int:
    """Make up a user, and a directory of that user's, for as long as the demo runs."""
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    user = next(number for number in range(_FIRST_ID, 65_520) if number not in taken)
    place = tempfile.mkdtemp(prefix="fuse-aufs-user-", dir=os.environ.get("TMPDIR", "/var/tmp"))
    try:
        os.chown(place, user, user)
        alone = ["unshare", "--mount", "--propagation=private"]
        return _wait([*alone, *again, f"--stage={place}"])
    finally:
        shutil.rmtree(place)


def _in_view(place: str, again: list[str], *, many_ids: bool) -> int:
    """Become the user that owns ``place``, in this mount namespace: its mounts end with it."""
    user = os.stat(place).st_uid
    _open_device(place)
    make_reachable([_PROJECT, sys.base_prefix, place], user)
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": place,
        "TMPDIR": place,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return _enter(again, environment, user, many_ids=many_ids)


def _open_device(place: str) -> None:
    """Have a /dev/fuse that everybody may open, as hosts with udev have."""
    try:
        status = os.stat("/dev/fuse")
    except FileNotFoundError as error:
        raise ImpossibleError(
            "there is no /dev/fuse: load the module (modprobe fuse), or give it to the container"
        ) from error
    if status.st_mode & 0o006 == 0o006:
        return
    folder = tempfile.mkdtemp(dir=place)
    run_command("mount", "-t", "tmpfs", "-o", "mode=755", "fuse-aufs-demo", folder)
    node = os.path.join(folder, "fuse")
    os.mknod(node, stat.S_IFCHR, status.st_rdev)
    os.chmod(node, 0o666)
    run_command("mount", "--bind", node, "/dev/fuse")


# --- running -------------------------------------------------------------------------------------


class _Identity(TypedDict):
    """Arguments of subprocess that say who runs a command."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None


def _identity(user: int | None) -> _Identity:
    return {"user": user, "group": user, "extra_groups": None if user is None else []}


def _wait(
    command: Sequence[str], environment: dict[str, str] | None = None, user: int | None = None
) -> int:
    """Run a command to its end; SIGINT reaches it from the terminal, SIGTERM is passed on."""
    child = subprocess.Popen(command, cwd=_PROJECT, env=environment, **_identity(user))
    return _status_of(child)


def _wait_with_ids(command: Sequence[str], environment: dict[str, str], user: int) -> int:
    """Run a command like `_wait`, as root of namespaces with many ids that root maps from outside.

    Raises:
        ImpossibleError: root does not have so many ids itself.
    """
    ready, tell = os.pipe()
    # The first exec takes place before there is an id 0, so it loses all rights in the namespace.
    # The second one, after the line came, is that of its root and gets them.
    first = ["unshare", "--user", "sh", "-c", f'read -r _ <&{ready} && exec "$@"', "sh"]
    child = subprocess.Popen(
        [*first, "unshare", "--mount", *command],
        cwd=_PROJECT,
        env=environment,
        pass_fds=[ready],
        **_identity(user),
    )
    try:
        _map_ids(child.pid, user)
        os.write(tell, b"\n")
    except OSError as error:
        raise ImpossibleError(
            f"cannot map {_IDS} ids ({error.strerror}): inside a container root may have fewer"
        ) from error
    finally:
        os.close(ready)
        os.close(tell)  # without a line, the child ends
    return _status_of(child)


def _map_ids(process: int, user: int) -> None:
    """Make ``user`` the root of that process's user namespace, and give it ids for the others."""
    ours = os.readlink("/proc/self/ns/user")
    end = time.monotonic() + _PATIENCE
    while os.readlink(f"/proc/{process}/ns/user") == ours:
        if time.monotonic() > end:
            raise TimeoutError(0, "unshare(1) did not make a namespace")
        time.sleep(0.01)
    for kind in ("uid", "gid"):
        with open(f"/proc/{process}/{kind}_map", "w", encoding="ascii") as table:
            table.write(f"0 {user} 1\n1 {_FIRST_SUBORDINATE_ID} {_IDS - 1}\n")


def _status_of(child: subprocess.Popen[bytes]) -> int:
    # A handler, other than SIG_IGN, is not inherited.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    status = child.wait()
    return status if status >= 0 else 128 - status
