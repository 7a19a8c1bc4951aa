"""What a run takes from its images: whole pictures for views, bands, size and stem."""

import base64
import io
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CONFIG, Interrupting, train
from torch import Tensor

from sureclr.config import PretrainConfig, ViewConfig, from_dict, read_yaml
from sureclr.data.image_set import ImageSet, convert
from sureclr.data.labels import labelled_rows
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError
from sureclr.evaluation import invariances
from sureclr.evaluation.drawn_views import embed_view_pairs
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.experiment import new_classifier
from sureclr.finetuning.train import Training
from sureclr.models.embedding import embed
from sureclr.models.encoders import encoder, stem_for
from sureclr.progress import SILENT, SilentProgress
from sureclr.reporting.figures import augmented_pairs
from sureclr.reporting.pictures import data_uri, sheets
from sureclr.stopping import Stopped
from sureclr.training.building import with_stem
from sureclr.training.continuing import completed
from sureclr.training.images import as_resolved, training_images
from sureclr.training.monitored_images import embedded_views
from sureclr.training.pretraining import check_pretraining, pretrain
from sureclr.training.run import load
from sureclr.training.setup import new_trainer

CPU = torch.device("cpu")
CROPS = ViewConfig(flip=0, jitter_p=0, grey_p=0, blur_p=0)


class Messages(SilentProgress):
    """Remembers its messages."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def bright_sides(n: int = 24) -> ImageSet:
    """Pictures of 8 x 24 pixels whose centre square is black and whose sides are white: only views
    of the whole picture show any white.
    """
    pixels = torch.full((n, 1, 8, 24), 255, dtype=torch.uint8)
    pixels[..., 8:16] = 0
    labels = torch.arange(n) % 2
    names = [str(i) for i in range(n)]
    whole = ImageSet("sides", pixels, labels, ("a", "b"), np.full(n, "train"), names)
    return convert(whole, 8)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """All views that an encoder has seen."""
    views: list[Tensor] = []
    from sureclr.models.encoders import SmallResNet

    forward = SmallResNet.forward

    def watched(self: Any, images: Tensor) -> Tensor:
        views.append(images.detach())
        return forward(self, images)

    monkeypatch.setattr(SmallResNet, "forward", watched)
    return views


# ---- whole pictures


def test_everything_that_makes_views_crops_them_from_whole_pictures(
    seen: list[Tensor], tmp_path: Path
) -> None:
    images = bright_sides()
    assert not images.images.any()
    trainer = new_trainer(replace(CONFIG, views=CROPS), images, CPU)

    def white() -> bool:
        """Whether any white was seen; the images are standardised, and black is the least."""
        shown = torch.cat([view.flatten() for view in seen])
        seen.clear()
        return bool(shown.max() > shown.min())

    seen.clear()
    trainer.gradient()
    assert white()
    model = trainer.model.eval()
    embedded_views(model, images, torch.arange(24), 0, CROPS, torch.float32, None)
    assert white()
    pairs = embed_view_pairs(lambda made: embed(model, made), images, np.arange(24), CROPS, 0, 1)
    assert white() and pairs.n == 24
    embed(model, images)
    assert not white()  # whole images are their centre squares

    augmented_pairs(
        images.for_views([0]),
        CROPS,
        torch.arange(1),
        tmp_path / "sheet.png",
        images.images.shape[-1],
    )
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    columns = sheet[-70, 17 : 17 + 96]  # the middle row of the first image, which is seen whole
    assert columns[4] == 255 and columns[48] == 0 and columns[-4] == 255


def test_fine_tuning_crops_from_whole_pictures(tmp_path: Path, seen: list[Tensor]) -> None:
    images = bright_sides()
    run = train(tmp_path / "run", images, epochs=1)
    model = new_classifier(run, "finetune", 2, 0)
    labelled = labelled_rows(images, "train")
    training = Training(model, labelled, FinetuneConfig(epochs=1), ViewConfig.light(), 0.1)
    seen.clear()
    training.step(0, 0)
    assert float(seen[0].max()) > float(seen[0].min())
    assert not labelled.pixels(slice(0, 3)).any()  # what is scored are centre squares


def test_an_array_is_cropped_whole_whatever_the_size(seen: list[Tensor]) -> None:
    whole = bright_sides().pictures
    assert whole is not None
    array = np.stack([whole[i].numpy() for i in range(24)])
    for size in (None, 8, 6):
        config = replace(CONFIG, size=size, views=CROPS)
        images = training_images(config, array, None, CPU, SILENT)
        assert images.images.shape == (24, 1, size or 8, size or 8)
        assert images.pictures is not None and torch.equal(images.pictures[3], whole[3])
        seen.clear()
        new_trainer(config, images, CPU).gradient()
        assert float(seen[-1].max()) > float(seen[-1].min())
        assert seen[-1].shape[-1] == (size or 8)


def test_micro_batches_have_the_views_of_the_batch(tmp_path: Path) -> None:
    """With gradients of frozen statistics the losses of one batch are equal."""
    images = bright_sides()
    trainers = [new_trainer(replace(CONFIG, micro_batch=size), images, CPU) for size in (None, 8)]
    for trainer in trainers:
        trainer.model.eval()
    whole, parts = (float(trainer.gradient()[0]) for trainer in trainers)
    assert whole == pytest.approx(parts, rel=1e-5)


# ---- bands


@pytest.mark.parametrize("channels", [2, 13])
def test_bands_end_to_end(channels: int, tmp_path: Path) -> None:
    pixels = noise(24, channels, 12, 16)
    images = ImageSet(
        "bands",
        pixels,
        torch.arange(24) % 2,
        ("a", "b"),
        np.array(["train"] * 16 + ["test"] * 8),
        [str(i) for i in range(24)],
    )
    run = train(tmp_path / "run", images, epochs=1, batch_size=8, channels=channels)
    assert (run.channels, run.config.channels, run.config.size) == (channels, channels, 12)
    assert len(run.model.mean) == channels
    opened = load(run.path, "cpu")
    fitting = convert(images, 12)
    table = opened.embed(fitting)
    assert torch.equal(table.features, run.embed(fitting).features)

    result = invariances.measure_sensitivity(opened.embed, fitting, opened.config.views)
    assert result.transformations["contrast"].responses is not None
    assert result.transformations["hue"].skipped == f"images of {channels} bands have no hue"
    assert data_uri(fitting, 0).startswith("data:image/png")
    assert len(sheets(fitting, range(24))["uris"]) == 1


@pytest.mark.parametrize(("channels", "colour"), [(2, (5, 5, 5)), (7, (5, 15, 25))])
def test_the_sheet_of_views_shows_the_first_bands(
    channels: int, colour: tuple[int, ...], tmp_path: Path
) -> None:
    bands = (torch.arange(channels) * 10 + 5).byte().view(1, channels, 1, 1)
    images = bands.expand(1, channels, 8, 8).contiguous()
    augmented_pairs(images, CROPS, torch.arange(1), tmp_path / "views.png")
    sheet = np.asarray(Image.open(tmp_path / "views.png").convert("RGB"))
    assert int((sheet == colour).all(2).sum()) >= 3 * 96 * 96  # the image and two views


def test_the_first_bands_are_shown() -> None:
    for channels, shown in ((1, 1), (2, 1), (3, 3), (7, 3)):
        pixels, none = noise(1, channels, 10, 10), torch.tensor([-1])
        images = ImageSet("b", pixels, none, (), np.array(["train"]), ["a"])
        data = base64.b64decode(data_uri(images, 0).split(",")[1])
        picture = np.asarray(Image.open(io.BytesIO(data))).reshape(10, 10, shown)
        assert picture.tolist() == pixels[0, :shown].permute(1, 2, 0).tolist()


@pytest.mark.parametrize("name", ["resnet18", "small-8"])
def test_encoders_take_bands(name: str) -> None:
    for stem in ("imagenet", "cifar"):
        network = encoder(name, stem, 6).eval()
        assert network(torch.rand(2, 6, 32, 32)).shape == (2, network.num_features)


def test_bands_that_do_not_fit_are_one_sentence(tmp_path: Path) -> None:
    images = as_image_set(
        ImageSet(
            "b", noise(16, 5, 8, 8), torch.full((16,), -1), (), np.full(16, "train"), ["a"] * 16
        )
    )
    with pytest.raises(UserError, match="5 bands cannot become images with 3 bands"):
        train(tmp_path / "run", images, channels=3)
    assert not (tmp_path / "run").exists()


# ---- what is decided by the images


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [
        ("small", 32, "cifar"),
        ("small-12", 40, "cifar"),
        ("small", 41, "imagenet"),
        ("resnet18", 32, "cifar"),
        ("wide_resnet50_2", 28, "cifar"),
        ("resnet18", 96, "imagenet"),
        ("convnext_tiny", 32, "imagenet"),
        ("vit_small_patch16_224", 32, "imagenet"),
        ("custom:Mine", 8, "imagenet"),
        ("no-such-encoder", 8, "imagenet"),
    ],
)
def test_the_stem_suits_the_size(name: str, size: int, stem: str) -> None:
    assert stem_for(name, size) == stem
    if name in ("small", "resnet18"):
        encoder(name, stem)  # it exists


def test_a_stem_that_was_given_or_trained_stays() -> None:
    config = PretrainConfig("digits")
    assert with_stem(replace(config, stem="imagenet"), 8).stem == "imagenet"
    assert with_stem(replace(config, stem="cifar"), 200).stem == "cifar"
    assert with_stem(replace(config, init="timm"), 8).stem == "imagenet"


def test_what_the_images_decide_is_recorded_and_said(tmp_path: Path) -> None:
    progress = Messages()
    config = replace(CONFIG, stem="auto", monitor_every=0)
    run = pretrain(
        config, noise(16, 3, 12, 20), out=tmp_path / "run", device="cpu", progress=progress
    )
    stored = from_dict(read_yaml(run.path / "config.yaml"))
    assert (stored.size, stored.channels, stored.stem) == (12, 3, "cifar")
    assert "12 pixels" in progress.texts[1] and "stem=cifar" in progress.texts[1]
    assert not any("stem" in text for text in progress.texts[2:])
    assert load(run.path, "cpu").encoder.backbone.stem[0].stride == (1, 1)
    progress.texts.clear()
    assert as_resolved(replace(config, stem="imagenet"), bright_sides(), progress).size == 8
    assert not progress.texts


def test_a_run_is_resumed_with_the_options_with_which_it_began(tmp_path: Path) -> None:
    """Size, channels and stem are left open both times."""
    config, images = replace(CONFIG, stem="auto"), noise(48, 1, 8, 12)

    options = {"out": tmp_path / "run", "device": "cpu"}
    with pytest.raises(Stopped):
        stop = Interrupting(5, lambda: signal.raise_signal(signal.SIGTERM))
        pretrain(config, images, **options, progress=stop)
    run = pretrain(config, images, **options, resume=True, progress=SILENT)
    whole = pretrain(config, images, out=tmp_path / "whole", device="cpu", progress=SILENT)
    assert run.config == whole.config
    for mine, other in zip(run.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    with pytest.raises(UserError, match="stem was cifar and is now imagenet"):
        pretrain(replace(config, stem="imagenet"), images, **options, resume=True, progress=SILENT)


def test_a_run_of_before_keeps_its_open_fields_and_its_stem() -> None:
    before = PretrainConfig("digits", stem="imagenet")
    assert completed(PretrainConfig("digits"), before) == before
    decided = PretrainConfig("digits", size=8, channels=1, stem="cifar", micro_batch=64)
    assert completed(PretrainConfig("digits"), decided) == decided
    assert completed(PretrainConfig("digits", size=12), decided).size == 12


def test_a_dry_run_resolves_as_the_run_does(tmp_path: Path) -> None:
    config = replace(CONFIG, source="digits", stem="auto")
    check_pretraining(config, device="cpu", progress=(progress := Messages()))
    assert "8 pixels" in progress.texts[1]
    with pytest.raises(UserError, match="ResNet family"):
        check_pretraining(
            replace(config, encoder="convnext_atto", stem="cifar"), device="cpu", progress=SILENT
        )
