"""From mount options to a union that can be used, mounted or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unionfs.branch import open_branches
from unionfs.union.core import Rules, Union

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unionfs.branch import Branch
    from unionfs.union.options import MountOptions


def rules_of(options: MountOptions) -> Rules:
    """Return the rules that options and profile ask for."""
    profile = options.profile
    return Rules(
        strict=profile.strict_whiteouts,
        trusting=options.udba == "none",
        root_opaque=profile.root_opaque,
        plink=options.plink,
        acl=options.acl,
        ids=options.ids,
        fsync=options.fsync,
        background_above=options.dirwh if profile.background_rmdir else None,
    )


def build_union(options: MountOptions, warn: Callable[[str], None]) -> Union:
    """Open the branches and put the union together.

    Args:
        warn: receives one line for each thing the user should know.

    Raises:
        BranchError: a branch cannot be used; nothing stays open.
        OSError: the writable branch cannot be made ready.
    """
    branches = open_branches(
        options.branches,
        read_only=options.read_only,
        exclusive=options.profile.exclusive,
        foreign=options.profile.foreign_forms,
        limit=options.profile.max_branches,
        warn=warn,
    )
    union = union_of(branches, options)
    try:
        union.prepare()
    except BaseException:
        union.close()
        raise
    return union


def union_of(branches: Sequence[Branch], options: MountOptions) -> Union:
    """Put a union together from open branches, which belong to it from then on.

    Nothing is written yet: see ``Union.prepare``.

    Raises:
        OSError: a branch cannot be read; all are closed then.
    """
    try:
        return Union(branches, rules_of(options))
    except BaseException:
        for branch in branches:
            branch.close()
        raise
