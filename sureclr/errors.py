"""Errors that a user can correct, each one sentence that names the rule, the value and the remedy.

The command line prints the sentence and exits with code 2.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

LISTED = 40  # names in a sentence


class UserError(Exception):
    """The input is wrong; the message says in one sentence how to correct it."""


def reason_in(error: UserError) -> str:
    """Return what a sentence says in brackets, which is the reason; the whole if it has none.

    >>> reason_in(UserError("the table x cannot be read (it is empty); delete it."))
    'it is empty'
    """
    return str(error).partition("(")[2].rpartition(")")[0] or str(error)


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that does not exist.

    Args:
        kind: what the name stands for, in the words of the message ("loss").
        name: what the user wrote.
        known: all names that exist. The message lists them, the nearest ones first.
    """
    names = list(known)
    near = get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(f"unknown {kind} {name!r}: {hint}Known: {listed(names)}.")


def listed(names: Sequence[str]) -> str:
    """Return names with commas, and of more than 40 only the first and their number.

    >>> listed(["a", "b"])
    'a, b'
    """
    if len(names) <= LISTED:
        return ", ".join(names)
    return f"{', '.join(names[:LISTED])}, ... ({len(names):,} in all)"
