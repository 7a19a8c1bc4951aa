"""What does each choice of the default do? Runs that change one factor at a time.

    python -m benchmarks.study [--only NAME ...] [--source fashion-mnist|digits] [--seeds 0 1 2]
                               [--threads 1] [--lines FILE]
    python -m benchmarks.study --source photographs --folder DIR [--runs RUNS] [--only NAME ...]
    python -m benchmarks.study --table [--source ...]

All runs of a source have the same encoder, budget and images: for Fashion-MNIST a fixed subset of
15,000 training and 4,000 test images, for digits all of them. A finished run is one line of
study.jsonl. A run that has its line is not repeated, so stopping (Ctrl-C) loses at most one run. A
run takes less than 4 minutes on one core.

Photographs are pictures in DIR/train/CLASS and DIR/test/CLASS, such as CIFAR-10 as JPEG files, at
32 pixels; again 15,000 and 4,000 of them. `photo_study` measures their runs, its numbers are lines
of study_photographs.jsonl, and each run stays in RUNS/NAME-SEED. A run that is there already is
measured, and not trained again.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks import photo_study
from benchmarks.lines import append_line, read_lines, run_as_command
from sureclr.config import PretrainConfig
from sureclr.data.image_set import ImageSet
from sureclr.data.sources import load_images
from sureclr.errors import UserError
from sureclr.evaluation.certainty_quality import measure_uncertainty
from sureclr.evaluation.foreign_images import measure_ood
from sureclr.evaluation.inputs import evaluation_inputs
from sureclr.evaluation.results import UncertaintyResult
from sureclr.progress import SILENT
from sureclr.recipes import recipe
from sureclr.schema import to_json
from sureclr.training.pretraining import pretrain
from sureclr.training.run import Run, load

LINES = Path(__file__).with_suffix(".jsonl")
LINES_OF_PHOTOGRAPHS = LINES.with_name("study_photographs.jsonl")
PHOTOGRAPHS, SIZE = "photographs", 32  # a source of the study; side of its images in pixels
RECIPE = {PHOTOGRAPHS: "fashion-mnist"}  # where another one's settings are taken
# Instead of the recipe's encoder, so that a run takes less than 4 minutes
ENCODER = {"fashion-mnist": "small-24", PHOTOGRAPHS: "small-24"}
TRAIN, TEST = 15_000, 4_000  # images of the fixed subset
EPOCHS = {"fashion-mnist": 8, "digits": 60, PHOTOGRAPHS: 8}
WARMUP_EPOCHS = {"fashion-mnist": 1.0, "digits": 5.0, PHOTOGRAPHS: 1.0}
# Printed when a run has finished
PRINTED = (
    "knn",
    "linear",
    "r_auroc_clean",
    "r_auroc_crop",
    "train_cpu_s",
    "evaluation_cpu_s",
)
# What a run on the same photographs may have otherwise: how they were given, and what was recorded
NOT_COMPARED = frozenset(
    {"source", "size", "channels", "precision", "pixel_mean", "pixel_std", "compile", "init"}
    | {"monitor_every", "snapshot_every", "checkpoint_every", "micro_batch"}
)
LEVELS = slice(1, None, 2)  # the strengths that are measured, of each corruption's five

# Name -> what differs from the default, which is the source's recipe. (This study chose its loss,
# views and batch size.) The order is that of the runs: the two that decide come first, then the
# published losses, then the factors.
AS_IT_WAS: dict[str, Any] = {"presence": "off", "null_fraction": 0.0}
BOTH: dict[str, Any] = {"presence": "on", "null_fraction": 0.125, "null_weight": 1.0}
DECIDING: dict[str, dict[str, Any]] = {"sure": AS_IT_WAS, "nt-xent": {"loss": "nt-xent"}}
# Two numbers, and images of nothing (theory 9)
OF_PRESENCE: dict[str, dict[str, Any]] = {
    "presence+nulls": BOTH,
    "presence": {"presence": "on", "null_fraction": 0.0},
    "nulls": {"presence": "off", "null_fraction": 0.125},
    "presence+nulls-soft-off": {**BOTH, "softening": "off"},
    "presence+nulls-w1_4": {**BOTH, "null_weight": 0.25},
    "presence+nulls-w1_16": {**BOTH, "null_weight": 0.0625},
    "presence+nulls-noise": {**BOTH, "null_kinds": ("noise",)},
    "presence+nulls-tiles": {**BOTH, "null_kinds": ("tiles",)},
    "presence+nulls-f1_4": {**BOTH, "null_fraction": 0.25},
}
LEFT_OUT = ("cat", "truck")  # classes of CIFAR-10 that the next runs do not see
WITHOUT_CLASSES: dict[str, dict[str, Any]] = {
    f"unseen-{name}": changes for name, changes in (DECIDING | {"presence+nulls": BOTH}).items()
}
OTHERS: dict[str, dict[str, Any]] = {
    **{
        loss: {"loss": loss}
        for loss in ("loss-prediction", "mc-infonce", "elk", "tau", "cosine-regression")
    },
    "gradient-off": {"certainty_gradient": "off"},
    "kernel-measured": {"kernel_dimension": "measured"},
    "blur": {"views": {"blur_p": 0.5}},
    "strength-0.5": {"views": {"strength": 0.5}},
    "softening-off": {"softening": "off"},
    "softening-means": {"softening": "means"},
    "prior-0.5": {"empirical_prior": 0.5},
    "weight-0.05": {"certainty_weight": 0.05},  # the default's is 28 / 128
    "weight-0.5": {"certainty_weight": 0.5},
    "16-coordinates": {"projection_dim": 16},
    "tau-0.1": {"temperature": 0.1},
    "tau-0.5": {"temperature": 0.5},
    **{loss: {"loss": loss} for loss in ("poisson-nce", "gaussian-nce", "dcl")},
}
CONFIGURATIONS = DECIDING | OF_PRESENCE | OTHERS | WITHOUT_CLASSES
RIVALS = ("cosine-regression", "loss-prediction", "mc-infonce")
ON_PHOTOGRAPHS = (*DECIDING, *OF_PRESENCE, *RIVALS, *WITHOUT_CLASSES)
ELSEWHERE = (*DECIDING, *OF_PRESENCE, *OTHERS)


def main() -> None:
    """Run what has no line yet, or print the table."""
    options = arguments()
    of_photographs = options.source == PHOTOGRAPHS
    path = options.lines or (LINES_OF_PHOTOGRAPHS if of_photographs else LINES)
    if options.table:
        lines = [line for line in read_lines(path) if line["source"] == options.source]
        print(tables_of_photographs(lines) if of_photographs else table(lines))
        return
    torch.set_num_threads(options.threads)
    images = subset(read_images(options))
    names = options.only or list(ON_PHOTOGRAPHS if of_photographs else ELSEWHERE)
    for name, seed in order(names, options.seeds):
        if (name, seed, options.source) not in {
            (line["name"], line["seed"], line["source"]) for line in read_lines(path)
        }:
            print(f"{name} seed {seed}: {attempt(name, seed, images, options, path)}", flush=True)


def attempt(
    name: str, seed: int, images: ImageSet, options: argparse.Namespace, lines: Path
) -> str:
    """Make a run, save its line, and return a sentence to print.

    A run that fails (because it diverges, for instance) has no line, so it is tried again next
    time.
    """
    try:
        if options.source == PHOTOGRAPHS:
            line = append_line(run_on_photographs(name, seed, images, options.runs), lines)
        else:
            line = append_line(one_run(name, seed, images), lines)
    except UserError as error:
        return f"failed: {error}"
    return "  ".join(f"{key} {line[key]}" for key in PRINTED if key in line)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="benchmarks.study", description=__doc__, formatter_class=raw
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(CONFIGURATIONS))
    parser.add_argument("--source", default="fashion-mnist", choices=list(EPOCHS))
    parser.add_argument("--folder", type=Path, help="of the photographs")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="on photographs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lines", type=Path, help="the file of finished runs")
    parser.add_argument(
        "--table",
        action="store_true",
        help="print the table of the finished runs, and run nothing",
    )
    return parser.parse_args()


def read_images(options: argparse.Namespace) -> ImageSet:
    """Return all images of the source."""
    if options.source != PHOTOGRAPHS:
        return load_images(options.source)
    if options.folder is None:
        raise UserError("photographs need --folder DIR, with pictures in train/CLASS, test/CLASS.")
    return load_images(f"folder:{options.folder}", size=SIZE)


def order(names: list[str], seeds: list[int]) -> Iterator[tuple[str, int]]:
    """Yield all seeds of the two that decide, then the others, one seed after the other."""
    yield from ((name, seed) for seed in seeds for name in names if name in DECIDING)
    yield from ((name, seed) for seed in seeds for name in names if name not in DECIDING)


def subset(images: ImageSet) -> ImageSet:
    """Return the images of every run, in the data set's order.

    They are at most TRAIN and TEST images, which seed 0 draws.
    """
    generator = torch.Generator().manual_seed(0)
    rows = [torch.as_tensor(images.rows(split)) for split in ("train", "test")]
    chosen = [
        torch.randperm(len(r), generator=generator)[:most]
        for r, most in zip(rows, (TRAIN, TEST), strict=True)
    ]
    return images.select(torch.cat([r[c].sort().values for r, c in zip(rows, chosen, strict=True)]))


def configuration(name: str, seed: int, source: str) -> PretrainConfig:
    """Return the source's recipe at the study's budget, with what this name changes."""
    base = replace(recipe(RECIPE.get(source, source)), source=source)
    base = replace(
        base,
        encoder=ENCODER.get(source, base.encoder),
        epochs=EPOCHS[source],
        warmup_epochs=WARMUP_EPOCHS[source],
        seed=seed,
        precision="float32",  # as all lines of study.jsonl, whatever instructions the CPU has
        monitor_every=0,
        snapshot_every=0,
        checkpoint_every=0,
    )
    changes = CONFIGURATIONS[name]
    return replace(base, **{**changes, "views": replace(base.views, **changes.get("views", {}))})


def run_on_photographs(name: str, seed: int, images: ImageSet, runs: Path) -> dict[str, Any]:
    """Train a run, or take it from its folder, and return its numbers.

    Raises:
        UserError: the folder has a run of another configuration.
    """
    left_out = LEFT_OUT if name in WITHOUT_CLASSES else ()
    config, out = configuration(name, seed, PHOTOGRAPHS), runs / f"{name}-{seed}"
    start, trained = time.process_time(), None
    if out.is_dir():
        run = load(out)
        if differing := sorted(different_fields(run.config, config)):
            raise UserError(f"{out} has another {', '.join(differing)}; choose other --runs.")
    else:
        train = photo_study.without(images.train, left_out)
        run = pretrain(config, train, out=out, device="cpu", progress=SILENT)
        trained = time.process_time() - start
    return {
        **about(name, seed, PHOTOGRAPHS, config),
        **photo_study.measure(run, images, left_out),
        "train_cpu_s": trained,
    }


def different_fields(first: PretrainConfig, second: PretrainConfig) -> set[str]:
    """Return the fields that decide what is learned and differ."""
    one, other = (
        {
            **{field.name: getattr(config, field.name) for field in fields(config)},
            "presence": config.presence or "off",  # a run records what a default came to
            "null_fraction": config.null_fraction or 0.0,
        }
        for config in (first, second)
    )
    return {name for name in one if one[name] != other[name] and name not in NOT_COMPARED}


def about(name: str, seed: int, source: str, config: PretrainConfig) -> dict[str, Any]:
    """Return what a line says of how it was made."""
    return {
        "name": name,
        "seed": seed,
        "source": source,
        "changed": CONFIGURATIONS[name],
        "epochs": config.epochs,
        "encoder": config.encoder,
        "batch_size": config.batch_size,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "date": date.today().isoformat(),
    }


def one_run(name: str, seed: int, images: ImageSet) -> dict[str, Any]:
    """Train, measure, and return the numbers in one flat line."""
    config = configuration(name, seed, images.name)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        run = pretrain(
            config, images.train, out=Path(folder) / "run", device="cpu", progress=SILENT
        )
        trained = time.process_time() - start
        numbers = measure(run, images)
    steps = len(images.train) // config.batch_size * config.epochs
    return {
        **about(name, seed, images.name, config),
        "n_train": len(images.train),
        "n_test": len(images.test),
        **numbers,
        "ms_per_step": 1000 * trained / steps,
        "train_cpu_s": trained,
        "evaluation_cpu_s": time.process_time() - start - trained,
    }


def measure(run: Run, images: ImageSet) -> dict[str, Any]:
    """Return the study's numbers, which the package's own evaluations measure.

    R-AUROC and the numbers that rank images use the run's certainty. They are None for a loss
    without a certainty (NT-Xent, DCL), and so are calibration and evidence for a loss without a
    radius. Names with `nn` use the similarity of the nearest neighbour instead.
    """
    inputs = evaluation_inputs(run, images)
    result = measure_uncertainty(
        inputs.embed,
        inputs.images,
        inputs.table,
        run.config.views,
        levels=LEVELS,
        reference=inputs.reference,
    )
    kinds = measure_ood(
        inputs.embed,
        inputs.images,
        inputs.table,
        inputs.other_test_images,
        reference=inputs.reference,
    )
    foreign = {name: kind.auroc for name, kind in kinds.items() if not kind.skipped}
    random = {name: corruption.random for name, corruption in result.corruptions.items()}
    rankings = {"clean": result.clean, **{name: harm.ranking for name, harm in random.items()}}
    r_auroc = {name: ranking.r_auroc for name, ranking in rankings.items() if ranking is not None}
    calibration, evidence, selective = result.calibration, result.evidence, result.selective
    assert selective is not None  # the study's data sets have labels
    return {
        "knn": 1 - selective["knn"].error,
        "linear": 1 - selective["linear"].error,
        "instance_match": result.partner.instance_match,
        "partner_auroc": result.partner.auroc.get("certainty"),
        **{f"r_auroc_{name}": by.get("certainty") for name, by in r_auroc.items()},
        **{f"nn_r_auroc_{name}": by["neighbour_similarity"] for name, by in r_auroc.items()},
        **{f"spearman_{name}": harm.spearman.get("certainty") for name, harm in random.items()},
        **{
            f"less_certain_{name}": harm.less_certain.get("certainty")
            for name, harm in random.items()
        },
        "calibration_raw": calibration and calibration.raw.error,
        "calibration_mapped": calibration and calibration.mapped.error,
        "mean_cosine_different": calibration and calibration.mean_cosine_different,
        "log_mean_exp": evidence and evidence.log_mean_exp,
        "log_mean_exp_se": evidence and evidence.log_mean_exp_standard_error,
        "kernel_dimension": evidence and evidence.kernel_dimension,
        **{f"ood_{name}": auroc.get("certainty") for name, auroc in foreign.items()},
        **{f"nn_ood_{name}": auroc["neighbour_similarity"] for name, auroc in foreign.items()},
        "detail": {"uncertainty": compact(result), "ood": to_json(kinds)},
    }


def compact(result: UncertaintyResult) -> dict[str, Any]:
    """Return the result without its curves, which would make a line of 8 kB one of 12 kB."""
    content: dict[str, Any] = to_json(result)
    selective = {
        name: {"error": part["error"], "aurc": part["aurc"]}
        for name, part in content["selective"].items()
    }
    return {**content, "selective": selective}


COLUMNS = {
    "kNN": ("knn",),
    "linear": ("linear",),
    "instance match": ("instance_match",),
    "partner AUROC": ("partner_auroc",),
    "R-AUROC clean / crop / blur": ("r_auroc_clean", "r_auroc_crop", "r_auroc_blur"),
    "nn": ("nn_r_auroc_clean",),
    "Spearman, crop": ("spearman_crop",),
    "crop less certain": ("less_certain_crop",),
    "calibration raw / mapped": ("calibration_raw", "calibration_mapped"),
    "log E[exp s]": ("log_mean_exp",),
    "OOD other data / noise / inverted / flipped": (
        "ood_other",
        "ood_uniform-noise",
        "ood_inverted",
        "ood_flipped",
    ),
    "ms a step": ("ms_per_step",),
}


def table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table: the mean over seeds ± the standard deviation of several."""
    rows = ["| | seeds | " + " | ".join(COLUMNS) + " |", "| --- " * (len(COLUMNS) + 2) + "|"]
    for name in CONFIGURATIONS:
        if runs := [with_other(line) for line in lines if line["name"] == name]:
            cells = [
                " / ".join(spread([run[key] for run in runs]) for key in keys)
                for keys in COLUMNS.values()
            ]
            rows.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


GENERAL = (
    "nearest",
    "knn",
    "linear",
    "whitened_nearest",
    "whitened_knn",
    "mean_presence",
    "calibration_raw",
    "calibration_mapped",
    "log_mean_exp",
    "log_loss_evidence",
    "log_loss_prior",
)
SCORES = (
    "certainty",
    "radius",
    "presence",
    "evidence",
    "evidence_of_all_coordinates",
    "neighbour",
    "mean_of_20",
    "whitened_neighbour",
    "familiarity",
    "presence_times_p",
    "negative_entropy",
)


def tables_of_photographs(lines: list[dict[str, Any]]) -> str:
    """Return Markdown tables: of numbers of the runs, and one of every question to the scores."""
    questions = dict.fromkeys(
        key for line in lines for key in line if isinstance(line[key], dict) and key != "changed"
    )
    found = [table_of_scores("", GENERAL, lines)]
    nested = [[{"name": line["name"], **line.get(key, {})} for line in lines] for key in questions]
    found += [
        table_of_scores(key, SCORES, rows) for key, rows in zip(questions, nested, strict=True)
    ]
    return "\n\n".join(found)


def table_of_scores(title: str, columns: Sequence[str], lines: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table with a row for each name that has a value."""
    rows = [f"| {title} | seeds | " + " | ".join(columns) + " |"]
    rows.append("| --- " * (len(columns) + 2) + "|")
    for name in dict.fromkeys(line["name"] for line in lines):
        runs = [line for line in lines if line["name"] == name and len(line) > 1]
        cells = [spread([run.get(column) for run in runs]) for column in columns]
        if runs:
            rows.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def with_other(line: dict[str, Any]) -> dict[str, Any]:
    """Return the line with the OOD value of the other data set under the name `ood_other`."""
    return line | {"ood_other": line.get("ood_digits", line.get("ood_fashion-mnist"))}


def spread(values: Sequence[float | None]) -> str:
    """Return the mean as text, ± the standard deviation of several values; - if there are none."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    digits = 3 if abs(mean(numbers)) < 10 else 1
    return f"{mean(numbers):.{digits}f}" + (
        f" ± {stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    )


if __name__ == "__main__":
    run_as_command(main)
