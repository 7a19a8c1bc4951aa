"""Train a recipe, evaluate it, and save a line: what it reaches, and what it costs.

    python -m benchmarks.recipe cifar10 --seeds 0,1,2                  # on a GPU
    python -m benchmarks.recipe digits --epochs 1 --encoder small-8    # a check of seconds on a CPU
    python -m benchmarks.recipe --table

A finished run is one line of recipe.jsonl with its settings, numbers, seconds, machine, versions
and commit; seconds are those of all steps, without the monitor and checkpoints. A run that has its
line is not repeated, and one that was stopped goes on from its last checkpoint (--runs keeps the
run folders).
"""

import argparse
import os
import platform
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.lines import append_line, commit, read_lines, run_as_command
from sureclr.config import PretrainConfig
from sureclr.evaluation.session import evaluate
from sureclr.models.devices import choose_device, choose_precision
from sureclr.progress import ConsoleProgress
from sureclr.recipes import RECIPES, recipe
from sureclr.training.pretraining import pretrain
from sureclr.version import __version__

LINES = Path(__file__).with_suffix(".jsonl")
EVALUATIONS = ("knn", "linear", "uncertainty")
SHOWN = ("knn", "linear", "r_auroc", "step_seconds", "images_per_second")


def main() -> None:
    """Run what has no line yet, or print the table."""
    options = arguments()
    if options.table:
        print(table(read_lines(options.lines)))
        return
    for seed in (int(word) for word in options.seeds.split(",")):
        config, changed = configuration(options, seed)
        key = {"recipe": options.recipe, "changed": changed, "seed": seed}
        if any(key.items() <= line.items() for line in read_lines(options.lines)):
            continue
        slug = "-".join([options.recipe, *(f"{k}={v}" for k, v in changed.items()), str(seed)])
        numbers = one_run(config, options.runs / slug.replace("/", "-"), options.device)
        line = append_line({**key, **numbers}, options.lines)
        print("  ".join(f"{name} {line[name]}" for name in SHOWN), flush=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="benchmarks.recipe", description=__doc__, formatter_class=raw
    )
    parser.add_argument("recipe", nargs="?", default="cifar10", choices=list(RECIPES))
    parser.add_argument("--seeds", default="0", help="whole numbers, with commas between")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--encoder", help="instead of the recipe's")
    parser.add_argument("--source", help="instead of the recipe's, such as folder:PATH")
    parser.add_argument("--loss", help="instead of the recipe's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--lines", type=Path, default=LINES, help="the file of finished runs")
    parser.add_argument("--table", action="store_true", help="print the table, and run nothing")
    return parser.parse_args()


def configuration(options: argparse.Namespace, seed: int) -> tuple[PretrainConfig, dict[str, Any]]:
    """Return the recipe with what the command line changes, and these changes."""
    given = {name: getattr(options, name) for name in ("epochs", "encoder", "source", "loss")}
    changed = {name: value for name, value in given.items() if value is not None}
    config = recipe(options.recipe)
    if "epochs" in changed:  # a recipe's warm-up may be longer than a short trial
        shorter = min(config.warmup_epochs, changed["epochs"] / 2)
        config = replace(config, warmup_epochs=shorter)
    return replace(config, **changed, seed=seed), changed


def one_run(config: PretrainConfig, out: Path, device: str) -> dict[str, Any]:
    """Train, or continue a run that was stopped; evaluate; return the numbers in one flat line."""
    chosen = choose_device(device)
    resume = (out / "checkpoints").is_dir()
    run = pretrain(config, out=out, device=device, resume=resume, progress=ConsoleProgress())
    start = time.perf_counter()
    results = evaluate(run, EVALUATIONS, device=device)
    knn, linear, certainty = (results[name] for name in EVALUATIONS)
    lines = run.directory.lines()
    seen = len(lines) * config.batch_size
    seconds = sum(config.batch_size / line["images_per_second"] for line in lines)
    return {
        "knn": knn.accuracy,
        "linear": linear.accuracy,
        "linear_interval": list(linear.interval),
        "r_auroc": certainty.clean.r_auroc.get("certainty") if certainty.clean else None,
        "n_train": linear.n_train,
        "n_test": linear.n_test,
        "epochs": config.epochs,
        "images_seen": seen,
        "images_per_second": seen / seconds,
        "step_seconds": seconds,
        "evaluation_seconds": time.perf_counter() - start,
        "precision": str(choose_precision(config.precision, chosen)).removeprefix("torch."),
        "machine": machine(chosen),
        "versions": f"sureclr {__version__}, torch {torch.__version__}",
        "commit": commit(),
        "command": " ".join(["python -m benchmarks.recipe", *sys.argv[1:]]),
        "date": date.today().isoformat(),
    }


def machine(device: torch.device) -> str:
    """Return the name of the device that computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table: a row for each recipe and change, the mean ± sd over its seeds."""
    rows = [
        "| recipe | changed | seeds | images seen | kNN | linear | R-AUROC | seconds | machine |",
        "| --- " * 9 + "|",
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        changed = ", ".join(f"{name} {value}" for name, value in line["changed"].items()) or "-"
        groups.setdefault((line["recipe"], changed, line["machine"]), []).append(line)
    for (name, changed, where), runs in groups.items():
        cells = [spread(runs, key) for key in ("knn", "linear", "r_auroc", "step_seconds")]
        seen = f"{runs[0]['images_seen']:,}"
        rows.append(" | ".join([f"| {name}", changed, str(len(runs)), seen, *cells, where]) + " |")
    return "\n".join(rows)


def spread(runs: list[dict[str, Any]], key: str) -> str:
    """Return the mean over the runs as text, ± the standard deviation of several; - for none."""
    values = [run[key] for run in runs if run[key] is not None]
    if not values:
        return "-"
    digits = 3 if mean(values) < 10 else 0
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):,.{digits}f}{deviation}"


if __name__ == "__main__":
    run_as_command(main)
