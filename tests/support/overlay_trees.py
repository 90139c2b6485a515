"""Layers as overlayfs knows them: described in memory, the same put on the disk in several forms.

A *layer* is a list of strokes, each of which adds one thing to a tree. A *case* is some layers,
top first, and changes to be made in their union. The tree is drawn so that the rules of overlayfs
and of aufs agree on what it means (``docs/differences.md`` has the list of where they do not).
"""

from __future__ import annotations

import enum
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.changes import Change, old_time

Path_ = tuple[bytes, ...]
Stroke = tuple[Path_, str, int]
Layer = tuple[Stroke, ...]
Part = tuple[int, Stroke | Change | None]  # the number of the layer, and what of it

WHAT = (
    "directory",
    "directory",
    "file",
    "file",
    "file",
    "link",
    "symlink",
    "fifo",
    "socket",
    "character device",
    "block device",
    "whiteout",
    "whiteout",
    "xattr whiteout",
    "opaque",
)
_NODES = {
    "fifo": (stat.S_IFIFO, 0),
    "socket": (stat.S_IFSOCK, 0),
    "character device": (stat.S_IFCHR, os.makedev(1, 3)),
    "block device": (stat.S_IFBLK, os.makedev(7, 300)),
}
_OPAQUE = "trusted.overlay.opaque"
_WHITEOUT = "trusted.overlay.whiteout"

_FILE_MODES = (0o644, 0o600, 0o4755, 0o2711)
_DIRECTORY_MODES = (0o755, 0o700, 0o2775, 0o1777)

# cap_net_raw, permitted and effective, in the form of revision 2
CAPABILITY = struct.pack("<5I", 0x0200_0001, 1 << 13, 0, 0, 0)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return a POSIX ACL as its extended attribute holds it: (tag, permissions, id) each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ANYBODY = 0xFFFF_FFFF
# user::rwx user:1000:r-- group::r-x mask::r-x other::r--
ACL = acl(
    (0x01, 7, ANYBODY),
    (0x02, 4, 1000),
    (0x04, 5, ANYBODY),
    (0x10, 5, ANYBODY),
    (0x20, 4, ANYBODY),
)


# What asks whether a directory is empty: to overlayfs none is that holds an attribute whiteout.
_WANTS_EMPTY = frozenset({"rmdir", "remove all", "rename", "move new folder"})


class Form(enum.Enum):
    """How deletions are written down on the disk."""

    OVERLAY = "overlay"  # device 0:0, attribute; the attribute whiteouts of Linux 6.7
    DEVICES = "devices"  # the same without attribute whiteouts
    AUFS = "aufs"  # .wh.NAME, .wh..wh..opq
    MIXED = "mixed"  # some in this form, some in that


@dataclass(frozen=True)
class Case:
    """Layers, top first (the first one is writable), and what is done in their union."""

    layers: tuple[Layer | None, ...]
    changes: tuple[Change, ...] = ()

    def mentioned(self) -> list[str]:
        """Return all paths that are drawn, or hidden, in any layer."""
        paths = {
            os.fsdecode(b"/".join(path[:depth]))
            for layer in self.layers
            for path, _, _ in layer or ()
            for depth in range(1, len(path) + 1)
        }
        return sorted(paths)

    def parts(self) -> list[Part]:
        """Return all that makes up the case, piece by piece."""
        found: list[Part] = []
        for number, layer in enumerate(self.layers):
            if layer is not None:
                found.append((number, None))
                found.extend((number, stroke) for stroke in layer)
        return [*found, *((-1, change) for change in self.changes)]

    def made_of(self, parts: Sequence[Part]) -> Case:
        """Return a case with as many layers made of some parts of this one."""
        layers: list[Layer | None] = [None] * len(self.layers)
        changes = []
        for number, part in parts:
            if isinstance(part, Change):
                changes.append(part)
            else:
                layers[number] = (layers[number] or ()) + (() if part is None else (part,))
        return Case(tuple(layers), tuple(changes))

    def __str__(self) -> str:
        lines = []
        for number, layer in enumerate(self.layers):
            for path, what, variant in layer or ():
                lines.append(f"layer {number}: {os.fsdecode(b'/'.join(path))!r} {what} {variant}")
            if layer == ():
                lines.append(f"layer {number}: empty")
        return "\n".join([*lines, *map(str, self.changes)])


@dataclass(eq=False)
class Leaf:
    """Anything but a directory, whiteouts included; hard links are one object."""

    what: str
    variant: int


@dataclass(eq=False)
class Folder:
    """A directory of a layer; ``mark`` is the value of its opaque attribute, if any."""

    variant: int = 0
    mark: str = ""
    names: dict[bytes, Leaf | Folder] = field(default_factory=dict)


def draw(case: Case) -> list[Folder | None]:
    """Return the trees of a case; what would mean different things to the two is left out."""
    trees: list[Folder | None] = []
    for number in reversed(range(len(case.layers))):
        layer = case.layers[number]
        below = [tree for tree in trees if tree is not None]
        attributes = number > 0 and not any(change.verb in _WANTS_EMPTY for change in case.changes)
        tree = None if layer is None else _draw(layer, below, attributes=attributes)
        trees.insert(0, tree)
    # With the writable layer and without it: both are compared.
    for layers in (trees, trees[1:]):
        _adapt([tree for tree in layers if tree is not None], upper=trees[0])
    return trees


def _draw(layer: Layer, below: Sequence[Folder], *, attributes: bool) -> Folder:
    top = Folder()
    files: list[Leaf] = []
    for path, what, variant in layer:
        parent = _folder(top, path[:-1])
        if parent is None:
            continue
        name = path[-1]
        if "whiteout" in what and variant % 4:
            # Most shall hide something.
            names = _names(below, path[:-1])
            name = names[variant // 4 % len(names)] if names else name
        if what in {"directory", "opaque"}:
            here = _folder(top, path)
            if here is not None and what == "directory":
                here.variant = variant
            elif here is not None and not here.mark:
                here.mark = "y"
        elif name in parent.names:
            continue
        elif what == "link":
            if files:
                parent.names[name] = files[variant % len(files)]
        elif "whiteout" in what:
            # Attribute whiteouts count on lower layers only, and in directories that say so.
            if what == "xattr whiteout" and attributes and parent.mark != "y":
                parent.mark = "x"
            else:
                what = "whiteout"
            parent.names[name] = Leaf(what, variant)
        else:
            leaf = Leaf(what, variant)
            files.append(leaf)
            parent.names[name] = leaf
    return top


def _names(trees: Sequence[Folder], path: Path_) -> list[bytes]:
    """Return the names that trees have in a directory."""
    found: set[bytes] = set()
    for tree in trees:
        here: Leaf | Folder | None = tree
        for name in path:
            here = here.names.get(name) if isinstance(here, Folder) else None
        found.update(here.names if isinstance(here, Folder) else ())
    return sorted(found)


def _folder(top: Folder, path: Path_) -> Folder | None:
    for name in path:
        child = top.names.setdefault(name, Folder())
        if not isinstance(child, Folder):
            return None
        top = child
    return top


def _adapt(stack: Sequence[Folder], *, upper: Folder | None) -> None:
    """Change what would mean different things to the two, in directories that are merged.

    stack: the directories, top first.
    upper: that of the writable layer, which is in the stack or has nothing to do with it.
    """
    if not stack:
        return
    # Whiteouts below which nothing is. overlayfs does not find such names, but lists them, and in
    # these two cases takes the directory for one that is not empty.
    if stack[0] is upper and len(stack) == 1:
        stack[0].names = {
            name: entry
            for name, entry in stack[0].names.items()
            if isinstance(entry, Folder) or entry.what != "whiteout"
        }
    elif stack[-1].mark == "x":
        stack[-1].mark = ""
        for leaf in stack[-1].names.values():
            if isinstance(leaf, Leaf) and leaf.what == "xattr whiteout":
                leaf.what = "whiteout"
    for name in sorted({name for folder in stack for name in folder.names}):
        merged: list[Folder] = []
        ended = False
        for folder in stack:
            entry = folder.names.get(name)
            if isinstance(entry, Folder):
                if ended:
                    # A directory below a file below a directory: overlayfs stops at the file, aufs
                    # skips it.
                    del folder.names[name]
                    continue
                merged.append(entry)
                if entry.mark == "y":
                    break
            elif entry is not None:
                if "whiteout" in entry.what or not merged:
                    break
                ended = True
        first = upper.names.get(name) if stack[0] is upper and upper is not None else None
        _adapt(merged, upper=first if isinstance(first, Folder) else None)


def plant(folder: Folder, top: Path, form: Form) -> None:
    """Put a tree on the disk as the new directory ``top``."""
    place = os.fsencode(top)
    os.mkdir(place)
    _plant(folder, place, form, {})


def _plant(folder: Folder, top: bytes, form: Form, planted: dict[Leaf, bytes]) -> None:
    attributes = False
    for number, (name, node) in enumerate(folder.names.items()):
        path = top + b"/" + name
        here = form
        if form is Form.MIXED:
            here = Form.AUFS if number % 2 else Form.OVERLAY
        if isinstance(node, Folder):
            os.mkdir(path)
            _plant(node, path, form, planted)
        elif "whiteout" in node.what:
            attributes |= _plant_whiteout(node, top, name, here)
        elif node in planted:
            os.link(planted[node], path, follow_symlinks=False)
        else:
            _make(node, path)
            planted[node] = path
    if folder.mark == "y":
        if form is Form.AUFS or (form is Form.MIXED and len(folder.names) % 2):
            _touch(top + b"/.wh..wh..opq")
        else:
            os.setxattr(top, _OPAQUE, b"y")
    elif attributes:
        os.setxattr(top, _OPAQUE, b"x")
    _dress(top, "directory", folder.variant)


def _plant_whiteout(leaf: Leaf, top: bytes, name: bytes, form: Form) -> bool:
    """Put a whiteout on the disk; True when it is one by its attribute."""
    path = top + b"/" + name
    if form is Form.AUFS:
        _touch(top + b"/.wh." + name)
    elif leaf.what == "whiteout" or form is Form.DEVICES:
        os.mknod(path, stat.S_IFCHR | leaf.variant & 0o777, os.makedev(0, 0))
    else:
        _touch(path)
        os.setxattr(path, _WHITEOUT, b"y")
        return True
    return False


def _touch(path: bytes) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444))


def _make(leaf: Leaf, path: bytes) -> None:
    if leaf.what == "symlink":
        os.symlink(b"to %d" % leaf.variant, path)
    elif leaf.what == "file":
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, b"%d " % leaf.variant * (leaf.variant * 7 % 64))
        os.close(fd)
    else:
        kind, device = _NODES[leaf.what]
        os.mknod(path, kind | 0o600, device)
    _dress(path, leaf.what, leaf.variant)


def _dress(path: bytes, what: str, variant: int) -> None:
    """Give an entry attributes by a number below 512; 0 means the plainest."""
    modes = _DIRECTORY_MODES if what == "directory" else _FILE_MODES
    os.chown(path, variant % 3 * 1000, variant // 3 % 3 * 500, follow_symlinks=False)
    if what != "symlink":
        os.chmod(path, modes[variant % 4])
    for key, value in _attributes(what, variant).items():
        os.setxattr(path, key, value, follow_symlinks=False)
    time = old_time(variant)
    os.utime(path, ns=(time, time), follow_symlinks=False)


def _attributes(what: str, variant: int) -> dict[str, bytes]:
    found = {}
    if variant & 0x10:
        found["trusted.k"] = b"t%d" % variant
    if variant & 0x20 and what in {"file", "directory"}:
        found["user.k"] = b"u%d" % variant
    if variant & 0x40 and what == "file":
        found["security.capability"] = CAPABILITY
    if variant & 0x80 and what != "symlink":
        found["system.posix_acl_access"] = ACL
    if variant & 0x100 and what == "directory":
        found["system.posix_acl_default"] = ACL
    return found
