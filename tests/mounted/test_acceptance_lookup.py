"""Acceptance cases 1 to 18: which entry answers for a name, and what a listing shows (aufs.md 11).

The default union is [W=rw, R=ro+wh]; files hold the name of their branch as text.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.directories import Listing, entries, listed
from tests.support.mounting import Union
from tests.support.trees import PRIVATE, fails, fill, paths

pytestmark = pytest.mark.both_spellings


def test_case_01_a_lower_file_is_read_in_place(union: Union) -> None:
    fill(union.R, "f")
    top = union.start()
    assert (top / "f").read_text() == "R"
    assert set(os.listdir(union.W)) == PRIVATE
    base = (union.W / ".wh..wh.aufs").lstat()
    assert stat.S_ISREG(base.st_mode)
    assert stat.S_IMODE(base.st_mode) == 0o444
    for name in (".wh..wh.plnk", ".wh..wh.orph"):
        status = (union.W / name).lstat()
        assert stat.S_ISDIR(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o700
        assert os.listdir(union.W / name) == []


def test_case_02_the_upper_file_wins(union: Union) -> None:
    fill(union.W, "f")
    fill(union.R, "f")
    top = union.start()
    assert (top / "f").read_text() == "W"
    assert listed(top) == ["f"]


def test_case_03_directories_merge_top_first(union: Union) -> None:
    fill(union.W, "d/a")
    fill(union.R, "d/b")
    top = union.start()
    assert listed(top / "d") == ["a", "b"]
    for entry in entries(top / "d"):
        assert entry.number == os.lstat(top / "d" / entry.name).st_ino


def test_case_04_a_whiteout_hides(union: Union) -> None:
    fill(union.W, ".wh.f")
    fill(union.R, "f", "g")
    top = union.start()
    with fails("ENOENT"):
        os.stat(top / "f")
    assert listed(top) == ["g"]


def test_case_05_a_whiteout_on_a_plain_ro_branch_does_not(union: Union) -> None:
    fill(union.branch("M"), ".wh.f")
    fill(union.R, "f")
    top = union.start("W=rw", "M=ro", "R=ro")
    assert (top / "f").read_text() == "R"
    assert listed(top) == ["f"]


def test_case_06_a_whiteout_on_a_ro_wh_branch_does(union: Union) -> None:
    fill(union.branch("M"), ".wh.f")
    fill(union.R, "f")
    top = union.start("W=rw", "M=ro+wh", "R=ro")
    with fails("ENOENT"):
        os.stat(top / "f")
    assert listed(top) == []


def test_case_07_a_file_over_a_directory(union: Union) -> None:
    fill(union.W, "x")
    fill(union.R, "x/y")
    top = union.start()
    assert (top / "x").is_file()
    with fails("ENOTDIR"):
        os.stat(top / "x/y")


def test_case_08_a_directory_over_a_file(union: Union) -> None:
    fill(union.W, "x/")
    fill(union.R, "x")
    top = union.start()
    assert (top / "x").is_dir()
    assert listed(top / "x") == []


def test_case_09_a_file_between_two_directories_does_not_part_them(union: Union) -> None:
    fill(union.W, "x/a")
    fill(union.branch("M"), "x")
    fill(union.R, "x/b")
    top = union.start("W=rw", "M=ro+wh", "R=ro+wh")
    assert listed(top / "x") == ["a", "b"]
    assert (top / "x/b").read_text() == "R"


def test_case_10_an_opaque_directory(union: Union) -> None:
    fill(union.W, "d/.wh..wh..opq", "d/a")
    fill(union.R, "d/b")
    top = union.start()
    assert listed(top / "d") == ["a"]
    with fails("ENOENT"):
        os.stat(top / "d/b")


@pytest.mark.parametrize(("permission", "seen"), [("ro", ["a", "b"]), ("ro+wh", ["a"])])
def test_case_11_an_opaque_mark_counts_where_whiteouts_do(
    union: Union, permission: str, seen: list[str]
) -> None:
    fill(union.branch("M"), "d/.wh..wh..opq", "d/a")
    fill(union.R, "d/b")
    top = union.start("W=rw", f"M={permission}", f"R={permission}")
    assert listed(top / "d") == seen
    assert os.path.exists(top / "d/b") == ("b" in seen)


def test_case_12_of_two_opaque_marks_the_upper_one_wins(union: Union) -> None:
    fill(union.branch("L3"), "d/.wh..wh..opq", "d/c")
    fill(union.branch("L2"), "d/.wh..wh..opq", "d/b")
    fill(union.branch("L1"), "d/a")
    top = union.start("W=rw", "L3=ro+wh", "L2=ro+wh", "L1=ro+wh")
    for name in ("a", "b"):  # asked for before the listing: a cold lookup
        with fails("ENOENT"):
            os.stat(top / "d" / name)
    assert listed(top / "d") == ["c"]


def test_case_13_reserved_names_are_refused_in_every_call(union: Union) -> None:
    fill(union.W, "f")
    fill(union.R, "g", "d/")
    top = union.start()
    before = paths(union.W)
    name = top / ".wh.foo"
    for inside in (name, top / "d/.wh.foo", top / ".wh..wh.aufs", top / ".wh..wh.plnk"):
        with fails("EPERM"):
            os.stat(inside)
    calls: dict[str, Callable[[], object]] = {
        "creat": lambda: os.open(name, os.O_CREAT | os.O_WRONLY),
        "exclusive creat": lambda: os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        "open": lambda: os.open(name, os.O_RDONLY),
        "mkdir": lambda: os.mkdir(name),
        "rmdir": lambda: os.rmdir(name),
        "unlink": lambda: os.unlink(name),
        "symlink": lambda: os.symlink("f", name),
        "mknod": lambda: os.mknod(name, stat.S_IFREG | 0o644),
        "mkfifo": lambda: os.mkfifo(name),
        "link to": lambda: os.link(top / "f", name),
        "link from": lambda: os.link(name, top / "h"),
        "rename to": lambda: os.rename(top / "f", name),
        "rename a lower file to": lambda: os.rename(top / "g", name),
        "rename from": lambda: os.rename(name, top / "h"),
        "chmod": lambda: os.chmod(name, 0o600),
        "truncate": lambda: os.truncate(name, 0),
        "readlink": lambda: os.readlink(name),
        "access": lambda: os.stat(name, follow_symlinks=False),
    }
    for call in calls.values():
        with fails("EPERM"):
            call()
    assert paths(union.W) == before
    assert set(os.listdir(union.W)) == PRIVATE | {"f"}
    assert sorted(listed(top)) == ["d", "f", "g"]


def test_case_14_names_longer_than_242_bytes(union: Union) -> None:
    long, longest, too_long = "l" * 250, "m" * 242, "n" * 243
    fill(union.R, long, longest)
    top = union.start()
    types = {entry.name: entry.type for entry in entries(top)}
    assert types[long] == 0  # DT_UNKNOWN
    with fails("ENAMETOOLONG"):
        os.stat(top / long)
    with fails("ENAMETOOLONG"):
        os.open(top / too_long, os.O_CREAT | os.O_WRONLY)
    (top / longest).write_text("changed")
    os.unlink(top / longest)
    assert paths(union.W) == {".wh." + longest}
    (top / longest).write_text("again")
    assert paths(union.W) == {longest}


@pytest.mark.differs_in_overlay("the entry is seen, the whiteout hides what is lower")
def test_case_15_a_whiteout_beside_its_entry_is_an_error(union: Union) -> None:
    fill(union.W, "f", ".wh.f", "g")
    union.branch_is_flawed("that is the case")
    top = union.start()
    with fails("EIO"):
        os.stat(top / "f")
    assert listed(top) == ["g"]


@pytest.mark.differs_in_overlay("the entry is seen, the whiteout hides what is lower")
def test_case_15_without_udba_it_hides(union: Union) -> None:
    fill(union.W, "f", ".wh.f", "g")
    union.branch_is_flawed("that is the case")
    top = union.start(options="udba=none")
    with fails("ENOENT"):
        os.stat(top / "f")
    assert listed(top) == ["g"]


@pytest.mark.differs_in_overlay("the entry is seen, the whiteout hides what is lower")
def test_case_15_on_a_lower_branch_it_hides(union: Union) -> None:
    fill(union.branch("T"), "d/")
    fill(union.W, "d/f", "d/.wh.f")
    top = union.start("T=rw", "W=ro+wh")
    with fails("ENOENT"):
        os.stat(top / "d/f")
    assert listed(top / "d") == []


def test_case_16_a_whiteout_that_is_a_directory_is_an_error(union: Union) -> None:
    (union.W / ".wh.f").mkdir()
    union.branch_is_flawed("that is the case")
    fill(union.R, "f")
    top = union.start()
    with fails("EIO"):
        os.stat(top / "f")


def test_case_17_the_link_count_of_a_merged_directory(union: Union) -> None:
    fill(union.W, "d/one/")
    fill(union.R, "d/one/", "d/two/")
    top = union.start()
    assert (union.W / "d").stat().st_nlink == 3
    assert (union.R / "d").stat().st_nlink == 4
    assert (top / "d").stat().st_nlink == 5


def test_case_18_a_listing_while_names_come_and_go(union: Union) -> None:
    # Long names, so that neither the C library nor the kernel has read everything in one go.
    old = {f"{number:04}" + "x" * 200 for number in range(300)}
    fill(union.R, *(f"d/{name}" for name in sorted(old)[:150]))
    fill(union.W, *(f"d/{name}" for name in sorted(old)[150:]))
    top = union.start()
    with Listing(top / "d") as listing:
        seen = [listing.next() for _ in range(100)]
        (top / "d/new").touch()
        while (name := listing.next()) is not None:
            seen.append(name)
        assert len(seen) == len(set(seen))
        assert old <= set(seen)
        listing.rewind()
        assert {*iter(listing.next, None)} == old | {"new", ".", ".."}


def test_case_18_seek_positions_stay_valid(union: Union) -> None:
    count = 120
    fill(union.R, *(f"d/r{number}" + "x" * 200 for number in range(count)))
    fill(union.W, *(f"d/w{number}" + "x" * 200 for number in range(count)))
    removed = {f"r{number}" + "x" * 200 for number in range(0, count, 7)}
    top = union.start()
    with Listing(top / "d") as listing:
        places: list[tuple[int, str | None]] = []
        while True:
            place = listing.tell()
            name = listing.next()
            places.append((place, name))
            if name is None:
                break
        for name in removed:
            os.unlink(top / "d" / name)
            Path(top / "d" / f"late{name}").touch()
        for place, name in places[::11]:
            listing.seek(place)
            if name is not None and name not in removed:
                # The entry itself, or one that has been removed meanwhile, comes next.
                following = listing.next()
                while following in removed:
                    following = listing.next()
                assert following == name
