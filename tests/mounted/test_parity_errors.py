"""Parity of what fails: each call with each way in which a path can be wrong or closed.

One case is one call by one actor, made with many paths one after the other. Most of them fail;
where one does not, what follows finds the same in the union as in the plain directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.support.deviations import unexplained
from tests.support.parity import Comparison, Parity, Table, attempt, comparisons
from tests.support.paths import CALLS, THINGS, closed_paths, limit, opened, over, wrong_paths
from tests.support.syscalls import linkat
from tests.support.things import ALICE, EVERYBODY, ROOT, file

table = Table()


def grouped(names: tuple[str, ...], size: int) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]


for names in grouped(tuple(CALLS), 6):
    about = ", ".join(names)
    table.add(f"wrong paths: {about}", THINGS, partial(over, wrong_paths, names), ROOT, ALICE)
    table.add(f"closed paths: {about}", THINGS, partial(over, closed_paths, names), *EVERYBODY)


def text_of(length: int) -> object:
    os.symlink("t" * length, "new")
    return len(os.readlink("new"))


for length in (0, 1, 255, 4094, 4095, 4096, 5000):
    table.add(f"symlink with a text of {length}", {}, partial(text_of, length))


def longest_names() -> object:
    """Make, find, list and remove names of the greatest length, by each call that makes one."""
    longest, longer = "n" * limit(), "n" * (limit() + 1)
    made: list[object] = []
    for call in (
        lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL)),
        os.mkdir,
        os.mkfifo,
        lambda path: os.symlink("x", path),
        lambda path: linkat("f", path),
        lambda path: os.rename("g", path),
    ):
        made.append(attempt(partial(call, longer)))
        made.append(attempt(partial(call, longest)))
        made.append(attempt(lambda: os.lstat(longest).st_mode))
        made.append(sorted(len(name) == limit() for name in os.listdir(".")))
        made.append(attempt(lambda: os.rename(longest, longer)))
        made.append(attempt(lambda: os.rmdir(longest)))
        made.append(attempt(lambda: os.unlink(longest)))
    return made


table.add("longest names", {"f": file(), "g": file()}, longest_names, ROOT, ALICE)
table.add("pathconf NAME_MAX", {}, limit)
for length in (242, 243, 250, 255, 256):
    table.add(f"make a name of {length}", {}, partial(opened, os.O_CREAT, "x" * length))

COMPARISONS = comparisons(table.cases)


@pytest.mark.parametrize("one", COMPARISONS, ids=str)
def test_parity(unions: Callable[[str], Parity], one: Comparison) -> None:
    different = unexplained(one, *unions(one.profile).compare(one))
    assert not different, "\n" + "\n".join(different)
