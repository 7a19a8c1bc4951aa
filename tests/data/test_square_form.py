"""The square of a picture as a pretrained network takes it: timm's and Pillow's are the witnesses,
on photographs of several shapes, from files, images of Pillow, arrays and data sets alike.
"""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from sureclr.config import READ_OPTIONS, ReadOptions
from sureclr.data import folder_cache, image_set, raster_pixels
from sureclr.data.cache_manifest import fingerprint
from sureclr.data.cached_pixels import CachedPixels
from sureclr.data.decoding import Decoding, FileRef, decode, decode_image
from sureclr.data.folder import read_folder
from sureclr.data.folder_cache import PIXELS, cache_root
from sureclr.data.image_set import convert, digest_of_pixels, resize
from sureclr.data.sources import SOURCES, load_images, register_source
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError

SHARE = ReadOptions(centre_share=0.8, interpolation="bicubic")


@cache
def photographs() -> tuple[Image.Image, ...]:
    china, flower = (Image.fromarray(photo) for photo in load_sample_images().images)
    boxes = [(0, 0, 640, 427), (9, 20, 210, 420), (200, 0, 627, 427), (0, 100, 640, 197)]
    small = flower.crop((180, 60, 470, 350)).resize((32, 32), Image.Resampling.LANCZOS)
    return (*map(china.crop, boxes), flower.rotate(90, expand=True), small)


def tensor(picture: Image.Image) -> Tensor:
    """(1, c, h, w) uint8."""
    pixels = np.atleast_3d(np.asarray(picture)).copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def timms(picture: Image.Image, size: int, share: float, interpolation: str) -> Tensor:
    """What timm's evaluation shows of a picture, (3, size, size) in 0..255."""
    from timm.data import create_transform

    transform: Any = create_transform(
        input_size=(3, size, size),
        crop_pct=share,
        interpolation=interpolation,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    shown: Tensor = transform(picture)
    return (shown * 255).round().int()


# --- one picture


@pytest.mark.parametrize(
    ("size", "share", "interpolation"),
    [(224, 0.875, "bicubic"), (96, 0.875, "bilinear"), (65, 0.95, "bicubic"), (48, 1.0, "bicubic")],
)
def test_a_square_is_timms_from_a_picture_and_from_its_pixels(
    size: int, share: float, interpolation: Any
) -> None:
    """Largest difference seen in 1,360 squares (34 pictures, 40 forms): 2 grey levels."""
    wanted = Decoding(size, 3, centre_share=share, interpolation=interpolation)
    options = ReadOptions(centre_share=share, interpolation=interpolation)
    for picture in photographs():
        square = torch.from_numpy(decode_image(picture, wanted).square)
        assert (square.int() - timms(picture, size, share, interpolation)).abs().max() <= 2
        assert torch.equal(resize(tensor(picture), size, options)[0], square)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_without_a_share_a_filter_is_pillows_on_the_largest_square(mode: str) -> None:
    options = ReadOptions(interpolation="bicubic")
    for picture in photographs():
        picture, side = picture.convert(mode), min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = (left, top, left + side, top + side)
        pillows = picture.crop(box).resize((60, 60), Image.Resampling.BICUBIC)
        assert torch.equal(resize(tensor(picture), 60, options), tensor(pillows))
        wanted = Decoding(60, interpolation="bicubic")
        assert np.array_equal(decode_image(picture, wanted).square, tensor(pillows)[0])


def test_every_band_is_cut_alike() -> None:
    picture = photographs()[1]
    bands = torch.cat([tensor(picture), tensor(picture.convert("L"))], 1)
    parts = [resize(part, 40, SHARE) for part in (tensor(picture), tensor(picture.convert("L")))]
    assert torch.equal(resize(bands, 40, SHARE), torch.cat(parts, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_turned_picture_that_comes_in_strips_has_the_same_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photographs()[0].resize((160, 101)).save(file := tmp_path / "a.png", exif=exif)
    wanted = Decoding(33, 3, 50, centre_share=0.875, interpolation="bicubic")
    whole = decode(FileRef(str(file)), wanted)
    monkeypatch.setattr(raster_pixels, "AT_ONCE", 100)
    monkeypatch.setattr(raster_pixels, "STRIP", 7 * 160 * 3)
    strips = decode(FileRef(str(file)), wanted)
    assert not isinstance(whole, str) and not isinstance(strips, str)
    assert np.abs(strips.square.astype(int) - whole.square).max() <= 1
    plain = decode(FileRef(str(file)), Decoding(33, 3, 50))  # views are cropped from the same whole
    assert not isinstance(plain, str) and strips.whole is not None and plain.whole is not None
    assert np.array_equal(strips.whole, plain.whole)


def test_a_jpeg_that_is_reduced_while_it_is_decoded_keeps_its_square(tmp_path: Path) -> None:
    """Largest difference seen in 8 photographs of 2,560 pixels: 4 grey levels, 0.25 on average."""
    large = photographs()[0].resize((1279, 853), Image.Resampling.LANCZOS)
    large.save(file := tmp_path / "a.jpg", quality=90)
    decoded = decode(FileRef(str(file)), Decoding(96, 3, centre_share=0.875))
    assert not isinstance(decoded, str)
    gap = torch.from_numpy(decoded.square).int() - timms(Image.open(file), 96, 0.875, "bilinear")
    assert gap.abs().max() <= 6 and gap.abs().float().mean() < 0.5


# --- sets of images


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    for row, picture in enumerate(photographs()):
        (tmp_path / "photos").mkdir(exist_ok=True)
        picture.save(tmp_path / "photos" / f"{row}.png", compress_level=1)
    return tmp_path / "photos"


def test_a_folder_its_files_its_pictures_and_its_arrays_give_the_same_squares(folder: Path) -> None:
    files = sorted(folder.iterdir())
    pictures = [Image.open(file) for file in files]
    expected = torch.stack([timms(picture, 40, 0.8, "bicubic") for picture in pictures])
    forms: list[Any] = [folder, files, pictures, [np.asarray(picture) for picture in pictures]]
    for form in forms:
        images = as_image_set(form, size=40, options=SHARE)
        order = np.argsort(images.paths)
        assert (images.images[order].int() - expected).abs().max() <= 2
        assert images.pictures is not None  # views are cropped from the whole
        assert int(images.pictures.select(order).width[0]) == round(80 * 640 / 427)
    one = as_image_set(np.asarray(pictures[0])[None], size=40, options=SHARE)
    assert (one.images[0].int() - expected[0]).abs().max() <= 2


def test_a_cache_of_another_form_is_not_used_and_the_usual_one_keeps_its_name(folder: Path) -> None:
    usual = read_folder(folder, size=40).images[:]
    whole = (40, 3, 80, None)  # size, channels, whole side, range: as before there were forms
    name = fingerprint(str(folder), *whole)[:16]
    manifests = {file.stem for file in cache_root().glob("photos-*.json")}
    assert f"photos-{name}" in manifests
    cached: Any = read_folder(folder, size=40).images
    assert cached.made == fingerprint(PIXELS, whole)
    for options in (ReadOptions(centre_share=0.8), ReadOptions(interpolation="bicubic"), SHARE):
        other: Any = read_folder(folder, size=40, options=options).images
        assert other.made != cached.made and not torch.equal(other[:], usual)
    assert torch.equal(read_folder(folder, size=40).images[:], usual)
    assert len(list(cache_root().glob("photos-*.whole.bin"))) == 4


def test_squares_are_cut_once(folder: Path) -> None:
    """Arrays and ImageSets of the size are the squares; pictures of this size are still cut."""
    images = read_folder(folder, size=32, options=SHARE)
    squares = images.images[:]
    assert convert(images, 32, 3, SHARE) is images
    numpy = squares.numpy()
    for form in (squares, numpy, list(numpy), numpy.transpose(0, 2, 3, 1), list(squares)):
        again = as_image_set(form, size=32, channels=3, options=SHARE)
        assert torch.equal(again.images, squares) and again.pictures is None
    small = Image.open(folder / "5.png")
    assert small.size == (32, 32)
    cut = timms(small, 32, 0.8, "bicubic")
    for form in (folder / "5.png", small):
        found = as_image_set(form, size=32, options=SHARE)
        assert (found.images[0].int() - cut).abs().max() <= 2
        assert found.pictures is not None and torch.equal(found.pictures[0], tensor(small)[0])


def test_a_list_of_pictures_of_one_size_is_cut_at_that_size() -> None:
    small = photographs()[5]
    found = as_image_set([small, small], options=SHARE)
    assert (found.images[1].int() - timms(small, 32, 0.8, "bicubic")).abs().max() <= 2


@pytest.fixture
def small_photos() -> Iterator[str]:
    name = "test-small-photos"
    register_source(name, about="Small photographs.")(
        lambda root: as_image_set(torch.cat([tensor(photographs()[5])] * 3), name=name)
    )
    yield name
    SOURCES.remove(name)


@pytest.mark.parametrize("size", [None, 32, 96, 16])
def test_a_data_set_holds_pictures_whatever_their_size(small_photos: str, size: int | None) -> None:
    images = load_images(small_photos, size=size, options=SHARE)
    expected = timms(photographs()[5], size or 32, 0.8, "bicubic")
    assert (images.images[2].int() - expected).abs().max() <= 2
    assert images.pictures is not None and images.pictures[2].shape == (3, 32, 32)
    again = convert(images, size, 3, SHARE)
    assert again is images
    plain = load_images(small_photos, options=READ_OPTIONS)
    assert plain.pictures is None and torch.equal(plain.images[0], tensor(photographs()[5])[0])


def test_grey_pictures_of_8_and_16_bits_are_cut_alike(folder: Path) -> None:
    grey = photographs()[1].convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    options = ReadOptions(40, 3, (0, 65535), centre_share=0.8, interpolation="bicubic")
    squares = [as_image_set(picture, options=options).images for picture in (grey, wide)]
    assert torch.equal(*squares)
    expected = timms(grey.convert("RGB"), 40, 0.8, "bicubic")
    assert (squares[0][0].int() - expected).abs().max() <= 2


@pytest.mark.parametrize("share", [0.875, 0.3, 1.0, 0.11])
@pytest.mark.parametrize(("width", "height"), [(640, 427), (97, 640), (32, 32), (5, 4000), (1, 1)])
def test_the_place_lies_in_the_picture_and_near_its_middle(
    share: float, width: int, height: int
) -> None:
    for size in (1, 31, 224):
        left, top, right, bottom = raster_pixels.centre_box(width, height, size, share)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        step = min(width, height) / math.floor(size / share)  # a pixel of the resized picture
        middle = (left + right) / 2 - width / 2, (top + bottom) / 2 - height / 2
        assert max(map(abs, middle)) <= step * 0.51 * (1 + 1 / size) + 1e-9
        assert right - left == pytest.approx(size * step, rel=2 / math.floor(size / share))


def test_many_enlarged_squares_lie_on_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    small = as_image_set(torch.cat([tensor(photographs()[5])] * 3))
    expected = convert(small, 64, 3, SHARE)
    assert type(expected.images) is Tensor
    monkeypatch.setattr(image_set, "LARGEST_ENLARGED", 3 * 3 * 64 * 64 - 1)
    enlarged = convert(small, 64, 3, SHARE)
    assert isinstance(enlarged.images, CachedPixels) and not enlarged.images.made
    assert torch.equal(enlarged.images[:], expected.images)
    assert torch.equal(enlarged.select([2, 0]).images[:], expected.images[:2])
    assert digest_of_pixels(enlarged) == digest_of_pixels(expected)
    assert list(cache_root().iterdir()) == []  # the file has no name
    assert type(convert(small, 16, 3, SHARE).images) is Tensor
    monkeypatch.setattr(folder_cache, "SPARE_BYTES", 2**62)
    with pytest.raises(UserError, match="set SURECLR_CACHE to a folder with room"):
        convert(small, 64, 3, SHARE)
