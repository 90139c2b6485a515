"""Which names a writable branch owes its pseudo-links: for whoever copies the branch away.

A file that was copied up through one of its hard links is served under all of them, but only some
of the names lie on the writable branch. A diff of the branch must contain the others too, or they
would show the old content wherever the diff is applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from unionfs.branch import open_branches
from unionfs.branch.permission import Access, Permission
from unionfs.union.core import Union
from unionfs.union.listing import entry_of, merge
from unionfs.union.nodes import DirectoryNode, Identity
from unionfs.union.options import BranchSpec
from unionfs.union.state import Rules

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unionfs.union.state import State


class PseudoLinkName(NamedTuple):
    """What a name that lies only on a lower branch is really served from.

    Attributes:
        identity: (``st_dev``, ``st_ino``) of the copy on the topmost branch.
        entry: the name of the copy in ``.wh..wh.plnk`` there.
    """

    identity: Identity
    entry: bytes


def pseudo_link_names(branches: Sequence[bytes]) -> dict[bytes, PseudoLinkName]:
    """Find all names that are served from a copy on the topmost branch, but are not on it.

    Args:
        branches: paths of the branches, top first; all are only read, and whiteouts honoured.

    Returns:
        The paths of those names, relative to the root, each with what it is served from.

    Raises:
        BranchError: a branch cannot be opened.
        OSError: a directory cannot be read.
    """
    layer = Permission(Access.RO, frozenset({"wh"}))
    specifications = [BranchSpec(path, layer) for path in branches]
    opened = open_branches(
        specifications,
        read_only=True,
        exclusive=False,
        foreign=True,
        limit=1 << 20,
        warn=lambda _: None,
    )
    rules = Rules(strict=False, trusting=True, root_opaque=True, fsync=False)
    union = Union(opened, rules)
    try:
        return _walk(union.state)
    finally:
        union.close()


def _walk(state: State) -> dict[bytes, PseudoLinkName]:
    top = state.branches[0]
    wanted = {link.upper: link for link in state.plinks if link.branch is top and link.upper}
    left = sum(link.remaining for link in wanted.values())
    inodes = {link.inode for link in state.plinks}
    names: dict[bytes, PseudoLinkName] = {}
    pending: list[tuple[bytes, DirectoryNode]] = [(b"", state.root)] if left else []
    while pending and left > 0:
        path, directory = pending.pop()
        directory.lookups += 1
        for name, item in merge(state, directory).items():
            interesting = item.directory or (
                item.inode in inodes and item.copies[0].branch is not top
            )
            entry = entry_of(state, directory, name, item) if interesting else None
            if entry is None:
                continue
            node = entry.node
            if isinstance(node, DirectoryNode):
                node.lookups += 1
                pending.append((path + name + b"/", node))
            elif node.identity in wanted:
                names[path + name] = PseudoLinkName(node.identity, wanted[node.identity].entry)
                left -= 1
    return names
