"""A run of a second, for every test that needs one: 48 grey images of 8 pixels, 12 steps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sureclr.config import PretrainConfig, ViewConfig
from sureclr.progress import SILENT, SilentProgress
from sureclr.training.pretraining import pretrain
from sureclr.training.run import Run

FLAGS = [  # of `sureclr pretrain`, for a run of a second
    *("--encoder", "small-10", "--projection-dim", "8", "--warmup-epochs", "0", "--device", "cpu"),
    *("--checkpoint-every", "1", "--snapshot-every", "0", "--monitor-every", "0"),
    *("--precision", "float32"),  # whatever instructions the CPU has
]
STEPS = 12  # 4 epochs of 3
WIDTH = 10  # channels after the stem; a wider encoder makes every test slower
FEATURES = 8 * WIDTH
IMAGES = torch.randint(
    0, 256, (48, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
CONFIG = PretrainConfig(
    "mine",
    encoder=f"small-{WIDTH}",
    stem="imagenet",
    projection_dim=8,
    projection_hidden=16,
    epochs=4,
    batch_size=16,
    warmup_epochs=1,
    learning_rate=1e-2,
    monitor_every=2,
    snapshot_every=2,
    checkpoint_every=1,
    precision="float32",
    views=ViewConfig(flip=0.0, strength=0.5),
)


def train(out: Path, images: Any = IMAGES, **options: Any) -> Run:
    """`options` of PretrainConfig change CONFIG, others go to `pretrain`."""
    changes = {key: options.pop(key) for key in list(options) if hasattr(CONFIG, key)}
    return pretrain(
        replace(CONFIG, **changes),
        images,
        out=out,
        **{"progress": SILENT, "device": "cpu", **options},
    )


def write_photos(folder: Path, seed: int = 0) -> Path:
    """Two classes of 12 images: dark and bright noise."""
    random = np.random.default_rng(seed)
    for name, low in (("bright", 128), ("dark", 0)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(12):
            pixels = random.integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")
    return folder


class Messages(SilentProgress):
    """Remembers its messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


class Interrupting(SilentProgress):
    """A progress that does something after so many steps of this process."""

    def __init__(self, steps: int, act: Any) -> None:
        self.left, self.act = steps, act

    def update(self, done: int, numbers: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


def lines(out: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock: the speed, and the checksum of each line."""
    read = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("images_per_second", "crc32")}
        for line in read
    ]


def weights(out: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint: model, loss and optimizer."""
    from safetensors.torch import load_file

    newest = max((out / "checkpoints").glob("step-*"))
    return {
        f"{file.stem}.{name}": value
        for file in newest.glob("*.safetensors")
        for name, value in load_file(file).items()
    }


def equal(a: Path, b: Path) -> bool:
    """Bit for bit the same end: checkpoints, lines and snapshots."""
    mine, other = weights(a), weights(b)
    same = mine.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in mine.items()
    )
    snapshots = [
        [(file.name, file.read_bytes()) for file in sorted((x / "snapshots").iterdir())]
        for x in (a, b)
    ]
    return same and lines(a) == lines(b) and snapshots[0] == snapshots[1]
