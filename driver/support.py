"""Can a union be mounted here at all (driver.md 1.3, step 1)?

Two answers are wanted apart, because engines know two errors: *nested* means inside a user
namespace that may not mount, *not supported* means that FUSE is missing, or nothing that may mount.
Nothing is mounted to find out: ``fuse-aufs`` knows the kernel's conditions.
"""

from __future__ import annotations

from driver.errors import AufsNestedError, AufsNotSupportedError
from unionfs.fuse.mounting import find_helper
from unionfs.fuse.preflight import PreflightError, check_device, may_mount

_INITIAL_MAP = ["0", "0", "4294967295"]


def check_support() -> None:
    """Return when unions can be mounted.

    Raises:
        AufsNestedError: a user namespace without the right to mount.
        AufsNotSupportedError: no usable ``/dev/fuse``, or nothing that may mount.
    """
    alone = may_mount()
    if not alone and in_user_namespace():
        raise AufsNestedError(
            "mounting needs CAP_SYS_ADMIN and a mount namespace of the same user namespace"
            " (unshare --user --map-root-user --mount)"
        )
    try:
        check_device()
    except PreflightError as error:
        raise AufsNotSupportedError(str(error)) from error
    if not alone and find_helper() is None:
        raise AufsNotSupportedError(
            "no permission to mount (EPERM): run as root, or in a namespace of your own:"
            " unshare -Urm; or install fusermount3 (package fuse3)"
        )


def in_user_namespace() -> bool:
    """Tell whether this process is in a user namespace other than the host's first one."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as table:
            return table.readline().split() != _INITIAL_MAP
    except FileNotFoundError:
        return False  # a kernel without user namespaces
