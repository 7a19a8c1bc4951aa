"""The evaluations behind the report, by name on a real run: their keys, the map beside them, what
they refuse, and their text.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet
from tiny import train

from sureclr.cli.evaluation_commands import summary
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.inputs import Material, material
from sureclr.evaluation.session import EVALUATIONS
from sureclr.evaluation.training_history import learning
from sureclr.maths.losses import Softening

NAMES = ("learning", "geometry", "sensitivity", "explanation")


def images(name: str = "mine") -> ImageSet:
    """32 training images between 16 test images."""
    pixels = torch.randint(
        0, 256, (48, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    split = np.array(["test" if i % 3 == 1 else "train" for i in range(48)])
    return ImageSet(
        name, pixels, torch.arange(48) % 4 - 1, ("a", "b", "c"), split, [str(i) for i in range(48)]
    )


@pytest.fixture(scope="module", params=["sure", "nt-xent", "tau"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material(
        train(tmp_path_factory.mktemp("report") / "run", images(), loss=request.param), images()
    )


def test_each_is_json_is_told_in_words_and_the_map_lies_beside(made: Material) -> None:
    found = {name: EVALUATIONS[name](made) for name in NAMES}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for name, result in found.items():
        assert summary(name, result).startswith(name)
    assert (
        found["geometry"]["map_rows"]
        == len(parquet.read_table(made.run.path / "map.parquet"))
        == 48
    )
    assert found["explanation"]["evidence_score"] == (
        "evidence" if made.run.config.loss == "sure" else "cosine"
    )  # no radius, no evidence
    assert bool(found["explanation"].get("certainty_skipped")) == (
        made.run.config.loss == "nt-xent"
    )
    assert ("evidence" in parquet.read_table(made.run.path / "map.parquet").column_names) == (
        made.run.config.loss == "sure"
    )
    assert same_gradient(made, found, "anchors" if made.run.config.loss == "sure" else "off")
    training = np.flatnonzero(made.images.split == "train")
    anchors = [example["anchor"] for example in found["learning"]["gradient"]["examples"]]
    assert anchors and set(anchors) <= set(training.tolist())


def same_gradient(made: Material, found: dict[str, Any], softening: Softening) -> bool:
    """Whether the weights are those of this softening, and of no other where there are radii."""
    told = {
        name: learning(made.run.directory.snapshots, made.images, 0.2, name)["gradient"]
        for name in (("off", "anchors", "means") if made.table.radius is not None else ("off",))
    }
    return [name for name in told if told[name] == found["learning"]["gradient"]] == [softening]


def test_rows_of_other_images_are_refused_and_sensitivity_is_not(made: Material) -> None:
    other = material(made.run, images("others"))
    before = (made.run.path / "map.parquet").exists() and (
        made.run.path / "map.parquet"
    ).read_bytes()
    for name in ("learning", "geometry", "explanation"):
        with pytest.raises(UserError, match="leave out --data"):
            EVALUATIONS[name](other)
    assert (
        (made.run.path / "map.parquet").exists() and (made.run.path / "map.parquet").read_bytes()
    ) == before
    assert EVALUATIONS["sensitivity"](other)["n"] == 16


def test_a_stop_is_heard_in_each(made: Material, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    stopped = material(made.run, images(), made.table, each_batch=stop)
    for name in NAMES:
        with pytest.raises(KeyboardInterrupt):
            EVALUATIONS[name](stopped)
