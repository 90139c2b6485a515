"""Fixtures for tests on real mounts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.support.mounting import Union
from tests.support.oracle import Oracle
from tests.support.parity import Parity, parity


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
