"""CPU seconds and peak memory of `evaluate`, against an earlier commit; and the probe.

    python -m benchmarks.evaluate [--against COMMIT] [--images N | --source SOURCE] [--rounds R]

A run of one epoch is trained first: on scikit-learn's digits, on N synthetic images of 32 pixels,
or on any source. Then both versions evaluate copies of it, in turn (A B A B), each time in a fresh
process with one thread:

* in one command: all evaluations, with the CPU seconds of each (the rest is opening the run,
  reading and hashing its images, and embedding them);
* a command each: one evaluation after the other on the same copy, as a user asks for them, with
  the CPU seconds and the peak memory of every command (without Python's imports).

Medians are printed. The earlier commit lies in a git worktree, which is removed in the end. Last,
the linear probe races scikit-learn's as in benchmarks/probe.py.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
NAMES = (
    *("knn", "linear", "uncertainty", "ood"),
    *("learning", "geometry", "sensitivity", "explanation"),
)
BATCH, LEAST_IMAGES = 256, 326  # of which 256 are for training
Measured = dict[str, float]


# --- One process ----------------------------------------------------------------------


def measure(run: Path, names: list[str]) -> Measured:
    """Evaluate a run in this process: CPU seconds by evaluation, `rest`, `all`, and `MiB`."""
    import torch

    from sureclr.evaluation import foreign_images, session
    from sureclr.evaluation.evaluations import EVALUATIONS
    from sureclr.progress import SILENT

    torch.set_num_threads(1)
    foreign_images.OTHERS = ("digits",)  # type: ignore[assignment]  # nothing is downloaded
    seconds: Measured = {}

    def timed(name: str, evaluation: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def wrapped(inputs: Any) -> Any:
            began = time.process_time()
            try:
                return evaluation(inputs)
            finally:
                seconds[name] = time.process_time() - began

        return wrapped

    for name in list(EVALUATIONS):
        evaluation = EVALUATIONS[name]
        EVALUATIONS.remove(name)
        EVALUATIONS.register(name)(timed(name, evaluation))
    began = time.process_time()
    session.evaluate(run, names or None, device="cpu", progress=SILENT)
    whole = time.process_time() - began
    rest = whole - sum(seconds.values())
    return {**seconds, "rest": rest, "all": whole, "MiB": peak()}


def peak() -> float:
    """Return the peak memory of this process in MiB: Linux's VmHWM."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


# --- The run and the processes --------------------------------------------------------


def synthetic_images(n: int, folder: Path) -> str:
    """Write n images of ten classes (waves of a direction, under noise); return the source."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32] / 32
    for i in range(n):
        k, phase = i % 10, random.uniform(0, 2 * np.pi)
        wave = np.sin(2 * np.pi * 3 * (x * np.cos(k) + y * np.sin(k)) + phase)[:, :, None]
        pixels = 128 + 40 * wave * random.uniform(0.2, 1, 3) + random.normal(0, 60, (32, 32, 3))
        place = folder / ("test" if i % 50 < 10 else "train") / str(k)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{i:06d}.png")
    return f"folder:{folder}"


def train(source: str, encoder: str, out: str) -> None:
    """Train a run of one epoch in this process."""
    from dataclasses import replace

    import sureclr
    from sureclr.recipes import recipe_for

    config = replace(sureclr.recipe(recipe_for(source)), source=source, encoder=encoder)
    config = replace(config, epochs=1, warmup_epochs=0, batch_size=BATCH, snapshot_every=1)
    sureclr.pretrain(config, out=out, device="cpu")


def fresh(tree: Path, *arguments: str) -> str:
    """Return what a new process prints that runs this file with the package of a tree."""
    return subprocess.run(
        [sys.executable, str(Path(__file__)), *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)},
    ).stdout


def evaluated(tree: Path, run: Path, *names: str) -> Measured:
    """Return what `measure` returns in a new process that imports the package of a tree."""
    measured: Measured = json.loads(fresh(tree, "--one", str(run), *names))
    return measured


# --- The race -------------------------------------------------------------------------


def race(trees: dict[str, Path], run: Path, rounds: int, each: bool) -> dict[str, list[Measured]]:
    """Evaluate copies of a run by each tree in turn.

    Args:
        trees: name -> a checkout.
        run: is not changed.
        rounds: how often each tree is measured.
        each: whether every evaluation is a command of its own.
    """
    runs: dict[str, list[Measured]] = {name: [] for name in trees}
    for _ in range(rounds):
        for name, tree in trees.items():
            copy = run.parent / "copy"
            shutil.copytree(run, copy)
            if each:
                parts = [evaluated(tree, copy, evaluation) for evaluation in NAMES]
                found = {n: part["all"] for n, part in zip(NAMES, parts, strict=True)}
                found |= {f"{n}, MiB": part["MiB"] for n, part in zip(NAMES, parts, strict=True)}
                runs[name].append({**found, "all": sum(part["all"] for part in parts)})
            else:
                runs[name].append(evaluated(tree, copy))
            shutil.rmtree(copy)
    return runs


def report(title: str, runs: dict[str, list[Measured]]) -> None:
    """Print the medians of each tree, and the ratio of the first to the last."""
    print(f"\n{title}: medians of {len(next(iter(runs.values())))} rounds, CPU seconds")
    names, first = list(runs), next(iter(runs.values()))[0]
    print(f"  {'':18s}" + "".join(f"{name:>12s}" for name in names) + f"{'ratio':>8s}")
    for row in first:
        values = [median(measured[row] for measured in runs[name]) for name in names]
        ratio = values[-1] / values[0] if values[0] else float("nan")
        print(f"  {row:18s}" + "".join(f"{value:12.2f}" for value in values) + f"{ratio:8.2f}")
    for name in names:
        rounds = ", ".join(f"{measured['all']:.1f}" for measured in runs[name])
        print(f"  rounds of {name}: {rounds}", flush=True)


def main() -> None:
    """Train the run, run both races and the probe's, or with --one measure in this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", help="a commit to compare with")
    parser.add_argument("--images", type=int, help="number of synthetic images; digits without it")
    parser.add_argument("--source", help="a data source in their place, such as folder:PATH")
    parser.add_argument("--encoder", default="small-8", help="that is trained (small-8)")
    parser.add_argument("--rounds", type=int, default=3, help="of each version (3)")
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs="+", metavar=("RUN", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.images is not None and options.images < LEAST_IMAGES:
        parser.error(f"--images must be {LEAST_IMAGES} or more, for a batch of {BATCH}")
    if options.one:
        print(json.dumps(measure(Path(options.one[0]), options.one[1:])))
        return
    if options.train:
        train(*options.train)
        return
    from benchmarks.step import tree_of  # late: an earlier commit, which --one imports, lacks it

    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory(prefix="sureclr-evaluate-")))
        trees = {"this one": ROOT}
        if options.against:
            earlier = stack.enter_context(tree_of(options.against))
            trees = {options.against: earlier, **trees}
        source = options.source or "digits"
        if options.images:
            source = synthetic_images(options.images, place / "images")
        run = place / "run"  # trained by the earlier version, since a later one reads its runs
        fresh(next(iter(trees.values())), "--train", source, options.encoder, str(run))
        for each, title in ((False, "In one command"), (True, "A command each")):
            report(title, race(trees, run, options.rounds, each))
    from benchmarks import probe

    probe.race(10_000, 512, rounds=options.rounds)


if __name__ == "__main__":
    main()
