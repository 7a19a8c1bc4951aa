"""predict: classes for images, with how sure each of them is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sureclr.cli.shared import (
    OUTPUT,
    USE,
    CheckpointName,
    CommandProgress,
    Device,
    EvaluationOptions,
    ImageColumn,
    Json,
    LabelColumn,
    LabelPath,
    OverwriteFile,
    Root,
    RunFolder,
    app,
    file_of_labels,
    print_answer,
    quoted,
    results_folder,
)
from sureclr.errors import UserError, unknown

if TYPE_CHECKING:
    from sureclr.evaluation.prediction_table import Predictions
    from sureclr.finetuning.store import Finetuned

CLASSIFIERS = ("linear", "knn", "evidence", "finetuned")
CLASSES_SHOWN = 20  # lines of the counts that are printed
FILES_SHOWN = 5  # files that could not be read and are named
FEW_LABELS = 1000  # with fewer, more labels are the next useful thing


@app.command(group=USE)
def predict(
    run: RunFolder,
    /,
    *source: Annotated[
        str,
        Parameter(
            name="SOURCE",
            help=(
                "What to classify: image files, a folder, or a data source. Default: the images"
                " that the run was trained on."
            ),
        ),
    ],
    out: Annotated[
        Path,
        Parameter(
            group=OUTPUT, help="The table to write: .csv, .jsonl or .parquet, one row an image."
        ),
    ],
    classifier: Annotated[
        str,
        Parameter(
            help=(
                "linear: logistic regression on the frozen features, fitted once and kept. knn: the"
                " vote of the 20 nearest labelled images. evidence: the vote of all labelled images"
                " by evidence (a loss with a radius). finetuned, or finetuned:NAME: what `finetune`"
                " has saved."
            )
        ),
    ] = "linear",
    labels: LabelPath = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    data: Annotated[
        str | None,
        Parameter(
            help=(
                "Learn from the labels of other images: a data source or folder:PATH. Default: the"
                " images that the run was trained on."
            )
        ),
    ] = None,
    unfamiliar: Annotated[
        float,
        Parameter(
            help=(
                "Mark images as unfamiliar whose p-value is at most this: about this share of"
                " images that are like the training data."
            )
        ),
    ] = 0.01,
    coverage: Annotated[
        float | None,
        Parameter(
            help=(
                "How often the set of an image (column set) should contain the right class."
                " Default: 0.9, and no sets where there are too few labelled test images."
            )
        ),
    ] = None,
    overwrite: OverwriteFile = False,
    checkpoint: CheckpointName = "last",
    device: Device = "auto",
    root: Root = None,
    json: Json = False,
) -> None:
    """Classify images: a class, a calibrated probability, and whether the image is familiar.

    Each row names the three labelled images that are most similar, and a set of classes that
    contains the right one as often as asked. Images that are unlike the training data keep their
    class and are marked.
    """
    from sureclr.evaluation.prediction import predict as predict_images
    from sureclr.evaluation.prediction_table import check_out

    check_out(out, overwrite=overwrite)
    images = list(source) if len(source) > 1 else source[0] if source else None
    chosen = (
        _finetuned(run, classifier, device, checkpoint) if _is_finetuned(classifier) else classifier
    )
    answers = predict_images(
        run,
        images,
        file_of_labels(labels, image_column, label_column),
        chosen,
        data=data,
        unfamiliar=unfamiliar,
        coverage=coverage,
        checkpoint=checkpoint,
        device=device,
        root=root,
        progress=CommandProgress(),
    )
    answers.save(out, overwrite=overwrite)
    next_command = _next(answers, run, labels, data, checkpoint)
    print_answer(json, _answer(answers, out), _text(answers, out), next_command)


def _is_finetuned(classifier: str) -> bool:
    kind = classifier.partition(":")[0]
    if kind not in CLASSIFIERS or (kind != classifier and kind != "finetuned"):
        raise unknown("classifier", classifier, CLASSIFIERS)
    return kind == "finetuned"


def _finetuned(run: Path, classifier: str, device: str, checkpoint: str) -> "Finetuned":
    """Return the fine-tuned classifier that is meant by `finetuned` or `finetuned:NAME`."""
    from sureclr.finetuning.store import load_finetuned

    _, _, name = classifier.partition(":")
    folder = results_folder(run, checkpoint) / "finetuned"
    saved = sorted(file.stem for file in folder.glob("*.json"))
    if not name and len(saved) > 1:
        raise UserError(
            f"{run} has {len(saved)} fine-tuned classifiers; choose one, for example --classifier"
            f" {quoted(f'finetuned:{saved[0]}')} (it has {', '.join(saved)})."
        )
    name = name or (saved[0] if saved else "10%")
    return load_finetuned(run, name, device, checkpoint=checkpoint)


def _answer(answers: "Predictions", out: Path) -> dict[str, Any]:
    """Return what `--json` prints."""
    from sureclr.schema import to_json

    n = len(answers)
    return {
        "out": str(out),
        "images": n,
        "counts": answers.counts,
        "mean_probability": float(answers.probability.mean()),
        "unfamiliar": int(answers.unfamiliar.sum()),
        "unfamiliar_threshold": answers.threshold,
        "compared_with": {"images": answers.n_compared, "what": answers.compared_with},
        "mean_evidence": (
            None if answers.evidence is None else float(answers.evidence.double().mean())
        ),
        "sets": to_json(answers.coverage),
        "no_sets": answers.no_sets,
        "learned_from": int(answers.learned_from.sum()),
        "errors": dict(answers.errors),
        "classifier": to_json(answers.classifier),
        "accuracy_on_source": to_json(answers.accuracy),
        "note": answers.note,
    }


def _text(answers: "Predictions", out: Path) -> str:
    """Return the answers in words."""
    n, counts, facts = len(answers), answers.counts, answers.classifier
    lines = [
        f"{n:,} {'image was' if n == 1 else 'images were'} classified by the {facts.name}"
        f" classifier, which knows {len(facts.classes):,} classes:"
    ]
    width = max(len(name) for name in counts)
    lines += [
        f"  {name:{width}s}  {count:,}  ({count / n:.1%})"
        for name, count in list(counts.items())[:CLASSES_SHOWN]
    ]
    if len(counts) > CLASSES_SHOWN:
        lines.append(f"  ... and {len(counts) - CLASSES_SHOWN} classes more")
    lines.append(
        f"The mean probability of the answers is {float(answers.probability.mean()):.3f};"
        f" {facts.calibration}."
    )
    lines += [_unfamiliar(answers), *_accuracies(answers), *_sets(answers)]
    lines += [*_expected(answers), *_learned_from(answers)]
    lines += _unreadable(answers)
    return "\n".join([*lines, f"All answers are in {out}, one row an image."])


def _unfamiliar(answers: "Predictions") -> str:
    from sureclr.data.image_report import counted

    number, m = int(answers.unfamiliar.sum()), answers.n_compared
    if 1 / (m + 1) > answers.threshold:
        return (
            f"No image can be marked as unfamiliar at {answers.threshold:g}: with {m:,} images to"
            f" compare with, the lowest p-value is {1 / (m + 1):.3g}; give a higher --unfamiliar."
        )
    one = number == 1
    marked = "; it is marked, and its class is" if one else "; they are marked, and their class is"
    return (
        f"{counted(number, 'image')} ({number / len(answers):.1%}) {'is' if one else 'are'} unlike"
        f" the training data (p at most {answers.threshold:g}, compared with {m:,}"
        f" {answers.compared_with}){f'{marked} a guess' if number else ''}."
    )


def _expected(answers: "Predictions") -> list[str]:
    if answers.evidence is None:
        return []
    import numpy as np

    low, middle, high = np.quantile(answers.evidence.double().numpy(), (0.25, 0.5, 0.75))
    return [
        f"The evidence of the images against {answers.n_evidence:,} training images is"
        f" {middle:.1f} nats in the median (quarters: {low:.1f} and {high:.1f}); the lower it is,"
        " the less probably an answer is right."
    ]


def _sets(answers: "Predictions") -> list[str]:
    """Return what the sets are, and how often they were seen to hold the right class."""
    found = answers.coverage
    if found is None:
        return [f"There is no column set: {answers.no_sets}"]
    alone = (
        "for all classes together"
        if not found.own_thresholds
        else "for each class by itself"
        if found.own_thresholds == found.classes
        else f"for {found.own_thresholds} of {found.classes} classes by themselves, and for the"
        " others together"
    )
    lines = [
        f"The column set contains the right class with a probability of {found.coverage:g}, {alone}"
        f" ({found.note}), if the images are drawn as these test images were. A set has"
        f" {found.mean_size:.2f} of {found.classes:,} classes in the mean; {found.empty:.1%} have"
        f" none, and {found.full:.1%} have all."
    ]
    if found.observed is not None and found.interval is not None:
        low, high = found.interval
        strange = (
            f"; {found.n_unknown:,} more are of classes that the classifier does not know"
            if found.n_unknown
            else ""
        )
        lines.append(
            f"Observed: {found.observed:.3f} of {found.n_observed:,} labelled images that nobody"
            f" learned from have their class in the set (95 % interval {low:.3f} to"
            f" {high:.3f}){strange}."
        )
    return lines


def _accuracies(answers: "Predictions") -> list[str]:
    """Return what a person can expect of the answers."""
    facts, own, lines = answers.classifier, answers.accuracy, []
    if facts.accuracy is not None and facts.interval is not None:
        low, high = facts.interval
        lines.append(
            f"Its accuracy on {facts.n_test:,} labelled test images is {facts.accuracy:.3f}"
            f" (95 % interval {low:.3f} to {high:.3f})."
        )
    elif facts.held_out_accuracy is not None:
        lines.append(
            f"There are no labelled test images; its accuracy on {facts.n_held_out:,} labelled"
            f" images that were held out of the learning is {facts.held_out_accuracy:.3f}."
        )
    else:
        lines.append("Its accuracy is not known: no labelled image could be held out.")
    if own is not None and (own.accuracy, own.n) != (facts.accuracy, facts.n_test):
        low, high = own.interval
        strange = f", of which {own.n_unknown:,} are of other classes" if own.n_unknown else ""
        lines.append(
            f"The answers agree with the source's own labels in {own.accuracy:.3f} of {own.n:,}"
            f" images (95 % interval {low:.3f} to {high:.3f}){strange}."
        )
    return lines


def _learned_from(answers: "Predictions") -> list[str]:
    number = int(answers.learned_from.sum())
    if not number:
        return []
    return [
        f"The classifier learned from {number:,} of these images (column learned_from); their"
        " answers say little about new images."
    ]


def _unreadable(answers: "Predictions") -> list[str]:
    if not answers.errors:
        return []
    first = list(answers.errors.items())[:FILES_SHOWN]
    count = len(answers.errors)
    more = f", and {count - len(first):,} more" if count > len(first) else ""
    names = ", ".join(f"{quoted(_shown(name))} ({reason})" for name, reason in first)
    files = (
        "1 file could not be read and has"
        if count == 1
        else f"{count:,} files could not be read and have"
    )
    return [f"{files} a row with an error in the table: {names}{more}."]


def _shown(name: str) -> str:
    from sureclr.data.image_report import inert

    return inert(name)


def _next(
    answers: "Predictions", run: Path, labels: Path | None, data: str | None, checkpoint: str
) -> str:
    """Return the next useful command, with the options that were given."""
    chosen = EvaluationOptions(data, checkpoint=checkpoint).words
    if answers.classifier.name != "finetuned" and 0 < answers.classifier.n_train < FEW_LABELS:
        known = f" --known {quoted(labels)}" if labels is not None else ""
        return f"sureclr label-next {quoted(run)} --budget 100{known}{chosen}"
    given = f" --labels {quoted(labels)}" if labels is not None else ""
    return f"sureclr evaluate {quoted(run)}{given}{chosen}"
