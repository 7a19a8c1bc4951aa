"""One file -> pixels: every mode and format of Pillow with known pixels, bands, number ranges,
pages, the content's sum, the whole picture, and files that cannot be read.
"""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sureclr.data import decoding
from sureclr.data.decoding import (
    DecodedPicture,
    Decoding,
    FileRef,
    PictureFacts,
    inspect,
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


def bomb() -> bytes:
    """A PNG of 200 kB at most that says it has 2e10 pixels."""
    header = struct.pack(">IIBBBBB", 200_000, 100_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def truncated(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        buffer, form
    )
    return buffer.getvalue()[:2000]


BAD: dict[str, bytes] = {
    "bomb.png": bomb(),
    "cut.jpg": truncated("JPEG"),
    "cut.png": truncated("PNG"),
    "empty.jpg": b"",
    "text.png": b"this is no picture",
    "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) run\n",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gives_a_reason_and_no_exception(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD[name])
    reason = decode(str(tmp_path / name), 8, 3)
    assert isinstance(reason, str) and reason and str(tmp_path) not in reason
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
