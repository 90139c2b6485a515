"""Whether an error is about one file, or about everything (driver.md 1.8).

A file that vanishes or cannot be read is left out of a layer tar, with a warning. But there are
errors that the next file would get as well: who serves the tree is gone, or this process has
nothing left to read with. To leave out one file after the other then would make a tar of what was
read so far that looks like all there is.
"""

import errno
import logging

_log = logging.getLogger(__name__)

_SERVER_IS_GONE = frozenset(
    {
        *(errno.ENOTCONN, errno.ECONNABORTED, errno.ESHUTDOWN),  # of FUSE, of a disk
        *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT),  # of a network
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    }
)
_NOTHING_TO_READ_WITH = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EBADF}
)
# EIO is not among them: that is what one bad block gives.
_ABOUT_EVERYTHING = _SERVER_IS_GONE | _NOTHING_TO_READ_WITH


def leave_out(path: bytes, error: Exception) -> None:
    """Report that ``path`` is missing in the layer, if the error is about this file alone.

    Args:
        path: relative to the root of the layer.
        error: what kept it from being read or written down.

    Raises:
        OSError: ``error`` itself, if it is about everything.
    """
    if isinstance(error, OSError) and error.errno in _ABOUT_EVERYTHING:
        raise error
    _log.warning("%r left out of the layer: %s", path, error)
