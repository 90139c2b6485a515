"""Id mapping: the text of a mapping, both directions of it, and the ids inside of ACLs."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.union.idmap import (
    NO_ID,
    OVERFLOW_ID,
    IdMapping,
    IdRange,
    Translation,
    parse_id_map,
    without_strangers,
)
from unionfs.union.options import OptionError, parse_options
from unionfs.union.printing import option_string


def ignore(_: str) -> None:
    """No option here has anything to warn about that matters."""


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("0:100000:65536", (IdRange(0, 100000, 65536),)),
        (":0:100000:65536", (IdRange(0, 100000, 65536),)),
        ("0:1000:1:1:100000:65536", (IdRange(0, 1000, 1), IdRange(1, 100000, 65536))),
        (":0:1:1001:1001:0:1:", (IdRange(0, 1, 1001), IdRange(1001, 0, 1))),
        ("0:0:4294967295", (IdRange(0, 0, 4294967295),)),
    ],
)
def test_a_mapping_is_read(text: str, ranges: tuple[IdRange, ...]) -> None:
    assert parse_id_map(text) == ranges


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "0", "0:1", "0:1:2:3", "a:0:1", "0:0:0", "-1:0:1", "0:4294967295:2"),
        *("\u0661:0:1", "0:100:10:5:200:10", "0:100:10:20:109:1", "5:0:1:0:10:100"),
    ],
)
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"triples|numbers|bits|same ids"):
        parse_id_map(text)
    with pytest.raises(OptionError, match="uidmapping"):
        parse_options([f"br:/w=rw,uidmapping={text}".encode()], ignore)


def test_directions() -> None:
    translation = Translation((IdRange(0, 100000, 10), IdRange(50, 0, 1)))
    assert [translation.shown(stored) for stored in (0, 9, 10, 50)] == [
        100000,
        100009,
        NO_ID,
        0,
    ]
    assert [translation.stored(shown) for shown in (100000, 100009, 9, 0)] == [
        0,
        9,
        OVERFLOW_ID,
        50,
    ]


@given(st.integers(0, 2**32 - 1), st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 1000))
def test_what_is_covered_comes_back(identifier: int, stored: int, shown: int, length: int) -> None:
    translation = Translation((IdRange(stored, shown, length),))
    seen = translation.shown(identifier)
    if stored <= identifier < stored + length:
        assert translation.stored(seen) == identifier
    else:
        assert seen == NO_ID  # which the kernel shows as the overflow id


def test_squashing_shows_one_id_and_stores_what_comes() -> None:
    translation = Translation(squash=7)
    assert (translation.shown(0), translation.shown(1234)) == (7, 7)
    assert translation.stored(1234) == 1234


def acl(*named: tuple[int, int, int]) -> bytes:
    entries = ((0x01, 7, 0xFFFFFFFF), *named, (0x10, 7, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_ids_in_acls_are_translated() -> None:
    def acl_of(user: int, group: int) -> bytes:
        return acl((0x02, 5, user), (0x08, 4, group))

    ids = IdMapping(Translation((IdRange(0, 1000, 9),)), Translation((IdRange(0, 2000, 9),)))
    assert ids.show_acl(acl_of(1, 2)) == acl_of(1001, 2002)
    assert ids.store_acl(acl_of(1001, 2002)) == acl_of(1, 2)
    with pytest.raises(OSError, match="not an ACL"):
        ids.store_acl(b"\x02\0\0\0abc")


def test_entries_of_an_acl_that_mean_nobody_are_not_shown() -> None:
    ids = IdMapping(Translation((IdRange(0, 1000, 9),)), Translation((IdRange(0, 2000, 9),)))
    strangers = acl((0x02, 5, 1), (0x02, 6, 50), (0x02, 7, 2**32 - 1), (0x08, 7, 60))
    assert ids.show_acl(strangers) == acl((0x02, 5, 1001))
    with pytest.raises(OSError, match="not mapped") as caught:
        ids.store_acl(acl((0x02, 5, 7)))
    assert caught.value.errno == errno.EINVAL
    # The kernel says so of an id that this user namespace does not have.
    assert without_strangers(acl((0x02, 5, 7), (0x08, 7, 2**32 - 1))) == acl((0x02, 5, 7))


def test_entries_of_an_acl_are_not_squashed() -> None:
    ids = IdMapping(Translation(squash=0), Translation(squash=0))
    several = acl((0x02, 5, 1), (0x02, 0, 2), (0x08, 4, 3))
    assert ids.show_acl(several) == ids.store_acl(several) == several


@pytest.mark.parametrize(
    "options",
    [
        "uidmapping=0:100000:65536,gidmapping=0:100000:65536",
        "squash_to_uid=5,squash_to_gid=6",
        "uidmapping=0:1:2:5:6:7",
    ],
)
def test_options_are_printed_as_they_were_read(options: str) -> None:
    read = parse_options([f"{options},br:/w=rw".encode()], ignore)
    assert read.ids.shifted
    assert parse_options([option_string(read)], ignore) == read


def test_squash_to_root() -> None:
    ids = parse_options([b"squash_to_root,br:/w=rw"], ignore).ids
    assert (ids.uid.squash, ids.gid.squash) == (0, 0)
    with pytest.raises(OptionError, match="takes no value"):
        parse_options([b"squash_to_root=1,br:/w=rw"], ignore)
    for text in ("x", "-1", "4294967295"):  # the last one is nobody's
        with pytest.raises(OptionError, match="squash_to_uid"):
            parse_options([f"squash_to_uid={text},br:/w=rw".encode()], ignore)
