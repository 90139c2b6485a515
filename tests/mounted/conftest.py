"""Fixtures for tests on real mounts."""

from __future__ import annotations

import pytest

from tests.support.mounting import Union
from tests.support.oracle import Oracle


@pytest.fixture
def oracle(union: Union) -> Oracle:
    """The union of this test beside a plain directory."""
    return Oracle(union)


@pytest.fixture(params=["reval", "none"])
def udba(request: pytest.FixtureRequest) -> str:
    """The option in both values: what the kernel may remember differs completely."""
    return f"udba={request.param}"
