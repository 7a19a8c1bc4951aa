"""A run keeps the form in which its encoder takes images, and everything that it takes later gets
it: folders, files, images of Pillow, arrays, data sets and its own images.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny import CONFIG, Messages, train, write_photos

import sureclr
from sureclr.config import PretrainConfig, from_dict, read_yaml, to_yaml
from sureclr.data.image_set import resize
from sureclr.data.sources import load_images
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError
from sureclr.evaluation.inputs import evaluation_inputs, load_test_images
from sureclr.evaluation.run_images import read_run_images
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.protocol import run_finetuning
from sureclr.training import images as images_module
from sureclr.training.images import as_begun, as_resolved
from sureclr.training.run import Run, load
from sureclr.training.starting import ImageForm

FORM: dict[str, Any] = {"centre_share": 0.8, "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("run") / "run"
    source = f"folder:{photos}"
    return train(out, None, source=source, size=12, channels=3, epochs=1, batch_size=8, **FORM)


def test_the_form_is_kept_and_read_again(run: Run) -> None:
    recorded = from_dict(read_yaml(run.directory.config))
    assert (recorded.centre_share, recorded.interpolation) == (0.8, "bicubic")
    options = load(run.path, "cpu").config.read_options
    assert (options.centre_share, options.interpolation) == (0.8, "bicubic")
    with safe_open(run.path / "encoder.safetensors", "pt") as file:
        about = file.metadata()["sureclr"]
    assert '"centre_share": 0.8' in about and '"interpolation": "bicubic"' in about


def test_a_configuration_of_before_there_were_forms_is_the_usual_one() -> None:
    new = ("centre_share", "interpolation", "pixel_mean", "pixel_std")
    lines = [x for x in to_yaml(CONFIG).splitlines() if not x.startswith(new)]
    assert len(lines) == len(to_yaml(CONFIG).splitlines()) - len(new)
    import yaml

    options = from_dict(yaml.safe_load("\n".join(lines))).read_options
    assert (options.centre_share, options.interpolation) == (None, "bilinear")


def test_every_way_to_the_run_gives_the_same_features(run: Run, photos: Path) -> None:
    images = read_run_images(run)
    table = run.embed(images)
    files = [photos / path for path in images.paths]
    pictures = [Image.open(file) for file in files]
    arrays = [np.asarray(picture) for picture in pictures]
    assert {picture.size for picture in pictures} == {(8, 8)}
    stacked = np.stack(arrays)
    sets = as_image_set(stacked)
    for given in (files, pictures, arrays, stacked, torch.from_numpy(stacked), sets, images):
        found = run.embed(given).features
        assert torch.allclose(found, table.features, atol=1e-3), type(given)
    inputs = evaluation_inputs(run, as_image_set(stacked))
    assert torch.allclose(inputs.table.features, table.features, atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(run.encoder(images.images[:] / 255), table.features, atol=1e-4)
    usual = load_images(f"folder:{photos}", size=12, channels=3)
    assert (run.embed(usual).features - table.features).abs().max() > 1e-2  # it does matter


def test_other_data_sets_get_the_form(run: Run) -> None:
    options = run.config.read_options
    like = read_run_images(run)
    foreign = load_test_images("digits", like, None, options)
    digits = load_images("digits").test.images[:5]
    assert torch.equal(foreign.images[:5, :1], resize(digits, 12, options))
    inputs = evaluation_inputs(run, like)
    assert torch.equal(inputs.other_test_images("digits").images, foreign.images)
    assert torch.allclose(inputs.raw.features, like.images[:].flatten(1) / 255)


def test_a_finetuned_classifier_takes_pictures_in_the_form(run: Run, photos: Path) -> None:
    images = replace(images := read_run_images(run), split=np.full(len(images), "train"))
    split = np.where(np.arange(len(images)) % 3 == 0, "test", "train")
    config = FinetuneConfig(labels="100%", seeds=1, epochs=1, learning_rates=(0.1,))
    run_finetuning(run, replace(images, split=split), config)
    made = sureclr.load_finetuned(run.path, "100%", "cpu")
    pictures = [Image.open(photos / path) for path in images.paths[:4]]
    assert torch.allclose(made.probabilities(pictures), made.probabilities(images)[:4], atol=1e-4)


# --- what a new run decides


def begun(
    monkeypatch: pytest.MonkeyPatch, form: ImageForm, **changes: Any
) -> tuple[PretrainConfig, list[str]]:
    monkeypatch.setattr(images_module, "image_form", lambda config: form)
    monkeypatch.setattr(images_module, "check_start", lambda config, run: [])
    messages = Messages()
    return as_begun(replace(CONFIG, init="timm", **changes), messages), messages.messages


def test_one_line_says_which_size_why_and_what_another_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    form = ImageForm(224, (0.5,) * 3, (0.25,) * 3, 0.875, "bicubic")
    config, said = begun(monkeypatch, form)
    assert (config.size, config.centre_share, config.interpolation) == (224, 0.875, "bicubic")
    assert config.channels == 3 and config.pixel_mean == (0.5,) * 3
    assert len(said) == 1 and "224 px" in said[0] and "size=96 is about 5 times" in said[0]
    config, said = begun(monkeypatch, form, size=32, centre_share=1.0, interpolation="bilinear")
    assert not said
    assert (config.size, config.centre_share, config.interpolation) == (32, 1.0, "bilinear")
    _, said = begun(monkeypatch, replace(form, size=64))
    assert len(said) == 1 and "times quicker" not in said[0]


@pytest.mark.parametrize(("size", "words"), [(32, 1), (8, 0), (4, 0)])
def test_images_that_are_enlarged_are_said_to_be(size: int, words: int) -> None:
    options = replace(CONFIG, **FORM).read_options
    digits = load_images("digits").images[:20]
    images = as_image_set(digits, size=size, channels=3, options=options)
    messages = Messages()
    config = replace(CONFIG, init="timm", stem="imagenet", **FORM)
    assert as_resolved(config, images, messages).channels == 3
    enlarged = [text for text in messages.messages if "8 px" in text and "enlarged to 32" in text]
    assert len(messages.messages) == len(enlarged) == words


def test_statistics_of_another_number_of_channels_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="each of the 1 channel of the images, not 3"):
        train(tmp_path / "run", pixel_mean=(0.5,) * 3, pixel_std=(0.2,) * 3)
    assert not (tmp_path / "run").exists()
