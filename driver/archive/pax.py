"""The extended headers of POSIX.1-2001 ("PAX"): lines of ``<length> <key>=<value>``.

They carry what a header block has no room for: long or non-ASCII names, large numbers, fractions of
a second, extended attributes. Keys and values are kept as bytes, because the value of an attribute
may be anything, NUL and line ends included; the stated length alone says where it ends.

A key ends at its first ``=``, yet the name of an extended attribute may hold one. It is written as
GNU tar does, ``%3D``, and the percent sign as ``%25``.
"""

import re
from collections.abc import Iterable, Iterator

from driver.archive.headers import MAX_TIME
from driver.errors import InvalidArchiveError

XATTR_PREFIX = b"SCHILY.xattr."
MAX_RECORDS_SIZE = 1 << 20  # bytes in one extended header, the limit of Go's reader too

_LENGTH_DIGITS = 8  # enough for MAX_RECORDS_SIZE
_NUMBER = re.compile(rb"[0-9]{1,20}", re.ASCII)
_ESCAPED = re.compile(rb"(?:[^%]|%25|%3D)*", re.DOTALL)
_TIME = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?", re.ASCII)
_NANOSECONDS = 1_000_000_000


def parse_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the key and value of each record, in order.

    Raises:
        InvalidArchiveError: a record whose length does not fit, or without a key.
    """
    start = 0
    while start < len(data):
        blank = data.find(b" ", start, start + _LENGTH_DIGITS + 1)
        digits = data[start:blank] if blank > start else b""
        if not digits.isdigit():
            raise InvalidArchiveError("malformed extended header")
        end = start + int(digits)
        if not blank + 2 < end <= len(data) or data[end - 1] != 0x0A:
            raise InvalidArchiveError("malformed extended header")
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise InvalidArchiveError("malformed extended header")
        yield key, value
        start = end


def format_records(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the records as the content of an extended header."""
    return b"".join(_record(key, value) for key, value in records)


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    # The length counts its own digits, so adding one more digit may need yet another.
    length = len(body)
    while len(b"%d" % length) + len(body) != length:
        length = len(b"%d" % length) + len(body)
    return b"%d" % length + body


def xattr_key(name: bytes) -> bytes:
    """Return the key of the record that holds the extended attribute ``name``."""
    return XATTR_PREFIX + name.replace(b"%", b"%25").replace(b"=", b"%3D")


def xattr_name(key: bytes) -> bytes:
    """Return the name of the extended attribute that a record with this key holds.

    Where any other ``%`` stands in it, the writer was one that escapes nothing, such as Go's.
    """
    name = key.removeprefix(XATTR_PREFIX)
    if not _ESCAPED.fullmatch(name):
        return name
    return name.replace(b"%3D", b"=").replace(b"%25", b"%")


def parse_number(value: bytes, what: str, limit: int) -> int:
    """Read a decimal number between 0 and ``limit``.

    Raises:
        InvalidArchiveError: it is not one.
    """
    if not _NUMBER.fullmatch(value) or int(value) > limit:
        raise InvalidArchiveError(f"malformed {what} in an extended header")
    return int(value)


def parse_time(value: bytes) -> int:
    """Read a time with its fraction.

    Returns:
        Nanoseconds since the epoch, clamped to 64 bits.

    Raises:
        InvalidArchiveError: it is not a time.
    """
    match = _TIME.fullmatch(value)
    if match is None:
        raise InvalidArchiveError("malformed time in an extended header")
    sign, seconds, fraction = match.groups()
    nanoseconds = int(seconds) * _NANOSECONDS + int((fraction or b"")[:9].ljust(9, b"0"))
    return clamp_time(-nanoseconds if sign else nanoseconds)


def clamp_time(nanoseconds: int) -> int:
    """Return the nearest time that the kernel can be given (years 1677 to 2262)."""
    return max(-MAX_TIME, min(nanoseconds, MAX_TIME))
