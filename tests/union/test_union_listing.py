"""Listings: order, whiteouts, offsets that stay (``unionfs/union/listing.py``, aufs.md 4.1)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cores import Core
from tests.support.effort import examples
from tests.support.trees import fill
from unionfs.branch import Directory
from unionfs.union.core import DirectoryStream


def names(core: Core, stream: DirectoryStream, start: int = 0, count: int = 1000) -> list[str]:
    found = core.union.read_directory(stream, start)
    return [os.fsdecode(name) for _, (_, name, _) in zip(range(count), found, strict=False)]


def positions(core: Core, stream: DirectoryStream, start: int = 0) -> dict[str, int]:
    return {
        os.fsdecode(name): offset for offset, name, _ in core.union.read_directory(stream, start)
    }


@pytest.fixture
def hundred(core: Core) -> Core:
    """Names from two branches."""
    fill(core.branch("W"), *(f"w{number}" for number in range(50)))
    fill(core.branch("R"), *(f"r{number}" for number in range(50)))
    core.start()
    return core


def test_upper_names_come_first_each_once(core: Core) -> None:
    fill(core.branch("W"), "a", "both", "d/x")
    fill(core.branch("R"), "both", "c", "d/y")
    core.start()
    assert set(core.names()[:3]) == {"a", "both", "d"}
    assert core.names()[3:] == ["c"]
    assert core.names("d") == ["x", "y"]


def test_a_half_read_listing_goes_on_whatever_happens(hundred: Core) -> None:
    core = hundred
    stream = core.union.open_directory(core.union.root)
    first = positions(core, stream)
    half = sorted(first, key=first.__getitem__)[:50]
    core.create("new")
    core.unlink("w1")
    core.unlink("r1")
    rest = names(core, stream, first[half[-1]])
    assert not set(half) & set(rest)
    assert set(half) | set(rest) >= set(first) - {"w1", "r1"}
    core.union.close_directory(stream)


def test_rewinding_shows_the_present_names(hundred: Core) -> None:
    core = hundred
    stream = core.union.open_directory(core.union.root)
    names(core, stream)
    core.create("new")
    core.unlink("r7")
    again = names(core, stream)
    assert "new" in again
    assert "r7" not in again
    assert len(again) == len(set(again)) == 100
    core.union.close_directory(stream)


def test_an_offset_from_before_a_rewind_leads_to_the_same_place(hundred: Core) -> None:
    core = hundred
    stream = core.union.open_directory(core.union.root)
    before = positions(core, stream)
    for number in range(0, 50, 2):
        core.unlink(f"w{number}")
    core.create("new")
    after = positions(core, stream)
    assert all(after[name] == before[name] for name in before.keys() & after.keys())
    assert after["new"] > max(before.values())
    middle = before["w25"]
    assert set(names(core, stream, middle)) == {n for n, at in after.items() if at > middle}
    core.union.close_directory(stream)


def test_a_name_that_returns_keeps_its_offset(hundred: Core) -> None:
    core = hundred
    stream = core.union.open_directory(core.union.root)
    before = positions(core, stream)
    core.unlink("r3")
    assert "r3" not in positions(core, stream)
    core.create("r3")
    assert positions(core, stream)["r3"] == before["r3"]
    core.union.close_directory(stream)


def test_every_handle_has_offsets_of_its_own(hundred: Core) -> None:
    core = hundred
    one = core.union.open_directory(core.union.root)
    names(core, one)
    core.create("new")
    two = core.union.open_directory(core.union.root)
    assert "new" in names(core, two)
    assert "new" not in names(core, one, 50)
    core.union.close_directory(one)
    core.union.close_directory(two)


def test_starting_in_the_middle_of_a_listing_that_was_never_read(hundred: Core) -> None:
    core = hundred
    stream = core.union.open_directory(core.union.root)
    assert len(names(core, stream, 90)) == 10
    assert names(core, stream, 10_000) == []
    core.union.close_directory(stream)


@examples(40)
@given(data=st.data())
def test_nothing_is_listed_twice_or_missed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    core = Core(tmp_path_factory.mktemp("listing"))
    fill(core.branch("R"), *(f"r{number}" for number in range(8)))
    core.start()
    stream = core.union.open_directory(core.union.root)
    always = set(core.names())
    seen: list[str] = []
    start = 0
    while True:
        batch = list(core.union.read_directory(stream, start))[: data.draw(st.integers(1, 4))]
        if not batch:
            break
        seen += [os.fsdecode(name) for _, name, _ in batch]
        start = batch[-1][0]
        change = data.draw(st.sampled_from(["create", "unlink", "other handle", "nothing"]))
        if change == "create":
            core.create(f"n{len(seen)}")
        elif change == "unlink":
            gone = data.draw(st.sampled_from(sorted(core.names())))
            core.unlink(gone)
            always.discard(gone)
            if not core.names():
                break
        elif change == "other handle":
            core.names()
    assert len(seen) == len(set(seen)), "a name was listed twice"
    assert always <= set(seen), "a name was missed"
    core.union.close_directory(stream)
    core.stop()


def test_a_removed_directory_lists_nothing(core: Core) -> None:
    fill(core.branch("R"), "d/")
    core.start()
    stream = core.union.open_directory(core.directory("d"))
    core.rmdir("d")
    assert names(core, stream) == []
    core.union.close_directory(stream)


def test_a_name_that_went_meanwhile_has_no_entry(core: Core) -> None:
    fill(core.branch("R"), "f")
    core.start()
    stream = core.union.open_directory(core.union.root)
    ((_, name, item),) = core.union.read_directory(stream, 0)
    core.unlink("f")
    entry = core.union.listed(stream, name, item)
    assert entry is None
    core.union.close_directory(stream)


def test_names_too_long_are_listed_and_have_a_number(core: Core) -> None:
    long = "x" * 250
    fill(core.branch("R"), long)
    core.start()
    stream = core.union.open_directory(core.union.root)
    ((_, name, item),) = core.union.read_directory(stream, 0)
    assert os.fsdecode(name) == long
    assert core.union.phantom_number(item) == os.stat(core.base / "R" / long).st_ino
    core.union.close_directory(stream)


def test_a_listing_read_in_parts_reads_the_branches_once(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(core.branch("R"), *(f"{number:04}" for number in range(2000)))
    core.start()
    stream = core.union.open_directory(core.union.root)
    scans: list[Directory] = []
    real = Directory.scan

    def counting(directory: Directory, **options: Any) -> Iterator[os.DirEntry[str]]:
        scans.append(directory)
        return real(directory, **options)

    monkeypatch.setattr(Directory, "scan", counting)
    start, total = 0, 0
    while batch := list(itertools.islice(core.union.read_directory(stream, start), 50)):
        total += len(batch)
        start = batch[-1][0]
    assert total == 2000
    assert len(scans) == len(core.union.branches)
    core.union.close_directory(stream)


@pytest.mark.parametrize("change", ["unlink", "replace", "rename", "write", "link"])
def test_what_changes_after_the_snapshot_is_listed_as_it_is(core: Core, change: str) -> None:
    """A lower file that was removed or copied up meanwhile must not come back as itself."""
    fill(core.branch("R"), "f", "other")
    core.start()
    stream = core.union.open_directory(core.union.root)
    items = {name: item for _, name, item in core.union.read_directory(stream, 0)}
    if change == "unlink":
        core.unlink("f")
    elif change == "replace":
        core.unlink("f")
        core.create("f", b"new")
    elif change == "rename":
        core.rename("other", "f")
    elif change == "write":
        core.write("f", b"new")
    else:
        core.link("f", "new")
    entry = core.union.listed(stream, b"f", items[b"f"])
    if change == "unlink":
        assert entry is None
    else:
        assert entry is not None
        assert entry.node is core.node("f")
        assert entry[1:] == core.union.getattr(core.node("f"))[1:]
    core.union.close_directory(stream)
