"""What the kernel does with the nodes of a union: it remembers names, counts, and forgets.

The core must be right both when every name is looked up anew and when the kernel goes on using
nodes it has known for long, whatever happened to them meanwhile. So a test holds on to names as the
kernel's dentry cache would, and drops them as memory pressure would: a directory only after what is
in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from unionfs.union.core import DirectoryNode, Entry, Node, Union


class Dentries:
    """The remembered names of one union.

    pinned: how often the node of a number is in use, for example open.
    """

    def __init__(self, union: Union) -> None:
        self.union = union
        self.names: dict[tuple[int, bytes], int] = {}
        self.pinned: Counter[int] = Counter()
        self._told: Counter[int] = Counter()

    def told(self, entry: Entry) -> int:
        """Count an answer that names a node; return its number."""
        self._told[entry.node.number] += 1
        return entry.node.number

    def walk(self, path: Sequence[bytes], *, cold: bool = False) -> Node:
        """Return the node at the end of a path.

        cold: look every name up, as if it were not remembered.
        """
        node: Node = self.union.root
        for name in path:
            assert isinstance(node, DirectoryNode)
            known = self.names.get((node.number, name))
            if known is None or cold:
                number = self.told(self.union.lookup(node, name))
                self.names[node.number, name] = number
                if known is not None and known != number:
                    self._let_go(known)
                known = number
            node = self.union.node(known)
        return node

    def directory(self, path: Sequence[bytes], *, cold: bool = False) -> DirectoryNode:
        """Return the directory at the end of a path."""
        node = self.walk(path, cold=cold)
        assert isinstance(node, DirectoryNode)
        return node

    def made(self, parent: DirectoryNode, name: bytes, entry: Entry) -> None:
        """A name was made, and the answer says what it leads to."""
        self.names[parent.number, name] = self.told(entry)

    def removed(self, parent: DirectoryNode, name: bytes) -> None:
        """A name was removed."""
        number = self.names.pop((parent.number, name), None)
        if number is not None:
            self._let_go(number)

    def moved(self, old: tuple[DirectoryNode, bytes], new: tuple[DirectoryNode, bytes]) -> None:
        """A name was moved, perhaps onto another."""
        number = self.names.pop((old[0].number, old[1]), None)
        self.removed(*new)
        if number is not None:
            self.names[new[0].number, new[1]] = number

    def pin(self, node: Node) -> None:
        """Hold on to a node that is known, as an open file does."""
        self.pinned[node.number] += 1

    def unpin(self, node: Node) -> None:
        """Let go what :meth:`pin` held."""
        self.pinned[node.number] -= 1
        self._let_go(node.number)

    def shrink(self, pick: int) -> None:
        """Forget names that nothing depends on: every ``pick``-th, or as many as can be for 1."""
        while True:
            parents = {parent for parent, _ in self.names}
            leaves = [
                key
                for key, number in sorted(self.names.items())
                if number not in parents and not self.pinned[number]
            ]
            for key in leaves[::pick]:
                self._let_go(self.names.pop(key))
            if pick > 1 or not leaves:
                return

    def _let_go(self, number: int) -> None:
        """Forget a node, unless it is in use or has another name."""
        if self.pinned[number] or number in self.names.values():
            return
        if any(parent == number for parent, _ in self.names):
            return
        count = self._told.pop(number, 0)
        if count:
            self.union.forget(number, count)
