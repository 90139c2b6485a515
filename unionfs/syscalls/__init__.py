"""System calls that the standard library lacks or gets wrong for a union filesystem.

This package is the only place where ``ctypes`` is used. Every function takes a directory
descriptor and one name (or a descriptor), never an absolute path into a branch, and reports failure
as ``OSError`` with the kernel's errno. The rest of the project uses ``os`` for everything that the
standard library does well.
"""

from unionfs.syscalls.files import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    anonymous_file,
    ficlone,
    link_fd,
    renameat2,
    statx_birth,
)
from unionfs.syscalls.mounts import (
    MNT_DETACH,
    MS_DIRSYNC,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_SYNCHRONOUS,
    filesystem_magic,
    forbid_writing,
    mount,
    open_tree_clone,
    umount,
)
from unionfs.syscalls.opens import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)
from unionfs.syscalls.xattrs import (
    getxattr_at,
    listxattr_at,
    removexattr_at,
    setxattr_at,
)

__all__ = [
    "MNT_DETACH",
    "MS_DIRSYNC",
    "MS_NOATIME",
    "MS_NODEV",
    "MS_NODIRATIME",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_RDONLY",
    "MS_SYNCHRONOUS",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "RESOLVE_BENEATH",
    "RESOLVE_IN_ROOT",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "RESOLVE_NO_XDEV",
    "anonymous_file",
    "ficlone",
    "filesystem_magic",
    "forbid_writing",
    "getxattr_at",
    "link_fd",
    "listxattr_at",
    "mount",
    "open_tree_clone",
    "openat2",
    "removexattr_at",
    "renameat2",
    "setxattr_at",
    "statx_birth",
    "umount",
]
