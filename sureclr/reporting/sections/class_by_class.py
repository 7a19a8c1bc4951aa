"""Numbers per class: a table, the worst class first, and what is taken for what."""

from sureclr.evaluation.results import ClassNumbers, ClassScore
from sureclr.finetuning.results import FinetuningResult
from sureclr.reporting import captions
from sureclr.reporting.blocks import Block, Figure, Note, Table, interval_text, verdict_text
from sureclr.reporting.charts import Row, dots
from sureclr.reporting.grids import matrix
from sureclr.reporting.run_files import RunFiles
from sureclr.reporting.svg import DASH, Axis, number_text

SHOWN = 20  # classes of a confusion matrix: more cannot be read
LISTED = 30  # classes that a sentence names


def draw_classes(key: str, what: str, numbers: ClassNumbers) -> list[Block]:
    """Return the blocks of one classifier.

    Args:
        key: where its numbers stand in results.json.
        what: the classifier, for the captions.
        numbers: class by class.
    """
    caption = captions.CLASSES.fill(
        what=what,
        balanced=number_text(numbers.balanced_accuracy),
        f1=number_text(numbers.macro_f1),
        majority=numbers.majority_class,
        baseline=number_text(numbers.majority_baseline),
    )
    rows = [_class_row(each) for each in numbers.worst]
    blocks: list[Block] = [Table(f"{key}.classes", caption, captions.CLASS_COLUMNS, rows)]
    return [*blocks, *confusion_figure(f"{key}.confusion", what, numbers)]


def classes_of_one_split(numbers: ClassNumbers) -> list[Block]:
    """Return a sentence for the classes that only the test images have, and one for the others."""
    found = ((captions.ONLY_TEST, numbers.only_test), (captions.ONLY_TRAIN, numbers.only_train))
    return [
        Note(text.format(classes=_listed(names)), missing=True) for text, names in found if names
    ]


def _listed(names: tuple[str, ...]) -> str:
    more = captions.MORE_CLASSES.format(n=len(names) - LISTED) if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _class_row(score: ClassScore) -> list[str]:
    taken_for = DASH
    if score.taken_for:
        taken_for = captions.TAKEN_FOR.format(name=score.taken_for, count=score.mistaken)
    return [
        score.name,
        number_text(score.accuracy),
        DASH if score.interval is None else interval_text(score.interval, captions.SPAN),
        number_text(score.n_test),
        number_text(score.n_train),
        number_text(score.precision),
        number_text(score.f1),
        taken_for,
    ]


def confusion_figure(key: str, what: str, numbers: ClassNumbers) -> list[Block]:
    """Return the confusion matrix of the classes with test images, the worst at the top.

    It is left out where it is not stored, because there are many classes.
    """
    if numbers.confusion is None:
        return []
    place = {each.name: i for i, each in enumerate(numbers.classes)}
    shown = [place[each.name] for each in numbers.worst[:SHOWN]]
    # classes without test images may be named all the same, so they keep their columns
    columns = shown + [place[name] for name in numbers.only_train][: SHOWN - len(shown)]
    shares = [
        [numbers.confusion[i][j] / max(numbers.classes[i].n_test, 1) for j in columns]
        for i in shown
    ]
    number_of = {i: str(position + 1) for position, i in enumerate(columns)}
    names = [f"{number_of[i]} {numbers.classes[i].name}" for i in shown]
    chart = matrix("What is taken for what", names, list(number_of.values()), shares)
    caption = captions.CONFUSION.fill(what=what)
    text = caption.text
    if len(numbers.worst) > SHOWN:
        text += captions.CONFUSION_WORST.format(n=SHOWN)
    if len(columns) > len(shown):
        last = [f"{number_of[i]} {numbers.classes[i].name}" for i in columns[len(shown) :]]
        text += captions.CONFUSION_UNTESTED.format(classes=", ".join(last))
    return [Figure(key, captions.Caption(caption.title, text), [("", chart)])]


def draw_finetuning(run: RunFiles) -> list[Block]:
    """Return the blocks of every fine-tuning of the run, or none."""
    blocks: list[Block] = []
    for key, result in run.results.items():
        if isinstance(result, FinetuningResult):
            blocks += _finetuning(key, result)
    return blocks


def _finetuning(key: str, result: FinetuningResult) -> list[Block]:
    labels = key.removeprefix("finetune:")
    rivals, intervals = result.baselines, result.baseline_intervals
    if rivals is None or intervals is None or result.interval is None:
        text = captions.FINETUNED_UNTESTED.format(labels=labels, why=result.not_tested)
        return [Note(text, missing=True)]
    points = (
        ("fine-tuned", 0, result.accuracy, result.interval),
        ("from scratch", 1, rivals.scratch, intervals.scratch),
        ("linear probe", 2, rivals.linear, intervals.linear),
    )
    rows = [Row(point[0], [point]) for point in points]
    chart = dots("Fine-tuning: accuracy", rows, Axis("accuracy on test images"))
    caption = captions.FINETUNED.fill(
        labels=labels,
        n_labels=result.n_labels,
        n_test=result.n_test,
        seeds=result.seeds,
        interval_of=result.interval_of,
        verdict=verdict_text("the network from scratch", result.interval, intervals.scratch),
    )
    blocks: list[Block] = [Figure(key, caption, [("", chart)])]
    if (numbers := result.by_class) is not None:
        what = captions.FINETUNED_CLASSES.format(labels=labels, seed=result.weights.seed)
        blocks += [
            *draw_classes(f"{key}.per_seed", what, numbers),
            *classes_of_one_split(numbers),
        ]
    return blocks
