"""`python -m benchmarks.finetune RUN`: fine-tuning with few labels against training from scratch.

    python -m benchmarks.finetune RUN [--labels 1% 10%] [--seeds 5] [--threads 1] [--root DATA]
    python -m benchmarks.finetune --table

RUN is a run on Fashion-MNIST. Both networks get the same labels, light views, optimizer, learning
rates to choose from, epochs and batch size (SETTINGS). The learning rate is chosen for the first
seed and serves the others; the epoch is chosen for every seed. Both are chosen on a fifth of the
labels, which is not trained on. Then all 10,000 test images are classified once. A seed decides the
labels, the split, the order, the crops and the first weights of the network from scratch. There is
only one pretrained run, so the intervals (95 %, Student's t over seeds) do not cover other runs.
Each seed is saved in RUN's results.json and as a line of finetune.jsonl, and is not measured again.
You can stop the benchmark at any time.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.lines import append_line, read_lines, run_as_command
from sureclr.data.image_set import ImageSet
from sureclr.data.sources import load_images as load_source
from sureclr.errors import UserError
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.results import SeedResult
from sureclr.finetuning.service import finetune
from sureclr.finetuning.summary import accuracy_interval
from sureclr.schema import to_json
from sureclr.training.run import Run, load

LINES = Path(__file__).with_suffix(".jsonl")
SOURCE = "fashion-mnist"
SETTINGS = {  # few steps: for one CPU core
    "1%": FinetuneConfig(
        labels="1%", epochs=30, batch_size=32, learning_rates=(0.01, 0.03, 0.1), tune="first"
    ),
    "10%": FinetuneConfig(
        labels="10%", epochs=5, batch_size=64, learning_rates=(0.03, 0.1), tune="first"
    ),
}
ARMS = {"finetune": "fine-tuned", "scratch": "from scratch", "linear": "linear probe, frozen"}
QUESTION = ("loss", "pretrain_epochs", "labels")  # keys of the lines that share a table


def main() -> None:
    """Measure what is missing, then print the tables."""
    options = arguments()
    if options.table:
        print(tables(read_lines(LINES)))
        return
    if options.run is None:
        raise UserError(
            f"name a run on {SOURCE} (`sureclr pretrain {SOURCE} --out RUN` makes one), or print"
            " the saved measurements with --table."
        )
    torch.set_num_threads(options.threads)
    run = load(options.run, "cpu")
    images = load_source(SOURCE, root=options.root, size=run.size, channels=run.channels)
    for labels in options.labels:
        for seeds in range(1, options.seeds + 1):
            save_line(run, last_seed(run, images, labels, seeds), labels)
    print(tables(read_lines(LINES)))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="benchmarks.finetune",
        description=(__doc__ or "").replace("%", "%%"),
        formatter_class=raw,
    )
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--labels", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", type=Path, help="folder of the data sets")
    parser.add_argument(
        "--table", action="store_true", help="print the saved measurements, and measure nothing"
    )
    return parser.parse_args()


def last_seed(run: Run, images: ImageSet, labels: str, seeds: int) -> SeedResult:
    """Return the last of so many seeds; those before it are read from the run's results.json."""
    result = finetune(run, images, replace(SETTINGS[labels], seeds=seeds))
    return result.per_seed[seeds - 1]


def save_line(run: Run, seed: SeedResult, labels: str) -> None:
    """Append a line to finetune.jsonl, unless there is one of the same run, labels and seed."""
    line = {
        "loss": run.config.loss,
        "pretrain_epochs": run.config.all_epochs,
        "labels": labels,
        **to_json(seed),
    }
    names = (*QUESTION, "seed")
    if not any(all(known[name] == line[name] for name in names) for known in read_lines(LINES)):
        append_line(line, LINES)


def tables(lines: Sequence[dict[str, Any]]) -> str:
    """Return a table for each pretraining and share of labels."""

    def question(line: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(line[name] for name in QUESTION)

    questions = dict.fromkeys(map(question, lines))
    return "\n\n".join(
        table([line for line in lines if question(line) == wanted]) for wanted in questions
    )


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return a table in Markdown.

    For each network it has the accuracy (mean and interval over seeds), the chosen learning rate
    and epochs, and the CPU seconds of a seed, the search of the first one included.
    """
    first = lines[0]
    rows = [
        (
            f"{first['labels']} = {first['n_labels']:,} labels, {len(lines)} seeds;"
            f" {first['loss']}, {first['pretrain_epochs']} epochs\n"
        ),
        "| | accuracy | interval | learning rate | epochs | CPU s |",
        "| --- " * 6 + "|",
    ]
    for arm, name in ARMS.items():
        scores = [line[arm] for line in lines]
        accuracies = [score["accuracy"] for score in scores]
        low, high = accuracy_interval(accuracies, first["n_test"])
        choices = (
            " | | |"
            if arm == "linear"
            else (
                f"{scores[0]['learning_rate']:g} |"
                f" {', '.join(str(score['epoch']) for score in scores)} |"
                f" {mean(score['cpu_seconds'] for score in scores):.0f} |"
            )
        )
        rows.append(f"| {name} | {mean(accuracies):.4f} | {low:.4f} to {high:.4f} | {choices}")
    return "\n".join(rows)


if __name__ == "__main__":
    run_as_command(main)
