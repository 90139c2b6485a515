"""Inode numbers: computed, recorded, given out, dropped (``unionfs/union/numbers.py``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cores import Core
from unionfs.union.numbers import ROOT_NUMBER, InodeNumbers


def free(number: int) -> bool:
    """No number is taken."""
    return False


@pytest.fixture
def numbers(tmp_path: Path) -> Iterator[InodeNumbers]:
    fd = os.open(tmp_path, os.O_RDONLY)
    made = InodeNumbers(fd)
    yield made
    made.close()
    os.close(fd)
    assert not os.listdir(tmp_path), "the record has a name"


def test_the_first_filesystem_keeps_its_inode_numbers(numbers: InodeNumbers) -> None:
    assert numbers.number(0, 7, 1234, free) == 1234


def test_low_inode_numbers_are_out_of_the_way_of_the_root(numbers: InodeNumbers) -> None:
    assert {numbers.number(0, 7, inode, free) for inode in range(11)}.isdisjoint(range(11))
    assert ROOT_NUMBER == 1


@given(
    st.sets(
        st.tuples(
            st.integers(0, 5),
            st.one_of(
                st.integers(0, 40), st.integers(2**47 - 3, 2**47 + 3), st.integers(0, 2**64 - 1)
            ),
        ),
        max_size=40,
    )
)
def test_two_files_never_have_one_number(places: set[tuple[int, int]]) -> None:
    numbers = InodeNumbers()
    given_out = [numbers.computed(device, inode) for device, inode in sorted(places)]
    assert len(set(given_out)) == len(places)
    assert all(ROOT_NUMBER < number < 2**64 for number in given_out)
    assert given_out == [numbers.computed(device, inode) for device, inode in sorted(places)]


def test_a_recorded_number_comes_before_the_computed_one(numbers: InodeNumbers) -> None:
    numbers.record(0, 7, 200, 100)
    assert numbers.number(0, 7, 200, free) == 100
    assert numbers.number(0, 7, 201, free) == 201


def test_a_dropped_record_is_gone(numbers: InodeNumbers) -> None:
    numbers.record(0, 7, 200, 100)
    numbers.drop(0, 7, 200)
    assert numbers.number(0, 7, 200, free) == 200


def test_recording_the_computed_number_needs_no_record(numbers: InodeNumbers) -> None:
    numbers.computed(7, 200)
    numbers.record(0, 7, 200, 100)
    numbers.record(0, 7, 200, 200)
    assert numbers.origin(0, 7, 200) == 0
    assert numbers.number(0, 7, 200, free) == 200


def test_each_filesystem_has_its_own_record(numbers: InodeNumbers) -> None:
    numbers.record(0, 7, 200, 100)
    numbers.record(0, 8, 200, 101)
    assert (numbers.origin(0, 7, 200), numbers.origin(0, 8, 200)) == (100, 101)


def test_where_a_number_is_taken_another_is_given_out_and_kept(numbers: InodeNumbers) -> None:
    first = numbers.number(0, 7, 200, {200}.__contains__)
    assert first != 200
    assert numbers.number(0, 7, 200, free) == first
    second = numbers.number(0, 7, 201, {201}.__contains__)
    assert second not in (200, 201, first)


def test_huge_inode_numbers_are_recorded_in_memory(numbers: InodeNumbers) -> None:
    numbers.record(0, 7, 2**63 + 5, 100)
    assert numbers.number(0, 7, 2**63 + 5, free) == 100
    numbers.drop(0, 7, 2**63 + 5)
    assert numbers.origin(0, 7, 2**63 + 5) == 0


def test_without_a_place_for_the_record_numbers_are_kept_in_memory() -> None:
    numbers = InodeNumbers(-1)
    numbers.record(0, 7, 200, 100)
    assert numbers.number(0, 7, 200, free) == 100
    numbers.drop(0, 7, 200)
    assert numbers.number(0, 7, 200, free) == 200


def test_a_full_disk_costs_a_warning_and_nothing_else(
    numbers: InodeNumbers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    numbers.record(0, 7, 200, 100)
    numbers.record(0, 7, 300, 101)
    assert (numbers.number(0, 7, 200, free), numbers.number(0, 7, 300, free)) == (100, 101)
    assert len(caplog.records) == 1


def test_the_record_is_sparse(numbers: InodeNumbers) -> None:
    numbers.record(0, 7, 2**30, 100)
    (fd,) = numbers._files.values()
    assert os.fstat(fd).st_blocks * 512 <= 64 << 10


def test_an_inode_used_again_gets_a_new_number_while_the_old_file_is_held(core: Core) -> None:
    core.branch("W")
    core.start()
    old = core.create("f")
    number, inode = old.number, os.stat(core.base / "W/f").st_ino
    core.unlink("f")
    name, new = "", old
    for attempt in range(64):
        name = f"n{attempt}"
        new = core.create(name)
        assert new.number != number, "two living files have one number"
        if os.stat(core.base / "W" / name).st_ino == inode:
            break
    core.union.forget(number)
    core.union.forget(new.number)
    assert core.file(name).number == new.number, "the number did not survive forget"


def test_a_number_goes_with_the_copy_that_had_it(core: Core) -> None:
    """The inode of a copy serves another file later: not under the number of the old one."""
    (core.branch("R") / "f").write_text("R")
    core.start()
    node = core.file("f")
    core.write("f", b"W")
    inode = os.stat(core.base / "W/f").st_ino
    core.unlink("f")
    core.union.forget(node.number, node.lookups)
    name = ""
    for attempt in range(64):
        name = f"n{attempt}"
        # On the branch itself, so that nothing is told of its inode.
        (core.base / "W" / name).touch()
        if os.stat(core.base / "W" / name).st_ino == inode:
            break
    assert core.file(name).number != node.number


def test_a_number_survives_copy_up_and_forget(core: Core) -> None:
    (core.branch("R") / "f").write_text("R")
    (core.base / "R/d").mkdir()
    (core.base / "R/d/x").write_text("R")
    core.start()
    paths = ("f", "d", "d/x")
    before = {path: core.node(path).number for path in paths}
    core.write("f", b"W")
    core.write("d/x", b"W")
    for node in list(core.union.state.nodes):
        if node is not core.union.root:
            core.union.forget(node.number, node.lookups)
    assert [*core.union.state.nodes] == [core.union.root]
    assert {path: core.node(path).number for path in paths} == before
