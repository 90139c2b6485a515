"""Where the daemon's messages go, and how many of them.

In the foreground they go to stderr, with ``log=FILE`` to that file, otherwise to syslog.  A
message must never hurt.  Where there is no syslog it is dropped.  A syslog that does not keep up is
not waited for: it could be waiting for a file in the very mount we serve.  And a hostile layer that
provokes an error a thousand times a second fills no disk: of messages with the same template a few
pass in each interval, then one line says how many were left out.

The log file is opened below a directory descriptor taken before the mount.  So a log inside the
mount point never leads back into our own mount, where the daemon would wait for itself.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import sys
import time
from collections.abc import Callable
from typing import Final

from unionfs.errors import ReportedError
from unionfs.text import printable

_SYSLOG: Final = "/dev/log"
_DAEMON_FACILITY: Final = 3 << 3
_LONGEST_MESSAGE: Final = 2000  # characters; names inside may be long


class LogFileError(ReportedError):
    """The file of ``log=`` cannot be used."""


class LogFile(logging.Handler):
    """Messages appended to one file, which is created when there is the first one to write."""

    def __init__(self, path: bytes) -> None:
        """Check that ``path`` can be written, without creating it.

        Raises LogFileError.
        """
        super().__init__()
        directory, self._name = os.path.split(path)
        self._fd = -1
        self._directory_fd = -1
        try:
            self._directory_fd = os.open(
                directory or b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            )
            try:
                os.close(self._open(0))
            except FileNotFoundError:
                allowed = os.access(
                    b".", os.W_OK | os.X_OK, dir_fd=self._directory_fd, effective_ids=True
                )
                if not allowed:
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None
        except OSError as error:
            if self._directory_fd >= 0:
                os.close(self._directory_fd)
            symbol = errno.errorcode.get(error.errno or 0, "EIO")
            raise LogFileError(
                error.errno or errno.EIO,
                f"log file {printable(path)} cannot be written ({symbol}): "
                "name a file in a directory you may write to",
            ) from error

    def _open(self, flags: int) -> int:
        flags |= os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(self._name, flags, 0o600, dir_fd=self._directory_fd)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return fd

    def emit(self, record: logging.LogRecord) -> None:
        """Append one message; what cannot be written is lost."""
        with contextlib.suppress(OSError):
            if self._fd < 0:
                self._fd = self._open(os.O_CREAT)
            os.write(self._fd, self.format(record).encode(errors="backslashreplace") + b"\n")

    def reopen(self) -> None:
        """Let go of the file, which may have been renamed; the next message opens it anew."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Give the descriptors back."""
        self.reopen()
        if self._directory_fd >= 0:
            os.close(self._directory_fd)
            self._directory_fd = -1
        super().close()


class Syslog(logging.Handler):
    """Messages to the local syslog or journal: datagrams, dropped rather than waited for."""

    _PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def __init__(self) -> None:
        super().__init__()
        self._socket: socket.socket | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Send one message; it is lost when nobody takes it at once."""
        priority = next((p for level, p in self._PRIORITIES if record.levelno >= level), 7)
        head = f"<{_DAEMON_FACILITY | priority}>fuse-aufs[{os.getpid()}]: "
        datagram = (head + self.format(record)).encode(errors="backslashreplace")
        for _attempt in range(2):  # the second one after syslogd was started again
            try:
                if self._socket is None:
                    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                    self._socket.settimeout(0)
                    self._socket.connect(_SYSLOG)
                self._socket.send(datagram)
                return
            except BlockingIOError:
                return
            except OSError:
                self._disconnect()

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Give the socket back."""
        self._disconnect()
        super().close()


class RateLimit(logging.Filter):
    """Let ``burst`` messages of each (level, template) pass in each interval.

    burst: messages of one kind per interval.  interval: seconds.  clock: seconds, monotonic.
    The number of kinds remembered is bounded; all kinds beyond it share one allowance.
    """

    _MOST_KINDS: Final = 200

    def __init__(
        self, burst: int = 10, interval: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._burst = burst
        self._interval = interval
        self._clock = clock
        self._seen: dict[tuple[int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether this message passes."""
        kind = (record.levelno, str(record.msg))
        now = self._clock()
        if kind not in self._seen and len(self._seen) >= self._MOST_KINDS:
            self._seen = {k: v for k, v in self._seen.items() if now - v[0] < self._interval}
            if len(self._seen) >= self._MOST_KINDS:
                kind = (0, "")
        start, count = self._seen.get(kind, (now, 0))
        left_out = 0
        if now - start >= self._interval:
            start, left_out, count = now, max(0, count - self._burst), 0
        count += 1
        self._seen[kind] = (start, count)
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} more like this were left out)"
            record.args = None
        return count <= self._burst


class _OneLine(logging.Formatter):
    """The message on one line whatever names are in it; a traceback, if any, below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line for one message."""
        record.message = printable(record.message[:_LONGEST_MESSAGE])
        return super().formatMessage(record)


def start_logging(*, foreground: bool, debug: bool, file: LogFile | None) -> None:
    """Send everything that is logged in this process to its place.

    foreground: without a file, write to stderr instead of syslog.
    debug: also what is of use only to someone looking for a fault, and without a limit when it
        goes to stderr.
    file: what ``log=`` named, or None.
    """
    logging.raiseExceptions = False  # a message that cannot be written is no reason to fail
    handler: logging.Handler
    form = "%(levelname)s %(message)s"
    if file is not None:
        handler, form = file, "%(asctime)s fuse-aufs[%(process)d] " + form
    elif foreground:
        handler, form = logging.StreamHandler(sys.stderr), "fuse-aufs: " + form
    else:
        handler = Syslog()
    handler.setFormatter(_OneLine(form))
    if not (debug and foreground):
        handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
