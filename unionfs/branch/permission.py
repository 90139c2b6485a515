"""What a union may do with one branch: its permission word and its attributes.

A branch is written ``PATH=PERM+ATTR+ATTR``.  This module owns the part after the ``=``.

* ``rw``  objects are created and changed here, and whiteouts found here hide what lies below;
* ``ro``  never written; whiteouts found here hide nothing, unless ``+wh`` is given;
* ``rr``  as ``ro``, and nobody else writes it either (squashfs, iso9660), so no one need watch it.

aufs is forgiving on this one subject, and old scripts depend on it: a permission it does not know
becomes ``ro`` with a warning, never an error.  So ``parse_permission`` cannot fail.  Whatever it
returns is *canonical*: two spellings that mean the same are equal, print the same, and parse back
to themselves.

Spec: aufs.md 1.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Access(StrEnum):
    """The permission word of a branch."""

    RW = "rw"
    RO = "ro"
    RR = "rr"


# Copy-up that fails to set an xattr of this class goes on, when the branch has the attribute.
ICEX_CLASSES: Final = ("icexsec", "icexsys", "icextr", "icexusr", "icexoth")

# The order in which attributes are printed, whatever order they were given in.
PRINT_ORDER: Final = ("coo_reg", "coo_all", "fhsm", "icex", *ICEX_CLASSES, "wh", "moo", "nolwh")

# Of these only the last one given counts: they are three answers to one question.
_COPY_UP_ON_OPEN: Final = frozenset({"coo_reg", "coo_all", "moo"})

_ONLY_READABLE: Final = frozenset({"wh"})  # a writable branch honours whiteouts without being told
_ONLY_WRITABLE: Final = frozenset({"moo", "nolwh"})

# Known, without meaning since Linux 3.18: dropped alone, the attributes after it stay.
_OBSOLETE: Final = frozenset({"unpin"})


@dataclass(frozen=True, slots=True)
class Permission:
    """Permission word and attributes of one branch, in canonical form (aufs.md 1.2).

    ``attributes`` holds names of ``PRINT_ORDER``; "icex" stands for all five xattr classes and
    then appears instead of them.
    """

    access: Access
    attributes: frozenset[str] = frozenset()

    @property
    def writable(self) -> bool:
        """The branch may be written."""
        return self.access is Access.RW

    @property
    def whable(self) -> bool:
        """Whiteouts and opaque marks found in the branch are honoured."""
        return self.writable or "wh" in self.attributes

    @property
    def nolwh(self) -> bool:
        """Whiteouts are made as files of their own, not as hard links to one base file."""
        return "nolwh" in self.attributes

    @property
    def ignored_xattr_classes(self) -> frozenset[str]:
        """The ``icex…`` classes whose failures a copy-up to this branch overlooks (aufs.md 5.3)."""
        if "icex" in self.attributes:
            return frozenset(ICEX_CLASSES)
        return self.attributes.intersection(ICEX_CLASSES)

    def __str__(self) -> str:
        """Print the canonical form, for instance ``ro+icexusr+wh``."""
        return "+".join((self.access, *(name for name in PRINT_ORDER if name in self.attributes)))


def parse_permission(text: str, warn: Callable[[str], None]) -> Permission:
    """Read the text after the ``=`` of a branch (aufs.md 1.2).

    text: for instance ``rw`` or ``ro+wh``; empty means ``ro``.
    warn: called with one line for everything that was not understood and therefore left out.
    Never raises.
    """
    word, plus, rest = text.partition("+")
    try:
        access = Access(word)
    except ValueError:
        if not text:
            return Permission(Access.RO)
        # The attributes go with the word: what they would mean on an unknown permission is a guess.
        warn(f"unknown branch permission {text!r}: taken as ro")
        return Permission(Access.RO)
    if not plus:
        return Permission(access)
    return Permission(access, _parse_attributes(rest, access, warn))


def _parse_attributes(text: str, access: Access, warn: Callable[[str], None]) -> frozenset[str]:
    found: set[str] = set()
    names = text.split("+")
    for position, name in enumerate(names):
        if name in _OBSOLETE:
            warn(f"branch attribute {name!r} has no meaning any more: dropped")
        elif name == "icex":
            found.update(ICEX_CLASSES)
        elif name in PRINT_ORDER:
            if name in _COPY_UP_ON_OPEN:
                found -= _COPY_UP_ON_OPEN
            found.add(name)
        else:
            dropped = "+".join(names[position:])
            warn(f"unknown branch attribute {name!r}: dropped, with all that follows ({dropped!r})")
            break
    misplaced = found & (_ONLY_READABLE if access is Access.RW else _ONLY_WRITABLE)
    for name in sorted(misplaced):
        warn(f"branch attribute {name!r} means nothing on a {access} branch: dropped")
    found -= misplaced
    if found.issuperset(ICEX_CLASSES):
        found.difference_update(ICEX_CLASSES)
        found.add("icex")
    return frozenset(found)
