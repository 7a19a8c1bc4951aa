"""What a user can mend: one sentence that names the rule, the value and the way out. The command
line turns it into exit code 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input, told in one clear sentence. Never a bug of ours."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a registry: the nearest known names first, then all of
    them.
    """
    names = list(known)
    near = get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(f"unknown {kind} {name!r}: {hint}Known: {', '.join(names)}.")
