"""Classifying images with a run: a class, how sure it is, and whether the image is familiar.

    answers = sureclr.predict("runs/tour", "new_photographs", labels="labels.csv")
    answers.save("answers.csv")

Every image gets an answer, and every answer says how far to trust it: a calibrated probability, the
labelled images that are most similar, and a p-value of being like the training data. An image that
is unlike them keeps its class and is marked, because a classifier that knows ten classes names one
of the ten for anything at all.
"""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from sureclr.data.decoding import ENDINGS, Decoding, FileRef
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import UNLABELLED, ImageSet
from sureclr.data.parallel_decoding import decode_files
from sureclr.data.sources import is_source
from sureclr.errors import UserError, unknown
from sureclr.evaluation.classifiers import (
    ClassifierFacts,
    FittedClassifier,
    Network,
    kept_linear,
    knn_classifier,
    learning_images,
    neighbours_without,
    network_classifier,
    spread_rows,
)
from sureclr.evaluation.results import Interval
from sureclr.evaluation.run_images import Labels, load_run_images
from sureclr.evaluation.session import Session
from sureclr.files import writing_atomically
from sureclr.maths.metrics import wilson_interval
from sureclr.progress import Progress, report_progress
from sureclr.training.run import Run

NEIGHBOURS = 3  # labelled images that are named beside each answer
UNFAMILIAR = 0.01  # p-value at or below which an image is marked
IMAGES_AT_ONCE = 4096  # embedded and answered together
FILES_AT_ONCE = 1024  # of a list of files, decoded together
ROWS_AT_ONCE = 8192  # of the table, written together
SIMILARITY_DECIMALS = 6  # beyond which a cosine is rounding, which must not decide between ties
CLASSIFIERS = ("linear", "knn")
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
            images to compare with. See `familiarity`.
        nearest: (n, k) int64, the most similar labelled images, as indices into `labelled_paths`;
            k is 3, or fewer where there are fewer; -1 where there is none.
        nearest_cosine: (n, k) float32, cosine of the frozen features.
        learned_from: (n,) bool, whether the classifier learned from this very image; its answer
            then says little about new images. The image does not count as its own neighbour.
        radius: (n,) float32 in [0, 1], how certain the encoder is; None for a loss without one.
        certainty: (n,) float32, larger is more certain, on no fixed scale; or None.
        own_label: n labels that the source itself has; None where an image has none.
        errors: path -> why this file could not be read.
        labelled_paths: names of the labelled images that the classifier learned from.
        labelled_classes: the class of each.
        classifier: what is known of the classifier, with its accuracy on test images.
        accuracy: how often the answers agree with the labels of the source; None where it has none.
        threshold: p-value at or below which an image counts as unfamiliar.
        n_compared: images whose nearest similarity `familiar` is compared with.
        compared_with: what these images are, in words.
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
    own_label: Sequence[str | None]
    errors: Mapping[str, str]
    labelled_paths: Sequence[str]
    labelled_classes: Sequence[str]
    classifier: ClassifierFacts
    accuracy: SourceAccuracy | None
    threshold: float
    n_compared: int
    compared_with: str
    note: str

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
                f"{path} cannot be written ({error.strerror or error}); give another out=."
            ) from error
        return path

    def _write_csv(self, file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text)
        for i, columns in enumerate(self._blocks()):
            if i == 0:
                writer.writerow(columns)
            plain = [
                [str(v).lower() if isinstance(v, bool) else v for v in column]
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

        kinds = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
        schema = pa.schema([(name, kinds[kind]) for name, kind in self._kinds().items()])
        with parquet.ParquetWriter(file, schema) as writer:
            for columns in self._blocks():
                columns["path"] = [_valid_text(path) for path in columns["path"]]
                writer.write_table(pa.table(columns, schema=schema))

    def _kinds(self) -> dict[str, type]:
        """Return the columns of the table in order, each with the type of its values."""
        columns: dict[str, type] = {"path": str, "label": str, "probability": float}
        columns |= {"second_label": str, "second_probability": float}
        columns |= {} if self.radius is None else {"radius": float}
        columns |= {} if self.certainty is None else {"certainty": float}
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
            "radius": numbers(self.radius),
            "certainty": numbers(self.certainty),
            "familiar": numbers(self.familiar),
            "unfamiliar": self.unfamiliar[at].tolist(),
            "learned_from": self.learned_from[at].tolist(),
            "own_label": list(self.own_label[at]),
            "error": [None] * len(self.paths[at]),
        }
        for i in range(NEIGHBOURS):
            there = i < self.nearest.shape[1]
            rows = self.nearest[at, i] if there else torch.full_like(self.label[at], -1)
            columns[f"nearest_{i + 1}"] = named(rows, self.labelled_paths)
            columns[f"nearest_{i + 1}_label"] = named(rows, self.labelled_classes)
            columns[f"nearest_{i + 1}_cosine"] = (
                numbers(self.nearest_cosine[:, i]) if there else [None] * len(rows)
            )
        return columns

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


def check_out(path: str | Path, *, overwrite: bool) -> Path:
    """Return the path of a table that may be written, or raise a UserError that says why not.

    Args:
        path: of the file.
        overwrite: whether an existing file may be replaced.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"out={str(path)!r} must end in .csv, .jsonl or .parquet, which names its format."
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder; give another out=.")
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise UserError(f"{path} exists already; give another out=, or overwrite=True.")
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} of out={path.name} does not exist; make it.")
    return path


# --- Whether an image is familiar -----------------------------------------------------


@dataclass(frozen=True, eq=False)
class Familiarity:
    """What new images are compared with.

    Attributes:
        features: (n, f) of the images that the run may have been trained on.
        reference: (m,) ascending, similarities of images that are known to be like these.
        compared_with: what the m images are, in words.
    """

    features: Tensor
    reference: Tensor
    compared_with: str

    def p_values(self, features: Tensor, own: Tensor) -> Tensor:
        """Return the p-value of each image, (q,) float64; NaN where nothing can be compared.

        Args:
            features: (q, f).
            own: (q,) int64, the training image that an image is itself, or -1; it is left out.
        """
        similarity, _ = neighbours_without(features, own, self.features, 1)
        if similarity.shape[1] == 0 or len(self.reference) == 0:
            return torch.full((len(features),), torch.nan, dtype=torch.float64)
        return conformal_p(_comparable(similarity[:, 0]), self.reference)


def _comparable(similarity: Tensor) -> Tensor:
    return similarity.double().round(decimals=SIMILARITY_DECIMALS)


def conformal_p(scores: Tensor, reference: Tensor) -> Tensor:
    """Return (1 + number of reference scores that are at most the score) / (m + 1), (q,) float64.

    If an image and the m reference images are drawn alike, in whatever way, its p-value is at most
    alpha with a probability of at most alpha (Vovk et al. 2005). Equal scores count against the
    image, so that ties keep this true.

    Args:
        scores: (q,), low for an image that is unlike the others.
        reference: (m,) ascending.
    """
    at_most = torch.searchsorted(reference, scores.contiguous(), right=True)
    return (1 + at_most).double() / (len(reference) + 1)


def familiarity(table: Embeddings) -> Familiarity:
    """Return what tells whether an image is like the images of a table.

    An image's score is the cosine of its features to the nearest image that is not of the test
    split. It is compared with the scores of the test images (at most 5,000); where there are none,
    with those of the other images, each left out of the search. The encoder was trained on those,
    so they may be nearer to each other than new images of the same kind are, and the p-values of
    new images then come out too low.
    """
    others, test = table.select(table.split != "test"), table.select(table.split == "test")
    if len(test):
        rows = spread_rows(len(test))
        queries, own, words = test.features[rows], torch.full_like(rows, -1), "test images"
    else:
        own = spread_rows(len(others))
        queries, words = others.features[own], "training images, each compared with the others"
    similarity, _ = neighbours_without(queries, own, others.features, 1)
    nearest = similarity[:, 0] if similarity.shape[1] else similarity.reshape(-1)
    return Familiarity(others.features, _comparable(nearest).sort().values, words)


# --- Reading what is to be classified ---------------------------------------------------


Part = tuple[ImageSet, Embeddings | None]  # some images, with their embeddings where they exist


@dataclass
class _Source:
    """The images that are to be classified, in parts that fit into memory.

    Attributes:
        total: number of images, or of files.
        errors: path -> why it could not be read; filled while the parts are read.
        notes: what a reader should know of how they were read.
    """

    session: Session
    images: Any
    root: Path | None
    total: int
    errors: dict[str, str]
    notes: list[str]
    whole: ImageSet | None

    @staticmethod
    def of(session: Session, images: Any, root: Path | None) -> "_Source":
        files = _file_list(images)
        if files is not None:
            return _Source(session, files, root, len(files), {}, [], None)
        if images is None:
            whole = session.images
        else:
            whole = load_run_images(session.run, images, None, root, session.progress)
        report: Any = getattr(whole, "report", None)
        refused = {} if report is None else dict(report.refused)
        return _Source(session, images, root, len(whole), refused, [whole.note], whole)

    def parts(self) -> Iterator[Part]:
        """Yield the images.

        Raises:
            UserError: none of the files can be read.
        """
        if self.whole is None:
            yield from self._parts_of_files()
            return
        table = self.session.inputs.table if self.images is None else None
        for start in range(0, len(self.whole), IMAGES_AT_ONCE):
            rows = torch.arange(start, min(start + IMAGES_AT_ONCE, len(self.whole))).numpy()
            yield self.whole.select(rows), None if table is None else table.select(rows)

    def _parts_of_files(self) -> Iterator[Part]:
        run, progress = self.session.run, self.session.progress
        for start in range(0, len(self.images), FILES_AT_ONCE):
            files = self.images[start : start + FILES_AT_ONCE]
            try:
                part = load_run_images(run, files, None, self.root, progress)
            except UserError:
                refs = [FileRef(file) for file in files]
                results = decode_files(refs, Decoding(run.size, run.channels), progress)
                verdicts = {
                    file: result
                    for file, result in zip(files, results, strict=True)
                    if isinstance(result, str)
                }
                if not verdicts:
                    raise  # the reason is another one
                self.errors.update(verdicts)
                good = [file for file in files if file not in verdicts]
                if not good:
                    continue
                part = load_run_images(run, good, None, self.root, progress)
            yield part, None
        if len(self.errors) == len(set(self.images)):
            name, reason = next(iter(self.errors.items()))
            raise UserError(
                f"none of the {len(self.images)} files can be read as an image: {name} ({reason});"
                " give image files, a folder or a data source."
            )


def _file_list(images: Any) -> list[str] | None:
    """Return the files if `images` is one image file or a list of files; else None."""
    one = isinstance(images, str | os.PathLike)
    many = [images] if one else images
    if not isinstance(many, list | tuple) or not many:
        return None
    if not all(isinstance(entry, str | os.PathLike) for entry in many):
        return None
    files = [os.fspath(entry) for entry in many]
    if any(os.path.isdir(file) or is_source(str(file)) for file in files):
        return None
    is_image = Path(files[0]).suffix.lower() in ENDINGS and os.path.isfile(files[0])
    return None if one and not is_image else files


# --- The answers ----------------------------------------------------------------------


def predict(
    run: str | Path | Run,
    images: Any = None,
    labels: Labels | None = None,
    classifier: str | Network = "linear",
    *,
    data: Any = None,
    unfamiliar: float = UNFAMILIAR,
    device: str = "auto",
    root: Path | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Classify images with a run, and say how sure each answer is.

    The probabilities are calibrated by temperature scaling: the logits z become softmax(z / T),
    where T is fitted on labelled images that the classifier did not learn from (a fifth of them in
    turn, by cross-validation; for kNN, each image without its own vote; for a fine-tuned network,
    the test images). With fewer than 20 such images T stays 1, the probabilities are those of the
    classifier alone, and `Predictions.classifier.calibration` says so.

    Images are embedded some thousand at a time, so that the memory does not grow with their number
    beyond the answers themselves.

    Args:
        run: a run folder, or a `Run`.
        images: what to classify: anything that `sureclr.as_image_set` takes; None means the run's
            own images. Of a list of files, those that cannot be read are in `Predictions.errors`.
        labels: of the images that the classifier learns from: one for each, or the path of a label
            file; None means the labels that the images have themselves.
        classifier: "linear", the logistic regression on the frozen features, which is kept in the
            run folder and used again while checkpoint, images and labels are the same; "knn", the
            vote of the 20 nearest labelled images; or a network that has learned already, such as
            `sureclr.load_finetuned(run)`: any object with the names `classes` and a function
            `probabilities(images)`.
        data: the images that the classifier learns from; None means those that the run was trained
            on. Those of the test split are not learned from; the accuracy is measured on them.
        unfamiliar: images whose p-value `familiar` is at most this are marked as unfamiliar: about
            this share of images that are like the training data.
        device: auto, cuda, mps or cpu; a `Run` stays where it is.
        root: the folder of downloaded data sets.
        progress: what to report to; None reports on stderr.

    Raises:
        UserError: the run, the images or the labels cannot be used, there are labels of fewer than
            two classes, or there is no such classifier.
        Stopped: SIGINT or SIGTERM came.
    """
    if isinstance(classifier, str) and classifier not in CLASSIFIERS:
        if classifier == "finetuned":
            raise UserError(
                "the fine-tuned classifier is an object; pass"
                " classifier=sureclr.load_finetuned(run)."
            )
        raise unknown("classifier", classifier, CLASSIFIERS)
    if not 0 <= unfamiliar < 1:
        raise UserError(
            f"unfamiliar must be a share of at least 0 and below 1, not {unfamiliar}; try 0.01."
        )
    with Session(run, data, labels, device=device, root=root, progress=progress) as session:
        fitted = _fitted(session, classifier)
        comparison = familiarity(session.inputs.table)
        source = _Source.of(session, images, root)
        answering = _Answering.of(session, fitted, comparison)
        answers: list[dict[str, Any]] = []
        with report_progress(session.progress, "Classifying images", source.total) as update:
            for part, table in source.parts():
                if len(part):
                    answers.append(answering.answer(part, table))
                update(min(source.total, sum(len(a["paths"]) for a in answers)))
    joined = {name: _join([answer[name] for answer in answers]) for name in answers[0]}
    return Predictions(
        **joined,
        errors=source.errors,
        labelled_paths=answering.labelled.paths,
        labelled_classes=[answering.labelled.classes[k] for k in answering.labelled.labels],
        classifier=fitted.facts,
        accuracy=_source_accuracy(joined, fitted.facts.classes),
        threshold=unfamiliar,
        n_compared=len(comparison.reference),
        compared_with=comparison.compared_with,
        note="; ".join(filter(None, source.notes)),
    )


def _fitted(session: Session, classifier: str | Network) -> FittedClassifier:
    if classifier == "linear":
        return kept_linear(session)
    if isinstance(classifier, str):
        return knn_classifier(session.inputs.table, session.images.name)
    return network_classifier(classifier, session.images, session.inputs.table)


@dataclass(frozen=True, eq=False)
class _Answering:
    """What answers need beside an image.

    Attributes:
        labelled: the images that the classifier learned from, with their embeddings.
        row_of: digest of an image's pixels -> its row among the images that are not of test.
        labelled_row: (n,) their rows in `labelled`, -1 where an image has no label.
    """

    session: Session
    fitted: FittedClassifier
    comparison: Familiarity
    labelled: Embeddings
    row_of: dict[bytes, int]
    labelled_row: Tensor

    @staticmethod
    def of(session: Session, fitted: FittedClassifier, comparison: Familiarity) -> "_Answering":
        images, table = session.images, session.inputs.table
        others = torch.from_numpy((table.split != "test").nonzero()[0])
        has_label = table.labels[others] >= 0
        labelled_row = torch.where(has_label, has_label.long().cumsum(0) - 1, -1)
        row_of: dict[bytes, int] = {}
        for row, index in enumerate(others.tolist()):
            digest = _digest(images.images[index])
            if digest not in row_of or labelled_row[row_of[digest]] < 0:
                row_of[digest] = row  # of equal images, one with a label counts
        return _Answering(session, fitted, comparison, learning_images(table), row_of, labelled_row)

    def answer(self, images: ImageSet, table: Embeddings | None) -> dict[str, Any]:
        """Return the columns of `Predictions` for some images."""
        table = self.session.run.embed(images) if table is None else table
        probabilities = self.fitted.probabilities(images, table)
        best, order = probabilities.topk(min(2, probabilities.shape[1]), dim=1)
        own = torch.tensor([self.row_of.get(_digest(pixels), -1) for pixels in images.images])
        own_labelled = torch.where(own >= 0, self.labelled_row[own], -1)
        cosine, nearest = neighbours_without(
            table.features, own_labelled, self.labelled.features, NEIGHBOURS
        )
        missing = NEIGHBOURS - nearest.shape[1]
        return {
            "paths": list(images.paths),
            "label": order[:, 0],
            "probability": best[:, 0],
            "second": order[:, -1],
            "second_probability": best[:, -1],
            "familiar": self.comparison.p_values(table.features, own),
            "nearest": torch.nn.functional.pad(nearest, (0, missing), value=-1),
            "nearest_cosine": torch.nn.functional.pad(cosine, (0, missing), value=torch.nan),
            "learned_from": own_labelled >= 0,
            "radius": table.radius,
            "certainty": table.certainty,
            "own_label": [
                None if k == UNLABELLED else images.classes[k] for k in images.labels.tolist()
            ],
        }


def _digest(pixels: Tensor) -> bytes:
    """Return what identifies an image (c, h, w) at the run's size."""
    return blake2b(pixels.cpu().contiguous().numpy().tobytes(), digest_size=16).digest()


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], list):
        return [entry for part in parts for entry in part]
    return None if parts[0] is None else torch.cat(parts)


def _source_accuracy(answers: Mapping[str, Any], classes: tuple[str, ...]) -> SourceAccuracy | None:
    """Compare the answers with the labels of the source, where some of their names are the same."""
    pairs = [
        (own, classes[k])
        for own, k, learned in zip(
            answers["own_label"],
            answers["label"].tolist(),
            answers["learned_from"].tolist(),
            strict=True,
        )
        if own is not None and not learned
    ]
    names = {own for own, _ in pairs}
    if not names & set(classes):
        return None
    right = sum(own == answered for own, answered in pairs)
    return SourceAccuracy(
        right / len(pairs),
        wilson_interval(right, len(pairs)),
        len(pairs),
        sum(own not in classes for own, _ in pairs),
    )
