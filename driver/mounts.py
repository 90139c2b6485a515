"""One mounted layer: started, made sure of, stopped (driver.md 1.7).

A layer is mounted by the ``fuse-aufs`` command, which returns once the mount answers. Nothing but
its exit status and its one line of complaint is relied on. It is unmounted with umount(2), and then
its server is waited for: only when that process is gone is the branch certain to be final.

Nothing has to be flushed before. The mounts run without a write-back cache, so what a program has
written is in the branch already, and pseudo-links are valid on disk at any time.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import unionfs
from driver import mounttable
from driver.errors import MountError
from unionfs.servers import servers
from unionfs.union.options import OptionError, escape_value, parse_options

_log = logging.getLogger(__name__)

_ARGUMENT_BYTES = 100_000  # per ``-o``; the kernel takes 128 KiB in one argument
_TRIES = 5
_PAUSE = 0.1  # seconds between them
_FAREWELL = 10.0  # seconds a server may take to end after its mount is gone
_CONNECTIONS = "/sys/fs/fuse/connections"
_START_TIME = 19  # in /proc/PID/stat, counted from behind the command's name (field 22)
_ERRNO_NAME = re.compile(r"\((E[A-Z0-9]+)\)")


def mount(
    target: str, branches: Sequence[str], options: Sequence[str] = (), label: str = ""
) -> None:
    """Mount a union and return when it answers.

    Args:
        target: the mount point, an existing directory. The caller has made sure that nothing is
            mounted there, and that nobody else mounts anything meanwhile.
        branches: the writable branch, then the read-only ones, nearest first.
        options: more mount options, each one word.
        label: SELinux label of everything in the mount, or the empty string.

    Raises:
        MountError: with the command's own message. Nothing stays mounted then.
    """
    target = mounttable.canonical(target)
    command = [*_command(), "none", target]
    for text in _option_arguments(branches, [*options, *_label_option(label)]):
        command += ["-o", text]
    try:
        _run(command, target)
    except MountError as error:
        if not _clear_away(target) or error.errno != errno.EBUSY:
            raise
        # What was in the way is gone: a command whose driver was killed had gone on.
        try:
            _run(command, target)
        except MountError:
            _clear_away(target)
            raise


def _run(command: Sequence[str], target: str) -> None:
    """Run ``fuse-aufs``; a failure becomes a MountError."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            check=False,
        )
    except OSError as error:
        reason = f"cannot run fuse-aufs: {error.strerror}"
        raise _mount_error(target, reason, error.errno) from error
    message = done.stderr.decode("utf-8", "surrogateescape").strip()
    if done.returncode:
        reason = message or f"fuse-aufs ended with status {done.returncode}"
        raise _mount_error(target, reason, _errno_in(reason))
    if message:
        _log.warning("%s: %s", target, message)


def _clear_away(target: str) -> bool:
    """Unmount what a failure has left mounted; tell whether there was anything, and it is gone."""
    if mounttable.state(target) is mounttable.MountState.ABSENT:
        return False
    try:
        unmount(target)
    except OSError as error:
        _log.warning("%s: cannot clear away the failed mount: %s", target, error)
        return False
    return True


def unmount(target: str) -> None:
    """Unmount ``target`` and wait until its branch is final; not being mounted is fine.

    A mount that is still busy after five tries 100 ms apart is taken out of the tree lazily.

    Raises:
        OSError: errno of the last try (driver.md 1.7).
    """
    target = mounttable.canonical(target)
    device = mounttable.device_of(target)
    server = None if device is None else _server_of(target)
    try:
        if not _detach(target):
            _log.warning("%s is still in use: unmounted lazily", target)
        elif server is not None and not _lives_elsewhere(device):
            _wait_for_end(server, target)
    finally:
        if server is not None:
            os.close(server)


def _detach(target: str) -> bool:
    """Unmount; tell whether it was done at once and for good, not lazily."""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE)
        try:
            mounttable.detach(target, lazy=False)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return True
            if error.errno != errno.EBUSY:
                raise
        else:
            return True
    try:
        mounttable.detach(target, lazy=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return False


def _option_arguments(branches: Sequence[str], options: Iterable[str]) -> Iterator[str]:
    """Yield the arguments of ``-o``, none longer than one argument may be.

    Each further ``br:`` adds its branches at the bottom, so order is all that matters.
    """
    yield ",".join(["profile=driver", *options])
    piece: list[str] = []
    room = _ARGUMENT_BYTES
    for index, path in enumerate(branches):
        entry = os.fsdecode(escape_value(os.fsencode(path))) + ("=ro+wh" if index else "=rw")
        size = len(os.fsencode(entry)) + 1
        if piece and size > room:
            yield "br:" + ":".join(piece)
            piece, room = [], _ARGUMENT_BYTES
        piece.append(entry)
        room -= size
    yield "br:" + ":".join(piece)


def _label_option(label: str) -> list[str]:
    if not label:
        return []
    option = f'context="{os.fsdecode(escape_value(os.fsencode(label)))}"'
    if not _is_option(option):
        _log.warning("mount labels are not supported, ignored: %s", label)
        return []
    return [option]


@functools.cache
def _is_option(option: str) -> bool:
    """Tell whether fuse-aufs knows this option."""
    try:
        parse_options([b"profile=driver", b"br:/", os.fsencode(option)], lambda _: None)
    except OptionError:
        return False
    return True


@functools.cache
def _command() -> tuple[str, ...]:
    """Return how to run the ``fuse-aufs`` that belongs to this installation."""
    beside = os.path.join(os.path.dirname(sys.executable), "fuse-aufs")
    if os.access(beside, os.X_OK):
        return (beside,)
    # Not installed, only importable: the same interpreter can run it, from the same place. ``-P``
    # keeps the current directory, which may be anybody's, out of the module search.
    place = os.path.dirname(os.path.dirname(os.path.abspath(unionfs.__file__)))
    program = (
        f"import sys; sys.path.insert(0, {place!r}); "
        "from unionfs.cli.mount import main; sys.exit(main())"
    )
    return (sys.executable, "-P", "-c", program)


def _mount_error(target: str, reason: str, number: int | None) -> MountError:
    text = f"error creating aufs mount to {target}: {reason}"
    return MountError(text, number or errno.EIO)


def _errno_in(message: str) -> int | None:
    """Find the errno that a message of fuse-aufs names, as in ``… (ENOENT): …``."""
    names = _ERRNO_NAME.findall(message)
    number = getattr(errno, names[0], None) if names else None
    return number if isinstance(number, int) else None


def _server_of(target: str) -> int | None:
    """Return a descriptor of the process that serves the mount at ``target``, if it is found.

    Its command line names the mount point. Of several the youngest serves what is mounted now: the
    others were unmounted while they were in use. A descriptor, unlike a number, cannot come to mean
    another process.
    """
    wanted = os.fsencode(target)
    found = []
    for process, arguments in servers():
        if wanted in arguments:
            with suppress(OSError):
                found.append((_start_time(process), process))
    try:
        return os.pidfd_open(max(found)[1]) if found else None
    except ProcessLookupError:
        return None


def _start_time(process: int) -> int:
    """Return when a process began, in clock ticks since the system did."""
    with open(f"/proc/{process}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[_START_TIME])


def _lives_elsewhere(device: int | None) -> bool:
    """Tell whether a mount namespace of somebody else (a container's) still has the filesystem.

    The kernel lists live FUSE connections by minor number; where that list is not mounted, the
    answer is no.
    """
    return device is not None and os.path.exists(f"{_CONNECTIONS}/{os.minor(device)}")


def _wait_for_end(server: int, target: str) -> None:
    poller = select.poll()
    poller.register(server, select.POLLIN)
    if not poller.poll(_FAREWELL * 1000):
        _log.warning("%s: its server still runs %.0f s after the unmount", target, _FAREWELL)
