"""Which labels are worth most? The accuracy of linear probes, by number of labels and strategy.

    python -m benchmarks.label_next RUN [--only STRATEGY ...] [--budgets 10 30 ...]
                                        [--seeds 10 11 12] [--threads 1]
    python -m benchmarks.label_next --table

RUN is a run on Fashion-MNIST. Strategies choose among its training images as if none had a label
(from 8,192 of the 60,000, drawn by the seed); all 10,000 test images are predicted. The seeds are
of the choice (pool, ties, k-means), on one run, so the spread says nothing about other runs. Seeds
0 to 2 were used while the strategies were written and are not in the table. The score of `evidence`
was fixed after seeds 10 to 12, so seeds 20 to 22 are its confirmation.

The probe is the same for all strategies. Features are standardised over all training images, which
needs no label. The objective is |W|^2 / 2 plus C times the *sum* of the labelled images' losses,
with scikit-learn's default C = 1, which was fixed beforehand: for random choices (other seeds,
judged on training images) C = 0.1 is as good over the five budgets (`--tune`). A class without a
label counts as wrong. Each cell is measured once and is a line of label_next.jsonl.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.lines import append_line, read_lines, run_as_command
from benchmarks.study import spread
from sureclr.data.embeddings import Embeddings
from sureclr.data.sources import load_images
from sureclr.errors import UserError
from sureclr.evaluation.label_choice import STRATEGIES, label_next
from sureclr.maths.logistic import logistic_regression, standardisation
from sureclr.training.run import load

LINES = Path(__file__).with_suffix(".jsonl")
SOURCE, BUDGETS = "fashion-mnist", (10, 30, 100, 300, 1000)
C = 1.0
TUNED, TUNING_SEEDS = (0.001, 0.01, 0.1, 1.0), (100, 101)


def main() -> None:
    """Measure the cells that are missing, or print the table."""
    options = arguments()
    if options.table:
        for loss, epochs in sorted({(line["loss"], line["epochs"]) for line in read_lines(LINES)}):
            mine = [
                line
                for line in read_lines(LINES)
                if (line["loss"], line["epochs"]) == (loss, epochs)
            ]
            print(f"{loss}, {epochs} epochs\n\n{table(mine)}")
        return
    if options.run is None:
        raise UserError(
            f"the benchmark needs a run on {SOURCE}; make one with sureclr pretrain {SOURCE} --out"
            " RUN, or print earlier measurements with --table."
        )
    torch.set_num_threads(options.threads)
    seen = embedded(options.run)
    about = load(options.run, "cpu").config
    if options.tune:
        print(tune(seen))
        return
    of_run = {"loss": about.loss, "epochs": about.all_epochs}
    done = {
        (line["strategy"], line["budget"], line["seed"])
        for line in read_lines(LINES)
        if line.items() >= of_run.items()
    }
    for cell in (
        (strategy, budget, seed)
        for seed in options.seeds
        for budget in options.budgets
        for strategy in options.only
    ):
        if cell not in done:
            print(append_line({**of_run, **measure(seen, *cell)}, LINES), flush=True)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="benchmarks.label_next", description=__doc__, formatter_class=raw
    )
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument(
        "--only", nargs="+", metavar="STRATEGY", choices=list(STRATEGIES), default=list(STRATEGIES)
    )
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--tune",
        action="store_true",
        help="print the accuracy of random choices on other training images, by C",
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="print the table of earlier measurements, and measure nothing",
    )
    return parser.parse_args()


def embedded(path: Path) -> Embeddings:
    """Read the run's own table, or make and save it."""
    table = path / "embeddings.parquet"
    if not table.exists():
        run = load(path, "cpu")
        run.embed(load_images(SOURCE, size=run.size, channels=run.channels)).save(table)
    return Embeddings.read(table)


def measure(seen: Embeddings, strategy: str, budget: int, seed: int) -> dict[str, Any]:
    """Measure one cell of the table."""
    start = time.process_time()
    rows = label_next(seen, np.zeros(len(seen), dtype=bool), budget, strategy, seed).rows
    seconds = time.process_time() - start
    accuracy = probe(seen, rows, np.flatnonzero(seen.split == "test"), C)
    return {
        "strategy": strategy,
        "budget": budget,
        "seed": seed,
        "accuracy": accuracy,
        "classes": len(seen.labels[torch.from_numpy(rows)].unique()),
        "selection_cpu_s": round(seconds, 2),
    }


def probe(seen: Embeddings, labelled: np.ndarray, judged: np.ndarray, c: float) -> float:
    """Fit a logistic regression on the labelled rows; return its accuracy on the judged rows."""
    center, scale = standardisation(seen.features[torch.from_numpy(seen.split == "train")])
    x, y = (seen.features - center) / scale, seen.labels
    of, at = torch.from_numpy(labelled), torch.from_numpy(judged)
    classes, target = y[of].unique(return_inverse=True)
    if len(classes) == 1:
        return float((y[at] == classes).double().mean())
    fit = logistic_regression(x[of], target, [1 / (c * len(of))], tolerance=1e-4)
    logits: Tensor = x[at].double() @ fit.weight[0] + fit.bias[0]
    return float((classes[logits.argmax(1)] == y[at]).double().mean())


def tune(seen: Embeddings) -> str:
    """Print the accuracy of random choices by C, on 5,000 training images that are not chosen."""
    train = np.random.default_rng(0).permutation(np.flatnonzero(seen.split == "train"))
    judged, rest = train[:5000], train[5000:]
    rows = ["| C | " + " | ".join(map(str, BUDGETS)) + " |", "| --- " * (len(BUDGETS) + 1) + "|"]
    for c in TUNED:
        drawn = [
            [
                np.random.default_rng(seed).choice(rest, budget, replace=False)
                for seed in TUNING_SEEDS
            ]
            for budget in BUDGETS
        ]
        rows.append(
            f"| {c:g} | "
            + " | ".join(
                f"{mean(probe(seen, some, judged, c) for some in seeds):.3f}" for seeds in drawn
            )
            + " |"
        )
    return "\n".join(rows)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Write a Markdown table: the mean ± standard deviation over seeds.

    Two more columns hold the fewest classes among the chosen images, and the most CPU seconds that
    a choice took.
    """
    budgets = sorted({line["budget"] for line in lines})
    heads = ["", *(f"{budget:,}" for budget in budgets), "classes at least", "CPU s at most"]
    rows = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name in (
        name for name in STRATEGIES if name in Counter(line["strategy"] for line in lines)
    ):
        mine = [line for line in lines if line["strategy"] == name]
        cells = [
            spread([line["accuracy"] for line in mine if line["budget"] == budget])
            for budget in budgets
        ]
        rows.append(
            f"| {name} | " + " | ".join(cells) + f" | {min(line['classes'] for line in mine)} | "
            f"{max(line['selection_cpu_s'] for line in mine):.1f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    run_as_command(main)
