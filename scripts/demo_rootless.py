"""Becoming an ordinary user for the demo, and what that user does to be able to mount.

An ordinary user makes a user namespace, in which the user's own id appears as 0 (root), and a mount
namespace that belongs to it. In there mount(2) works for FUSE, and chroot(2) works; what stays
impossible is what would concern others: making devices, giving files to ids that the user does not
own.

Started by a user, one step does it (stage "user"). Started by root there is no user yet, so root
first sets the stage ("root"): an id that nobody has, and a private mount namespace in which that id
can read this checkout and open /dev/fuse. The host keeps its permissions.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_FIRST_ID = 61_184  # Debian leaves 61184 to 65519 to ids that are made up while running


class ImpossibleError(Exception):
    """Something that the host does not allow; ``str()`` is one line."""


def run(stage: str | None, demo: Callable[[], int]) -> int:
    """Go to the next stage; in the last one run the demo.

    Args:
        stage: None at first, else the argument of ``--stage``.
        demo: what to run as root of the user namespace.

    Raises:
        ImpossibleError.
    """
    if stage == "inside":
        return demo()
    if stage == "root":
        return _as_root()
    if os.geteuid() == 0:
        return _wait(["unshare", "--mount", "--propagation=private", *_again("root")])
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


def _as_root() -> int:
    user = _free_id()
    place = tempfile.mkdtemp(prefix="fuse-aufs-user-", dir=os.environ.get("TMPDIR", "/var/tmp"))
    try:
        os.chown(place, user, user)
        with _device(place):
            for path in (_PROJECT, sys.base_prefix):
                _make_reachable(path, user)
            environment = {
                "PATH": os.environ.get("PATH", os.defpath),
                "HOME": place,
                "TMPDIR": place,
                "PYTHONDONTWRITEBYTECODE": "1",
            }
            return _enter(environment, user)
    finally:
        shutil.rmtree(place)


def _free_id() -> int:
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    return next(number for number in range(_FIRST_ID, 65_520) if number not in taken)


@contextmanager
def _device(place: str) -> Iterator[None]:
    """Have a /dev/fuse that everybody may open, as hosts with udev have, in this namespace only."""
    status = os.stat("/dev/fuse")
    if stat.S_IMODE(status.st_mode) & 0o006 == 0o006:
        yield
        return
    folder = tempfile.mkdtemp(dir=place)
    _command("mount", "-t", "tmpfs", "-o", "mode=755", "fuse-aufs-demo", folder)
    node = os.path.join(folder, "fuse")
    try:
        os.mknod(node, stat.S_IFCHR, status.st_rdev)
        os.chmod(node, 0o666)
        _command("mount", "--bind", node, "/dev/fuse")
        yield
    finally:
        _command("umount", "--lazy", folder)


def _make_reachable(path: str, user: int) -> None:
    """Let ``user`` reach ``path`` in this namespace, if a folder above it is closed (as /root is).

    The closed folder is covered by an empty one, in which only ``path`` is mounted again.
    """
    closed = path
    for folder in _parents(path):
        if not _can_search(folder, user):
            closed = folder
            break
    else:
        return
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        _command("mount", "-t", "tmpfs", "-o", "mode=755", "fuse-aufs-demo", closed)
        os.makedirs(path, exist_ok=True)
        # By descriptor: the name now means the empty folder.
        _command("mount", "--bind", f"/proc/self/fd/{descriptor}", path, keep=(descriptor,))
    finally:
        os.close(descriptor)


def _parents(path: str) -> Iterator[str]:
    parts = path.strip("/").split("/")
    for length in range(1, len(parts) + 1):
        yield "/" + "/".join(parts[:length])


def _can_search(folder: str, user: int) -> bool:
    status = os.stat(folder)
    return bool(status.st_mode & (stat.S_IXUSR if status.st_uid == user else stat.S_IXOTH))


# --- running -------------------------------------------------------------------------------------


def _again(stage: str) -> list[str]:
    return [sys.executable, "-m", "scripts.demo", "--rootless", f"--stage={stage}"]


def _command(*command: str, keep: Sequence[int] = ()) -> None:
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, pass_fds=keep)
    if done.returncode:
        raise ImpossibleError(f"cannot prepare a user's view: {done.stderr.strip()}")


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
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    return child.wait()
