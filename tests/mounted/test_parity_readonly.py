"""Parity of a filesystem that is mounted read-only: what is refused, and with which error.

The plain directory is a read-only bind mount of itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.support.deviations import unexplained
from tests.support.parity import Comparison, Parity, Table, comparisons
from tests.support.paths import CALLS, THINGS, over
from tests.support.things import ALICE, BOB, KINDS, ROOT, thing

READ_ONLY = True
table = Table()
NEEDED = ("dir", "dir/x", "dirlink", "closed", "closed/x")
WHOLE = {
    **{name: THINGS[name] for name in NEEDED},
    **{f"a {kind}": thing(kind, 0o666, BOB) for kind in KINDS},
}


def here() -> dict[str, str]:
    paths = (*(f"a {kind}" for kind in KINDS), "absent", "dir/x", "dirlink", "closed/x", "dir/")
    return {path: path for path in paths}


for name in CALLS:
    table.add(f"read-only, {name}", WHOLE, partial(over, here, (name,)), ROOT, ALICE)

COMPARISONS = comparisons(table.cases)


@pytest.mark.parametrize("one", COMPARISONS, ids=str)
def test_parity(unions: Callable[[str], Parity], one: Comparison) -> None:
    different = unexplained(one, *unions(one.profile).compare(one))
    assert not different, "\n" + "\n".join(different)
