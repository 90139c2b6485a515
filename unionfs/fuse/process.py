"""Leaving the caller: how a command becomes a daemon that holds nothing of the shell it came from.

The caller must see one thing only: the command returns 0 when the mount answers, or says in one
line why it does not.  So the command forks.  The child becomes the daemon; the parent stays behind
to listen at a pipe until the child has said "ready" or what went wrong, and ends with the matching
exit status.  A child that dies without a word closes the pipe, which is an answer too.

What the daemon must not keep, and why:

* the caller's descriptors: a pipe held open makes ``$(fuse-aufs …)`` wait for ever;
* its working directory: it could not be unmounted;
* its session: the signals of a terminal would reach a filesystem others are using;
* its umask and resource limits: whether a file can be created must depend on who creates it,
  never on the shell the filesystem was started from;
* its signal mask.

(design: "The process".)
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterable
from typing import Final

from unionfs.branch.lock import GIVE_UP
from unionfs.text import printable

_READY: Final = b"ready"
_WARNING: Final = b"warning "
_ERROR: Final = b"error "


class DaemonError(Exception):
    """The daemon ended before it was ready; ``str()`` is its one-line message."""


class Reporter:
    """The daemon's end of the pipe: what it still has to tell its caller.

    After ``ready`` or ``failed`` the caller is gone and everything else is dropped.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def warning(self, message: str) -> None:
        """Pass one line on to the caller's stderr."""
        self._send(_WARNING + printable(message).encode())

    def ready(self) -> bool:
        """Let the caller return with success.  False when it did not wait for it."""
        heard = self._send(_READY)
        self._hang_up()
        return heard

    def failed(self, message: str) -> bool:
        """Let the caller print the message and return with failure.  False as in ``ready``."""
        heard = self._send(_ERROR + printable(message).encode())
        self._hang_up()
        return heard

    def _send(self, line: bytes) -> bool:
        if self._fd < 0:
            return False
        try:
            os.write(self._fd, line[:4000] + b"\n")  # below PIPE_BUF: one write, never torn
        except BrokenPipeError:
            self._hang_up()
            return False
        return True

    def _hang_up(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


Body = Callable[[Callable[[], bool], Callable[[str], None]], None]


def open_descriptors() -> frozenset[int]:
    """Return the numbers of all descriptors of this process above 2."""
    # The listing names its own descriptor too, which is closed by the time it is looked at.
    return frozenset(fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_open(fd))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def run_detached(
    body: Body,
    *,
    inherited: Iterable[int],
    warn: Callable[[str], None],
    explain: Callable[[Exception], str],
) -> None:
    """Run ``body(ready, warn)`` in a daemon and return when it has called ``ready``.

    body: runs in the daemon, which ends when it returns.  Its ``ready()`` returns False when the
        caller has not waited, its ``warn(line)`` reaches the caller until then.
    inherited: descriptors to be closed in the daemon: what ``open_descriptors`` said before this
        program opened anything of its own.
    warn: called with each warning.
    explain: makes the one-line message out of what ``body`` raised.
    Raises DaemonError when the daemon failed or ended before it was ready.  A KeyboardInterrupt
    while waiting ends the daemon.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        # Nothing may get out of here: the frames below belong to the parent.
        status = 1
        try:
            os.close(reading)
            status = _daemon(body, Reporter(writing), inherited, explain)
        finally:
            os._exit(status)
    os.close(writing)
    try:
        _listen(reading, child, warn)
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
        raise
    finally:
        os.close(reading)


def _daemon(
    body: Body, reporter: Reporter, inherited: Iterable[int], explain: Callable[[Exception], str]
) -> int:
    try:
        os.setsid()
        _silence_standard_streams()
        for fd in inherited:
            with contextlib.suppress(OSError):
                os.close(fd)
        settle()
        body(reporter.ready, reporter.warning)
    except Exception as error:
        if not reporter.failed(explain(error)):
            logging.getLogger(__name__).exception("the filesystem process ends")
        return 1
    return 0


def _listen(reading: int, child: int, warn: Callable[[str], None]) -> None:
    with open(reading, "rb", closefd=False) as lines:
        for line in lines:
            if line.startswith(_WARNING):
                warn(line.removeprefix(_WARNING).decode().rstrip("\n"))
            elif line.startswith(_ERROR):
                os.waitpid(child, 0)
                raise DaemonError(line.removeprefix(_ERROR).decode().rstrip("\n"))
            else:
                return
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    raise DaemonError(f"the filesystem process {end} before the mount answered (EIO): try again")


def settle() -> None:
    """Give this process the surroundings of a file server, whoever started it.

    Also for a process that stays in the foreground.
    """
    os.chdir("/")
    os.umask(0)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(GIVE_UP, signal.SIG_IGN)  # until there is something to give up
    raise_descriptor_limit()
    # The limit of whoever writes is checked by the kernel before the request reaches us.
    try:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    except (OSError, ValueError):  # raising the hard limit takes a privilege
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as it may allow itself: each branch takes one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def on_hangup(action: Callable[[], object]) -> None:
    """Call ``action`` at every SIGHUP, which is how a rotated log is announced."""
    signal.signal(signal.SIGHUP, lambda _number, _frame: action())


def fill_standard_descriptors() -> None:
    """Have descriptors 0 to 2, so that nothing else gets one of these numbers.

    A caller may have closed them. What was opened then would be taken for a standard stream, and be
    replaced when those are silenced.

    Raises:
        OSError: there is no /dev/null to put there.
    """
    for fd in (0, 1, 2):
        if not _is_open(fd):
            # The lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003  # no keyword


def _silence_standard_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
