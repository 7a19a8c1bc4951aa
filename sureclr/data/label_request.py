"""The labels that a user asks for: a share ("10%"), a count ("500"), or a file.

It is not in labels.py because the command line needs it, which imports no torch.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from sureclr.errors import UserError

# How to write one, as the end of an error message
FORMS = "write a share (10%), a count (500) or the path of a CSV file (path,label)"


@dataclass(frozen=True)
class LabelRequest:
    """Which labels to use. Exactly one of the three fields is not None.

    Attributes:
        share: of the labelled training images, in (0, 1].
        count: number of labels in all.
        file: a CSV file with the header path,label.
    """

    share: float | None = None
    count: int | None = None
    file: Path | None = None

    @staticmethod
    def of(text: str) -> "LabelRequest":
        """Return the request that a user wrote.

        Args:
            text: "10%", "500" or the path of a file.

        >>> LabelRequest.of("10%").share, LabelRequest.of("500").count
        (0.1, 500)
        >>> LabelRequest.of("mine.csv").file
        PosixPath('mine.csv')

        Raises:
            UserError: a share outside (0, 100] %, a count below 1, or a number that could be
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
            f"a count of labels must be at least 1, and at least one for each class, not"
            f" {count}; try 500."
        )
    return count
