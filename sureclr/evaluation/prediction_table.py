"""The answers of `predict` as a table: one row an image, in memory and as a file."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from torch import Tensor, full_like

from sureclr.errors import UserError
from sureclr.evaluation.classifiers import ClassifierFacts
from sureclr.evaluation.results import Interval, PredictionSets
from sureclr.files import as_cell, why, writing_atomically
from sureclr.maths.metrics import wilson_interval

NEIGHBOURS = 3  # labelled images that are named beside each answer
ROWS_AT_ONCE = 8192  # written together
FORMATS = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class SourceAccuracy:
    """How often the answers agree with labels that the source itself has.

    Attributes:
        accuracy: share of the images whose own label is the answer.
        interval: its 95 % interval, Wilson's.
        n: labelled images that the classifier did not learn from.
        n_unknown: those of a class that the classifier does not know; they count as wrong.
    """

    accuracy: float
    interval: Interval
    n: int
    n_unknown: int

    @staticmethod
    def of(answers: Mapping[str, Any], classes: tuple[str, ...]) -> "SourceAccuracy | None":
        """Compare answers with the labels of the source; None where none of their names match.

        Args:
            answers: the columns `own_label`, `label` and `learned_from` of `Predictions`.
            classes: names of the classes of `label`.
        """
        columns = (
            answers["own_label"],
            answers["label"].tolist(),
            answers["learned_from"].tolist(),
        )
        pairs = [
            (own, classes[k])
            for own, k, learned in zip(*columns, strict=True)
            if own is not None and not learned
        ]
        if not {own for own, _ in pairs} & set(classes):
            return None
        right = sum(own == answered for own, answered in pairs)
        return SourceAccuracy(
            right / len(pairs),
            wilson_interval(right, len(pairs)),
            len(pairs),
            sum(own not in classes for own, _ in pairs),
        )


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """The answers for n images, and the files that could not be read. All tensors are on the CPU.

    Attributes:
        paths: n names of the images.
        label: (n,) int64 index into `classes`, the most probable class.
        probability: (n,) float64, its calibrated probability.
        second: (n,) int64, the second most probable class.
        second_probability: (n,) float64.
        familiar: (n,) float64 in [0, 1], a conformal p-value: among images like the training data,
            a share of at most p has such a value or a lower one. NaN where there are no training
            images to compare with. See `familiarity.fit_familiarity`.
        nearest: (n, k) int64, the most similar labelled images, as indices into `labelled_paths`;
            k is 3, or fewer where there are fewer; -1 where there is none.
        nearest_cosine: (n, k) float32, cosine of the whitened features (`neighbour_space`).
        learned_from: (n,) bool, whether the classifier learned from this very image; its answer
            then says little about new images. The image does not count as its own neighbour.
        radius: (n,) float32 in [0, 1], how certain the encoder is; None for a loss without one.
        certainty: (n,) float32, larger is more certain, on no fixed scale; or None.
        evidence: (n,) float32 nats, how much more often than under the uniform law the training
            images expect this posterior; higher where an answer is more probably right. None for a
            loss without a radius. See `tables.evidence_against`.
        set_sizes: (n,) int64, number of classes in the set of each image; None without sets.
        set_members: (sum of the sizes,) int64, these classes, image after image, the most probable
            one first. `sets` gives them by name.
        own_label: n labels that the source itself has; None where an image has none.
        errors: path -> why this file could not be read.
        labelled_paths: names of the labelled images that the classifier learned from.
        labelled_classes: the class of each.
        classifier: what is known of the classifier, with its accuracy on test images.
        accuracy: how often the answers agree with the labels of the source; None where it has none.
        threshold: p-value at or below which an image counts as unfamiliar.
        n_compared: images whose distances `familiar` is compared with.
        compared_with: what these images are, in words.
        presence: (n,) float32 in [0, 1], the probability that an image shows anything of the kind
            of the training images; None for a loss without one.
        n_evidence: training images that `evidence` rests on.
        coverage: the numbers of the sets: their mean size, and how often they contain the right
            class where that is known; None without sets.
        no_sets: why there are no sets, as a sentence; or "".
        note: what a reader of the answers should know of how the source was read.
    """

    paths: Sequence[str]
    label: Tensor
    probability: Tensor
    second: Tensor
    second_probability: Tensor
    familiar: Tensor
    nearest: Tensor
    nearest_cosine: Tensor
    learned_from: Tensor
    radius: Tensor | None
    certainty: Tensor | None
    evidence: Tensor | None
    set_sizes: Tensor | None
    set_members: Tensor | None
    own_label: Sequence[str | None]
    errors: Mapping[str, str]
    labelled_paths: Sequence[str]
    labelled_classes: Sequence[str]
    classifier: ClassifierFacts
    accuracy: SourceAccuracy | None
    threshold: float
    n_compared: int
    compared_with: str
    n_evidence: int
    coverage: PredictionSets | None
    no_sets: str
    note: str
    presence: Tensor | None = None

    def __len__(self) -> int:
        """The number of images that have an answer."""
        return len(self.paths)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.classifier.classes

    @property
    def unfamiliar(self) -> Tensor:
        """(n,) bool, whether an image is unlike the training data, at `threshold`."""
        return self.familiar <= self.threshold

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each predicted class, the most frequent first."""
        number = Counter(self.label.tolist())
        return {self.classes[k]: count for k, count in number.most_common()}

    @property
    def sets(self) -> list[tuple[str, ...]] | None:
        """The set of each image: names of classes, the most probable one first; or None."""
        if self.set_sizes is None or self.set_members is None:
            return None
        parts = self.set_members.split(self.set_sizes.tolist())
        return [tuple(self.classes[k] for k in part.tolist()) for part in parts]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the table row by row: first the images, then the files that could not be read.

        None stands for what does not exist.
        """
        for columns in self._blocks():
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the table, one row an image, and return its path. The file is whole or not there.

        Args:
            path: ends in .csv (UTF-8), .jsonl (one JSON object a line) or .parquet.
            overwrite: whether an existing file may be replaced.

        Raises:
            UserError: the file exists, its ending is another one, or it cannot be written.
        """
        path = check_out(path, overwrite=overwrite)
        writers = {".csv": self._write_csv, ".jsonl": self._write_lines}
        try:
            with writing_atomically(path) as file:
                writers.get(path.suffix.lower(), self._write_parquet)(file)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({why(error)}); give another out=."
            ) from error
        return path

    def _write_csv(self, file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text)
        for i, columns in enumerate(self._blocks()):
            if i == 0:
                writer.writerow(columns)
            plain = [
                [str(v).lower() if isinstance(v, bool) else as_cell(v) for v in column]
                for column in columns.values()
            ]
            writer.writerows(zip(*plain, strict=True))
        text.flush()
        text.detach()

    def _write_lines(self, file: IO[bytes]) -> None:
        for row in self.rows():
            file.write(json.dumps(row).encode() + b"\n")

    def _write_parquet(self, file: IO[bytes]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        kinds = {str: pa.string(), float: pa.float64(), bool: pa.bool_(), int: pa.int64()}
        schema = pa.schema([(name, kinds[kind]) for name, kind in self._kinds().items()])
        with parquet.ParquetWriter(file, schema) as writer:
            for columns in self._blocks():
                columns["path"] = [_valid_text(path) for path in columns["path"]]
                writer.write_table(pa.table(columns, schema=schema))

    def _kinds(self) -> dict[str, type]:
        """Return the columns of the table in order, each with the type of its values."""
        columns: dict[str, type] = {"path": str, "label": str, "probability": float}
        columns |= {"second_label": str, "second_probability": float}
        columns |= {} if self.set_sizes is None else {"set": str, "set_size": int}
        columns |= {} if self.radius is None else {"radius": float}
        columns |= {} if self.certainty is None else {"certainty": float}
        columns |= {} if self.presence is None else {"presence": float}
        columns |= {} if self.evidence is None else {"evidence": float}
        columns |= {"familiar": float, "unfamiliar": bool}
        for i in range(1, NEIGHBOURS + 1):
            columns |= {
                f"nearest_{i}": str,
                f"nearest_{i}_label": str,
                f"nearest_{i}_cosine": float,
            }
        columns |= {"learned_from": bool}
        columns |= {"own_label": str} if any(name is not None for name in self.own_label) else {}
        return columns | {"error": str}

    def _blocks(self) -> Iterator[dict[str, list[Any]]]:
        """Yield the table as some thousand rows at a time, by column."""
        names = self._kinds()
        for start in range(0, len(self), ROWS_AT_ONCE):
            columns = self._block(slice(start, start + ROWS_AT_ONCE))
            yield {name: columns[name] for name in names}
        if self.errors or not len(self):
            empty: dict[str, list[Any]] = {name: [None] * len(self.errors) for name in names}
            yield empty | {"path": list(self.errors), "error": list(self.errors.values())}

    def _block(self, at: slice) -> dict[str, list[Any]]:
        def named(index: Tensor, names: Sequence[str]) -> list[str | None]:
            return [names[k] if k >= 0 else None for k in index.tolist()]

        def numbers(values: Tensor | None) -> list[float | None]:
            if values is None:
                return []
            return [None if v != v else round(v, 6) for v in values[at].tolist()]

        columns: dict[str, list[Any]] = {
            "path": list(self.paths[at]),
            "label": named(self.label[at], self.classes),
            "probability": numbers(self.probability),
            "second_label": named(self.second[at], self.classes),
            "second_probability": numbers(self.second_probability),
            **self._set_columns(at),
            "radius": numbers(self.radius),
            "certainty": numbers(self.certainty),
            "presence": numbers(self.presence),
            "evidence": numbers(self.evidence),
            "familiar": numbers(self.familiar),
            "unfamiliar": self.unfamiliar[at].tolist(),
            "learned_from": self.learned_from[at].tolist(),
            "own_label": list(self.own_label[at]),
            "error": [None] * len(self.paths[at]),
        }
        for i in range(NEIGHBOURS):
            there = i < self.nearest.shape[1]
            rows = self.nearest[at, i] if there else full_like(self.label[at], -1)
            columns[f"nearest_{i + 1}"] = named(rows, self.labelled_paths)
            columns[f"nearest_{i + 1}_label"] = named(rows, self.labelled_classes)
            columns[f"nearest_{i + 1}_cosine"] = (
                numbers(self.nearest_cosine[:, i]) if there else [None] * len(rows)
            )
        return columns

    def _set_columns(self, at: slice) -> dict[str, list[Any]]:
        """Return the columns of the sets: the classes of a set as one word, divided by `|`."""
        if self.set_sizes is None or self.set_members is None:
            return {}
        names = [name.replace("\\", r"\\").replace("|", r"\|") for name in self.classes]
        sizes = self.set_sizes[at].tolist()
        first = int(self.set_sizes[: at.start].sum())
        parts = self.set_members[first : first + sum(sizes)].split(sizes)
        return {
            "set": ["|".join(names[k] for k in part.tolist()) for part in parts],
            "set_size": sizes,
        }

    def __repr__(self) -> str:
        """Return one line."""
        more = f", {len(self.errors):,} files could not be read" if self.errors else ""
        return (
            f"<Predictions: {len(self):,} images, {len(self.classes)} classes"
            f" ({self.classifier.name}), {int(self.unfamiliar.sum()):,} unfamiliar{more}>"
        )


def _valid_text(path: str) -> str:
    """Return the path with escapes in place of bytes that are not UTF-8, which Parquet refuses."""
    return path.encode("utf-8", "backslashreplace").decode()


def check_out(path: str | Path, *, overwrite: bool, formats: Sequence[str] = FORMATS) -> Path:
    """Return the path of a table that may be written, or raise a UserError that says why not.

    Args:
        path: of the file.
        overwrite: whether an existing file may be replaced.
        formats: the endings that it may have.
    """
    path = Path(path)
    if path.suffix.lower() not in formats:
        endings = f"{', '.join(formats[:-1])} or {formats[-1]}"
        raise UserError(f"out={str(path)!r} must end in {endings}, which names its format.")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give another out=.")
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise UserError(f"{path} exists already; give another out=, or overwrite=True.")
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} of out={path.name} does not exist; make it.")
    return path
