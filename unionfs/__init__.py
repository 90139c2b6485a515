"""A union filesystem in user space with the semantics of aufs.

The folders are layers, and arrows point downward only: ``cli`` prints, ``control`` shows a live
mount, ``fuse`` answers requests, ``union`` knows the semantics, ``branch`` reads and writes one
branch, ``syscalls`` holds what the standard library lacks. Other programs use the commands and the
names below.
"""

from unionfs.union.plinked import PseudoLinkName, pseudo_link_names

__all__ = ["PseudoLinkName", "pseudo_link_names"]
