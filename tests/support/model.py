"""A reference model of a union: what the merged tree *is*, in plain dictionaries.

Written from the specification alone (aufs.md 2 to 6), to be compared with the real core. It has two
halves. A :class:`Tree` is one directory of one branch with its whiteouts and its opaque mark; it
never changes. A :class:`Directory` is a merged directory. They are made from the trees once, at the
start; after that an operation simply changes dictionaries, as on any filesystem.

Of the branches a merged directory only remembers what the rules still ask for: the trees below the
writable one that take part in it (``below``), and what lies on the writable branch (``upper``,
``on_upper``, ``whiteouts``, ``beside``). What lies above that branch can only be looked at
(``fixed``).
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

RECENT = -1  # a time of change: "during the test"
_LONGEST = 242


class Refused(Exception):  # noqa: N818 - an answer, not an error of the model
    """An operation fails with one of these errnos: several where the order of checks is free."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(*(errno.errorcode[number] for number in numbers))
        self.numbers = numbers


@dataclass(eq=False)
class Node:
    """What files and directories have in common."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = RECENT
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


@dataclass(eq=False)
class File(Node):
    """A file of any type but directory; two names of one file are one object.

    content: of a symbolic link its text. upper: it lies on the writable branch. fixed: it lies on a
    branch above that one.
    """

    kind: int = stat.S_IFREG
    content: bytearray = field(default_factory=bytearray)
    nlink: int = 1
    upper: bool = False
    fixed: bool = False


@dataclass(eq=False)
class Tree(Node):
    """A directory of one branch.

    whable: whiteouts and opaque marks on it count. fixed: the branch lies above the writable one.
    """

    writable: bool = False
    fixed: bool = False
    whable: bool = True
    names: dict[bytes, File | Tree] = field(default_factory=dict)
    whiteouts: set[bytes] = field(default_factory=set)
    opaque: bool = False

    def hides(self, name: bytes) -> bool:
        return self.whable and name in self.whiteouts


@dataclass(eq=False)
class Directory(Node):
    """A merged directory.

    below: the trees of branches below the writable one that are merged, top first.
    fixed: it shows from a branch above the writable one, so nothing can be put into it.
    upper: it exists on the writable branch too.
    on_upper: the names of files that lie there. whiteouts: the names hidden there.
    broken: names that cannot be looked up, because a whiteout stands beside the real entry.
    beside: what is there and does not show, beside its whiteout or covered from above: not gone
        either.
    """

    parent: Directory | None = None
    name: bytes = b""
    names: dict[bytes, File | Directory] = field(default_factory=dict)
    below: list[Tree] = field(default_factory=list)
    fixed: bool = False
    upper: bool = True
    on_upper: set[bytes] = field(default_factory=set)
    whiteouts: set[bytes] = field(default_factory=set)
    broken: set[bytes] = field(default_factory=set)
    beside: dict[bytes, File | Tree] = field(default_factory=dict)
    removed: bool = False

    def path(self) -> tuple[bytes, ...]:
        return () if self.parent is None else (*self.parent.path(), self.name)

    def lies_in(self, other: Directory) -> bool:
        return self is other or (self.parent is not None and self.parent.lies_in(other))

    def walk(self) -> Iterator[Directory]:
        yield self
        for name in sorted(self.names):
            child = self.names[name]
            if isinstance(child, Directory):
                yield from child.walk()


Place = tuple[Directory, bytes]


class Model:
    """The merged tree and the operations on it.

    Args:
        trees: the roots of the branches, top first; one is writable, those above it are fixed.
        strict: a whiteout counts for more than the real entry beside it; else for less (2.4).
        trusting: such a pair is not an error even where it is topmost (``udba=none``).
        root_opaque: an opaque mark at the top of a branch counts.
        chosen: under which of these names was a lower file with several names copied up? The
            specification leaves that open, so the test has to look. None: under none of them.
    """

    def __init__(
        self,
        trees: list[Tree],
        chosen: Callable[[list[Place]], Place | None],
        *,
        strict: bool,
        trusting: bool,
        root_opaque: bool,
    ) -> None:
        self.strict = strict
        self.trusting = trusting
        self.chosen = chosen
        count = len(trees)
        if root_opaque:
            marked = (at for at, tree in enumerate(trees) if tree.whable and tree.opaque)
            count = next(marked, count) + 1
        self.root = self._merge(None, b"", trees[:count])

    # what shows

    def _look(self, name: bytes, trees: list[Tree]) -> File | list[Tree] | None:
        """Look a name up in the trees of one directory (aufs.md 3)."""
        found: list[Tree] = []
        for tree in trees:
            here = tree.names.get(name)
            if self.strict and tree.hides(name):
                break
            if isinstance(here, File) and not found:
                return here
            if isinstance(here, Tree):
                found.append(here)
                if here.whable and here.opaque:
                    break
            if tree.hides(name):
                break
        return found or None

    def _merge(self, parent: Directory | None, name: bytes, trees: list[Tree]) -> Directory:
        top = trees[0]
        made = Directory(top.mode, top.uid, top.gid, top.mtime, dict(top.xattrs), parent, name)
        made.fixed = top.fixed
        upper = next((tree for tree in trees if tree.writable), None)
        made.upper = upper is not None
        made.below = [tree for tree in trees if not (tree.writable or tree.fixed)]
        if upper:
            made.whiteouts = set(upper.whiteouts)
        for child in {child: None for tree in trees for child in tree.names}:
            found = self._look(child, trees)
            if isinstance(found, list):
                made.names[child] = self._merge(made, child, found)
            elif found is not None:
                made.names[child] = found
            if self.strict and top.hides(child) and child in top.names and not self.trusting:
                made.broken.add(child)
            there = upper.names.get(child) if upper else None
            shown = found if isinstance(found, list) else [found]
            if there is not None and there not in shown:
                made.beside[child] = there
            elif isinstance(there, File):
                made.on_upper.add(child)
        return made

    def _shows_below(self, directory: Directory, name: bytes) -> bool:
        return self._look(name, directory.below) is not None

    def _stays_behind(self, directory: Directory) -> bool:
        """Tell whether lower branches have entries that no upper whiteout hides (6.4)."""
        hidden = set(directory.whiteouts)
        for tree in directory.below:
            if not hidden.issuperset(tree.names):
                return True
            if tree.whable:
                hidden |= tree.whiteouts
        return False

    def places(self, file: File) -> list[Place]:
        """Return all names of a file."""
        return [
            (directory, name)
            for directory in self.root.walk()
            for name, node in directory.names.items()
            if node is file
        ]

    def find(self, directory: Directory, name: bytes) -> File | Directory:
        """Return what a name shows."""
        self._check(directory, name)
        if name not in directory.names:
            raise Refused(errno.ENOENT)
        return directory.names[name]

    def _check(self, directory: Directory, name: bytes) -> None:
        self._check_name(directory, name)
        if name in directory.broken:
            raise Refused(errno.EIO)

    def _check_name(self, directory: Directory, name: bytes) -> None:
        if len(name) > _LONGEST:
            raise Refused(errno.ENAMETOOLONG)
        if name.startswith(b".wh."):
            raise Refused(errno.EPERM)
        if directory.removed:
            raise Refused(errno.ENOENT)

    def _check_fixed(self, *nodes: File | Directory) -> None:
        """Refuse to change what lies above the writable branch (5.5, 5.6)."""
        if any(node.fixed for node in nodes):
            raise Refused(errno.EROFS)

    def _check_free(self, directory: Directory, name: bytes) -> None:
        self._check(directory, name)
        if name in directory.names:
            raise Refused(errno.EEXIST)
        self._check_fixed(directory)
        if name in directory.beside:
            raise Refused(errno.EEXIST, errno.EIO)

    # copy-up

    def make_room(self, directory: Directory) -> None:
        """A directory has to exist on the writable branch, perhaps below where it shows (5.4)."""
        if not directory.upper:
            assert directory.parent is not None
            self.make_room(directory.parent)
            directory.upper = True
            if not directory.fixed:
                directory.broken.clear()  # the pair is not in the topmost copy any more

    def bring_up(self, node: File | Directory) -> None:
        """A node is about to be changed: it has to lie on the writable branch (5.1)."""
        if isinstance(node, Directory):
            if not node.removed:
                self._check_fixed(node)
                self.make_room(node)
            return
        self._check_fixed(node)
        if not node.upper:
            node.upper = True
            places = self.places(node)
            place = places[0] if len(places) == node.nlink == 1 else self.chosen(places)
            if place is not None:
                self.make_room(place[0])
                place[0].on_upper.add(place[1])

    def commit(self) -> None:
        """The writable branch becomes a layer, and an empty one comes on top of it.

        What a layer hides then stays hidden, so all below is as good as one tree of what shows.
        """

        def shown(directory: Directory) -> Tree:
            tree = Tree()
            for name, node in directory.names.items():
                tree.names[name] = shown(node) if isinstance(node, Directory) else node
                if isinstance(node, File):
                    node.upper = False
            directory.below = [tree]
            directory.upper = directory is self.root
            directory.on_upper.clear()
            directory.whiteouts.clear()
            return tree

        shown(self.root)
        self.root.mtime = RECENT

    # names

    def _put(self, directory: Directory, name: bytes, node: File | Directory) -> None:
        self.make_room(directory)
        directory.whiteouts.discard(name)
        directory.names[name] = node
        directory.mtime = RECENT
        if isinstance(node, Directory):
            directory.on_upper.discard(name)
            node.parent, node.name = directory, name
        else:
            directory.on_upper.add(name)

    def _take(self, directory: Directory, name: bytes) -> None:
        node = directory.names.pop(name)
        on_upper = node.upper if isinstance(node, Directory) else name in directory.on_upper
        self.make_room(directory)
        if not on_upper or self._shows_below(directory, name):
            directory.whiteouts.add(name)
        directory.on_upper.discard(name)
        if not directory.fixed:
            directory.mtime = RECENT

    def create(self, directory: Directory, name: bytes, node: File | Directory) -> None:
        """Make a file or directory; ``node`` holds its attributes."""
        self._check_free(directory, name)
        if directory.mode & stat.S_ISGID:
            node.gid = directory.gid
            if isinstance(node, Directory):
                node.mode |= stat.S_ISGID
        if isinstance(node, File):
            node.upper = True
        self._put(directory, name, node)

    def link(self, file: File, directory: Directory, name: bytes) -> None:
        """Give a file one more name."""
        if file.nlink == 0:
            raise Refused(errno.ENOENT)
        self._check_free(directory, name)
        self._check_fixed(file)
        file.nlink += 1
        file.upper = True  # copied up under the new name, if it was not there yet (6.3)
        self._put(directory, name, file)

    def unlink(self, directory: Directory, name: bytes) -> None:
        """Remove a name of a file."""
        file = self.find(directory, name)
        if isinstance(file, Directory):
            raise Refused(errno.EISDIR)
        self._check_fixed(file)
        self._take(directory, name)
        file.nlink -= 1

    def rmdir(self, directory: Directory, name: bytes) -> None:
        """Remove a directory in which nothing shows."""
        victim = self.find(directory, name)
        if not isinstance(victim, Directory):
            raise Refused(errno.ENOTDIR)
        self._check_fixed(victim)
        if victim.names:
            raise Refused(errno.ENOTEMPTY)
        self._take(directory, name)
        self._remove(victim)

    def _remove(self, victim: Directory) -> None:
        """What nobody sees in a directory goes with it."""
        victim.removed = True
        pending = list(victim.beside.values())
        while pending:
            node = pending.pop()
            if isinstance(node, File):
                node.nlink -= 1
            else:
                pending.extend(node.names.values())

    def rename(
        self, directory: Directory, name: bytes, to: Directory, new: bytes, *, replace: bool
    ) -> None:
        """Move a name."""
        node = self.find(directory, name)
        self._check_name(to, new)
        self._check_fixed(node, to)
        self._check(to, new)
        old = to.names.get(new)
        if old is not None and not replace:
            raise Refused(errno.EEXIST)
        if isinstance(node, Directory):
            self._check_move(node, old)
            self.make_room(node)
        else:
            if isinstance(old, Directory):
                raise Refused(errno.EISDIR)
            if old is node:
                return
            node.upper = True
            self.make_room(directory)
            directory.on_upper.add(name)
        self._take(directory, name)
        self._put(to, new, node)
        if isinstance(node, Directory):
            node.below = []
        if isinstance(old, Directory):
            self._remove(old)
        elif old is not None:
            old.nlink -= 1

    def _check_move(self, node: Directory, old: File | Directory | None) -> None:
        if isinstance(old, File):
            raise Refused(errno.ENOTDIR)
        stays = self._stays_behind(node) if node.upper else bool(node.names)
        wrong = [errno.EXDEV] * stays
        if old is not None and old.names:
            wrong.append(errno.ENOTEMPTY)
        if wrong:
            raise Refused(*wrong)

    # attributes and content

    def change(self, node: File | Directory, **attributes: int) -> None:
        """Change attributes by name."""
        self.bring_up(node)
        for name, value in attributes.items():
            setattr(node, name, value)

    def set_xattr(self, node: File | Directory, key: bytes, value: bytes) -> None:
        """Set an extended attribute."""
        self.bring_up(node)
        node.xattrs[key] = value

    def open(self, file: File, *, writing: bool, truncating: bool) -> None:
        """Open a file; nothing is copied up by this, but a refusal comes at once (3)."""
        if writing:
            self._check_fixed(file)
        if truncating:
            self.truncate(file, 0)

    def chown(self, node: File | Directory, uid: int, gid: int) -> None:
        """Change the owner; a file loses setuid, and setgid where it is executable."""
        self.bring_up(node)
        node.uid, node.gid = uid, gid
        if isinstance(node, File):
            node.mode &= ~stat.S_ISUID
            if node.mode & stat.S_IXGRP:
                node.mode &= ~stat.S_ISGID

    def write(self, file: File, offset: int, data: bytes) -> None:
        """Write into a file."""
        self.bring_up(file)
        if data:
            gap = offset - len(file.content)
            if gap > 0:
                file.content += bytes(gap)
            file.content[offset : offset + len(data)] = data
            file.mtime = RECENT

    def truncate(self, file: File, size: int) -> None:
        """Change the size of a file."""
        self.bring_up(file)
        del file.content[size:]
        file.content += bytes(size - len(file.content))
        file.mtime = RECENT
