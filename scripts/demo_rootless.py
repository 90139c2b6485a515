"""Becoming an ordinary user for the demo, and what that user does to be able to mount.

An ordinary user makes a user namespace, in which the user's own id appears as 0 (root), and a mount
namespace that belongs to it. In there mount(2) works for FUSE, and chroot(2) works; what stays
impossible is what would concern others: making devices, giving files to ids that the user does not
own.

Started by a user, one step does it. Started by root there is no user yet, so root first sets the
stage: an id that nobody has, and a private mount namespace in which that id can read this checkout
and open /dev/fuse. The host keeps its permissions.
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
from collections.abc import Callable, Sequence
from typing import TypedDict

from scripts.reachable import ImpossibleError, make_reachable
from scripts.reachable import run as run_command

_PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_FIRST_ID = 61_184  # Debian leaves 61184 to 65519 to ids that are made up while running


def run(stage: str | None, demo: Callable[[], int]) -> int:
    """Go to the next stage; in the last one run the demo.

    Args:
        stage: None at first, else the argument of ``--stage``: "inside", or what root has made
            for the user.
        demo: what to run as root of the user namespace.

    Raises:
        ImpossibleError.
    """
    if stage == "inside":
        return demo()
    if stage is not None:
        return _in_view(stage)
    if os.geteuid() == 0:
        return _with_user()
    return _enter(os.environ.copy())


def _enter(environment: dict[str, str], user: int | None = None) -> int:
    """Run the last stage in namespaces of the user's own.

    Args:
        environment: of the demo.
        user: id to become before, None when it is the process's own.
    """
    print(f"An ordinary user (id {os.geteuid() if user is None else user}) makes namespaces:")
    # All ids of /etc/subuid as well, when the user has some and newuidmap is there.
    more = ["--map-auto"] if user is None and _has_subordinate_ids() else []
    command = ["unshare", "--user", "--map-root-user", *more, "--mount"]
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
    return _wait([*command, *_again("inside")], environment, user)


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


def _with_user() -> int:
    """Make up a user, and a directory of that user's, for as long as the demo runs."""
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    user = next(number for number in range(_FIRST_ID, 65_520) if number not in taken)
    place = tempfile.mkdtemp(prefix="fuse-aufs-user-", dir=os.environ.get("TMPDIR", "/var/tmp"))
    try:
        os.chown(place, user, user)
        return _wait(["unshare", "--mount", "--propagation=private", *_again(place)])
    finally:
        shutil.rmtree(place)


def _in_view(place: str) -> int:
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
    return _enter(environment, user)


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


def _again(stage: str) -> list[str]:
    return [sys.executable, "-m", "scripts.demo", "--rootless", f"--stage={stage}"]


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
    # A handler, other than SIG_IGN, is not inherited.
    signal.signal(signal.SIGINT, lambda *_: None)
    child = subprocess.Popen(
        command,
        cwd=_PROJECT,
        env=environment,
        **_identity(user),
    )
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    status = child.wait()
    return status if status >= 0 else 128 - status
