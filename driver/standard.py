"""Standard input and output of a command, either of which may be missing.

A shell closes them with ``>&-``, and some services start programs without. Then Python has no
``sys.stdout``, and worse, the next file to be opened gets its number: what is printed later, or by
another program, goes into a layer.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TextIO

from unionfs.fuse.process import fill_standard_descriptors


def fill_descriptors() -> None:
    """Open ``/dev/null`` in place of the standard descriptors that are missing.

    Errors go there too, for there is nobody to see them.
    """
    fill_standard_descriptors()
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8")


def standard_input() -> TextIO:
    """Return standard input.

    Raises:
        OSError: the program was started without one.
    """
    return _opened(sys.stdin, "standard input")


def standard_output() -> TextIO:
    """Return standard output.

    Raises:
        OSError: the program was started without one.
    """
    return _opened(sys.stdout, "standard output")


def _opened(stream: TextIO | None, name: str) -> TextIO:
    if stream is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), name)
    return stream


def drop_output() -> None:
    """Let go of what could not be written: at exit Python would try again, and complain or wait."""
    if sys.stdout is not sys.__stdout__:
        return  # not the program's own
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
