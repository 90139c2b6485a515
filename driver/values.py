"""The small values that the driver takes and returns (driver.md part 2, "Supporting types").

They hold data and know how to print themselves, nothing else. Paths are ``str`` with
surrogateescape, as everywhere in the driver's public interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class ChangeKind(IntEnum):
    """What happened to a path; the numbers are those of the engines' protocol."""

    MODIFY = 0
    ADD = 1
    DELETE = 2

    def __str__(self) -> str:
        return "CAD"[self.value]


class Change(NamedTuple):
    """One line of a layer's list of changes.

    Attributes:
        path: absolute, rooted at the layer.
        kind: modified, added or deleted.
    """

    path: str
    kind: ChangeKind

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


@dataclass(frozen=True, slots=True)
class CreateOpts:
    """What an engine may say about a layer that is to be made.

    Attributes:
        mount_label: SELinux label; accepted and ignored at creation (driver.md 1.6).
        storage_opt: the engine's ``--storage-opt`` values; anything in it is refused.
    """

    mount_label: str = ""
    storage_opt: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine may rely on.

    Attributes:
        reproduces_exact_diffs: ``diff`` gives back the very bytes that ``apply_diff`` was given.
            It does not: the branch keeps no record of how the tar was laid out.
    """

    reproduces_exact_diffs: bool = False
