"""Owners that have no id here.

A user namespace, and an id-mapped mount, know some ids of the world only. stat(2) gives all others
as one number, the overflow id, 65534. That number may be the id of a user as well, of *nobody*, who
must not be taken for the owner of what belongs to all those strangers. The kernel itself keeps the
two apart, so it can be asked: some flags of open(2) are for the owner alone, or for root if the
owner has an id.

What a stranger owns is shown with no valid id. The kernel then displays the overflow id, and
refuses changes as it does on a disk (EACCES, EOVERFLOW).

Nothing tells a group without an id from the group 65534. And what is neither a file nor a directory
is not asked about: to open it might act on it, and a copy of it gives nothing away.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from unionfs.union.idmap import NO_ID, OVERFLOW_ID

_AS_OWNER: Final = os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK | os.O_CLOEXEC


def is_suspect(status: os.stat_result) -> bool:
    """Tell whether these attributes may be those of a stranger's file or directory."""
    return status.st_uid == OVERFLOW_ID and (
        stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    )


def is_strangers(path: bytes) -> bool:
    """Tell whether a file or directory with suspect attributes has an owner without an id here.

    Who is not root, here or in a namespace, is refused for other reasons as well, and may change
    nothing of a stranger anyway; so nothing is found out then.

    Args:
        path: leads to exactly the object.

    Raises:
        OSError: it cannot be found out (``EMFILE`` and the like).
    """
    if os.geteuid() != 0:
        return False
    try:
        os.close(os.open(path, _AS_OWNER))
    except PermissionError:
        return True
    except BlockingIOError:
        return False  # somebody has a lease on it: that comes after the permission
    return False


def without_ids(status: os.stat_result) -> tuple[int, int]:
    """Return owner and group of a stranger's object, as the kernel is to be told."""
    return NO_ID, NO_ID if status.st_gid == OVERFLOW_ID else status.st_gid
