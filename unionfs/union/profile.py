"""One table for every default.

People come to a union filesystem with three sets of habits: an aufs command line, an overlay
command line, or a program that stacks image layers.  Each of them expects other answers to the
same questions, for instance what it means when a name and its whiteout stand side by side.  A
*profile* is one column of answers.  The spelling of the mount selects it, ``profile=`` overrides
the spelling, and the single option overrides the profile.

No other module writes a default down: it asks the profile of its mount.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Profile:
    """The defaults of one kind of mount; aufs.md sections in parentheses.

    name              what ``profile=`` calls it
    strict_whiteouts  a whiteout beside the real entry is an error (EIO); else the real entry wins
                      and the whiteout hides only lower branches (2.4)
    foreign_forms     in whable branches overlayfs's forms count too: character devices 0:0 as
                      whiteouts, the opaque xattrs; only the aufs form is ever written
    root_opaque       an opaque mark at the top of a branch is honoured (3)
    udba              "none" or "reval": whether others may change the branches (7)
    plink             hard links survive copy-up (6.5)
    background_rmdir  a directory full of whiteouts is emptied after rmdir has answered (6.2)
    acl               POSIX ACLs are enforced and visible (5.3)
    max_branches      more than this is ENOSPC (1.4)
    suid, dev         set-user-id bits and device nodes work inside the mount
    noatime           the mount carries the noatime flag
    exclusive         the writable branch is locked: a second mount that would write it is refused
    unknown_options   "error", or "warn" and ignore
    fsync             a copy-up reaches the disk before the new file is published (5.2)
    """

    name: str
    strict_whiteouts: bool
    foreign_forms: bool
    root_opaque: bool
    udba: str
    plink: bool
    background_rmdir: bool
    acl: bool
    max_branches: int
    suid: bool
    dev: bool
    noatime: bool
    exclusive: bool
    unknown_options: str
    fsync: bool


AUFS: Final = Profile(
    name="aufs",
    strict_whiteouts=True,
    foreign_forms=False,
    root_opaque=False,
    udba="reval",
    plink=True,
    background_rmdir=True,
    acl=False,
    max_branches=127,
    suid=True,
    dev=True,
    noatime=False,
    exclusive=True,
    unknown_options="error",
    fsync=True,
)

OVERLAY: Final = Profile(
    name="overlay",
    strict_whiteouts=False,
    foreign_forms=True,
    root_opaque=True,
    udba="none",
    plink=True,
    background_rmdir=False,
    acl=True,
    max_branches=32767,
    suid=True,
    dev=False,
    noatime=True,
    exclusive=False,
    unknown_options="warn",
    fsync=True,
)

# A second mount of a container's writable branch is fine as long as it only reads (a diff): a
# read-only mount takes no lock.  So the lock itself can stay on.
DRIVER: Final = Profile(
    name="driver",
    strict_whiteouts=False,
    foreign_forms=True,
    root_opaque=True,
    udba="none",
    plink=True,
    background_rmdir=False,
    acl=True,
    max_branches=32767,
    suid=True,
    dev=True,
    noatime=False,
    exclusive=True,
    unknown_options="error",
    fsync=True,
)

PROFILES: Final[dict[str, Profile]] = {p.name: p for p in (AUFS, OVERLAY, DRIVER)}
