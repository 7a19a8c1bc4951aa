"""Views of whole pictures against torchvision, on two photographs of 427 x 640 pixels; bands."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

from sureclr.config import ViewConfig
from sureclr.data import colour
from sureclr.data.crops import crop_pictures, crop_together
from sureclr.data.image_set import ImageSet, convert, recolour, resize
from sureclr.data.pictures import Pictures
from sureclr.data.view_parameters import ViewParameters, draw_parameters
from sureclr.data.views import blur, one_view, two_views
from sureclr.errors import UserError

P_MIN = 1e-3  # the seeds are fixed: a test that passes once passes always
DEFAULT = ViewConfig()
PLAIN = ViewConfig(jitter_p=0, grey_p=0, blur_p=0)


@cache
def photographs() -> Tensor:
    """china.jpg and flower.jpg, (2, 3, 427, 640) uint8."""
    from sklearn.datasets import load_sample_images

    return torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2).contiguous()


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape))
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def of_all_sizes(channels: int = 3) -> tuple[Pictures, list[Tensor]]:
    """Pictures of five sizes in one flat array with gaps between them, one of them twice."""
    sides = [(40, 60), (97, 31), (1, 50), (200, 300), (7, 7)]
    images = [noise(channels, *side) for side in sides]
    flat, start = [torch.zeros(3, dtype=torch.uint8)], []
    for image in images:
        start.append(sum(map(len, flat)))
        flat += [image.flatten(), torch.full((11,), 99, dtype=torch.uint8)]
    order = [3, 0, 4, 1, 2, 0]
    height, width = (torch.tensor([sides[i][axis] for i in order]) for axis in (0, 1))
    starts = torch.tensor([start[i] for i in order])
    return Pictures(torch.cat(flat), starts, height, width, channels), [images[i] for i in order]


def resized_crop(image: Tensor, box: list[int], flip: bool, size: int) -> Tensor:
    """The witness: torchvision's, on float images in [0, 1]."""
    cut = F.resized_crop(image.float() / 255, *box, [size, size], antialias=True)
    return F.hflip(cut) if flip else cut


# ---- the pixels are torchvision's


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 427, 640],  # shrinks by 4.4 and 6.7
        [100, 200, 150, 121],
        [13, 500, 60, 80],  # enlarges
        [0, 639, 427, 1],
        [426, 0, 1, 640],
        [7, 11, 96, 96],  # keeps its pixels
    ],
)
def test_a_crop_of_a_photograph_is_torchvisions(box: list[int]) -> None:
    flip, boxes = torch.tensor([False, True]), torch.tensor([box, box])
    ours = crop_pictures(Pictures.of_array(photographs()), boxes, flip, 96)
    for image, turned, mine in zip(photographs(), flip.tolist(), ours, strict=True):
        assert float((mine - resized_crop(image, box, turned, 96)).abs().max()) < 1e-5


@pytest.mark.parametrize("size", [1, 8, 96])
@pytest.mark.parametrize("channels", [1, 3, 13])
def test_an_accelerators_resampling_is_the_cpus(
    size: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, in blocks of one picture up to all of them."""
    pictures, _ = of_all_sizes(channels)
    drawn = draw_parameters(torch.arange(6), 0, pictures.height, pictures.width, DEFAULT)
    one_by_one = crop_pictures(pictures, drawn.box, drawn.flip, size)
    sides = torch.stack([pictures.height, pictures.width], dim=1)
    given = pictures.values, channels, pictures.start, sides, drawn.box, drawn.flip
    for pixels in (1, 400_000, 10**9):
        monkeypatch.setattr("sureclr.data.crops.PIXELS_AT_ONCE", pixels)
        together = crop_together(*given, (size, size), (200, 300))
        assert float((together - one_by_one).abs().max()) < 1e-5


def test_a_whole_view_is_torchvisions() -> None:
    """Crop, flip and blur of one picture at a time, with our parameters."""
    config, seeds = ViewConfig(jitter_p=0, grey_p=0, blur_p=1), torch.arange(2)
    p: ViewParameters = draw_parameters(seeds, 1, 427, 640, config)
    ours = one_view(Pictures.of_array(photographs()), seeds, 1, config, 96)
    for i, image in enumerate(photographs()):
        cut = resized_crop(image, p.box[i].tolist(), bool(p.flip[i]), 96)
        theirs = F.gaussian_blur(cut, [9, 9], [float(p.sigma[i])])
        assert float((ours[i] - theirs).abs().max()) < 1e-5


def sharpness(views: Tensor) -> float:
    """Mean squared difference of neighbouring pixels."""
    return float(views.diff(dim=3).square().mean() + views.diff(dim=2).square().mean())


def test_views_are_as_sharp_as_torchvisions_and_show_the_edges() -> None:
    """Views of the centre square at 96 pixels have about half of it."""
    seeds = torch.arange(200)
    whole = Pictures.of_array(photographs()).select(seeds % 2)
    ours = sharpness(one_view(whole, seeds, 0, PLAIN, 96))
    squares = sharpness(one_view(resize(photographs(), 96)[seeds % 2], seeds, 0, PLAIN, 96))
    torch.manual_seed(0)
    transform = RandomResizedCrop(96, PLAIN.crop_area, PLAIN.crop_aspect, antialias=True)
    images = photographs().float() / 255
    theirs = sharpness(torch.stack([transform(images[i % 2]) for i in range(200)]))
    assert 0.85 < ours / theirs < 1.15
    assert squares / theirs < 0.65
    box = draw_parameters(seeds, 0, 427, 640, PLAIN).box
    assert int(box[:, 1].min()) < 20 and int((box[:, 1] + box[:, 3]).max()) > 620


# ---- the law is torchvision's


@pytest.mark.parametrize("sides", [(427, 640), (640, 427), (200, 1000)])
def test_crops_of_oblong_pictures_are_distributed_as_torchvisions(sides: tuple[int, int]) -> None:
    n, image = 3000, torch.empty(1, *sides)
    torch.manual_seed(0)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    )
    height, width = (torch.full((4 * n,), side) for side in sides)
    ours = draw_parameters(torch.arange(4 * n), 0, height, width, DEFAULT).box
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > P_MIN
    area = [box[:, 2].double() * box[:, 3] for box in (ours, theirs)]
    assert stats.ks_2samp(*area).pvalue > P_MIN


@pytest.mark.parametrize("sides", [(1, 100), (100, 1), (3, 700), (100, 105)])
def test_the_central_crop_is_torchvisions(sides: tuple[int, int]) -> None:
    """The whole area at an aspect that does not fit: every try fails."""
    config = ViewConfig(crop_area=(1, 1), crop_aspect=(1, 1.1))
    theirs = RandomResizedCrop.get_params(torch.empty(1, *sides), [1, 1], [1, 1.1])
    height, width = (torch.full((3,), side) for side in sides)
    drawn = draw_parameters(torch.arange(3), 0, height, width, config)
    assert drawn.box.tolist() == [list(theirs)] * 3


# ---- a view depends on its own picture and seed alone


def test_pictures_of_all_sizes_have_the_views_that_each_has_alone() -> None:
    pictures, images = of_all_sizes()
    seeds = torch.arange(6) * 7
    together = two_views(pictures, seeds, DEFAULT, 24)
    assert together.shape == (12, 3, 24, 24)
    for i, image in enumerate(images):
        if image.shape[1:] != (24, 24):
            alone = two_views(image[None], seeds[i : i + 1], DEFAULT, 24)
            assert float((together[[i, i + 6]] - alone).abs().max()) < 1e-6
    order = torch.tensor([5, 0, 3])
    some = two_views(pictures.select(order), seeds[order], DEFAULT, 24)
    assert float((some - together[torch.cat([order, order + 6])]).abs().max()) < 1e-6


def test_images_of_the_size_of_their_views_are_what_they_were() -> None:
    images, seeds = noise(9, 3, 32, 32), torch.arange(9)
    assert torch.equal(two_views(images, seeds, DEFAULT, 32), two_views(images, seeds, DEFAULT))
    assert one_view(noise(2, 3, 20, 32), torch.arange(2), 0, DEFAULT).shape == (2, 3, 20, 32)
    assert one_view(noise(2, 3, 20, 32), torch.arange(2), 0, DEFAULT, 20).shape == (2, 3, 20, 20)


def test_what_cannot_be_viewed_is_one_sentence() -> None:
    pictures, _ = of_all_sizes()
    for options, words in (({}, "give size=96"), ({"size": 0}, "at least 1 pixel, not 0")):
        with pytest.raises(UserError, match=words):
            two_views(pictures, torch.arange(6), DEFAULT, **options)
    with pytest.raises(UserError, match="6 int64 seeds"):
        two_views(pictures, torch.arange(5), DEFAULT, 8)
    with pytest.raises(UserError, match="at least one"):
        two_views(pictures.select([]), torch.arange(0), DEFAULT, 8)


# ---- Pictures


@pytest.mark.parametrize("bytes_at_once", [1, 5000, 2**28])
def test_only_the_pictures_in_use_move_to_a_device(
    bytes_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sureclr.data.pictures.BYTES_AT_ONCE", bytes_at_once)
    pictures, images = of_all_sizes()
    for rows in ([0, 1, 2, 3, 4, 5], [5, 3], [1, 5], [2]):
        moved = pictures.select(rows)._gathered(torch.device("cpu"))
        assert all(torch.equal(moved[i], images[row]) for i, row in enumerate(rows))
        stored = {id(images[row]): images[row].numel() for row in rows}
        assert len(moved.values) == moved.nbytes == sum(stored.values())
    assert pictures.to(torch.device("cpu")) is pictures
    assert pictures.nbytes == sum(image.numel() for image in images[:5])


def test_pictures_turn_grey_one_by_one() -> None:
    pictures, images = of_all_sizes()
    grey = pictures.recoloured(1, recolour)
    assert grey.channels == 1 and len(grey) == 6 and grey.nbytes == pictures.nbytes // 3
    for i, image in enumerate(images):
        assert torch.equal(grey[i], recolour(image[None], 1)[0])


# ---- ImageSet


def a_set(images: Tensor) -> ImageSet:
    n = len(images)
    none = torch.full((n,), -1)
    return ImageSet("made", images, none, (), np.full(n, "train"), [str(i) for i in range(n)])


@pytest.mark.parametrize("size", [32, 96, 224])
def test_the_centre_square_is_torchvisions(size: int) -> None:
    for image, ours in zip(photographs(), resize(photographs(), size), strict=True):
        theirs = F.resize(F.center_crop(image, [427, 427]), [size], antialias=True)
        assert int((ours.int() - theirs.int()).abs().max()) <= 1


def test_a_conversion_keeps_the_whole_pictures_without_a_copy() -> None:
    whole = a_set(photographs())
    small = convert(whole, 96)
    assert small.pictures is not None and small.images.shape == (2, 3, 96, 96)
    assert small.pictures.values.data_ptr() == photographs().data_ptr()
    assert torch.equal(small.pictures[1], photographs()[1])
    assert torch.equal(convert(whole).pictures[0], photographs()[0])  # the shorter side
    # A second conversion starts from the whole pictures, not from the small squares
    assert torch.equal(convert(small, 200).images, resize(photographs(), 200))
    grey = convert(small, channels=1)
    assert torch.equal(grey.pictures[1], recolour(photographs(), 1)[1])
    assert torch.equal(convert(whole, 96, 1).pictures[0], grey.pictures[0])
    assert torch.equal(small.select([1]).for_views([0])[0], photographs()[1])


def test_other_pixels_have_no_whole_pictures() -> None:
    small = convert(a_set(photographs()), 96)
    changed = small.with_pixels(255 - small.images, note="negative")
    assert changed.pictures is None and changed.note == "negative"
    assert torch.equal(changed.for_views([1]), 255 - small.images[1:])


def test_images_that_are_enlarged_or_keep_their_size_have_no_whole_pictures() -> None:
    images = a_set(noise(3, 3, 20, 20))
    assert convert(images, 32).pictures is None and convert(images, channels=1).pictures is None
    assert convert(a_set(noise(3, 3, 20, 24)), 32).pictures is not None


@pytest.mark.parametrize(("present", "wanted"), [(13, 3), (3, 13), (2, 1), (1, 4)])
def test_bands_that_cannot_be_made_are_named(present: int, wanted: int) -> None:
    with pytest.raises(UserError, match=rf"\b{present} bands?\b.*\b{wanted} bands?\b"):
        convert(a_set(noise(2, present, 9, 9)), channels=wanted)


# ---- bands


@pytest.mark.parametrize("channels", [2, 4, 13, 32])
def test_every_band_is_cropped_flipped_and_blurred_alike(channels: int) -> None:
    """The witness: each band as a grey image with the same seed."""
    images, seeds = noise(4, channels, 40, 56), torch.arange(4)
    config = ViewConfig(jitter_p=0, grey_p=1, blur_p=1)
    ours = one_view(images, seeds, 0, config, 24)
    for band in range(channels):
        alone = one_view(images[:, band : band + 1].contiguous(), seeds, 0, config, 24)
        assert float((ours[:, band : band + 1] - alone).abs().max()) < 1e-6


def test_the_contrast_of_bands_is_around_the_mean_of_all() -> None:
    x, factor = torch.rand(3, 5, 6, 7), torch.tensor([0.0, 0.5, 1.5])
    mean = x.mean((1, 2, 3)).view(3, 1, 1, 1)
    expected = (factor.view(3, 1, 1, 1) * (x - mean) + mean).clamp(0, 1)
    torch.testing.assert_close(colour.contrast(x, factor), expected)
    order = torch.tensor([[3, 2, 1, 0]] * 3)  # hue and saturation first: they are left out
    factors = torch.stack([torch.full((3,), 0.8), factor, torch.zeros(3), torch.full((3,), 0.3)], 1)
    expected = colour.brightness(expected, factors[:, 0])
    torch.testing.assert_close(colour.jitter(x.clone(), factors, order), expected)


def test_blur_keeps_bands_apart() -> None:
    x = torch.zeros(1, 6, 9, 9)
    x[:, 4] = 1
    torch.testing.assert_close(blur(x, torch.tensor([1.0]), 2), x)
