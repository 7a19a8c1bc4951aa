"""How many labels a user asks for, and which: "10%", "500", or a file. Apart from labels.py because
the command line reads it, which imports no torch.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from sureclr.errors import UserError

FORMS = "write a share (10%), a count (500) or the path of a CSV file (path,label)"


@dataclass(frozen=True)
class LabelRequest:
    """One of the three is not None."""

    share: float | None = None
    """Of the labelled training images, in (0, 1]."""
    count: int | None = None
    """Labels in all."""
    file: Path | None = None
    """A CSV file with the header path,label."""

    @staticmethod
    def of(text: str) -> "LabelRequest":
        """What the user wrote.

        >>> LabelRequest.of("10%").share, LabelRequest.of("500").count
        (0.1, 500)
        >>> LabelRequest.of("mine.csv").file
        PosixPath('mine.csv')

        Raises:
            UserError: a share outside (0, 100] %, a count below 1, or a bare number that could mean
                either.
        """
        words = text.strip()
        if percent := re.fullmatch(r"([-+]?\d*\.?\d+)\s*%", words):
            return LabelRequest(share=_share(float(percent[1]), words))
        if re.fullmatch(r"[-+]?\d+", words):
            return LabelRequest(count=_count(int(words)))
        if re.fullmatch(r"[-+]?\d*\.\d*", words) or not words:
            raise UserError(f"labels {text!r} is neither a share nor a count; {FORMS}.")
        return LabelRequest(file=Path(words))


def _share(percent: float, words: str) -> float:
    if not 0 < percent <= 100:
        raise UserError(
            f"a share of the labels must be above 0% and at most 100%, not {words}; try 10%."
        )
    return percent / 100


def _count(count: int) -> int:
    if count < 1:
        raise UserError(
            f"a count of labels must be at least 1, and one a class, not {count}; try 500."
        )
    return count
