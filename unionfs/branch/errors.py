"""What goes wrong with a branch, said in one line for the user."""


class BranchError(OSError):
    """A branch that cannot be used; its text is one line for the user."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.text = text

    def __str__(self) -> str:
        return self.text
