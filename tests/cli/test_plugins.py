"""A package that brings a loss, an encoder, a data source and an evaluation: all work by name.

The package is installed as pip would: a module and a dist-info folder with entry points.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE = """
import torch
from torch import nn

import sureclr


class PushLoss(sureclr.Objective):
    "Pulls partners together and pushes all others apart."
    uses_certainty = False

    def read(self, projections, k=None):
        return sureclr.Posterior(self.directions(projections))

    def forward(self, posterior, generator=None):
        mu = posterior.direction
        first, second = mu.chunk(2)
        return (mu @ mu.T).square().mean() - (first * second).sum(1).mean()


def mean_colour(channels, stem):
    "Sixteen features of the mean colour."
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 16))
    network.num_features = 16
    return network


@sureclr.register_source("noise", about="16 images of noise.")
def noise(root):
    pixels = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    return sureclr.as_image_set(pixels, name="noise")


def brightness(inputs):
    return {"mean": float(inputs.images.images.float().mean())}
"""
ENTRY_POINTS = """
[sureclr.losses]
push = brought:PushLoss
[sureclr.encoders]
mean-colour = brought:mean_colour
[sureclr.sources]
noise = brought:noise
[sureclr.evaluations]
brightness = brought:brightness
"""

END = "--- end of an answer ---"
# One process for all commands: an import of torch takes 3 CPU seconds
RUN_ALL = f"""
import json, sys
from sureclr.cli import main
for words in json.loads(sys.argv[1]):
    main(words)
    print("{END}", flush=True)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    (place / "brought.py").write_text(MODULE)
    info = place / "brought-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return place


@pytest.fixture(scope="module")
def answers(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What three commands answer, in one process that finds the package as any other would."""
    out = str(tmp_path_factory.mktemp("runs") / "run")
    options = ["--loss", "push", "--encoder", "mean-colour", "--epochs", "1", "--batch-size", "8"]
    commands = [
        ["list", "--json"],
        ["pretrain", "noise", *options, "--device", "cpu", "--out", out, "--json"],
        ["evaluate", out, "--json"],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{installed}:{ROOT}"}
    command = [sys.executable, "-c", RUN_ALL, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(answer) for answer in done.stdout.split(END)[: len(commands)]]


def test_all_four_are_listed(answers: list[dict]) -> None:
    names = answers[0]
    assert names["losses"]["push"] == "Pulls partners together and pushes all others apart."
    assert names["encoders"]["mean-colour"] == "Sixteen features of the mean colour."
    assert names["sources"]["noise"] == "16 images of noise."


def test_all_four_work_on_the_command_line(answers: list[dict]) -> None:
    assert answers[1]["last"]["step"] == 2
    assert 100 < answers[2]["brightness"]["mean"] < 156
