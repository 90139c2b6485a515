"""One branch: its permission, its root descriptor, and the forms in which deletions are written."""

from unionfs.branch.branch import Branch, WritableBranch
from unionfs.branch.directory import Directory, MountedOver
from unionfs.branch.errors import BranchError
from unionfs.branch.opening import open_branches
from unionfs.branch.writable import WritableDirectory

__all__ = [
    "Branch",
    "BranchError",
    "Directory",
    "MountedOver",
    "WritableBranch",
    "WritableDirectory",
    "open_branches",
]
