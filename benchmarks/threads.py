"""Do two threads pay, on an idle machine and on a busy one?

    python -m benchmarks.threads [--busy] [--rounds 2] [--works digits training evaluation decoding]

OpenMP's threads wait for each other at the end of every parallel loop. By default they spin there,
which is quick where each has a core of its own, and ruinous where another process has it: the
waiting thread takes the time that the awaited one needs. Every way below is a process of its own:
  1 thread
  2, spinning  OpenMP's default (libgomp's: 300,000 turns, some milliseconds)
  2, ours      what `import sureclr` asks for (compat.py): GNU's spin for some 20 microseconds, and
               then sleep
  2, asleep    OMP_WAIT_POLICY=PASSIVE alone: they sleep, and each loop must wake them
and the works are
  digits      steps of the digits recipe (short loops: what waking costs shows here)
  training    steps of the small encoder on 28 pixels, batches of 128
  evaluation  embedding, a linear probe and nearest neighbours, on noise
  decoding    JPEG files of 320 pixels, by one process and by two (sureclr.data.parallel_decoding)
The ways take turns. Printed are medians of wall seconds and of CPU seconds, and how many times one
thread's speed each way has. --busy starts a process that spins on each core, as another program
would. A round takes about 70 seconds on an idle machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import sureclr  # noqa: F401  (before torch, as in a command: it decides how threads wait)

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Variables of each way; the import of sureclr adds ours where none of WAITING is set
WAYS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2, spinning": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "300000"},
    "2, ours": {"OMP_NUM_THREADS": "2"},
    "2, asleep": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
}
PICTURES = 600  # files that are decoded; 40 different ones
SPINNING = "while True: pass"  # what a process of --busy does


def take_steps(encoder: str, side: int, batch: int, steps: int) -> Callable[[], None]:
    """Prepare a training in float32, and return what takes so many steps."""
    import torch

    from sureclr.config import PretrainConfig
    from sureclr.data.user_images import as_image_set
    from sureclr.training.setup import new_trainer

    pixels = torch.randint(0, 256, (1000, 1, side, side), dtype=torch.uint8)
    config = PretrainConfig(
        "noise", encoder=encoder, stem="cifar", batch_size=batch, precision="float32"
    )
    trainer = new_trainer(config, as_image_set(pixels), torch.device("cpu"))
    trainer.step()  # what is set up once

    def work() -> None:
        for _ in range(steps):
            trainer.step()

    return work


def evaluate_once() -> Callable[[], None]:
    """Prepare a network and noise, and return what embeds, probes and finds neighbours."""
    import torch

    from benchmarks.accumulate import network
    from sureclr.data.user_images import as_image_set
    from sureclr.evaluation.probes import linear_probe
    from sureclr.maths.neighbours import top_k
    from sureclr.maths.objectives import objective
    from sureclr.models.embedding import embed

    generator = torch.Generator().manual_seed(0)
    model = network(objective("sure"))
    images = as_image_set(torch.randint(0, 256, (1000, 1, 28, 28), dtype=torch.uint8))
    labels = torch.randint(0, 10, (2500,), generator=generator)
    rows = torch.randn(2500, 256, generator=generator)
    rows += torch.randn(10, 256, generator=generator)[labels] / 4

    def work() -> None:
        embed(model, images)
        linear_probe(rows[:2000], labels[:2000], rows[2000:], labels[2000:])
        top_k(rows.repeat(2, 1), rows.repeat(3, 1), 20)

    return work


def decode_folder(folder: Path) -> Callable[[], None]:
    """Return what decodes the pictures of a folder with as many processes as the cores allow."""
    from sureclr.data.decoding import Decoding, FileRef
    from sureclr.data.parallel_decoding import decode_files

    if os.environ["OMP_NUM_THREADS"] == "1":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    paths = sorted(folder.iterdir())
    files = [FileRef(str(paths[i % len(paths)])) for i in range(PICTURES)]

    def work() -> None:
        for _ in decode_files(files, Decoding(size=96, channels=3, whole_side=192)):
            pass

    return work


WORKS: dict[str, Callable[[Path], Callable[[], None]]] = {
    "digits": lambda _: take_steps("small", 8, 250, 10),
    "training": lambda _: take_steps("small", 28, 128, 5),
    "evaluation": lambda _: evaluate_once(),
    "decoding": decode_folder,
}


def write_pictures(folder: Path) -> None:
    """Write 40 pictures of smooth noise, which a JPEG compresses as a photograph."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for i in range(40):
        small = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(small).resize((320, 320)).save(folder / f"{i:02d}.jpg", quality=90)


def measure(work: str, folder: Path) -> dict[str, float]:
    """Return the wall and CPU seconds of a work in this process and in those that it starts."""
    prepared = WORKS[work](folder)
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    prepared()
    return {"wall": time.perf_counter() - wall, "cpu": sum(os.times()[:4]) - cpu}


def fresh(work: str, way: str, folder: Path) -> dict[str, float]:
    """Return what `measure` returns in a new process."""
    variables = {key: value for key, value in os.environ.items() if key not in WAITING}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.threads", "--one", work, "--folder", str(folder)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env=variables | WAYS[way],
    )
    return {key: float(value) for key, value in json.loads(run.stdout).items()}


@contextmanager
def spinning(processes: int) -> Iterator[None]:
    """Keep so many processes spinning inside the block."""
    others = [subprocess.Popen([sys.executable, "-c", SPINNING]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    """Run the race of each work, or with --one a single measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--busy", action="store_true", help="a process spins on each core")
    parser.add_argument("--one", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.folder)))
        return
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name, spinning(cores if options.busy else 0):
        write_pictures(Path(name))
        print(f"{cores} cores, load {os.getloadavg()[0]:.1f} at the start, {options.rounds} rounds")
        for work in options.works:
            race(work, Path(name), options.rounds)


def race(work: str, folder: Path, rounds: int) -> None:
    """Measure a work in every way, in turns, and print a line for each way."""
    ways = ["1 thread", "2, ours"] if work == "decoding" else list(WAYS)
    runs = [{way: fresh(work, way, folder) for way in ways} for _ in range(rounds)]
    for way in ways:
        wall, cpu = (median(run[way][key] for run in runs) for key in ("wall", "cpu"))
        ratio = median(run["1 thread"]["wall"] / run[way]["wall"] for run in runs)
        print(
            f"  {work:10}  {way:12} {wall:7.2f} s of wall time, {cpu:6.2f} s of CPU time,"
            f" {ratio:5.2f} x one",
            flush=True,
        )


if __name__ == "__main__":
    main()
