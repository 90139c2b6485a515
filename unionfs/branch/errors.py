"""What goes wrong with a branch, said in one line for the user."""

from unionfs.errors import ReportedError


class BranchError(ReportedError):
    """A branch that cannot be used."""
