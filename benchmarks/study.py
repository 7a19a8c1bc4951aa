"""`python -m benchmarks.study`: what does each choice do? One factor at a time around the default,
one encoder and budget.

    python -m benchmarks.study [--only NAME ...] [--source fashion-mnist|digits] [--seeds 0 1 2]
    [--threads 1] python -m benchmarks.study --table [--source ...]

Fashion-MNIST: a fixed subset of 15,000 training and 4,000 test images; digits: all. A finished run
is one line of study.jsonl, and a run that has its line is not done again, so stopping (Ctrl-C)
loses one run at most. Under 4 minutes a run on one core.
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

from benchmarks.lines import command, keep, kept
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

LINES = Path(__file__).with_suffix(
    ".jsonl"
)  # study_first, study_second: earlier defaults, NOTEBOOK.md says which
ENCODER = {
    "fashion-mnist": "small-24"
}  # instead of the recipe's, so that a run stays under 4 minutes
TRAIN, TEST = 15_000, 4_000  # images of the fixed subset
EPOCHS = {"fashion-mnist": 8, "digits": 60}
WARMUP_EPOCHS = {"fashion-mnist": 1.0, "digits": 5.0}
SAID = (
    "knn",
    "linear",
    "r_auroc_clean",
    "r_auroc_crop",
    "train_cpu_s",
    "evaluation_cpu_s",
)  # when a run has finished
LEVELS = slice(1, None, 2)  # of the corruptions' five strengths, those measured here

# Name -> what differs from the default: the source's recipe, whose loss, views and batch are what
# this study chose. In the order in which they are run: the two that decide first, then published
# references, then the factors.
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
    asked = arguments()
    if asked.table:
        print(table([line for line in kept(LINES) if line["source"] == asked.source]))
        return
    torch.set_num_threads(asked.threads)
    images = subset(load_images(asked.source))
    for name, seed in order(asked.only or list(CONFIGURATIONS), asked.seeds):
        if (name, seed, asked.source) not in {
            (line["name"], line["seed"], line["source"]) for line in kept(LINES)
        }:
            print(f"{name} seed {seed}: {attempt(name, seed, images)}", flush=True)


def attempt(name: str, seed: int, images: ImageSet) -> str:
    """One run, its line kept, and what to say of it. One that fails (diverges, say) leaves no line:
    it is tried again.
    """
    try:
        line = keep(one_run(name, seed, images), LINES)
    except UserError as error:
        return f"failed: {error}"
    return "  ".join(f"{key} {line[key]}" for key in SAID)


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="benchmarks.study", description=__doc__, formatter_class=raw
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(CONFIGURATIONS))
    parser.add_argument("--source", default="fashion-mnist", choices=list(EPOCHS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--table",
        action="store_true",
        help="print the table of the runs that are done, and do none",
    )
    return parser.parse_args()


def order(names: list[str], seeds: list[int]) -> Iterator[tuple[str, int]]:
    """All seeds of the two that decide, then a seed of all the others after the other."""
    yield from ((name, seed) for seed in seeds for name in names if name in DECIDING)
    yield from ((name, seed) for seed in seeds for name in names if name not in DECIDING)


def subset(images: ImageSet) -> ImageSet:
    """The same images for every run: drawn once by seed 0, then in the data set's order. Digits:
    all.
    """
    generator = torch.Generator().manual_seed(0)
    rows = [torch.as_tensor(images.rows(split)) for split in ("train", "test")]
    chosen = [
        torch.randperm(len(r), generator=generator)[:most]
        for r, most in zip(rows, (TRAIN, TEST), strict=True)
    ]
    return images.select(torch.cat([r[c].sort().values for r, c in zip(rows, chosen, strict=True)]))


def configuration(name: str, seed: int, source: str) -> PretrainConfig:
    """The source's recipe at the study's budget, with what this name changes."""
    base = recipe(source)
    base = replace(
        base,
        encoder=ENCODER.get(source, base.encoder),
        epochs=EPOCHS[source],
        warmup_epochs=WARMUP_EPOCHS[source],
        seed=seed,
        monitor_every=0,
        snapshot_every=0,
        checkpoint_every=0,
    )
    changed = CONFIGURATIONS[name]
    return replace(base, **{**changed, "views": replace(base.views, **changed.get("views", {}))})


def one_run(name: str, seed: int, images: ImageSet) -> dict[str, Any]:
    """Train, measure, and say it in one flat line."""
    config = configuration(name, seed, images.name)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        run = pretrain(
            config, images.train, out=Path(folder) / "run", device="cpu", progress=SILENT
        )
        trained = time.process_time() - start
        numbers = measured(run, images)
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


def measured(run: Run, images: ImageSet) -> dict[str, Any]:
    """The study's numbers from the package's own evaluations; None where a loss has no such thing.

    R-AUROC and the rest by the run's certainty; without one (NT-Xent, DCL) by none. `nn` is
    nearest-neighbour similarity.
    """
    inputs = evaluation_inputs(run, images)
    found = measure_uncertainty(
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
    foreign = {name: images.auroc for name, images in kinds.items() if not images.skipped}
    random = {name: corruption.random for name, corruption in found.corruptions.items()}
    rankings = {"clean": found.clean, **{name: harmed.ranking for name, harmed in random.items()}}
    r_auroc = {name: ranking.r_auroc for name, ranking in rankings.items() if ranking is not None}
    calibration, evidence, selective = found.calibration, found.evidence, found.selective
    assert selective is not None  # the study's data sets have labels
    return {
        "knn": 1 - selective["knn"].error,
        "linear": 1 - selective["linear"].error,
        "instance_match": found.partner.instance_match,
        "partner_auroc": found.partner.auroc.get("certainty"),
        **{f"r_auroc_{what}": r.get("certainty") for what, r in r_auroc.items()},
        **{f"nn_r_auroc_{what}": r["neighbour_similarity"] for what, r in r_auroc.items()},
        **{f"spearman_{what}": r.spearman.get("certainty") for what, r in random.items()},
        **{f"less_certain_{what}": r.less_certain.get("certainty") for what, r in random.items()},
        "calibration_raw": calibration and calibration.raw.error,
        "calibration_mapped": calibration and calibration.mapped.error,
        "mean_cosine_different": calibration and calibration.mean_cosine_different,
        "log_mean_exp": evidence and evidence.log_mean_exp,
        "log_mean_exp_se": evidence and evidence.log_mean_exp_standard_error,
        "kernel_dimension": evidence and evidence.kernel_dimension,
        **{f"ood_{what}": auroc.get("certainty") for what, auroc in foreign.items()},
        **{f"nn_ood_{what}": auroc["neighbour_similarity"] for what, auroc in foreign.items()},
        "detail": {"uncertainty": compact(found), "ood": to_json(kinds)},
    }


def compact(result: UncertaintyResult) -> dict[str, Any]:
    """Return the result without its curves, which make a line of 8 kB one of 12."""
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
    """Markdown: mean over seeds, ± their standard deviation where there are several."""
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
    """The OOD value against the other data set, whichever that is, under one name."""
    return line | {"ood_other": line.get("ood_digits", line.get("ood_fashion-mnist"))}


def spread(values: Sequence[float | None]) -> str:
    """Mean, ± the standard deviation where there are several; - where there is none."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    digits = 3 if abs(mean(numbers)) < 10 else 1
    return f"{mean(numbers):.{digits}f}" + (
        f" ± {stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    )


if __name__ == "__main__":
    command(main)
