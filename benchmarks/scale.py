"""Peak memory and CPU time of every command as the number of images grows.

    python -m benchmarks.scale                                # 1,000, 10,000 and 100,000 images
    python -m benchmarks.scale --sizes 1000,3000,10000 --only pretrain,knn
    python -m benchmarks.scale --table                        # the table of benchmarks/scale.jsonl

The images are synthetic JPEG files of 32 pixels in ten folders, one a class; a tenth of them is the
test split. The encoder is one convolution with 512 features, so that what is measured is what
SureCLR adds to a model: decoding, views, the loss, tables, neighbours, probes. Each command is a
process of its own with one thread. Two memories are measured: the largest resident set (VmHWM),
which counts pages of memory-mapped files that the system may drop, and the largest private memory
(RssAnon, sampled every 20 ms), which it cannot. CPU seconds include those of the processes that
decode.

The growth p of a number a + b n^p follows from three sizes that are 10 times apart: with the values
v1, v2, v3, (v3 - v1) / (v2 - v1) = 10^p + 1. It is 1 for linear growth, and the constant a, such as
the imports, is left out.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.lines import append_line, commit, read_lines

SIZES = (1_000, 10_000, 100_000)
SIDE, CLASSES, FEATURES, TEST_SHARE = 32, 10, 512, 0.1
EVERY = 0.02  # seconds between two samples of the private memory
RESULTS = Path(__file__).with_suffix(".jsonl")
NOISE = 40.0  # standard deviation of the images' noise, in grey levels
COLUMNS = ("cpu_seconds", "private_mib", "resident_mib")


def commands(images: Path, run: Path, out: Path) -> dict[str, list[str]]:
    """Return the words of each command, in an order in which each finds what it needs.

    Args:
        images: the folder of images.
        run: the run folder, which `pretrain` makes.
        out: a folder for what other commands write.
    """
    learned = ["--epochs", "1", "--batch-size", "256", "--warmup-epochs", "0"]
    source = f"folder:{images}"
    return {
        "views": ["views", source, "--out", str(out / "views.png")],
        "pretrain": [
            *("pretrain", source, "--size", str(SIDE), "--encoder", "patches-512"),
            *("--out", str(run), *learned),
        ],
        "knn": ["knn", str(run)],
        "linear": ["linear", str(run)],
        "uncertainty": ["uncertainty", str(run)],
        "evaluate": ["evaluate", str(run)],
        "label-next": ["label-next", str(run), "--budget", "100", "--out", str(out / "next.csv")],
        "predict": ["predict", str(run), str(images), "--out", str(out / "answers.parquet")],
        "finetune": ["finetune", str(run), "--labels", "10%", "--epochs", "1"],
        "report": ["report", str(run)],
    }


def write_images(folder: Path, count: int) -> None:
    """Write `count` JPEG files: a smooth pattern for each class, and noise.

    Args:
        folder: gets train/CLASS and test/CLASS.
        count: of both splits together.
    """
    from PIL import Image

    random = np.random.default_rng(0)
    coarse = random.uniform(60, 195, (CLASSES, 4, 4, 3))
    patterns = coarse.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    for split in ("train", "test"):
        for name in range(CLASSES):
            (folder / split / f"class{name}").mkdir(parents=True, exist_ok=True)
    for row in range(count):
        name = row % CLASSES
        split = "test" if row < TEST_SHARE * count else "train"
        noise = random.normal(0, NOISE, (SIDE, SIDE, 3))
        pixels = np.clip(patterns[name] + noise, 0, 255).astype(np.uint8)
        place = folder / split / f"class{name}" / f"{row:07d}.jpg"
        Image.fromarray(pixels).save(place, quality=90)


def register_encoder() -> None:
    """Register `patches-512`: one convolution of 8 x 8 patches, 16 patches of 32 numbers."""
    from torch import nn

    import sureclr

    @sureclr.register_encoder("patches-512")
    def patches(channels: int, stem: str) -> nn.Module:
        """Return a network that costs next to nothing, as wide as ResNet-18."""
        network = nn.Sequential(nn.Conv2d(channels, 32, 8, 8), nn.ReLU(), nn.Flatten())
        network.num_features = FEATURES  # type: ignore[assignment]  # a number, not a module
        return network


def measure(words: Sequence[str], cache: Path, log: Path) -> dict[str, float]:
    """Run a command in a fresh process; return its CPU seconds and its memory in MiB.

    Args:
        words: of the command, as after `sureclr`.
        cache: the folder of decoded images.
        log: gets what the command prints.

    Raises:
        SystemExit: the command fails; its last lines are printed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SURECLR_CACHE": str(cache)}
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scale", "--one", json.dumps(list(words))],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        private = resident = 0
        while True:
            found, status, usage = os.wait4(process.pid, os.WNOHANG)
            if found:
                break
            sample = _memory(process.pid)
            private, resident = max(private, sample[0]), max(resident, sample[1])
            time.sleep(EVERY)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen need not wait for it again
    if process.returncode:
        tail = "\n".join(log.read_text().splitlines()[-5:])
        sys.exit(f"sureclr {' '.join(words)} failed with {process.returncode}:\n{tail}")
    return {
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "wall_seconds": time.monotonic() - start,
        "private_mib": private / 1024,
        "resident_mib": resident / 1024,
    }


def _memory(pid: int) -> tuple[int, int]:
    """Return private memory now and the largest resident set so far, in KiB; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    found = {line.split(":")[0]: line for line in status.splitlines()}
    if "RssAnon" not in found:  # a process that has ended and was not waited for yet
        return 0, 0
    return int(found["RssAnon"].split()[1]), int(found["VmHWM"].split()[1])


def run_all(sizes: Sequence[int], only: Sequence[str], folder: Path, results: Path) -> None:
    """Measure the commands at all sizes; append a line for each to `results`.

    Args:
        sizes: numbers of images.
        only: names of commands to measure; empty: all. `pretrain` is run in any case.
        folder: for images, caches and runs; what is there of each size is deleted afterwards.
        results: a JSON-lines file.
    """
    for size in sizes:
        place = folder / str(size)
        (place / "out").mkdir(parents=True, exist_ok=True)
        write_images(place / "images", size)
        todo = commands(place / "images", place / "run", place / "out")
        for name, words in todo.items():
            if only and name not in (*only, "pretrain"):
                continue
            row = measure(words, place / "cache", place / f"{name}.log")
            line = {"command": name, "images": size, **row, "commit": commit()}
            print(json.dumps(append_line(line, results)), flush=True)
        shutil.rmtree(place)


def growth(sizes: Sequence[int], values: Sequence[float]) -> float | None:
    """Return p of a + b n^p through three points whose sizes are each 10 times the one before.

    It is None where the numbers do not grow, or there are other sizes.

    >>> round(growth((10, 100, 1000), [5 + 2 * n**1.5 for n in (10, 100, 1000)]), 3)
    1.5
    """
    if len(values) != 3 or any(b != 10 * a for a, b in pairwise(sizes)):
        return None
    first, second, third = values
    if not first < second < third or third - first <= second - first:
        return None
    ratio = (third - first) / (second - first) - 1
    return math.log10(ratio) if ratio > 0 else None


def table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table: for each command and size the newest line, and the growth."""
    newest = {(line["command"], line["images"]): line for line in lines}
    sizes = sorted({size for _, size in newest})
    names = list(dict.fromkeys(name for name, _ in newest))
    heads = [f"{size:,}" for size in sizes]
    rows = [
        f"| command | CPU s at {' / '.join(heads)} images | growth"
        f" | private MiB at {' / '.join(heads)} | growth | resident MiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        own = [newest[name, size] for size in sizes if (name, size) in newest]
        seconds, private, resident = ([line[key] for line in own] for key in COLUMNS)
        rows.append(
            f"| `{name}` | {_listed(seconds)} | {_power(sizes, seconds)} | {_listed(private)}"
            f" | {_power(sizes, private)} | {max(resident):,.0f} |"
        )
    return "\n".join(rows)


def _listed(values: Sequence[float]) -> str:
    return " / ".join(f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in values)


def _power(sizes: Sequence[int], values: Sequence[float]) -> str:
    found = growth(sizes, values)
    return "-" if found is None else f"n^{found:.2f}"


def main() -> None:
    """Measure, print the table, or with --one run a single command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--only", default="", help="names of commands, with commas between")
    parser.add_argument("--folder", type=Path, help="for images and runs; default: a temporary one")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        register_encoder()
        from sureclr.cli import main as run_command

        run_command(json.loads(options.one))
        return
    if not options.table:
        sizes = [int(word) for word in options.sizes.split(",")]
        only = [word for word in options.only.split(",") if word]
        with TemporaryDirectory() as temporary:
            run_all(sizes, only, options.folder or Path(temporary), options.results)
    print(table(read_lines(options.results)))


if __name__ == "__main__":
    main()
