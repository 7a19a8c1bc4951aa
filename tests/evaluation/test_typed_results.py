"""Every evaluation of a real run, as JSON and back, is the same dataclass."""

from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from json_round_trip import read_back
from tiny import train

from sureclr.data.image_set import ImageSet
from sureclr.evaluation.inputs import EvaluationInputs, evaluation_inputs
from sureclr.evaluation.results import (
    RESULT_TYPES,
    ExplanationResult,
    LearningResult,
    OodResult,
    UncertaintyResult,
)
from sureclr.evaluation.session import EVALUATIONS
from sureclr.evaluation.similarity import compare_runs

LABELLED = ("knn", "linear", "heads")


def images(labelled: bool = True) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    pixels = 60 * labels[:, None, None, None] + torch.randint(
        0, 100, (60, 1, 8, 8), generator=generator
    )
    split = np.array(["test" if i % 4 == 3 else "train" for i in range(60)])
    labels = labels if labelled else labels * 0 - 1
    classes = ("a", "b", "c") if labelled else ()
    paths = [str(i) for i in range(60)]
    return ImageSet("mine", pixels.to(torch.uint8), labels, classes, split, paths)


@pytest.fixture(scope="module", params=["sure", "nt-xent"])
def inputs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> EvaluationInputs:
    out = tmp_path_factory.mktemp("typed") / "run"
    return evaluation_inputs(train(out, images(), loss=request.param), images())


@pytest.fixture(scope="module")
def results(inputs: EvaluationInputs) -> dict[str, Any]:
    return {name: EVALUATIONS[name](inputs) for name in EVALUATIONS}


@pytest.mark.parametrize("name", [name for name in EVALUATIONS])
def test_a_result_is_of_its_type_and_is_read_back(results: dict[str, Any], name: str) -> None:
    assert type(results[name]) is RESULT_TYPES[name]
    assert read_back(results[name]) == results[name]


def test_a_comparison_is_read_back(inputs: EvaluationInputs) -> None:
    first = inputs.run.untrained()
    comparison = compare_runs(inputs.run, first, inputs.images, inputs.table, inputs.untrained)
    assert type(comparison) is RESULT_TYPES["comparison"]
    assert read_back(comparison) == comparison and comparison.cka_blocks is not None


@pytest.mark.parametrize("name", [name for name in EVALUATIONS if name not in LABELLED])
def test_a_result_without_labels_is_read_back(inputs: EvaluationInputs, name: str) -> None:
    result = EVALUATIONS[name](evaluation_inputs(inputs.run, images(labelled=False)))
    assert type(result) is RESULT_TYPES[name] and read_back(result) == result


def test_what_a_loss_lacks_is_none_and_the_reason_is_there(
    inputs: EvaluationInputs, results: dict[str, Any]
) -> None:
    has_radius = inputs.run.config.loss == "sure"
    uncertainty: UncertaintyResult = results["uncertainty"]
    optional = [
        name
        for name, hint in get_type_hints(UncertaintyResult).items()
        if type(None) in get_args(hint) and getattr(uncertainty, name) is None
    ]
    without_radius = [] if has_radius else ["information", "calibration", "evidence"]
    # All test images are judged, and half of them are too few to calibrate sets
    assert optional == [*without_radius, "sample", "sets"]
    assert len(uncertainty.skipped) == (1 if has_radius else 3)
    assert "fewer than the 9" in uncertainty.skipped["prediction sets"]
    assert (uncertainty.partner.instance_match_by_evidence is not None) == has_radius
    explanation: ExplanationResult = results["explanation"]
    assert (explanation.score, explanation.sanity is not None) == (
        ("radius", True) if has_radius else (None, False)
    )
    assert bool(explanation.certainty) == has_radius != bool(explanation.certainty_skipped)
    learning: LearningResult = results["learning"]
    assert (learning.radius is not None) == (learning.per_class is not None) == has_radius
    ood: OodResult = results["ood"]
    assert ood.human_agreement is None
    assert {kind: bool(images.auroc) for kind, images in ood.kinds.items()} == {
        kind: not images.skipped for kind, images in ood.kinds.items()
    }
