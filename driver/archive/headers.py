"""One 512-byte header block of a tar archive, taken apart and put together.

Nobody promises that the bytes are friendly. So every field has a bound, every number is parsed by
hand, and whatever does not fit is an ``InvalidArchiveError``: no value that leaves this module can
be negative where that makes no sense, or so large that a later step overflows.

Five dialects share the block and differ in what the tail means: V7 (nothing), ustar and PAX (a
prefix for long names), star (a shorter prefix), GNU (times and a sparse map). One more is a
mistake: early Go programs wrote the prefix of a ustar header under the magic of GNU. A block
whose "times" are no numbers is read that way (driver.md 7.3, "ustar magic with GNU content").
"""

import struct
from dataclasses import dataclass

from driver.errors import InvalidArchiveError

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

MAX_ID = (1 << 32) - 2  # the last one, 2**32 - 1, means "leave it" to chown(2)
MAX_SIZE = (1 << 63) - 1
MAX_TIME = (1 << 63) - 1
MAX_MAJOR = (1 << 12) - 1  # the halves of Linux's 32-bit device number
MAX_MINOR = (1 << 20) - 1

_NAME = slice(0, 100)
_MODE = slice(100, 108)
_UID = slice(108, 116)
_GID = slice(116, 124)
_SIZE = slice(124, 136)
_MTIME = slice(136, 148)
_CHECKSUM = slice(148, 156)
_TYPE = slice(156, 157)
_LINK = slice(157, 257)
_MAGIC = slice(257, 265)
_MAJOR = slice(329, 337)
_MINOR = slice(337, 345)
_PREFIX = slice(345, 500)
_STAR_PREFIX = slice(345, 476)
_STAR_TRAILER = slice(508, 512)
_GNU_TIMES = (slice(345, 357), slice(357, 369))

# What is written: all fields up to the device numbers; user and group name, and the tail, are NUL.
_LAYOUT = struct.Struct("100s8s8s8s12s12s8s1s100s8s64x8s8s167x")

_MAGIC_USTAR = b"ustar\0"
_MAGIC_GNU = b"ustar  \0"
_TRAILER_STAR = b"tar\0"
_DEVICES = frozenset({b"3", b"4"})


@dataclass(slots=True)
class Header:
    """The fields of one block.

    Attributes:
        name: as stored, prefix included.
        mode: permission bits, 12 of them.
        uid: owner.
        gid: group.
        size: bytes of content, as claimed.
        mtime: seconds since the epoch; None when the field is blank.
        type: the one-byte type flag.
        link: target of a link.
        major: of a device, else 0.
        minor: of a device, else 0.
        gnu: the block follows GNU's dialect, so its tail may hold a sparse map.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int | None
    type: bytes
    link: bytes
    major: int
    minor: int
    gnu: bool


def parse_header(block: bytes) -> Header:
    """Take a block apart.

    Args:
        block: 512 bytes, not all zero.

    Raises:
        InvalidArchiveError: wrong checksum, or a field that is no number or out of its bounds.
    """
    _check(block)
    kind = block[_TYPE]
    name = text(block[_NAME])
    magic = block[_MAGIC]
    gnu = magic == _MAGIC_GNU
    if prefix := _prefix(block, magic):
        name = prefix + b"/" + name
    device = kind in _DEVICES
    return Header(
        name=name,
        mode=bounded(number(block[_MODE]), MAX_SIZE, "mode", name) & 0o7777,
        uid=bounded(number(block[_UID]), MAX_ID, "owner", name),
        gid=bounded(number(block[_GID]), MAX_ID, "group", name),
        size=bounded(number(block[_SIZE]), MAX_SIZE, "size", name),
        mtime=number(block[_MTIME]) if block[_MTIME].strip(b" \0") else None,
        type=kind,
        link=text(block[_LINK]),
        major=bounded(number(block[_MAJOR]), MAX_MAJOR, "device", name) if device else 0,
        minor=bounded(number(block[_MINOR]), MAX_MINOR, "device", name) if device else 0,
        gnu=gnu,
    )


def _check(block: bytes) -> None:
    field = block[_CHECKSUM]
    unsigned = sum(block) - sum(field) + 8 * ord(" ")
    stored = number(field)
    if stored == unsigned:
        return
    # Some old writers summed signed characters.
    rest = block[: _CHECKSUM.start] + block[_CHECKSUM.stop :]
    if stored != unsigned - 256 * sum(byte > 127 for byte in rest):
        raise InvalidArchiveError("not a tar header (wrong checksum)")


def _prefix(block: bytes, magic: bytes) -> bytes:
    if magic.startswith(_MAGIC_USTAR):
        star = block[_STAR_TRAILER] == _TRAILER_STAR
        return text(block[_STAR_PREFIX if star else _PREFIX])
    if magic == _MAGIC_GNU and not all(_is_number(block[field]) for field in _GNU_TIMES):
        prefix = text(block[_PREFIX])
        return prefix if prefix.isascii() else b""
    return b""


def _is_number(field: bytes) -> bool:
    try:
        number(field)
    except InvalidArchiveError:
        return False
    return True


def text(field: bytes) -> bytes:
    """Return the bytes before the first NUL."""
    return field.partition(b"\0")[0]


def number(field: bytes) -> int:
    """Read a numeric field: octal digits, or a big-endian two's complement number (base 256).

    Raises:
        InvalidArchiveError: neither of the two, or more than 64 bits.
    """
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ~(1 << bits)
        if field[0] & 0x40:
            value -= 1 << bits
        if not -(1 << 63) <= value < 1 << 63:
            raise InvalidArchiveError("number too large in a tar header")
        return value
    digits = text(field.strip(b" \0"))
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise InvalidArchiveError("malformed number in a tar header")
    return int(digits, 8)


def bounded(value: int, limit: int, what: str, name: bytes) -> int:
    """Return ``value`` if it lies between 0 and ``limit``.

    Raises:
        InvalidArchiveError: it does not.
    """
    if not 0 <= value <= limit:
        raise InvalidArchiveError(f"{what} {value} out of range", name)
    return value


def octal_fits(value: int, width: int) -> bool:
    """Tell whether ``value`` can be stored as octal digits in a field of ``width`` bytes."""
    return 0 <= value < 1 << (3 * (width - 1))


def build_header(
    name: bytes,
    kind: bytes,
    *,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    major: int = 0,
    minor: int = 0,
) -> bytes:
    """Put a ustar block together; whatever does not fit is cut or 0, for a PAX record to correct.

    Owner and group names stay empty: looking them up would read the image's own user database.
    """
    block = bytearray(
        _LAYOUT.pack(
            name,
            _octal(mode, 8),
            _octal(uid, 8),
            _octal(gid, 8),
            _octal(size, 12),
            _octal(mtime, 12),
            b" " * 8,  # the checksum counts itself as blanks
            kind,
            link,
            _MAGIC_USTAR + b"00",
            _octal(major, 8),
            _octal(minor, 8),
        )
    )
    block[_CHECKSUM] = b"%06o\0 " % sum(block)
    return bytes(block)


def _octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value if octal_fits(value, width) else 0)


def padding(size: int) -> int:
    """Return how many bytes follow ``size`` bytes of content up to the end of their last block."""
    return -size % BLOCK
