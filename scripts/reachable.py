"""Let other users reach some directories, though a folder above is closed to them (as /root is).

    reachable.py PATH...

For this mount namespace only, which has to be a private one: the closed folder is covered by an
empty one, in which the paths are mounted again. The folder itself keeps its permissions.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Sequence


class ImpossibleError(Exception):
    """Something that the host does not allow; ``str()`` is one line."""


def make_reachable(paths: Sequence[str], user: int | None = None) -> None:
    """Do it for the user with this id, or for everybody.

    Raises:
        ImpossibleError.
    """
    for path in paths:
        # Python lists the directories that it imports from.
        if not _may_enter(path, user) or not _may_enter(path, user, listing=True):
            raise ImpossibleError(f"other users may not enter {path}: chmod o+rx it")
    closed = {path: _closed_above(path, user) for path in paths}
    held = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in paths if closed[path]}
    try:
        for folder in {folder for folder in closed.values() if folder}:
            run("mount", "-t", "tmpfs", "-o", "mode=755", "none", folder)
        for path, descriptor in held.items():
            os.makedirs(path, exist_ok=True)
            # By descriptor, for the name now means the empty folder; mount(8) must not look it up.
            what = f"/proc/self/fd/{descriptor}"
            run("mount", "--no-canonicalize", "--bind", what, path, keep=descriptor)
    finally:
        for descriptor in held.values():
            os.close(descriptor)


def run(*command: str, keep: int | None = None) -> None:
    """Run a command, which gets the descriptor ``keep`` as well.

    Raises:
        ImpossibleError: with what it said.
    """
    kept = () if keep is None else (keep,)
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, pass_fds=kept)
    if done.returncode:
        raise ImpossibleError(f"cannot prepare a user's view: {done.stderr.strip()}")


def _closed_above(path: str, user: int | None) -> str | None:
    """Return the topmost folder above ``path`` that the user may not pass."""
    parts = path.strip("/").split("/")
    above = ("/" + "/".join(parts[:length]) for length in range(1, len(parts)))
    return next((folder for folder in above if not _may_enter(folder, user)), None)


def _may_enter(folder: str, user: int | None, *, listing: bool = False) -> bool:
    status = os.stat(folder)
    right = stat.S_IROTH if listing else stat.S_IXOTH
    return bool(status.st_mode & (right << 6 if status.st_uid == user else right))


if __name__ == "__main__":
    try:
        make_reachable([os.path.realpath(path) for path in sys.argv[1:]])
    except ImpossibleError as error:
        sys.exit(f"reachable: {error}")
