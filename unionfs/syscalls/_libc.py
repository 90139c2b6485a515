"""The C library as ``ctypes`` sees it, and the one way its failures become ``OSError``."""

import ctypes
import os
from typing import NoReturn

libc = ctypes.CDLL(None, use_errno=True)


def fail(what: bytes | str | None = None) -> NoReturn:
    """Raise ``OSError`` for the errno that the last call left behind.

    Args:
        what: the file the call was about, shown in the error text.
    """
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), what)
