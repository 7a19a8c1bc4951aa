"""One file -> pixels: every mode and format of Pillow with known pixels, bands, number ranges,
pages, the content's sum, the whole picture, and files that cannot be read.
"""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pillow_heif
import pydicom
import pytest
import tifffile
from bad_files import BAD, bomb, png
from PIL import Image, ImageOps, TiffImagePlugin

from sureclr.data import array_rasters, decoding, raster_pixels
from sureclr.data.decoding import (
    ENDINGS,
    OPTIONAL_ENDINGS,
    DecodedPicture,
    Decoding,
    FileRef,
    PictureFacts,
    inspect,
    readable_endings,
    sample_values,
)

RED, WHITE = (255, 0, 0), (255, 255, 255)


def picture(
    file: Path, colour: Any = RED, mode: str = "RGB", size: tuple[int, int] = (8, 8)
) -> Path:
    Image.new(mode, size, colour).save(file)
    return file


def saved(file: Path, image: Image.Image, **options: Any) -> Path:
    image.save(file, **options)
    return file


def decode(file: str | Path, size: int | None, channels: int | None) -> Any:
    """The square of a file, or the reason."""
    result = decoding.decode(FileRef(str(file)), Decoding(size, channels))
    return result if isinstance(result, str) else result.square


def decoded(file: str | Path, page: int = 0, **wanted: Any) -> DecodedPicture:
    result = decoding.decode(FileRef(str(file), page=page), Decoding(**wanted))
    assert not isinstance(result, str), result
    return result


def refused(file: str | Path, page: int = 0, **wanted: Any) -> str:
    result = decoding.decode(FileRef(str(file), page=page), Decoding(**wanted))
    assert isinstance(result, str)
    return result


def facts(file: str | Path) -> PictureFacts:
    result = inspect(FileRef(str(file)))
    assert not isinstance(result, str), result
    return result


def picture_size(file: str) -> Any:
    result = inspect(FileRef(file))
    return result if isinstance(result, str) else (result.width, result.height)


def pixel(file: Path, channels: int = 3) -> tuple[int, ...]:
    """The one colour of a decoded file."""
    pixels = decode(str(file), 4, channels)
    assert not isinstance(pixels, str), pixels
    assert pixels.shape == (channels, 4, 4) and (pixels == pixels[:, :1, :1]).all()
    return tuple(pixels[:, 0, 0].tolist())


# --- one file -> pixels


@pytest.mark.parametrize(
    ("name", "mode", "colour", "expected"),
    [
        ("a.png", "RGB", (10, 20, 30), (10, 20, 30)),
        ("a.bmp", "RGB", (10, 20, 30), (10, 20, 30)),
        ("a.tiff", "RGB", (10, 20, 30), (10, 20, 30)),
        ("a.gif", "RGB", (10, 20, 30), (10, 20, 30)),
        ("a.PPM", "RGB", (10, 20, 30), (10, 20, 30)),
        ("a.png", "L", 77, (77, 77, 77)),
        ("a.png", "1", 1, WHITE),
        ("a.png", "RGBA", (0, 0, 0, 0), WHITE),  # transparent: the paper shows
        ("a.png", "RGBA", (255, 0, 0, 51), (255, 204, 204)),  # 0.2 of red, 0.8 of white
        ("a.png", "LA", (0, 51), (204, 204, 204)),
        ("a.png", "I;16", 65535, WHITE),
        (
            "a.png",
            "I;16",
            257 * 100,
            (100, 100, 100),
        ),  # clipping would give 255, the low byte 100 as well: see below
        ("a.png", "I;16", 256, (1, 1, 1)),
        ("a.png", "I;16", 128, (0, 0, 0)),
        ("a.tif", "I;16", 32768, (128, 128, 128)),
        ("a.tif", "I", 257 * 9, (9, 9, 9)),
        ("a.tif", "F", 0.2, (51, 51, 51)),
        ("a.tif", "F", 51.0, (51, 51, 51)),
        ("a.tif", "F", 257.0 * 51, (51, 51, 51)),
        ("a.tif", "CMYK", (0, 255, 255, 0), RED),
        ("a.tif", "YCbCr", (128, 128, 128), (128, 128, 128)),
    ],
)
def test_every_mode_becomes_the_colour_a_person_sees(
    tmp_path: Path, name: str, mode: str, colour: Any, expected: tuple[int, ...]
) -> None:
    assert pixel(picture(tmp_path / name, colour, mode)) == expected


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.jp2"])
def test_lossy_formats_come_near(tmp_path: Path, name: str) -> None:
    pixels = decode(str(picture(tmp_path / name, (200, 100, 50))), 4, 3)
    assert (
        not isinstance(pixels, str)
        and np.abs(pixels.astype(int) - np.array([200, 100, 50])[:, None, None]).max() <= 4
    )


def test_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    assert np.allclose(pixel(picture(tmp_path / "a.jpg", (0, 255, 255, 0), "CMYK")), RED, atol=3)


def test_a_palette_gives_its_colours_and_its_transparent_entry_the_paper(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([1, 2, 3, 40, 50, 60])
    assert pixel(saved(tmp_path / "solid.png", image)) == (40, 50, 60)
    assert pixel(saved(tmp_path / "clear.png", image, transparency=1)) == WHITE
    assert pixel(saved(tmp_path / "other.png", image, transparency=0)) == (40, 50, 60)
    assert pixel(saved(tmp_path / "half.png", image, transparency=bytes([0, 51]))) == (
        212,
        214,
        216,
    )  # a fifth of it


def test_a_transparent_colour_of_an_rgb_png_shows_the_paper(tmp_path: Path) -> None:
    assert (
        pixel(
            saved(tmp_path / "a.png", Image.new("RGB", (8, 8), (1, 2, 3)), transparency=(1, 2, 3))
        )
        == WHITE
    )


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_wide_values_outside_every_scale_go_from_their_least_to_their_greatest(
    tmp_path: Path, kind: type
) -> None:
    values = np.linspace(-3, 70000, 64, dtype=np.float32).reshape(8, 8)
    pixels = decode(str(saved(tmp_path / "a.tif", Image.fromarray(values.astype(kind)))), 8, 1)
    assert not isinstance(pixels, str)
    assert pixels.min() == 0 and pixels.max() == 255
    assert np.abs(pixels[0] - np.linspace(0, 255, 64).reshape(8, 8)).max() <= 0.51


def test_equal_negative_values_are_black(tmp_path: Path) -> None:
    flat = saved(tmp_path / "flat.tif", Image.new("F", (8, 8), -1.0))
    with np.errstate(all="raise"):  # nothing is divided by its range of 0
        assert pixel(flat) == (0, 0, 0)


def test_a_16_bit_ramp_keeps_its_order_and_its_ends(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    pixels = decode(str(saved(tmp_path / "a.png", Image.fromarray(ramp))), 16, 1)
    assert not isinstance(pixels, str) and pixels.ravel().tolist() == list(range(256))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.arange(64, dtype=np.uint8).reshape(8, 8)
    undone: dict[
        int, Callable[[Any], Any]
    ] = {  # how a camera of this orientation stores the upright picture
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undone[orientation](upright)))
    pixels = decode(str(saved(tmp_path / "a.png", stored, exif=exif)), 8, 1)
    assert not isinstance(pixels, str) and np.array_equal(pixels[0], upright)


@pytest.mark.parametrize("name", ["a.gif", "a.tiff", "a.png"])
def test_the_first_frame_of_an_animation(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    file = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
    assert pixel(file) == RED


def test_the_shorter_side_fills_the_square_and_the_centre_stays(tmp_path: Path) -> None:
    stripes = np.repeat(np.array([0, 50, 100, 200], np.uint8), 8)[None].repeat(
        16, 0
    )  # (16, 32): the centre is 50 | 100
    pixels = decode(str(saved(tmp_path / "a.png", Image.fromarray(stripes))), 8, 1)
    assert not isinstance(pixels, str)
    assert (
        pixels[0, 0, [0, 1, 2]].tolist() == [50] * 3
        and pixels[0, 0, [5, 6, 7]].tolist() == [100] * 3
    )


def test_a_folder_and_a_tensor_are_resized_alike(tmp_path: Path) -> None:
    import torch

    from sureclr.data.image_set import resize

    pixels = np.random.default_rng(0).integers(0, 256, (41, 30, 3), dtype=np.uint8)
    ours = decode(str(saved(tmp_path / "a.png", Image.fromarray(pixels))), 12, 3)
    theirs = resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], 12)[0].numpy()
    assert not isinstance(ours, str) and np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("side", [64, 200, 640])
def test_a_large_jpeg_decoded_at_a_reduced_scale_stays_the_same_picture(
    tmp_path: Path, side: int
) -> None:
    """Four waves across: a scale below 16 pixels would flatten them."""
    curve = 127.5 + 127.5 * np.sin(np.arange(side) * 8 * np.pi / side)
    wave = curve.astype(np.uint8)[None].repeat(side, 0)
    image = Image.fromarray(np.stack([wave, wave.T, 255 - wave], axis=-1))
    image.save(tmp_path / "a.jpg", quality=98, subsampling=0)
    image.save(tmp_path / "a.png")
    quick, exact = (decode(str(tmp_path / name), 16, 3) for name in ("a.jpg", "a.png"))
    assert not isinstance(quick, str) and not isinstance(exact, str)
    assert np.abs(quick.astype(int) - exact).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_whole_picture_has_the_size_that_its_header_says(
    tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(5, 12))
    file = str(saved(tmp_path / "a.png", stored, exif=exif))
    pixels, size = decode(file, None, None), picture_size(file)
    assert not isinstance(pixels, str)
    assert size == ((5, 12) if orientation >= 5 else (12, 5))
    assert pixels.shape == (1, size[1], size[0])
    assert sorted(pixels.ravel().tolist()) == list(range(60))


def test_channels_are_the_pictures_own_where_none_are_asked_for(tmp_path: Path) -> None:
    grey, colour = picture(tmp_path / "a.png", 7, "L"), picture(tmp_path / "b.png")
    shapes = [np.shape(decode(str(file), 4, None)) for file in (grey, colour)]
    assert shapes == [(1, 4, 4), (3, 4, 4)]


# --- bad files


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gives_a_reason_and_no_exception(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD[name])
    reason = decode(str(tmp_path / name), 8, 3)
    assert isinstance(reason, str) and reason and str(tmp_path) not in reason
    assert (reason == "the file is empty") == (name == "empty.jpg")
    size = picture_size(str(tmp_path / name))  # of a file that is cut, the header is intact
    sizes = {"cut.jpg": (64, 64), "cut.png": (64, 64), "bomb.png": (200_000, 100_000)}
    assert size == sizes[name] if name in sizes else isinstance(size, str)


def test_postscript_is_never_handed_to_its_interpreter(tmp_path: Path) -> None:
    (tmp_path / "script.jpg").write_bytes(BAD["script.jpg"])
    assert decode(str(tmp_path / "script.jpg"), 8, 3) == "no image format that is known here"


def test_a_bomb_is_refused_by_its_size_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb())
    reason = refused(tmp_path / "bomb.png", size=8)
    assert reason.startswith("its 200,000 x 100,000 pixels of 8 bits need ")
    assert reason.endswith(" MiB of memory, more than 512; reduce the picture")


# --- bands

NOISE = np.random.default_rng(5).integers(0, 65536, (20, 30, 13)).astype(np.uint16)


def tiff(file: Path, values: Any, **options: Any) -> Path:
    tifffile.imwrite(file, values, **{"photometric": "minisblack"} | options)
    return file


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "int16", "float32", "float64"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_bands_of_a_tiff_keep_their_order_and_values(
    tmp_path: Path, kind: str, tile: Any, planar: str, compression: str | None
) -> None:
    values = (NOISE // 256).astype(kind)
    stored = values if planar == "contig" else np.ascontiguousarray(values.transpose(2, 0, 1))
    options = {"planarconfig": planar, "tile": tile, "compression": compression}
    file = tiff(tmp_path / "a.tif", stored, **options)
    assert facts(file) == PictureFacts(30, 20, 13, kind != "uint8")
    for channels in (None, 13):
        result = decoded(file, channels=channels, value_range=(0, 255))
        assert np.array_equal(result.square, values.transpose(2, 0, 1))


@pytest.mark.parametrize("bands", [2, 4, 5])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "int16", "float32"])
def test_few_bands_one_after_the_other(tmp_path: Path, bands: int, kind: str) -> None:
    """Pillow opens some of these files, but cannot decode them."""
    values = (NOISE // 256).astype(kind).transpose(2, 0, 1)[:bands]
    file = tiff(tmp_path / "a.tif", np.ascontiguousarray(values), planarconfig="separate")
    assert facts(file) == PictureFacts(30, 20, bands, kind != "uint8")
    assert np.array_equal(decoded(file, value_range=(0, 255)).square, values)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError):  # tifffile refuses it as well
        tifffile.imread(file)
    assert "truncated" in refused(file)


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "uint32", "float32", "float64"])
def test_white_is_zero_where_a_tiff_says_so(tmp_path: Path, kind: str) -> None:
    values = np.arange(48).reshape(6, 8).astype(kind)
    for name, expected in (("minisblack", values), ("miniswhite", 255.0 - values)):
        file = tiff(tmp_path / "a.tif", values, photometric=name)
        assert np.array_equal(decoded(file, value_range=(0, 255)).square[0], expected)


@pytest.mark.parametrize("compression", ["lzw", "zstd", "packbits", "lzma"])
def test_compressions_of_bands(tmp_path: Path, compression: str) -> None:
    file = tiff(tmp_path / "a.tif", NOISE, planarconfig="contig", compression=compression)
    result = decoded(file, value_range=(0, 65535))
    assert np.abs(result.square - NOISE.transpose(2, 0, 1) / 257).max() < 0.51


def test_a_compression_that_needs_an_extra_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiff(tmp_path / "a.tif", NOISE, planarconfig="contig", compression="lzw")

    def lacking(*_: Any, **__: Any) -> Any:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "decode", lacking)
    assert "LZW" in refused(file) and "install sureclr[bands]" in refused(file)


@pytest.mark.parametrize("channels", [1, 3, 12])
def test_another_number_of_bands_than_asked_for_is_refused_by_name(
    tmp_path: Path, channels: int
) -> None:
    file = tiff(tmp_path / "a.tif", NOISE, planarconfig="contig")
    assert refused(file, size=8, channels=channels) == "it has 13 bands; use channels=13"


def test_a_picture_in_colour_does_not_become_bands(tmp_path: Path) -> None:
    assert refused(picture(tmp_path / "a.png"), channels=4) == "it has 3 bands; use channels=3"
    grey = picture(tmp_path / "b.png", 3, "L")
    assert refused(grey, channels=2) == "it has 1 band; use channels=1"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("extras", [None, ["unspecified"]])
def test_near_infrared_is_never_taken_for_alpha(tmp_path: Path, kind: Any, extras: Any) -> None:
    values = (NOISE[..., :4] // 256).astype(kind)
    photometric = "rgb" if extras else "minisblack"
    options = {"photometric": photometric, "extrasamples": extras, "planarconfig": "contig"}
    file = tiff(tmp_path / "a.tif", values, **options)
    assert facts(file).bands == 4
    result = decoded(file, value_range=(0, 255))
    assert np.array_equal(result.square, values.transpose(2, 0, 1))
    assert refused(file, channels=3) == "it has 4 bands; use channels=4"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_declared_alpha_of_a_tiff_is_composited_on_white(tmp_path: Path, kind: Any) -> None:
    values = NOISE[..., :4] if kind == np.uint16 else (NOISE[..., :4] // 257).astype(kind)
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    file = tiff(tmp_path / "a.tif", values, **options)
    assert facts(file).bands == 3
    numbers = values.astype(float) / np.iinfo(kind).max
    expected = 255 * (numbers[..., :3] * numbers[..., 3:] + 1 - numbers[..., 3:])
    assert np.abs(decoded(file).square - expected.transpose(2, 0, 1)).max() < 1.51


def test_alpha_alone_is_no_picture(tmp_path: Path) -> None:
    file = tiff(tmp_path / "a.tif", np.ones((8, 8, 2), np.int8), extrasamples=["unassalpha"])
    assert facts(file).bands == 1
    # Now the header names one sample and not two
    two, one = (struct.pack("<HHII", 277, 3, 1, count) for count in (2, 1))
    assert file.read_bytes().count(two) == 1
    file.write_bytes(file.read_bytes().replace(two, one))
    assert "no picture" in refused(file) and "no picture" in str(inspect(FileRef(str(file))))


def test_alpha_that_is_multiplied_in_is_not_multiplied_again(tmp_path: Path) -> None:
    values = np.full((4, 4, 4), 30000, np.uint16)
    file = tiff(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(decoded(file).square.astype(int) - 255).max() <= 1


def test_16_bits_a_colour_keep_all_bits(tmp_path: Path) -> None:
    """Pillow alone gives the high byte, which is 27 or 28 here."""
    values = 7000 + NOISE[..., :3] % 256
    png, tif = tmp_path / "a.png", tiff(tmp_path / "a.tif", values, photometric="rgb")
    png.write_bytes(imagecodecs.png_encode(values))
    for file in (png, tif):
        result = decoded(file, value_range=(7000, 7255))
        assert np.array_equal(result.square, values.transpose(2, 0, 1) - 7000)
        assert facts(file) == PictureFacts(30, 20, 3, True)


@pytest.mark.parametrize("planes", [2, 4])
def test_16_bits_with_alpha_in_a_png(tmp_path: Path, planes: int) -> None:
    values = NOISE[..., :planes]
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(values)))
    numbers = values.astype(float) / 65535
    expected = 255 * (numbers[..., :-1] * numbers[..., -1:] + 1 - numbers[..., -1:])
    result = decoded(tmp_path / "a.png").square
    assert result.shape[0] == planes - 1
    assert np.abs(result - expected.transpose(2, 0, 1)).max() < 1.01


@pytest.mark.parametrize("shape", [(20, 30), (40, 33, 2), (13, 40, 50), (40, 50, 13), (9, 13, 13)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numpy(tmp_path: Path, shape: tuple[int, ...], order: Any) -> None:
    values = np.random.default_rng(1).integers(-9, 9, shape).astype(np.float32)
    first = values[None] if len(shape) == 2 else values
    bands = first if first.shape[0] < first.shape[2] else first.transpose(2, 0, 1)
    np.save(tmp_path / "a.npy", np.asarray(values, order=order))
    result = decoded(tmp_path / "a.npy", value_range=(-9, 246))
    assert np.array_equal(result.square, bands + 9)
    height, width = bands.shape[1:]
    assert facts(tmp_path / "a.npy") == PictureFacts(width, height, len(bands), True)


def test_an_ambiguous_array_needs_a_number_of_channels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 6)))
    assert "may be (h, w, c) or (c, h, w)" in refused(tmp_path / "a.npy")
    assert decoded(tmp_path / "a.npy", channels=4).square.shape == (4, 5, 6)
    assert decoded(tmp_path / "a.npy", channels=6).square.shape == (6, 4, 5)
    assert inspect(FileRef(str(tmp_path / "a.npy")), 4) == PictureFacts(6, 5, 4, True)
    assert inspect(FileRef(str(tmp_path / "a.npy")), 6) == PictureFacts(5, 4, 6, True)


def test_an_array_of_impossible_shape_is_refused_by_its_header(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, np.zeros((10, 5)))
    file.write_bytes(file.read_bytes().replace(b"(10, 5)", b"(-1, 5)"))
    assert "the shape (-1, 5) is no picture" in refused(file)
    assert "the shape (-1, 5) is no picture" in str(inspect(FileRef(str(file))))


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[Path]], dtype=object), allow_pickle=True)
    assert "Python objects" in refused(tmp_path / "a.npy")


def test_truth_values_are_black_and_white(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(3) > 0)
    assert decoded(tmp_path / "a.npy").square.tolist() == (255 * np.eye(3)[None]).tolist()


# --- number ranges


def test_one_range_keeps_the_levels_that_a_folders_pictures_have(tmp_path: Path) -> None:
    """A thermal camera's counts of 7000 + 4 g: each grey level stays one of its own."""
    counts = 7000 + 4 * np.arange(256, dtype=np.uint16).reshape(16, 16)
    for name in ("a.png", "a.tif"):
        result = decoded(saved(tmp_path / name, Image.fromarray(counts)), value_range=(7000, 8020))
        assert result.square.ravel().tolist() == list(range(256))


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.int32, np.float32])
def test_values_outside_the_range_are_clipped(tmp_path: Path, kind: Any) -> None:
    values = np.array([[0, 100, 150, 200, 30000]], kind)
    file = tiff(tmp_path / "a.tif", values)
    assert decoded(file, value_range=(100, 200)).square.tolist() == [[[0, 0, 128, 255, 255]]]


def test_a_range_of_one_value_is_black(tmp_path: Path) -> None:
    file = tiff(tmp_path / "a.tif", np.full((4, 4), 7, np.uint16))
    assert decoded(file, value_range=(7, 7)).square.max() == 0


def test_pictures_of_8_bits_are_never_rescaled(tmp_path: Path) -> None:
    assert decoded(picture(tmp_path / "a.png", 9, "L"), value_range=(0, 18)).square.max() == 9


def test_values_that_were_not_measured_are_black_and_counted(tmp_path: Path) -> None:
    values = np.full((8, 8), 50, np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    values[1, 0] = -3.4e38
    tag = [(42113, "s", 0, "-3.4e+38", True)]
    file = tiff(tmp_path / "a.tif", values, extratags=tag)
    for wanted in ({"value_range": (0, 100)}, {}):
        result = decoded(file, **wanted)
        assert result.filled == 4 and (result.square == 0).sum() == 4
    sample = sample_values(FileRef(str(file)))
    assert not isinstance(sample, str) and set(sample) == {50.0}


def test_nodata_of_integers(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.int16).reshape(8, 8) - 5
    file = tiff(tmp_path / "a.tif", values, extratags=[(42113, "s", 0, "58", True)])
    result = decoded(file, value_range=(-5, 250))
    assert result.filled == 1 and result.square.ravel().tolist() == [*range(63), 0]


def test_a_picture_without_any_measured_value_is_black(tmp_path: Path) -> None:
    result = decoded(picture(tmp_path / "a.tif", float("nan"), "F"))
    assert result.filled == 64 and result.square.max() == 0


def test_a_sample_has_the_pictures_percentiles(tmp_path: Path) -> None:
    values = np.random.default_rng(2).gamma(2, 900, (300, 400)).astype(np.uint16)
    sample = sample_values(FileRef(str(saved(tmp_path / "a.png", Image.fromarray(values)))))
    assert not isinstance(sample, str) and len(sample) == 4096
    for percent in (5, 50, 95):
        assert abs((values < np.percentile(sample, percent)).mean() * 100 - percent) < 3


def test_signed_bytes_are_no_grey_levels(tmp_path: Path) -> None:
    file = tiff(tmp_path / "a.tif", np.array([[-5, 0, 5]], np.int8))
    assert facts(file).wide
    assert decoded(file, value_range=(-5, 250)).square.tolist() == [[[0, 5, 10]]]


# --- pages


@pytest.mark.parametrize("name", ["a.gif", "a.tiff", "a.png", "a.webp"])
def test_pages_are_counted_and_read(tmp_path: Path, name: str) -> None:
    colours = [RED, (0, 255, 0), (0, 0, 255)]
    frames = [Image.new("RGB", (8, 8), colour) for colour in colours]
    options: Any = {"lossless": True} if name == "a.webp" else {}
    file = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
    assert facts(file).pages == 3
    for page, colour in enumerate(colours):
        assert decoded(file, page).square[:, 0, 0].tolist() == list(colour)
    assert refused(file, 3) == "it has no page 4"
    assert len({decoded(file, page).content for page in range(3)}) == 3


def test_smaller_copies_and_masks_in_a_tiff_are_no_pages(tmp_path: Path) -> None:
    grey = NOISE[..., 0]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(grey, photometric="minisblack")
        writer.write(grey[::2, ::2], photometric="minisblack", subfiletype=1)
        writer.write(grey[::-1], photometric="minisblack")
    assert facts(tmp_path / "a.tif").pages == 2
    second = decoded(tmp_path / "a.tif", 1).square[0]
    assert np.array_equal(second, decoded(tmp_path / "a.tif").square[0, ::-1])


def test_pages_of_many_bands(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in (NOISE, NOISE[::-1]):
            writer.write(page, photometric="minisblack", planarconfig="contig")
    assert facts(tmp_path / "a.tif") == PictureFacts(30, 20, 13, True, 2)
    second = decoded(tmp_path / "a.tif", 1).square
    assert np.array_equal(second, decoded(tmp_path / "a.tif").square[:, ::-1])


@pytest.mark.parametrize("first", [0, 1])
def test_pages_in_forms_of_which_pillow_knows_only_one(tmp_path: Path, first: int) -> None:
    plain = (NOISE[..., :3] // 256).astype(np.uint8)
    forms = [(plain, "rgb", 3), (NOISE, "minisblack", 13)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for values, photometric, _ in (forms[first], forms[1 - first]):
            options = {"compression": "zlib", "rowsperstrip": 6, "planarconfig": "contig"}
            writer.write(values, photometric=photometric, **options)
    assert facts(tmp_path / "a.tif") == PictureFacts(30, 20, (3, 13)[first], first == 1, 2)
    for page, number in enumerate((first, 1 - first)):
        result = decoded(tmp_path / "a.tif", page, value_range=(0, 65535)).square
        values = forms[number][0] / (1 if number == 0 else 257)
        assert np.abs(result - values.transpose(2, 0, 1)).max() < 0.51


@pytest.mark.parametrize("orientation", range(1, 9))
def test_wide_colours_in_several_strips_are_turned_as_pillow_turns_narrow_ones(
    tmp_path: Path, orientation: int
) -> None:
    tag = {"extratags": [(274, "H", 1, orientation, True)], "rowsperstrip": 6}
    narrow = (NOISE[..., :3] // 256).astype(np.uint8)
    file = tiff(tmp_path / "a.tif", narrow.astype(np.uint16), photometric="rgb", **tag)
    result = decoded(file, value_range=(0, 255)).square
    with Image.open(tiff(tmp_path / "b.tif", narrow, photometric="rgb", **tag)) as image:
        assert np.array_equal(result, np.asarray(image).transpose(2, 0, 1))
    assert facts(file).width == facts(tmp_path / "b.tif").width == result.shape[2]


def test_a_stereo_jpeg_is_one_page(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, WHITE)]
    file = saved(tmp_path / "a.mpo", frames[0], save_all=True, append_images=frames[1:])
    assert facts(file).pages == 1 and decoded(file).square[:, 0, 0].tolist()[0] > 250
    assert refused(file, 1) == "it has no page 2"


# --- the sum that stands for the content


def test_exact_copies_have_one_content_whatever_their_name_format_or_metadata(
    tmp_path: Path,
) -> None:
    image = Image.fromarray((NOISE[..., :3] // 256).astype(np.uint8))
    for name in ("a.png", "b.bmp", "c.tif", "d.ppm"):
        image.save(tmp_path / name)
    image.save(tmp_path / "e.png", optimize=True, dpi=(30, 30))
    contents = {decoded(file).content for file in tmp_path.iterdir()}
    assert len(contents) == 1
    image.putpixel((3, 4), (1, 2, 3))
    assert decoded(saved(tmp_path / "f.png", image)).content not in contents


def test_the_content_of_a_jpeg_is_that_of_its_pixels(tmp_path: Path) -> None:
    image = Image.fromarray(np.tile((NOISE[..., :3] // 256).astype(np.uint8), (20, 20, 1)))
    other, turned = Image.Exif(), Image.Exif()
    other[0x010F], turned[0x0112] = "a camera", 6
    files = {
        "plain": saved(tmp_path / "a.jpg", image),
        "camera": saved(tmp_path / "b.jpg", image, exif=other, comment=b"words", dpi=(9, 9)),
        "turned": saved(tmp_path / "c.jpg", image, exif=turned),
        "coarse": saved(tmp_path / "d.jpg", image, quality=74),
    }
    (tmp_path / "e.jpg").write_bytes(files["plain"].read_bytes() + b"more")
    assert decoded(tmp_path / "e.jpg").content == decoded(files["plain"]).content
    for wanted in ({}, {"size": 8}, {"size": 8, "channels": 1, "whole_side": 20}):
        found = {name: decoded(file, **wanted).content for name, file in files.items()}
        assert found["plain"] == found["camera"] and len(set(found.values())) == 3
        assert found == {name: decoded(file).content for name, file in files.items()}


# --- the whole picture


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_whole_picture_and_the_square_are_pillows(
    tmp_path: Path, name: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray((NOISE[..., :3] // 256).astype(np.uint8)).resize((75, 50))
    file = saved(tmp_path / name, image, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    width, height = upright.size
    result = decoded(file, size=12, whole_side=24)
    new = (36, 24) if width > height else (24, 36)
    expected = np.asarray(upright.resize(new, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert result.whole is not None and np.array_equal(result.whole, expected)
    left, top = (width - 50) // 2, (height - 50) // 2
    square = upright.crop((left, top, left + 50, top + 50))
    square = square.resize((12, 12), Image.Resampling.BILINEAR)
    assert np.array_equal(result.square, np.asarray(square).transpose(2, 0, 1))


def test_the_whole_picture_is_never_enlarged(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", size=(20, 10))
    result = decoded(file, size=32, whole_side=64)
    assert result.whole is not None and result.whole.shape == (3, 10, 20)
    assert result.square.shape == (3, 32, 32)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "is_tall"), [(np.uint8, True), (np.uint16, False)])
def test_strips_give_what_the_whole_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int, kind: Any, is_tall: bool
) -> None:
    """A large picture is converted strip by strip and turned at the end."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = np.add.outer(np.arange(61), np.arange(84) * 2).astype(kind)
    values = np.ascontiguousarray(values.T) if is_tall else values
    file = saved(tmp_path / "a.png", Image.fromarray(values), exif=exif)
    wanted = {"size": 17, "whole_side": 30, "value_range": (0, 300)}
    expected = decoded(file, **wanted)
    monkeypatch.setattr(raster_pixels, "AT_ONCE", 100)
    monkeypatch.setattr(raster_pixels, "STRIP", 7 * values.shape[1])
    result = decoded(file, **wanted)
    assert result.content == expected.content
    assert result.whole is not None and expected.whole is not None
    for ours, theirs in ((result.square, expected.square), (result.whole, expected.whole)):
        assert ours.shape == theirs.shape
        assert np.abs(ours.astype(int) - theirs).max() <= 1


# --- memory

MEASURE = """
import sys
from sureclr.data.decoding import Decoding, FileRef, decode
result = decode(FileRef(sys.argv[1]), Decoding(96, None, 192, (0, 65535)))
assert not isinstance(result, str), result
status = open("/proc/self/status").read()
print([int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")][0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_picture_of_177_million_pixels_of_16_bits_takes_at_most_512_mib(tmp_path: Path) -> None:
    """The file has 0.3 MiB; the witness is the kernel's own count of a process's memory."""
    side = 13_300
    deflate, row = zlib.compressobj(1), bytes(1 + 2 * side)
    data = b"".join(deflate.compress(row) for _ in range(side)) + deflate.flush()
    (tmp_path / "a.png").write_bytes(png(side, side, 16, data))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a.png")]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 337 * 1024 < peak < 512 * 1024


def test_a_large_jpeg_is_reduced_and_a_larger_picture_refused_by_name(tmp_path: Path) -> None:
    Image.new("L", (12_000, 11_000)).save(tmp_path / "a.jpg")
    assert decoded(tmp_path / "a.jpg", size=32).square.shape == (1, 32, 32)
    (tmp_path / "b.png").write_bytes(png(30_000, 20_000, 16, b""))
    assert "30,000 x 20,000 pixels of 16 bits need 1,2" in refused(tmp_path / "b.png", size=32)


def test_a_tiled_tiff_too_large_for_pillow_is_read_tile_by_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = (np.tile(NOISE[..., :3], (5, 5, 1)) // 256).astype(np.uint8)
    options = {"photometric": "rgb", "tile": (32, 48), "compression": "zlib"}
    file = tiff(tmp_path / "a.tif", values, **options)
    expected = decoded(file)
    monkeypatch.setattr(array_rasters, "LARGE", 0)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", None)  # Pillow decodes nothing
    result = decoded(file)
    assert np.array_equal(result.square, expected.square) and result.content == expected.content


# --- extras


def test_heic_is_read_without_registering_anything(tmp_path: Path) -> None:
    pixels = np.full((40, 64, 3), (200, 100, 50), np.uint8)
    pillow_heif.from_bytes("RGB", (64, 40), pixels.tobytes()).save(tmp_path / "a.heic", quality=90)
    assert facts(tmp_path / "a.heic") == PictureFacts(64, 40, 3, False)
    result = decoded(tmp_path / "a.heic", size=16, channels=3)
    assert np.abs(result.square.astype(int) - pixels[0, 0][:, None, None]).max() <= 4
    assert "HEIF" not in Image.OPEN
    data = (tmp_path / "a.heic").read_bytes()
    (tmp_path / "b.heic").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "b.heic")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.slow
def test_the_heic_of_a_phone_of_24_megapixels_is_read_in_512_mib(tmp_path: Path) -> None:
    width, height = 5712, 4284
    image = pillow_heif.from_bytes("RGB", (width, height), bytes(3 * width * height))
    image.save(tmp_path / "a.heic", quality=20)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a.heic")]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 4 * width * height < 1024 * peak < 512 << 20


def dicom(file: Path, pixels: Any, **elements: Any) -> Path:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(file, enforce_file_format=True)
    return file


def test_a_dicom_file_that_inflates_or_never_ends_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 kB inflated to 500 MB of empty elements, which took minutes."""
    file = dicom(tmp_path / "a.dcm", np.zeros((8, 8), np.uint8))
    whole = file.read_bytes()
    kind, other = b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x001.2.840.10008.1.2.1.99"
    length = int.from_bytes(whole[140:144], "little") + 2
    start = whole[:140] + length.to_bytes(4, "little") + whole[144:].replace(kind, other)
    bomb = zlib.compressobj(wbits=-15)
    file.write_bytes(start[: 144 + length] + bomb.compress(bytes(20_000_000)) + bomb.flush())
    assert "deflated DICOM files are not read here" in refused(file)
    monkeypatch.setattr(array_rasters, "MOST_DICOM_READS", 5_000)
    file.write_bytes(whole[: 142 + length] + bytes(200_000))
    assert "rubbish" in refused(file)


def test_dicom_is_rescaled_to_its_unit(tmp_path: Path) -> None:
    stored = np.arange(48, dtype=np.int16).reshape(6, 8) * 10
    file = dicom(tmp_path / "a.dcm", stored, RescaleSlope="2", RescaleIntercept="-1024")
    assert facts(file) == PictureFacts(8, 6, 1, True)
    sample = sample_values(FileRef(str(file)))
    assert not isinstance(sample, str) and set(sample) <= set((stored * 2.0 - 1024).ravel())
    result = decoded(file, value_range=(-1024, -1024 + 940)).square[0]
    assert np.abs(result - stored * (2 * 255 / 940)).max() < 0.51


def test_dicom_whose_largest_value_is_black(tmp_path: Path) -> None:
    stored = np.array([[0, 100], [200, 255]], np.uint16)
    options = {"PhotometricInterpretation": "MONOCHROME1"}
    file = dicom(tmp_path / "a.dcm", stored, **options)
    result = decoded(file, value_range=(0, 255)).square[0]
    assert np.array_equal(result, 255 - stored)


def test_dicom_frames_and_colours(tmp_path: Path) -> None:
    frames = np.arange(3 * 4 * 6, dtype=np.uint8).reshape(3, 4, 6)
    file = dicom(tmp_path / "a.dcm", frames, NumberOfFrames=3)
    assert facts(file) == PictureFacts(6, 4, 1, False, 3)
    assert np.array_equal(decoded(file, 2).square[0], frames[2])
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 1}
    file = dicom(tmp_path / "b.dcm", frames, **colour)
    assert np.array_equal(decoded(file).square, frames)
    assert "padding" not in refused(dicom(tmp_path / "c.dcm", frames[0], Rows=40))


def test_a_dicom_mask_of_one_bit_is_black_and_white(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((8, 8)) > 0.5
    packed = np.packbits(mask.ravel(), bitorder="little").tobytes()
    bits = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "PixelData": packed}
    file = dicom(tmp_path / "a.dcm", mask.astype(np.uint8), **bits)
    assert np.array_equal(decoded(file).square[0], 255 * mask)


@pytest.mark.parametrize(
    ("extra", "module", "name"),
    [("heif", "pillow_heif", "a.heic"), ("dicom", "pydicom", "a.dcm")],
)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str, module: str, name: str
) -> None:
    start = b"\0\0\0\x18ftypheic" if extra == "heif" else bytes(128) + b"DICM"
    (tmp_path / name).write_bytes(start + bytes(40))
    monkeypatch.setitem(sys.modules, module, None)
    assert f"install sureclr[{extra}]" in refused(tmp_path / name)


def test_endings_depend_on_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert readable_endings() == ENDINGS | set(OPTIONAL_ENDINGS)
    assert ".npy" in ENDINGS and not ENDINGS & set(OPTIONAL_ENDINGS)
    monkeypatch.setitem(decoding.EXTRA_MODULES, "dicom", "no_such_module")
    assert readable_endings() == ENDINGS | {".heic", ".heif", ".hif"}
