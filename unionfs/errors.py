"""Errors that are made for people: an errno for programs, and one line that says what to do."""

from __future__ import annotations


class ReportedError(OSError):
    """An error whose ``str()`` is one whole line for the user.

    Python's own text of an ``OSError`` begins with a number, and ends with a path that nobody asked
    for.

    Args:
        number: the errno.
        text: the line.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.text = text

    def __str__(self) -> str:
        return self.text
