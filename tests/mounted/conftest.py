"""Fixtures for tests on real mounts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.support.mounting import Union
from tests.support.oracle import Oracle
from tests.support.parity import Parity, parity


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests marked ``both_spellings`` with ``br:`` and with ``lowerdir=``, unless they differ.

    The marker ``differs_in_overlay`` says why a test has no place in the profile ``overlay``.
    """
    test = metafunc.definition
    if test.get_closest_marker("both_spellings"):
        differs = test.get_closest_marker("differs_in_overlay")
        assert differs is None or differs.args, f"{test.name}: give the reason"
        metafunc.parametrize("spelling", ["br"] if differs else ["br", "overlay"])


@pytest.fixture
def oracle(union: Union) -> Oracle:
    """The union of this test beside a plain directory."""
    return Oracle(union)


@pytest.fixture(params=["reval", "none"])
def udba(request: pytest.FixtureRequest) -> str:
    """The option in both values: what the kernel may remember differs completely."""
    return f"udba={request.param}"


@pytest.fixture(scope="module")
def unions(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, warm: None
) -> Iterator[Callable[[str], Parity]]:
    """The union of each profile for the ``COMPARISONS`` of a module, mounted when it is needed."""
    read_only = getattr(request.module, "READ_ONLY", False)
    mounted: dict[str, Parity] = {}
    with contextlib.ExitStack() as stack:

        def union_of(profile: str) -> Parity:
            if profile not in mounted:
                base = tmp_path_factory.mktemp("parity")
                made = parity(base, request.module.COMPARISONS, profile, read_only=read_only)
                mounted[profile] = stack.enter_context(made)
            return mounted[profile]

        yield union_of
