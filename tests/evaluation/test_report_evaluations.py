"""The evaluations of the report on a real run: what they return, save and refuse."""

from typing import Any

import numpy as np
import pytest
import torch
from json_round_trip import read_back
from pyarrow import parquet
from recording_progress import StoppingProgress
from tiny import train

from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.inputs import EvaluationInputs, evaluation_inputs
from sureclr.evaluation.session import EVALUATIONS
from sureclr.evaluation.training_history import describe_snapshots
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
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> EvaluationInputs:
    return evaluation_inputs(
        train(tmp_path_factory.mktemp("report") / "run", images(), loss=request.param), images()
    )


def test_each_is_read_back_from_json_and_the_map_is_a_file_of_the_run(
    made: EvaluationInputs,
) -> None:
    found = {name: EVALUATIONS[name](made) for name in NAMES}
    for result in found.values():
        assert read_back(result) == result
    assert (
        found["geometry"].map_rows == len(parquet.read_table(made.run.path / "map.parquet")) == 48
    )
    assert found["explanation"].evidence_score == (
        "evidence" if made.run.config.loss == "sure" else "cosine"
    )  # no radius, no evidence
    assert bool(found["explanation"].certainty_skipped) == (made.run.config.loss == "nt-xent")
    assert ("evidence" in parquet.read_table(made.run.path / "map.parquet").column_names) == (
        made.run.config.loss == "sure"
    )
    assert same_gradient(made, found, "anchors" if made.run.config.loss == "sure" else "off")
    training = np.flatnonzero(made.images.split == "train")
    anchors = [example.anchor for example in found["learning"].gradient.examples]
    assert anchors and set(anchors) <= set(training.tolist())


def same_gradient(made: EvaluationInputs, found: dict[str, Any], softening: Softening) -> bool:
    """Whether the weights are those of this softening, and of no other where there are radii."""
    histories = {
        name: describe_snapshots(made.run.directory.snapshots, made.images, 0.2, name).gradient
        for name in (("off", "anchors", "means") if made.table.radius is not None else ("off",))
    }
    return [
        name for name, history in histories.items() if history == found["learning"].gradient
    ] == [softening]


def test_rows_of_other_images_are_refused_and_sensitivity_is_not(made: EvaluationInputs) -> None:
    other = evaluation_inputs(made.run, images("others"))
    before = (made.run.path / "map.parquet").exists() and (
        made.run.path / "map.parquet"
    ).read_bytes()
    for name in ("learning", "geometry", "explanation"):
        with pytest.raises(
            UserError, match="can only be evaluated on the training data .mine.*leave out data="
        ):
            EVALUATIONS[name](other)
    assert (
        (made.run.path / "map.parquet").exists() and (made.run.path / "map.parquet").read_bytes()
    ) == before
    assert EVALUATIONS["sensitivity"](other).n == 16


@pytest.mark.parametrize("name", NAMES)
def test_each_can_be_stopped(made: EvaluationInputs, name: str) -> None:
    stopped = evaluation_inputs(made.run, images(), made.table, progress=StoppingProgress())
    with pytest.raises(KeyboardInterrupt):
        EVALUATIONS[name](stopped)
