"""What the two spellings of a mount have in common: a branch that is asked for, and a refusal.

``options.py`` reads the words of aufs, ``overlay.py`` those of overlay mounts.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from unionfs.branch.permission import Permission


class OptionError(ValueError):
    """A mount option that cannot be accepted.  ``str()`` is one line that says what to do.

    errno is what mount(2) of aufs would have answered (aufs.md 1.4), nearly always EINVAL.
    """

    def __init__(self, problem: str, remedy: str, number: int = errno.EINVAL) -> None:
        super().__init__(f"{problem} ({errno.errorcode[number]}): {remedy}")
        self.errno = number


def not_yet(what: str, remedy: str = "leave it out") -> OptionError:
    """Return the refusal of something that is known and not there."""
    return OptionError(f"{what} is not yet supported", remedy)


@dataclass(frozen=True, slots=True)
class BranchSpec:
    """One branch as it was written.

    permission: None when none was given.  The default (aufs.md 1.2, last paragraph) depends on
    the filesystem of the branch, so it is decided when the branch is opened.
    """

    path: bytes
    permission: Permission | None = None
