"""Fixtures for all tests; what they need is in ``tests/support``."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support.mounting import Union, warm_up

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let fixtures know whether their test has failed: then its leftovers say nothing new."""
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


@pytest.fixture(scope="session")
def warm() -> None:
    """This process has imported what a daemon needs."""
    warm_up()


@pytest.fixture
def spelling() -> str:
    """How the union of a test is mounted; tests marked ``both_spellings`` run with both."""
    return "br"


@pytest.fixture
def union(
    tmp_path: Path, request: pytest.FixtureRequest, spelling: str, warm: None
) -> Iterator[Union]:
    """A union that is not mounted yet; see ``tests/support/mounting.py`` for what it checks."""
    assert os.geteuid() == 0, "tests on real mounts have to run as root"
    made = Union(tmp_path, spelling)
    made.forked = spelling == "overlay"  # the command has been run for the other one
    try:
        yield made
        if not request.node.stash.get(_FAILED, False):
            made.finish()
        elif made.log.exists():
            print("the daemon's log:\n" + made.log.read_text())
    finally:
        made.take_down()
