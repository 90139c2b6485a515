"""What every test of the union core runs with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cores import Core
from tests.support.trees import temporaries


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """The modes that the core is given have passed the caller's umask; its own process has none."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    """Branches and a union without a mount; at the end no temporary name is left."""
    made = Core(tmp_path)
    yield made
    made.stop()
    if (tmp_path / "W").exists():
        assert not temporaries(tmp_path / "W")


@pytest.fixture
def mount_tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Put branches on small filesystems of their own; unmounted at the end."""
    mounted: list[Path] = []

    def mount(name: str) -> Path:
        path = tmp_path / name
        path.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "none", path], check=True
        )
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", path], check=True)
