"""What does each choice of the default do? Runs that change one factor at a time.

    python -m benchmarks.study [--only NAME ...] [--source fashion-mnist|digits] [--seeds 0 1 2]
                               [--threads 1] [--lines FILE]
    python -m benchmarks.study --table [--source ...]

All runs of a source have the same encoder, budget and images: for Fashion-MNIST a fixed subset of
15,000 training and 4,000 test images, for digits all of them. A finished run is one line of
study.jsonl. A run that has its line is not repeated, so stopping (Ctrl-C) loses at most one run. A
run takes less than 4 minutes on one core.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

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
from sureclr.training.run import Run

LINES = Path(__file__).with_suffix(".jsonl")
# Instead of the recipe's encoder, so that a run takes less than 4 minutes
ENCODER = {"fashion-mnist": "small-24"}
TRAIN, TEST = 15_000, 4_000  # images of the fixed subset
EPOCHS = {"fashion-mnist": 8, "digits": 60}
WARMUP_EPOCHS = {"fashion-mnist": 1.0, "digits": 5.0}
# Printed when a run has finished
PRINTED = (
    "knn",
    "linear",
    "r_auroc_clean",
    "r_auroc_crop",
    "train_cpu_s",
    "evaluation_cpu_s",
)
LEVELS = slice(1, None, 2)  # the strengths that are measured, of each corruption's five

# Name -> what differs from the default, which is the source's recipe. (This study chose its loss,
# views and batch size.) The order is that of the runs: the two that decide come first, then the
# published losses, then the factors.
DECIDING: dict[str, dict[str, Any]] = {"sure": {}, "nt-xent": {"loss": "nt-xent"}}
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
CONFIGURATIONS = DECIDING | OTHERS


def main() -> None:
    """Run what has no line yet, or print the table."""
    options = arguments()
    if options.table:
        lines = read_lines(options.lines)
        print(table([line for line in lines if line["source"] == options.source]))
        return
    torch.set_num_threads(options.threads)
    images = subset(load_images(options.source))
    for name, seed in order(options.only or list(CONFIGURATIONS), options.seeds):
        if (name, seed, options.source) not in {
            (line["name"], line["seed"], line["source"]) for line in read_lines(options.lines)
        }:
            print(f"{name} seed {seed}: {attempt(name, seed, images, options.lines)}", flush=True)


def attempt(name: str, seed: int, images: ImageSet, lines: Path) -> str:
    """Make a run, save its line, and return a sentence to print.

    A run that fails (because it diverges, for instance) has no line, so it is tried again next
    time.
    """
    try:
        line = append_line(one_run(name, seed, images), lines)
    except UserError as error:
        return f"failed: {error}"
    return "  ".join(f"{key} {line[key]}" for key in PRINTED)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="benchmarks.study", description=__doc__, formatter_class=raw
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(CONFIGURATIONS))
    parser.add_argument("--source", default="fashion-mnist", choices=list(EPOCHS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lines", type=Path, default=LINES, help="the file of finished runs")
    parser.add_argument(
        "--table",
        action="store_true",
        help="print the table of the finished runs, and run nothing",
    )
    return parser.parse_args()


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
    base = recipe(source)
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
        "name": name,
        "seed": seed,
        "source": images.name,
        "changed": CONFIGURATIONS[name],
        "epochs": config.epochs,
        "encoder": config.encoder,
        "batch_size": config.batch_size,
        "n_train": len(images.train),
        "n_test": len(images.test),
        **numbers,
        "ms_per_step": 1000 * trained / steps,
        "train_cpu_s": trained,
        "evaluation_cpu_s": time.process_time() - start - trained,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "date": date.today().isoformat(),
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
