"""Id mapping of a mount: the owner on the branch and the owner that is shown are two numbers.

Rootless containers keep their files under the ids of a user namespace; inside, the ids begin at 0.
A mapping ``A:B:LENGTH`` says that an id stored in ``[A, A+LENGTH)`` is shown as ``B + (id - A)``,
and that an id coming in (who creates, chown) in ``[B, B+LENGTH)`` is stored as ``A + (id - B)``.
What no triple covers is stored as the overflow id, and shown as it. *Squashing* shows one id for
all and stores what comes in, as far as the daemon may.

ACLs name ids too. Those are mapped, but never squashed: of several entries one would be left. Who
has no id here cannot be meant by an entry, so it is left out of what is shown; no other user is
treated differently for that. (Specification: driver.md 4.7.)
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, field
from errno import EINVAL
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

OVERFLOW_ID: Final = 65534
NO_ID: Final = (1 << 32) - 1  # to the kernel, an id that this user namespace does not have
LARGEST_ID: Final = NO_ID - 1

# The value of system.posix_acl_*: a version, then (tag, permissions, id) for each entry.
_ACL_HEADER: Final = struct.Struct("<I")
_ACL_ENTRY: Final = struct.Struct("<HHI")
_ACL_USER: Final = 0x02
_ACL_GROUP: Final = 0x08
ACL_PREFIX: Final = b"system.posix_acl_"


class IdRange(NamedTuple):
    """One triple of a mapping: ``length`` ids from ``stored`` on are shown from ``shown`` on."""

    stored: int
    shown: int
    length: int


def parse_id_map(text: str) -> tuple[IdRange, ...]:
    """Read ``A:B:LENGTH[:A:B:LENGTH…]``; empty items, such as a leading colon makes, do not count.

    Raises:
        ValueError: not numbers, not triples, or ids beyond 32 bits; its text says which.
    """
    items = [item for item in text.split(":") if item]
    if not items or len(items) % 3:
        raise ValueError(f"{len(items)} numbers are no triples STORED:SHOWN:LENGTH")
    if not all(item.isascii() and item.isdigit() for item in items):
        raise ValueError("a mapping consists of decimal numbers and colons")
    numbers = [int(item) for item in items]
    ranges = tuple(IdRange(*numbers[start : start + 3]) for start in range(0, len(numbers), 3))
    for entry in ranges:
        if entry.length == 0 or max(entry.stored, entry.shown) + entry.length - 1 > LARGEST_ID:
            raise ValueError(f"{':'.join(map(str, entry))} is empty or beyond 32 bits")
    for one, other in itertools.combinations(ranges, 2):
        if _overlap(one.stored, other.stored, one, other) or _overlap(
            one.shown, other.shown, one, other
        ):
            raise ValueError("two triples cover the same ids")
    return ranges


def _overlap(start: int, other_start: int, one: IdRange, other: IdRange) -> bool:
    return start < other_start + other.length and other_start < start + one.length


@dataclass(frozen=True, slots=True)
class Translation:
    """How one kind of id is translated.

    Attributes:
        ranges: the mapping; empty for none.
        squash: the id that is shown for all, or None.
    """

    ranges: tuple[IdRange, ...] = ()
    squash: int | None = None

    def shown(self, stored: int) -> int:
        """Return what the kernel is told for an id on the branch.

        An id that no triple covers is none. The kernel displays it as the overflow id, and lets
        nobody, not even the user of that number, change what it owns.
        """
        if self.squash is not None:
            return self.squash
        found = self.named_shown(stored)
        return NO_ID if found is None else found

    def stored(self, shown: int) -> int:
        """Return what goes to the branch for an id that comes in."""
        found = self.named_stored(shown)
        return OVERFLOW_ID if found is None else found

    def named_shown(self, stored: int) -> int | None:
        """Return the id that is meant by an entry of an ACL on the branch, None if it is nobody."""
        if stored == NO_ID:
            return None
        if not self.ranges:
            return stored
        for entry in self.ranges:
            if 0 <= stored - entry.stored < entry.length:
                return entry.shown + stored - entry.stored
        return None

    def named_stored(self, shown: int) -> int | None:
        """Return what an entry of an ACL that comes in names on the branch, None if it cannot."""
        if not self.ranges:
            return shown
        for entry in self.ranges:
            if 0 <= shown - entry.shown < entry.length:
                return entry.stored + shown - entry.shown
        return None


@dataclass(frozen=True, slots=True)
class IdMapping:
    """Both translations of a mount."""

    uid: Translation = field(default_factory=Translation)
    gid: Translation = field(default_factory=Translation)

    @property
    def shifted(self) -> bool:
        """Whether ids are not what they are on the branch."""
        return self != IdMapping()

    @property
    def squashed(self) -> bool:
        """Whether an owner that cannot be set does not matter."""
        return self.uid.squash is not None or self.gid.squash is not None

    def show_acl(self, value: bytes) -> bytes:
        """Translate the ids in an ACL read from a branch.

        Raises:
            OSError: ``EINVAL`` for a value that is not an ACL.
        """
        return _translate(value, self.uid.named_shown, self.gid.named_shown)

    def store_acl(self, value: bytes) -> bytes:
        """Translate the ids in an ACL that comes in.

        Raises:
            OSError: ``EINVAL`` for a value that is not an ACL, or one that names an id without a
                place on the branch.
        """
        stored = _translate(value, self.uid.named_stored, self.gid.named_stored)
        if len(stored) != len(value):
            raise OSError(EINVAL, "the ACL names an id that is not mapped")
        return stored


def without_strangers(acl: bytes) -> bytes:
    """Leave out the entries of an ACL whose ids this user namespace does not have.

    Raises:
        OSError: ``EINVAL`` for a value that is not an ACL.
    """
    return IdMapping().show_acl(acl)


def _translate(
    value: bytes, uid: Callable[[int], int | None], gid: Callable[[int], int | None]
) -> bytes:
    """Translate the ids of named entries; leave those out for which there is none."""
    entries = len(value) - _ACL_HEADER.size
    if entries < 0 or entries % _ACL_ENTRY.size:
        raise OSError(EINVAL, "not an ACL")
    translations = {_ACL_USER: uid, _ACL_GROUP: gid}
    parts = [value[: _ACL_HEADER.size]]
    for tag, permissions, identifier in _ACL_ENTRY.iter_unpack(value[_ACL_HEADER.size :]):
        translation = translations.get(tag)
        found = identifier if translation is None else translation(identifier)
        if found is not None:
            parts.append(_ACL_ENTRY.pack(tag, permissions, found))
    return b"".join(parts)
