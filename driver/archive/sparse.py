"""Files with holes, as GNU tar stores them: a map of segments, then only the data of these.

Four spellings of the same map (GNU tar manual, "Sparse Formats"): the old one sits in the header
block and in extra blocks behind it; PAX 0.0 repeats records, PAX 0.1 has one record with a comma
list, PAX 1.0 writes the map as lines of text in front of the data.

A map is accepted only when its segments ascend, do not overlap, end inside of the file, are not
more than ``MAX_SEGMENTS``, and hold no more data than is stored.
"""

from collections.abc import Callable, Iterable, Sequence

from driver.archive.headers import BLOCK, MAX_SIZE, bounded, number
from driver.archive.pax import parse_number
from driver.errors import InvalidArchiveError

MAX_SEGMENTS = 1 << 18
KEY_PREFIX = b"GNU.sparse."

Segments = tuple[tuple[int, int], ...]
"""Offset and length, in bytes, of each stretch of data."""

_OLD_SLOT = 24
_OLD_FIRST = (386, 4)  # where the map starts, and for how many segments there is room
_OLD_EXTENDED_AT = 482
_OLD_REAL_SIZE = slice(483, 495)
_OLD_MORE = (0, 21)
_OLD_MORE_EXTENDED_AT = 504

_MAX_DIGITS = 20


def read_old_map(block: bytes, take: Callable[[int], bytes], name: bytes) -> tuple[Segments, int]:
    """Read the map of an old GNU header (type ``S``).

    Args:
        block: the header.
        take: returns the next n bytes of the archive.
        name: for messages.

    Returns:
        The segments, not yet checked, and the size of the file in bytes.
    """
    real_size = bounded(number(block[_OLD_REAL_SIZE]), MAX_SIZE, "size", name)
    found = _old_slots(block, *_OLD_FIRST)
    extended = block[_OLD_EXTENDED_AT]
    while extended:
        if len(found) > MAX_SEGMENTS:
            raise InvalidArchiveError("sparse map too long", name)
        block = take(BLOCK)
        found += _old_slots(block, *_OLD_MORE)
        extended = block[_OLD_MORE_EXTENDED_AT]
    return tuple(found), real_size


def _old_slots(block: bytes, start: int, count: int) -> list[tuple[int, int]]:
    found = []
    for at in range(start, start + count * _OLD_SLOT, _OLD_SLOT):
        if not block[at]:
            break
        found.append((number(block[at : at + 12]), number(block[at + 12 : at + 24])))
    return found


def read_record_map(records: Sequence[tuple[bytes, bytes]]) -> Segments | None:
    """Read the map of PAX 0.0 or 0.1 out of the extended header.

    Returns:
        The segments, not yet checked; None when there are none.
    """
    listed = [value for key, value in records if key == KEY_PREFIX + b"map"]
    if listed:
        fields = listed[-1].split(b",", 2 * MAX_SEGMENTS + 1) if listed[-1] else []
    else:
        fields = []
        for key, value in records:
            if key in (KEY_PREFIX + b"offset", KEY_PREFIX + b"numbytes"):
                # Offset and length take turns; anything else is out of step.
                if (len(fields) % 2 == 0) != key.endswith(b"offset"):
                    raise InvalidArchiveError("malformed sparse map")
                fields.append(value)
        if not fields:
            return None
    if len(fields) % 2 or len(fields) > 2 * MAX_SEGMENTS:
        raise InvalidArchiveError("malformed sparse map")
    return _pairs(parse_number(field, "sparse map", MAX_SIZE) for field in fields)


def read_leading_map(take: Callable[[int], bytes]) -> tuple[Segments, int]:
    """Read the map of PAX 1.0: numbers on lines, a count first, padded to whole blocks.

    Args:
        take: returns the next n bytes of the archive.

    Returns:
        The segments, not yet checked, and how many bytes the map took.
    """
    used = 0
    buffered = b""

    def line() -> int:
        nonlocal used, buffered
        while b"\n" not in buffered:
            if len(buffered) > _MAX_DIGITS:
                raise InvalidArchiveError("malformed sparse map")
            buffered += take(BLOCK)
            used += BLOCK
        digits, _, buffered = buffered.partition(b"\n")
        return parse_number(digits, "sparse map", MAX_SIZE)

    count = line()
    if count > MAX_SEGMENTS:
        raise InvalidArchiveError("sparse map too long")
    return _pairs(line() for _ in range(2 * count)), used


def _pairs(numbers: Iterable[int]) -> Segments:
    rest = iter(numbers)
    return tuple(zip(rest, rest, strict=True))


def check_map(segments: Segments, real_size: int, stored: int, name: bytes) -> None:
    """Accept the map only if it keeps the rules at the top of this module.

    Args:
        segments: the map.
        real_size: size of the file, holes included.
        stored: bytes of data in the archive.
        name: for messages.

    Raises:
        InvalidArchiveError: it does not.
    """
    end = total = 0
    for offset, length in segments:
        if offset < end or length < 0 or offset + length > real_size:
            raise InvalidArchiveError("malformed sparse map", name)
        end = offset + length
        total += length
    if len(segments) > MAX_SEGMENTS or total > stored:
        raise InvalidArchiveError("malformed sparse map", name)
