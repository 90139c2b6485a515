"""How a deletion is written down on a branch: the names that aufs reserves.

A read-only branch cannot be changed, so a union records *above* it that a name is gone:

* ``.wh.NAME`` beside NAME's place (a *whiteout*) hides NAME in all lower branches;
* ``.wh..wh..opq`` inside a directory (an *opaque mark*) hides everything that lower branches have
  in that directory.

Everything that begins with ``.wh.`` is reserved and never visible through the union. Names that
begin with ``.wh..wh.`` are the union's own: the base file that whiteouts are hard links of, the
pseudo-links, and temporaries. (Specification: aufs.md 2.)

Other union filesystems write the same two facts differently. These *foreign forms* are read where
the profile says so, and never written (driver.md 4.5):

* a whiteout is a character device 0:0 in the place of NAME itself, or an empty file there with the
  attribute ``overlay.whiteout``, in a directory whose ``overlay.opaque`` is ``x``;
* an opaque directory has the attribute ``overlay.opaque`` or ``fuseoverlayfs.opaque``, value ``y``.

With ``metacopy=on`` and ``redirect_dir=on`` overlayfs also writes *references*: a file that has
attributes but no data, and a directory that was renamed alone, most of its content being left under
the old name. They are not followed; they are recognised, because what lies there would be taken for
a file of zeros, and for a directory that has lost its files.
"""

import os
import stat

WHITEOUT_PREFIX = b".wh."
PRIVATE_PREFIX = b".wh..wh."
OPAQUE_MARK = b".wh..wh..opq"
WHITEOUT_BASE = b".wh..wh.aufs"
PLINK_DIRECTORY = b".wh..wh.plnk"
ORPHAN_DIRECTORY = b".wh..wh.orph"

# A directory being removed gets a doubly prefixed name with a dot and four hex digits, and that
# must still fit into 255 bytes: hence 242 and not 251.
NAME_LIMIT = 255 - 2 * len(WHITEOUT_PREFIX) - len(b".xxxx")

FOREIGN_OPAQUE = (
    b"trusted.overlay.opaque",
    b"user.overlay.opaque",
    b"user.fuseoverlayfs.opaque",
)
FOREIGN_WHITEOUT = (b"trusted.overlay.whiteout", b"user.overlay.whiteout")
FOREIGN_METACOPY = frozenset((b"trusted.overlay.metacopy", b"user.overlay.metacopy"))
FOREIGN_REDIRECT = frozenset((b"trusted.overlay.redirect", b"user.overlay.redirect"))
# Nobody inside may see or set attributes with these prefixes, and copy-up leaves them behind: on
# another branch they would mean something.
_MARK_XATTRS = (b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.")

_SUFFIX_DIGITS = frozenset(b"0123456789abcdef")


def whiteout_of(name: bytes) -> bytes:
    """Return the name of the whiteout that hides ``name``."""
    return WHITEOUT_PREFIX + name


def is_reserved(name: bytes) -> bool:
    """Tell whether ``name`` is one that users of the union can neither see nor make."""
    return name.startswith(WHITEOUT_PREFIX)


def is_device_whiteout(status: os.stat_result) -> bool:
    """Tell whether an object is a whiteout in overlayfs's form."""
    return status.st_rdev == 0 and stat.S_ISCHR(status.st_mode)


def is_mark_xattr(key: bytes) -> bool:
    """Tell whether an extended attribute is the private mark of a union filesystem."""
    return key.startswith(_MARK_XATTRS)


def hidden_by(name: bytes) -> bytes | None:
    """Return what the directory entry ``name`` hides, or None when it is not a whiteout."""
    if name.startswith(WHITEOUT_PREFIX) and not name.startswith(PRIVATE_PREFIX):
        return name[len(WHITEOUT_PREFIX) :] or None
    return None


def temporary_name(name: bytes, count: int) -> bytes:
    """Return the temporary name under which ``name`` is built or taken down.

    Args:
        name: the visible name, at most ``NAME_LIMIT`` bytes.
        count: a counter; its lowest 16 bits tell temporaries of one name apart.
    """
    return b"%s%s.%04x" % (PRIVATE_PREFIX, name, count & 0xFFFF)


def is_temporary(name: bytes) -> bool:
    """Tell whether ``name`` is a temporary that a crash may have left behind."""
    return (
        name.startswith(PRIVATE_PREFIX)
        and len(name) > len(PRIVATE_PREFIX) + 5
        and name[-5:-4] == b"."
        and _SUFFIX_DIGITS.issuperset(name[-4:])
    )
