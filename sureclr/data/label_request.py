"""The labels that a user asks for: a share ("10%"), a count ("500"), or a file.

It is not in labels.py because the command line needs it, which imports no torch.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from sureclr.errors import UserError

# How to write one, as the end of an error message
FORMS = "write a share (10%), a count (500) or the path of a file with two columns, path and label"


@dataclass(frozen=True)
class LabelFile:
    """A file of labels: CSV or another text table, JSON, or Parquet.

    Attributes:
        path: of the file.
        image_column: the column that names the images, by its name or its number from 1; None: it
            is found by its name and its content.
        label_column: the column of the labels, likewise. Several, with commas between them, hold
            the counts or probabilities of the classes that they are called after.
    """

    path: Path
    image_column: str | None = None
    label_column: str | None = None

    def __post_init__(self) -> None:
        """Accept any path, and numbers of columns."""
        object.__setattr__(self, "path", _expanded(Path(self.path)))
        for name in ("image_column", "label_column"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, str(value))

    @staticmethod
    def of(labels: "str | Path | LabelFile") -> "LabelFile":
        """Return a label file for its path."""
        return labels if isinstance(labels, LabelFile) else LabelFile(Path(labels))


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # there is no home folder
        return path


@dataclass(frozen=True)
class LabelRequest:
    """Which labels to use. Exactly one of the three fields is not None.

    Attributes:
        share: of the labelled training images, in (0, 1].
        count: number of labels in all.
        file: a file of labels.
    """

    share: float | None = None
    count: int | None = None
    file: LabelFile | None = None

    @staticmethod
    def of(
        text: str, image_column: str | None = None, label_column: str | None = None
    ) -> "LabelRequest":
        """Return the request that a user wrote.

        Args:
            text: "10%", "500" or the path of a file.
            image_column: of the file, see `LabelFile`.
            label_column: of the file.

        >>> LabelRequest.of("10%").share, LabelRequest.of("500").count
        (0.1, 500)
        >>> str(LabelRequest.of("mine.csv").file.path)
        'mine.csv'

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
        return LabelRequest(file=LabelFile(Path(words), image_column, label_column))


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
