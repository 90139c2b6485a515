"""How a demo tells what it does: numbered headings, calls, commands, and what came of them."""

from __future__ import annotations

import itertools
import textwrap

_numbers = itertools.count(1)


def heading(title: str, text: str) -> None:
    """Begin the next step, with an explanation of it; its indentation does not matter."""
    print(f"\n{next(_numbers)}. {title}")
    print(textwrap.indent(textwrap.dedent(text), "   "), flush=True)


def say(text: str) -> None:
    """Print a remark; one that begins with a newline stands apart from the step."""
    print(text if text.startswith("\n") else f"   {text}", flush=True)


def call(text: str, outcome: str = "") -> None:
    """Print a call of the package, as it was made, and what it returned."""
    print(f"   >>> {text}" + (f"\n       {outcome}" if outcome else ""), flush=True)


def shell(text: str) -> None:
    """Print a command."""
    print(f"   $ {text}", flush=True)


def result(text: str) -> None:
    """Print a line of what a command or a call said."""
    print(f"       {text}", flush=True)
