"""A plain directory as the oracle: what a program sees in a union, it would see there too.

A scenario is a function that gets a directory, does something in it, and returns what it saw:
results, attributes, errnos by their symbols. It is run four times, in a plain directory and in
three of the union, which hold the same things but keep them in different places:

    lower   everything on the read-only branch
    upper   everything on the writable branch
    merged  files on the read-only branch, directories on both

All four must see the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.support.mounting import Union
from tests.support.processes import as_user

T = TypeVar("T")

PLACES = ("lower", "upper", "merged")


class Oracle:
    """A union and a plain directory beside it.

    union: not started yet.
    """

    def __init__(self, union: Union) -> None:
        self.union = union
        self.union.forked = True
        self.plain = union.base / "plain"

    def start(self, build: Callable[[Path], object] | None = None, *, options: str = "") -> Path:
        """Let ``build`` fill each of the directories, then mount."""
        places = (
            self.plain,
            self.union.R / "lower",
            self.union.W / "upper",
            self.union.R / "merged",
        )
        for place in places:
            place.mkdir()
            if build is not None:
                build(place)
        self._copy_directories(self.union.R / "merged", self.union.W / "merged")
        return self.union.start(options=options)

    @staticmethod
    def _copy_directories(source: Path, target: Path) -> None:
        for folder, _, _ in os.walk(source):
            status = os.stat(folder)
            copy = target / os.path.relpath(folder, source)
            copy.mkdir()
            os.chown(copy, status.st_uid, status.st_gid)
            copy.chmod(status.st_mode & 0o7777)
            for key in os.listxattr(folder):
                os.setxattr(copy, key, os.getxattr(folder, key))

    def same(self, scenario: Callable[[Path], T], *, places: tuple[str, ...] = PLACES) -> T:
        """Run a scenario everywhere; returns what the plain directory gave."""
        expected = scenario(self.plain)
        for place in places:
            seen = scenario(self.union.mount / place)
            assert seen == expected, f"in {place}: {seen!r}, in a plain directory: {expected!r}"
        return expected

    def same_as(
        self,
        uid: int,
        gid: int,
        scenario: Callable[[Path], T],
        *,
        groups: tuple[int, ...] = (),
        umask: int = 0o022,
        places: tuple[str, ...] = PLACES,
    ) -> T:
        """Run a scenario everywhere as another user; it gets a relative path."""

        def as_that_user(top: Path) -> T:
            return as_user(
                uid, gid, lambda: scenario(Path()), directory=top, groups=groups, umask=umask
            )

        return self.same(as_that_user, places=places)


def symbol_of(action: Callable[..., object], *arguments: object, **keywords: object) -> str:
    """Call, and return the symbol of the errno, ``ok`` when there is none; closes a descriptor."""
    try:
        result = action(*arguments, **keywords)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    if action is os.open and isinstance(result, int):
        os.close(result)
    return "ok"


def attributes(status: os.stat_result) -> tuple[int, int, int, int, int]:
    """Return the attributes that are the same on every filesystem."""
    return status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_size
