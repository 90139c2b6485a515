"""The demo does what it says, as root and as an ordinary user, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for the demo and nothing else."""
    path = tmp_path / "place"
    path.mkdir()
    return path


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "scripts.demo", *arguments],
        cwd=PROJECT,
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_nothing_is_left(place: Path) -> None:
    assert list(place.iterdir()) == []
    assert str(place) not in Path("/proc/self/mounts").read_text(errors="surrogateescape")


@pytest.mark.parametrize("arguments", [(), ("--rootless",)])
def test_the_demo_ends_with_equal_roots(place: Path, arguments: tuple[str, ...]) -> None:
    demo = start(place, *arguments)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 0, output
    assert "Both roots are equal" in output
    assert "/etc/hosts: ENOENT" in output
    assert ("What could not be set here" in output) == bool(arguments)
    assert_nothing_is_left(place)


@pytest.mark.parametrize("arguments", [(), ("--rootless",)])
def test_an_interrupted_demo_cleans_up(place: Path, arguments: tuple[str, ...]) -> None:
    demo = start(place, *arguments)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "driver.get('container')" in line:
            break
    demo.send_signal(signal.SIGTERM)
    output = demo.stdout.read()
    demo.stdout.close()
    assert demo.wait(timeout=30) == 128 + signal.SIGTERM, output
    time.sleep(0.1)
    assert_nothing_is_left(place)
