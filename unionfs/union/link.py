"""Hard links (aufs.md 6.3).

A link to a file on the writable branch is an ordinary link there. A lower file is copied up under
the
*new* name and becomes a pseudo-link: its old name stays where it is and is served from the copy.
"""

from __future__ import annotations

from errno import ENOENT
from typing import TYPE_CHECKING

from unionfs.union.copyup import Place, copy_up, copy_up_directory, unchanged_times
from unionfs.union.lookup import locate, nlink_of
from unionfs.union.names import claim, undone_on_failure
from unionfs.union.operation import Operation
from unionfs.union.state import Entry, State

if TYPE_CHECKING:
    from unionfs.union.nodes import DirectoryNode, FileNode


def link(state: State, node: FileNode, parent: DirectoryNode, name: bytes) -> Operation[Entry]:
    """Give a file one more name.

    Raises:
        OSError: ``ENOENT`` for a file that has lost its last name, ``EEXIST``, ``EMLINK``,
        ``EROFS``.
    """
    while node.copying is not None:
        yield node.copying
    if node.unlinked:
        raise OSError(ENOENT, "the file has no name any more")
    claimed = claim(state, parent, name, node.branch)
    target = claimed.directory.branch
    if node.branch is target or not state.rules.plink:
        yield from copy_up(state, node)
        source, source_name, _ = locate(state, node)
        claimed.directory.link(source, source_name, name)
        with undone_on_failure(claimed):
            claimed.done()
    else:
        yield from copy_up(state, node, place=Place(parent, name))
    state.nodes.add_name(node, parent, name)
    status = state.writable_directory(parent, target).stat(name)
    return Entry(node, status, nlink_of(node, status))


def materialise(state: State, node: FileNode, parent: DirectoryNode, name: bytes) -> None:
    """Make a lower name of a pseudo-linked file a real link on the writable branch.

    Precondition: the file has been copied up, ``name`` still lies on the lower branch.
    """
    target = state.target(node.branch)
    copy_up_directory(state, parent, target)
    source, source_name, _ = locate(state, node)
    directory = state.writable_directory(parent, target)
    with unchanged_times(directory):
        directory.link(source, source_name, name)
    plink = node.plink
    if plink is not None and not state.plinks.set_remaining(plink, plink.remaining - 1):
        node.plink = None
