"""label-next and finetune: which images to label, and what a few labels are worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sureclr.cli.evaluation_commands import worst_classes
from sureclr.cli.flags import CHOICE, TRAINING, given_flags, optional_flags
from sureclr.cli.shared import (
    LABEL,
    OUTPUT,
    CheckpointName,
    CommandProgress,
    DataSource,
    Device,
    EvaluationOptions,
    ImageColumn,
    Json,
    LabelColumn,
    OutFolder,
    Root,
    RunFolder,
    app,
    file_of_labels,
    print_answer,
    quoted,
    results_folder,
    write_new_csv,
)
from sureclr.data.label_request import LabelRequest
from sureclr.errors import UserError
from sureclr.finetuning.config import FinetuneConfig

if TYPE_CHECKING:
    from sureclr.data.embeddings import Embeddings
    from sureclr.finetuning.results import FinetuningResult, Gain

SHOWN = 5  # rows of the file that are printed

FinetuneFlags: Any = optional_flags(FinetuneConfig, skip=("learning_rates", "seeds"))
NO_FLAGS = FinetuneFlags()


@app.command(group=LABEL)
def label_next(
    run: RunFolder,
    /,
    *,
    budget: Annotated[int, Parameter(help="How many images you will label now.")],
    strategy: Annotated[
        str | None,
        Parameter(
            help=(
                "How to choose: k-means, typical, evidence, random, ... Default: k-means, the best"
                " on average in our measurements."
            )
        ),
    ] = None,
    known: Annotated[
        Path | None,
        Parameter(
            name=["--known", "--labels"],
            help=(
                "File of labels (CSV, JSON, Parquet; one image a row). Images that have one there"
                " are not chosen again."
            ),
        ),
    ] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    out: Annotated[
        Path, Parameter(group=OUTPUT, help="The CSV file to write; it must not exist.")
    ] = Path("next.csv"),
    seed: Annotated[
        int, Parameter(help="Seed of the random parts of the choice. Another gives other images.")
    ] = 0,
    data: DataSource = None,
    checkpoint: CheckpointName = "last",
    device: Device = "auto",
    root: Root = None,
    json: Json = False,
) -> None:
    """Choose images to label, and write them to a CSV file with a column to fill in."""
    from sureclr.evaluation.label_choice import (
        DEFAULT,
        STRATEGIES,
        WHY,
        labelled_already,
    )
    from sureclr.evaluation.label_choice import label_next as choose_images
    from sureclr.evaluation.session import Session

    file = file_of_labels(known, image_column, label_column)
    if out.exists():
        raise UserError(f"{out} exists already, and may hold labels of yours; give another --out.")
    with Session(
        run, data, device=device, root=root, progress=CommandProgress(), checkpoint=checkpoint
    ) as session:
        table = session.inputs.table
        labelled, note = labelled_already(session.catalogue, file, session.progress)
        name = strategy or DEFAULT
        choice = choose_images(table, labelled, budget, name, seed)
        use = "finetune" if session.run.config.trainable else "linear"
    rows = _rows(table, choice.rows.tolist(), choice.reasons)
    write_new_csv(out, rows)
    answer = {
        "strategy": name,
        "about": (STRATEGIES[name].__doc__ or "").split("\n")[0],
        "budget": budget,
        "known": int(labelled.sum()),
        "why": f"{name} is the default: {WHY}" if strategy is None else "you asked for it",
        "note": note,
        "out": str(out),
        "next": rows,
    }
    words = EvaluationOptions(data, out, checkpoint=checkpoint, root=root).words
    next_command = f"sureclr {use} {quoted(run)}{words}  (once its labels are filled in)"
    print_answer(json, answer, _choice_text(answer), next_command)


def _rows(table: "Embeddings", rows: list[int], reasons: list[str]) -> list[dict[str, Any]]:
    """Return a row of the CSV file for each chosen image."""
    lines = []
    for row, reason in zip(rows, reasons, strict=True):
        line: dict[str, Any] = {"path": table.paths[row], "label": "", "reason": reason}
        if table.certainty is not None:
            line["certainty"] = round(float(table.certainty[row]), 4)
        lines.append(line)
    return lines


def _choice_text(answer: dict[str, Any]) -> str:
    rows = answer["next"]
    lines = [
        f"{answer['budget']} images to label"
        + ("." if answer["note"] else f"; {answer['known']} have a label already."),
        f"Strategy {answer['strategy']}: {answer['about']} ({answer['why']})",
        *(f"  {row['path']}  {row['reason']}" for row in rows[:SHOWN]),
    ]
    if len(rows) > SHOWN:
        lines.append(f"  ... and {len(rows) - SHOWN} more")
    if answer["note"]:
        lines.append(answer["note"])
    return "\n".join([*lines, f"All are in {answer['out']}, the most useful first."])


@app.command(group=LABEL)
def finetune(
    run: RunFolder,
    /,
    *,
    learning_rates: Annotated[
        tuple[float, ...] | None,
        Parameter(
            name=["--learning-rates", "--lr"],
            consume_multiple=True,
            negative="",
            group=TRAINING,
            help=(
                "Peak learning rates of the encoder to choose from, on held-out labels."
                " [default: 0.01 0.03 0.1]"
            ),
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        Parameter(
            group=CHOICE,
            help=(
                "Number of repetitions (5: seeds 0 to 4), or the seeds themselves (0,1,2). More"
                " seeds take longer and give narrower intervals. [default: 5]"
            ),
        ),
    ] = None,
    again: Annotated[
        bool,
        Parameter(negative="", group=CHOICE, help="Train seeds again that are finished already."),
    ] = False,
    data: DataSource = None,
    checkpoint: CheckpointName = "last",
    out: OutFolder = None,
    device: Device = "auto",
    root: Root = None,
    json: Json = False,
    given: Annotated[FinetuneFlags, Parameter(name="*")] = NO_FLAGS,
) -> None:
    """Fine-tune with few labels, and compare with the same network trained from scratch."""
    values = given_flags(given)
    if learning_rates is not None:
        values["learning_rates"] = learning_rates
    if seeds is not None:
        values["seeds"] = _seeds(seeds)
    config = FinetuneConfig(**values)
    from sureclr.finetuning.service import finetune as finetune_run

    result = finetune_run(
        run,
        data,
        config,
        again=again,
        checkpoint=checkpoint,
        out=out,
        device=device,
        root=root,
        progress=CommandProgress(),
    )
    file = LabelRequest.of(config.label_request, config.image_column, config.label_column).file
    labels = (file.path, file.image_column, file.label_column) if file else (None, None, None)
    path, image_column, label_column = labels
    words = EvaluationOptions(
        data, path, image_column, label_column, checkpoint, out, root=root
    ).words
    next_command = f"sureclr evaluate {quoted(run)}{words}"
    text = _finetuning_text(results_folder(run, checkpoint, out), result)
    print_answer(json, result, text, next_command)


def _seeds(words: str) -> int | tuple[int, ...]:
    """Return what `--seeds 5` or `--seeds 0,1,2` means."""
    parts = [part.strip() for part in words.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(
            f"--seeds must be a number of repetitions (5) or seeds (0,1,2); got {words}."
        )
    numbers = tuple(map(int, parts))
    return numbers[0] if len(numbers) == 1 else numbers


def _verdict(gain: "Gain") -> str:
    """Return what the gain says, by both measures: the two intervals, and the paired gains."""
    if gain.verdict != "no difference found":
        return f"{gain.verdict} than from scratch, outside both intervals"
    low, high = gain.interval or (0, 0)
    if low <= 0 <= high:
        return gain.verdict
    better = "better" if low > 0 else "worse"
    return f"{better} with the same labels, but the intervals of the two accuracies overlap"


def _finetuning_text(folder: Path, result: "FinetuningResult") -> str:
    """Return a row for each classifier, and the gain."""
    rivals, intervals, gain = result.baselines, result.baseline_intervals, result.gain
    interval = result.interval
    if rivals is None or intervals is None or gain is None or interval is None:
        rows = [
            f"{result.n_labels:,} labels, {result.seeds} seeds",
            f"not tested: {result.not_tested}",
        ]
        if result.weights is not None:
            rows.append(f"The classifier is {folder / result.weights.file}.")
        return "\n".join(rows)
    classifiers = {
        "fine-tuned": (result.accuracy, interval),
        "from scratch": (rivals.scratch, intervals.scratch),
        "linear probe, frozen": (rivals.linear, intervals.linear),
    }
    rows = [
        f"{result.n_labels:,} labels, {result.seeds} seeds, {result.n_test:,} test images"
        f" ({result.interval_of})"
    ]
    rows += [
        f"  {name:22s}{accuracy:.4f}  ({low:.4f} to {high:.4f})"
        for name, (accuracy, (low, high)) in classifiers.items()
    ]
    between = ""
    if gain.interval:
        low, high = gain.interval
        between = f" ({low:+.4f} to {high:+.4f}, the same labels compared)"
    rows.append(f"  fine-tuned minus scratch  {gain.mean:+.4f}{between}: {_verdict(gain)}")
    if (means := result.class_means) is not None:
        balanced, f1 = means.baseline_balanced_accuracy, means.baseline_macro_f1
        rows += [
            f"  balanced accuracy: fine-tuned {means.balanced_accuracy:.4f}, from scratch"
            f" {balanced.scratch:.4f}, linear probe {balanced.linear:.4f}",
            f"  macro F1: fine-tuned {means.macro_f1:.4f}, from scratch {f1.scratch:.4f}, linear"
            f" probe {f1.linear:.4f}",
            f"  always naming the commonest class ({means.majority_class}) reaches"
            f" {means.majority_baseline:.4f}",
        ]
    if (numbers := result.by_class) is not None and (worst := worst_classes(numbers)):
        rows += [f"The saved classifier, of seed {result.weights.seed}, class by class:", *worst]
    if result.weights is not None:
        rows.append(f"The classifier is {folder / result.weights.file}.")
    return "\n".join(rows)
