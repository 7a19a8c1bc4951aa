"""`python -m benchmarks.finetune RUN`: what are pretrained weights worth when few labels are known?
Fine-tuned against from scratch.

    python -m benchmarks.finetune RUN [--labels 1% 10%] [--seeds 5] [--threads 1] [--root DATA]
    python -m benchmarks.finetune --table

RUN is a run on Fashion-MNIST. Both arms have the same labels, light views, optimiser, learning
rates to choose from, epochs and batch size (SETTINGS); learning rate (for the first seed; it serves
the others) and epoch (for every seed) are chosen on a fifth of the labels, which is not trained on.
All 10,000 test images are then predicted once. A seed decides the labels, the split, the order, the
crops and the scratch weights; the pretrained run is one, so the intervals (95 %, Student's t over
seeds) say nothing of other runs. A measured seed is a line of finetune.jsonl, and stands in RUN's
results.json: neither is measured again. Stop it when you like.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.lines import command, keep, kept
from sureclr.data.image_set import ImageSet
from sureclr.data.sources import load_images
from sureclr.errors import UserError
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.protocol import finetune, interval
from sureclr.stopping import stop_on_signals
from sureclr.training.run import Run, load

LINES = Path(__file__).with_suffix(".jsonl")
SOURCE = "fashion-mnist"
SETTINGS = {  # few steps: for one CPU core
    "1%": FinetuneConfig(labels="1%", epochs=30, batch_size=32, lr=(0.01, 0.03, 0.1), tune="first"),
    "10%": FinetuneConfig(labels="10%", epochs=5, batch_size=64, lr=(0.03, 0.1), tune="first"),
}
ARMS = {"finetune": "fine-tuned", "scratch": "from scratch", "linear": "linear probe, frozen"}


def main() -> None:
    asked = arguments()
    if asked.table:
        print(tables(kept(LINES)))
        return
    if asked.run is None:
        raise UserError(
            f"name a run on {SOURCE}: sureclr pretrain {SOURCE} --out RUN makes one (or --table"
            " prints what is measured)."
        )
    torch.set_num_threads(asked.threads)
    run = load(asked.run, "cpu")
    images = load_images(SOURCE, root=asked.root, size=run.size, channels=run.channels)
    for labels in asked.labels:
        for seeds in range(1, asked.seeds + 1):
            record(run, one_more(run, images, labels, seeds), labels)
    print(tables(kept(LINES)))


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="benchmarks.finetune", description=__doc__.replace("%", "%%"), formatter_class=raw
    )
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--labels", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", type=Path, help="where data sets lie")
    parser.add_argument(
        "--table",
        action="store_true",
        help="print the table of what is measured, and measure nothing",
    )
    return parser.parse_args()


def one_more(run: Run, images: ImageSet, labels: str, seeds: int) -> dict[str, Any]:
    """The last of so many seeds; those before are read from the run's results.json."""
    with run.directory.lock(), stop_on_signals() as stop:
        found = finetune(
            run,
            images,
            replace(SETTINGS[labels], seeds=seeds),
            poll=lambda: stop.check("measured seeds are kept; run the same command again"),
        )
    return dict(found["per_seed"][seeds - 1])


def record(run: Run, entry: dict[str, Any], labels: str) -> None:
    """A line, where it is not there yet."""
    line = {
        "loss": run.config.loss,
        "pretrain_epochs": run.config.epochs,
        "labels": labels,
        **entry,
    }
    if not any(
        known.items()
        >= {key: line[key] for key in ("loss", "pretrain_epochs", "labels", "seed")}.items()
        for known in kept(LINES)
    ):
        keep(line, LINES)


def tables(lines: Sequence[dict[str, Any]]) -> str:
    """One for each pretraining and share of labels."""
    questions = dict.fromkeys(
        (line["loss"], line["pretrain_epochs"], line["labels"]) for line in lines
    )
    return "\n\n".join(
        table(
            [
                line
                for line in lines
                if (line["loss"], line["pretrain_epochs"], line["labels"]) == question
            ]
        )
        for question in questions
    )


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: accuracy by arm, mean and interval over seeds; what was chosen; CPU seconds of a
    seed, the first's search included.
    """
    about, n_test = lines[0], lines[0]["n_test"]
    rows = [
        (
            f"{about['labels']} = {about['n_labels']:,} labels, {len(lines)} seeds;"
            f" {about['loss']}, {about['pretrain_epochs']} epochs\n"
        ),
        "| | accuracy | interval | lr | epochs | CPU s |",
        "| --- " * 6 + "|",
    ]
    for arm, name in ARMS.items():
        mine = [line[arm] for line in lines]
        low, high = interval([one["accuracy"] for one in mine], n_test)
        rest = (
            " | | |"
            if arm == "linear"
            else (
                f"{mine[0]['lr']:g} | {', '.join(str(one['epoch']) for one in mine)} | "
                f"{mean(one['cpu_seconds'] for one in mine):.0f} |"
            )
        )
        rows.append(
            f"| {name} | {mean(one['accuracy'] for one in mine):.4f} | {low:.4f} to {high:.4f} |"
            f" {rest}"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    command(main)
