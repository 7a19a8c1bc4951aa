"""What does bfloat16 cost in quality, and what does it bring in time?

    python -m benchmarks.precision [--seeds 0,1,2] [--sources digits,PATH] [--lines FILE]
    python -m benchmarks.precision --table        prints the tables of the finished runs
    python -m benchmarks.precision --speed        measures steps and embedding, on noise

Every seed is trained once in float32 and once in bfloat16, with the same first weights, batches and
views, and each network embeds the images in both precisions. A finished run is one line of
precision.jsonl, and is not repeated. The sources are scikit-learn's digits by their recipe (the
encoder `small`, 20 epochs), and of a folder with train/CLASS and test/CLASS (such as CIFAR-10 as
JPEG files) 4,000 training and 1,000 test images (`small-8`, 4 epochs). One thread; a run takes
less than a CPU minute. Times are medians of process CPU seconds, in turns.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch

from benchmarks.lines import append_line, read_lines, run_as_command
from sureclr.config import PretrainConfig, ViewConfig
from sureclr.data.image_set import ImageSet
from sureclr.data.sources import load_images
from sureclr.data.user_images import as_image_set
from sureclr.evaluation.corrupted_images import rank
from sureclr.evaluation.neighbour_vote import vote_on_table
from sureclr.evaluation.scores import Reference, score_images
from sureclr.models.devices import PRECISIONS, why_bfloat16
from sureclr.models.embedding import embed
from sureclr.models.simclr import SimCLR
from sureclr.progress import SILENT
from sureclr.recipes import recipe
from sureclr.training.pretraining import pretrain
from sureclr.training.setup import new_trainer

LINES = Path(__file__).with_suffix(".jsonl")
TRAIN, TEST = 4_000, 1_000  # images of a folder
MEASURES = ("knn", "linear", "r_auroc")
NO_MONITOR: dict[str, Any] = {"monitor_every": 0, "snapshot_every": 0, "checkpoint_every": 0}
# Of --speed: encoder, side and channels of the images, batch
NETWORKS = (("small", 8, 1, 250), ("small-24", 32, 3, 64), ("resnet18", 32, 3, 32))
ROUNDS = 7


def main() -> None:
    """Run what has no line yet, and print the tables; or measure the speed."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="benchmarks.precision", description=__doc__, formatter_class=raw
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--sources", default="digits", help="digits, or folders, with commas")
    parser.add_argument("--lines", type=Path, default=LINES, help="the file of finished runs")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.speed:
        for line in speeds():
            print(line, flush=True)
        return
    if not options.table:
        for source in options.sources.split(","):
            run_source(source, [int(seed) for seed in options.seeds.split(",")], options.lines)
    print(tables(read_lines(options.lines)))


def run_source(source: str, seeds: list[int], path: Path) -> None:
    """Train and measure every seed of a source in both precisions, but for those with a line."""
    name = source if source == "digits" else Path(source).name
    images = load_images(source) if source == "digits" else folder_images(Path(source))
    for seed in seeds:
        for precision in PRECISIONS:
            done = {(e["source"], e["seed"], e["trained"]) for e in read_lines(path)}
            if (name, seed, precision) not in done:
                append_line(one_run(name, seed, precision, images), path)
                print(f"{name}, seed {seed}, {precision} is done", flush=True)


def folder_images(folder: Path) -> ImageSet:
    """Return the first images of each class, the same number of each, of both splits."""
    classes = sorted(path.name for path in (folder / "train").iterdir())
    files = [
        (path, label, split)
        for split, most in (("train", TRAIN), ("test", TEST))
        for label, name in enumerate(classes)
        for path in sorted((folder / split / name).iterdir())[: most // len(classes)]
    ]
    paths, labels, splits = zip(*files, strict=True)
    images = as_image_set([str(path) for path in paths], labels=list(labels))
    return replace(images, classes=tuple(classes), split=np.array(splits))


def configuration(source: str, seed: int, precision: Any) -> PretrainConfig:
    """Return the configuration of a run."""
    if source == "digits":
        return replace(recipe("digits"), epochs=20, seed=seed, precision=precision, **NO_MONITOR)
    return PretrainConfig(
        source,
        encoder="small-8",
        stem="cifar",
        epochs=4,
        batch_size=128,
        learning_rate=2e-3,
        warmup_epochs=0.5,
        precision=precision,
        seed=seed,
        views=ViewConfig(strength=0.5, blur_p=0),
        **NO_MONITOR,
    )


def one_run(source: str, seed: int, precision: str, images: ImageSet) -> dict[str, Any]:
    """Train, embed in both precisions, and return the line."""
    config = configuration(source, seed, precision)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        run = pretrain(
            config, images.train, out=Path(folder) / "run", device="cpu", progress=SILENT
        )
        trained = time.process_time() - start
    return {
        "source": source,
        "seed": seed,
        "trained": precision,
        "encoder": config.encoder,
        "epochs": config.epochs,
        "n_train": len(images.train),
        "n_test": len(images.test),
        "train_cpu_s": trained,
        "embedded": {name: measure(run.model, images, name) for name in PRECISIONS},
        "machine": f"{platform.machine()}, {why_bfloat16(run.model.device) or 'no bfloat16'},"
        f" torch {torch.__version__}",
        "date": date.today().isoformat(),
    }


def measure(model: SimCLR, images: ImageSet, precision: str) -> dict[str, float]:
    """Return kNN and linear accuracy and the R-AUROC of the certainty, of one table."""
    table = embed(model, images, precision=PRECISIONS[precision])
    reference = Reference.of(table)
    ranking = rank(score_images(table.labelled("test"), reference))
    assert reference.probe is not None and ranking is not None
    certainty = ranking.r_auroc["certainty"]
    assert certainty is not None
    return {
        "knn": vote_on_table(table).accuracy,
        "linear": reference.probe.accuracy,
        "r_auroc": certainty,
    }


def tables(lines: list[dict[str, Any]]) -> str:
    """Return Markdown: the mean over seeds ± standard deviation, and the paired differences."""
    rows = ["| | trained / embedded in | seeds | kNN | linear | R-AUROC | training, CPU s |"]
    rows.append("| --- " * 7 + "|")
    for source in dict.fromkeys(line["source"] for line in lines):
        runs = {(line["trained"], line["seed"]): line for line in lines if line["source"] == source}
        seeds = [s for s in sorted({s for _, s in runs}) if all((p, s) in runs for p in PRECISIONS)]
        values = {
            (trained, embedded): {
                key: [runs[trained, seed]["embedded"][embedded][key] for seed in seeds]
                for key in MEASURES
            }
            for trained in PRECISIONS
            for embedded in PRECISIONS
        }
        for (trained, embedded), measured in values.items():
            cells = " | ".join(spread(measured[key]) for key in MEASURES)
            cpu = mean(runs[trained, seed]["train_cpu_s"] for seed in seeds)
            rows.append(
                f"| {source} | {trained} / {embedded} | {len(seeds)} | {cells} | {cpu:.0f} |"
            )
        first, last = values["float32", "float32"], values["bfloat16", "bfloat16"]
        differences = {
            key: [b - a for a, b in zip(first[key], last[key], strict=True)] for key in MEASURES
        }
        cells = " | ".join(spread(differences[key], sign="+") for key in MEASURES)
        rows.append(f"| {source} | bfloat16 minus float32, paired | {len(seeds)} | {cells} | |")
    return "\n".join(rows)


def spread(values: list[float], sign: str = "") -> str:
    """Return the mean as text, ± the standard deviation of several values."""
    more = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.4f}{more}"


def speeds() -> Iterator[str]:
    """Yield a sentence for each network: CPU seconds of a step and of embedding, and the ratios."""
    yield f"this machine: {why_bfloat16(torch.device('cpu')) or 'no instructions for bfloat16'}"
    for encoder, side, channels, batch in NETWORKS:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(
            0, 256, (256, channels, side, side), dtype=torch.uint8, generator=generator
        )
        images = as_image_set(pixels, name="noise")
        trainers = {
            name: new_trainer(
                PretrainConfig(
                    "noise", encoder=encoder, stem="cifar", batch_size=batch, precision=name
                ),
                images,
                torch.device("cpu"),
            )
            for name in ("float32", "bfloat16")
        }
        seconds: dict[tuple[str, str], list[float]] = {}
        for number in range(ROUNDS + 1):
            for name, trainer in trainers.items():
                times = [time.process_time()]
                trainer.step()
                times.append(time.process_time())
                embed(trainer.model, images, precision=trainer.precision, batch=128)
                times.append(time.process_time())
                if number:  # the first round sets up what later ones find
                    seconds.setdefault(("step", name), []).append(times[1] - times[0])
                    seconds.setdefault(("embedding", name), []).append(times[2] - times[1])
        for work in ("step", "embedding"):
            a, b = (median(seconds[work, name]) for name in trainers)
            yield (
                f"{encoder}, {side} px, {work} of {batch if work == 'step' else len(images)}"
                f" images: float32 {a:.3f} s, bfloat16 {b:.3f} s, {a / b:.2f} x"
            )


if __name__ == "__main__":
    run_as_command(main)
