"""What exact large batches cost, in time and in memory: `python -m benchmarks.accumulate`.

A step (views by their seeds, gradient, Adam) of the small encoder on grey images of 28 pixels, with
one thread, in micro-batches of 64 images:
  exact   exact accumulation (training/accumulate.py): each micro-batch runs twice
  apart   the original project's way: each micro-batch has a loss of its own, so that negatives of
          different micro-batches never meet; the least that a ratio of times can be compared with
  whole   the batch on one graph, up to 1,024 images, for its memory
Every measurement is a process of its own, and the ways take turns. Times are medians of
process CPU seconds. Memory is how far the step raises the peak above that of imports, model and
images.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.loss import peak
from sureclr.config import ViewConfig
from sureclr.data.views import two_views
from sureclr.maths.objectives import OBJECTIVES, Objective, objective
from sureclr.models.encoders import encoder
from sureclr.models.simclr import CertaintyHead, ProjectionHead, SimCLR, StandardisedEncoder
from sureclr.training import accumulate

MICRO, SIZE, LARGEST_GRAPH = 64, 28, 1024
BATCHES = (512, 2048, 8192)
VIEWS = ViewConfig(strength=0.5)


def network(loss: Objective) -> SimCLR:
    """Return the network that is trained: the small encoder and the heads that the loss needs."""
    torch.manual_seed(0)
    body = encoder("small", channels=1)
    width = int(body.num_features)  # type: ignore[arg-type]
    return SimCLR(
        StandardisedEncoder(body),
        ProjectionHead(width, 128),
        CertaintyHead(width) if loss.uses_certainty else None,
        loss.read,
    ).train()


class Step:
    """One step of the optimizer, in one of the three ways."""

    def __init__(self, way: str, loss: str, images: int) -> None:
        """Make the network, the optimizer, and as many noise images."""
        self.objective, self.way = objective(loss), way
        self.model = network(self.objective)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3)
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(
            0, 256, (images, 1, SIZE, SIZE), dtype=torch.uint8, generator=generator
        )
        self.seeds = torch.arange(images)

    def __call__(self, images: int) -> None:
        """Take a step on the first so many images."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.way == "apart":
            for start in range(0, images, MICRO):
                accumulate.backward(
                    self.model, self.objective, partial(self.views, start=start), MICRO
                )
        else:
            accumulate.backward(
                self.model,
                self.objective,
                self.views,
                images,
                MICRO if self.way == "exact" else None,
            )
        self.optimizer.step()

    def views(self, part: slice, start: int = 0) -> Tensor:
        """Return the two views of the images of a slice, which is counted from `start`."""
        part = slice(start + part.start, start + part.stop)
        return two_views(self.pixels[part], self.seeds[part], VIEWS)


def measure(way: str, loss: str, images: int) -> dict[str, float]:
    """Return the extra MiB and the CPU seconds of a step, measured in this process."""
    torch.set_num_threads(1)
    step = Step(way, loss, images)
    # A first step for what is set up once: the optimizer's state, imports
    step(16 if way == "whole" else MICRO)
    before = peak()
    start = time.process_time()
    step(images)
    return {"extra": peak() - before, "seconds": time.process_time() - start}


def fresh(way: str, loss: str, images: int) -> dict[str, float]:
    """Return what `measure` returns in a new process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.accumulate",
        "--one",
        way,
        "--loss",
        loss,
        "--batch",
        str(images),
    ]
    root = Path(__file__).parents[1]
    run = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return {key: float(value) for key, value in json.loads(run.stdout).items()}


def race(loss: str, images: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return the medians of each way, which take turns."""
    ways = ["exact", "apart", *(["whole"] if images <= LARGEST_GRAPH else [])]
    runs = [{way: fresh(way, loss, images) for way in ways} for _ in range(rounds)]
    return {
        way: {key: median(run[way][key] for run in runs) for key in ("seconds", "extra")}
        for way in ways
    }


def main() -> None:
    """Run the race for each batch size, or with --one a single measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loss", choices=OBJECTIVES, default="sure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--one", choices=("exact", "apart", "whole"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.loss, *options.batch)))
        return
    print(f"{options.loss}, micro-batch {MICRO}: CPU seconds a step (images a second), MiB extra")
    for images in options.batch:
        results = race(options.loss, images, options.rounds)
        columns = "   ".join(
            f"{way} {numbers['seconds']:7.2f} s ({images / numbers['seconds']:4.0f}/s)"
            f" {numbers['extra']:5.0f} MiB"
            for way, numbers in results.items()
        )
        print(
            f"  batch {images:5d}: {columns}   exact/apart"
            f" {results['exact']['seconds'] / results['apart']['seconds']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
