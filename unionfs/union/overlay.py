r"""The option string of an overlay mount, read.

    -o lowerdir=TOP:MIDDLE:BOTTOM,upperdir=CHANGES,workdir=WORK

This is how container engines call a mount program, and what people know from overlayfs.  The
lowers, the nearest first, become branches ``ro+wh`` below the upper, which is ``rw``.  Without an
upper, or with ``ro``, nothing can be changed and nothing is written: the upper is then one more
``ro+wh`` branch.  A copy-up of ours is made beside its target, so the work directory, which
overlayfs needs for that, only has to exist; nothing is ever written there.

Engines write option strings that a person would not: empty options (``,,``), quotes around a value
with commas (``context="a,b"``), and words meant for other programs.  A word that is unknown is
ignored, with a warning.  A word that is known and would change *what is stored or who may see it*
is refused as long as it is not there: a container with the wrong owners on disk is worse than none.

Spec: driver.md 4.1, 4.2 and 4.7; engines.md 1.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from unionfs.branch.permission import Access, Permission
from unionfs.text import printable
from unionfs.union.escapes import split, unescape
from unionfs.union.wanted import BranchSpec, OptionError, not_yet

_LAYERS: Final = frozenset({b"lowerdir", b"lowerdir+", b"upperdir", b"workdir"})

_LOWER: Final = Permission(Access.RO, frozenset({"wh"}))
_UPPER: Final = Permission(Access.RW, frozenset())

# Words, with or without a value, that ask for what is so anyway, for a speed that other programs
# gain by them, or something of mount(8).
_SILENT: Final = frozenset(
    (
        # of fuse-overlayfs
        *("timeout", "threaded", "fast_ino", "writeback", "static_nlink"),
        # of overlayfs: hard links survive copy-up, and inode numbers stay the same, in any case;
        # the marks in user.overlay.* are read beside those in trusted.overlay.*
        *("index", "xino", "userxattr", "uuid"),
        # propagation, which is for the caller to set
        *("private", "rprivate", "shared", "rshared", "slave", "rslave"),
        *("unbindable", "runbindable"),
    )
)

# Silent when off.  There is nothing to switch on.
_ALWAYS_OFF: Final = frozenset({"metacopy", "nfs_export", "verity"})

_NO_EFFECT: Final = frozenset({"context", "fscontext", "defcontext", "rootcontext", "ino32_t"})

_NOT_YET: Final = frozenset(
    (*("xattr_permissions", "noxattrs", "plugins", "allow_root", "remount", "datadir+"),)
)


def is_overlay(words: Sequence[bytes]) -> bool:
    """Tell whether these options of a mount are those of an overlay mount."""
    return any(word.partition(b"=")[0] in _LAYERS for word in words)


def split_options(text: bytes) -> list[bytes]:
    r"""Cut an option string at its commas, but for those in ``NAME="VALUE"``.

    The parts keep their escapes; the quotes are taken away, what they protected is escaped.  A
    quote that is not the first character of the value, or has no counterpart, is a character.
    """
    pieces = split(text, b",")
    words: list[bytes] = []
    here = 0
    closable = True
    while here < len(pieces):
        word = pieces[here]
        here += 1
        name, equals, value = word.partition(b"=")
        if equals and value.startswith(b'"') and closable:
            first = here - 1
            end = here if len(value) > 1 and value.endswith(b'"') else _closing(pieces, here)
            if end:
                value = b"\\,".join([value, *pieces[first + 1 : end]])
                word = name + b"=" + value[1:-1]
                here = end
            else:
                closable = False  # nor will a later one find its counterpart
        words.append(word)
    return words


def _closing(pieces: Sequence[bytes], start: int) -> int:
    """Return the index behind the piece that ends with a quote; 0 when there is none."""
    return next((i + 1 for i in range(start, len(pieces)) if pieces[i].endswith(b'"')), 0)


@dataclass(slots=True)
class OverlayReader:
    """What has been read of an overlay mount: its layers.  Of two of a kind the later one counts.

    warn: called with one line for what is accepted and has no effect; once for each name.
    """

    warn: Callable[[str], None]
    lowers: list[bytes] = field(default_factory=list)
    upper: bytes | None = None
    work: bytes | None = None
    warned: set[str] = field(default_factory=set)

    def take(self, name: str, value: bytes | None) -> dict[str, Any] | None:
        """Read one option.

        Returns the fields of MountOptions that it changes, or None: this is no word of overlay
        mounts.  Raises OptionError.
        """
        if name in _NOT_YET:
            raise not_yet(f"option '{name}'")
        if name == "fsync":
            return _fsync(value)
        if name in ("lowerdir", "lowerdir+", "upperdir", "workdir"):
            self._take_layer(name, value)
        elif name == "redirect_dir":
            if value not in (b"off", b"nofollow"):
                raise not_yet(f"redirect_dir={printable(value or b'')}", "use redirect_dir=off")
        elif name in _NO_EFFECT or (name in _ALWAYS_OFF and value != b"off"):
            self.warn_once(name, f"option '{name}' has no effect: ignored")
        elif name not in _SILENT and name not in _ALWAYS_OFF:
            return None
        return {}

    def warn_once(self, name: str, line: str) -> None:
        """Warn, but not again for the same name."""
        if name not in self.warned:
            self.warned.add(name)
            self.warn(line)

    def _take_layer(self, name: str, value: bytes | None) -> None:
        if not value:
            raise OptionError(f"option '{name}' needs a directory", f"write {name}=DIRECTORY")
        if name == "lowerdir":
            self.lowers = [unescape(lower) for lower in split(value, b":")]
            if b"" in self.lowers:
                # Between two colons overlayfs sees the beginning of data-only layers.
                raise OptionError("a layer in lowerdir has no path", "write lowerdir=UPPER:LOWER")
        elif name == "lowerdir+":
            self.lowers.append(unescape(value))  # a single one, in which a colon is a colon
        elif name == "upperdir":
            self.upper = unescape(value)
        else:
            self.work = unescape(value)

    def finish(self, *, read_only: bool) -> tuple[list[BranchSpec], dict[str, Any]]:
        """Return the branches, top first, and the fields of MountOptions that follow from them.

        read_only: the mount is asked to be ``ro``.  Raises OptionError.
        """
        if not self.lowers:
            raise OptionError("there is no lowerdir", "write lowerdir=UPPER:LOWER")
        branches = [BranchSpec(path, _LOWER) for path in self.lowers]
        if self.upper is None:
            return branches, {"read_only": True}
        if self.work is None:
            raise OptionError(
                "upperdir is given without workdir", "add workdir=, an empty directory"
            )
        if read_only:
            return [BranchSpec(self.upper, _LOWER), *branches], {}
        return [BranchSpec(self.upper, _UPPER), *branches], {"workdir": self.work}


def _fsync(value: bytes | None) -> dict[str, Any]:
    if value not in (b"0", b"1"):
        raise OptionError("bad value of 'fsync'", "write fsync=0 or fsync=1")
    return {"volatile": True} if value == b"0" else {}
