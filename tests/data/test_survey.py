"""Size, channels and value range that follow from a look at all files, against numpy and loops."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import assume, example, given
from hypothesis import strategies as st
from listening import Listening
from numpy.typing import NDArray
from PIL import Image

from sureclr.config import ReadOptions
from sureclr.data.decoding import PictureFacts
from sureclr.data.sources import load_images
from sureclr.data.survey import (
    Survey,
    few_levels,
    fitting_channels,
    fitting_range,
    fitting_size,
    levels,
)

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))


def of_values(values: NDArray[Any]) -> Survey:
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    low, high = np.percentile(values, [0.1, 99.9], method="nearest")
    return Survey([], np.unique(values), float(low), float(high))


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60))
@example(list(range(40, 60)))
@example(list(range(40, 59)))
def test_the_size_is_the_largest_that_enlarges_at_most_a_twentieth(sides: list[int]) -> None:
    allowed = [
        size for size in range(1, 97) if sum(side < size for side in sides) <= 0.05 * len(sides)
    ]
    assert fitting_size(sides) == max(allowed)


@pytest.mark.parametrize(
    ("bands", "channels"),
    [([1, 1], 3), ([3], 3), ([1, 3], 3), ([13, 13], 13), ([4, 3], 3), ([], 3)],
)
def test_channels(bands: list[int], channels: int) -> None:
    facts = [PictureFacts(5, 5, count, False) for count in bands]
    found, words = fitting_channels(facts)
    assert found == channels and bool(words) == (channels == 13)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (7000 + 4 * np.arange(256), (7000, 8020)),  # counts of a camera
        (np.arange(4096), (0, 4095)),  # 12 bits
        (np.arange(65536), (0, 65535)),
        (np.linspace(0, 1, 1000), (0, 1)),
        (np.linspace(0, 0.9, 1000), (0, 1)),
        (np.linspace(-1, 1, 1001), (-1, 1)),
        (np.arange(-3000, 3001), (-3000, 3000)),
        (np.linspace(273.152, 310.348, 1000), (273.1, 310.4)),
        (np.full(10, 300), (0, 1023)),
        (np.full(10, 0.5), (0, 1)),
        (np.full(10, -2.0), (-2, -1)),
        (np.append(np.arange(1000, 2000).repeat(4), 65000), (1000, 2000)),  # one hot pixel
    ],
)
def test_the_range_of_a_folder(values: NDArray[Any], expected: tuple[float, float]) -> None:
    assert fitting_range(of_values(values)) == pytest.approx(expected, rel=2e-3)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.booleans())
def test_the_range_holds_the_percentiles_and_is_hardly_wider(
    low: float, span: float, whole: bool
) -> None:
    values = low + span * RANDOM.random(500)
    survey = of_values(np.rint(values) if whole else values)
    found = fitting_range(survey)
    assert found is not None and found[0] < found[1]
    assume(survey.high > survey.low)
    slack = 1e-9 * max(abs(low), span)
    assert found[0] <= survey.low + slack and found[1] >= survey.high - slack
    wide = (survey.high - survey.low) / 0.75 * 1.001 + 2
    assert found[1] - found[0] <= max(wide, 1.03 * (survey.high - survey.low))


def test_no_wide_images_have_no_range() -> None:
    assert fitting_range(Survey([], np.empty(0), 0.0, 0.0)) is None


def test_few_levels_are_a_warning_only_where_there_were_more() -> None:
    assert levels(np.arange(256), (0, 255)) == 256 and levels(np.arange(256), (0, 65535)) == 2
    assert "Only 2 levels are left" in few_levels(of_values(np.arange(256)), (0, 65535))
    assert few_levels(of_values(np.arange(20)), (0, 19)) == ""
    assert few_levels(of_values(np.arange(20)), (0, 65535)) != ""
    assert few_levels(of_values(np.arange(500)), (0, 499)) == ""


def write(root: Path, pictures: list[NDArray[Any]], ending: str = ".tif") -> Path:
    root.mkdir(exist_ok=True)
    for i, values in enumerate(pictures):
        if ending == ".tif":
            tifffile.imwrite(root / f"{i:02d}.tif", values)
        else:
            Image.fromarray(values).save(root / f"{i:02d}{ending}")
    return root


@pytest.mark.parametrize(
    ("kind", "ending"), [(np.uint16, ".tif"), (np.uint16, ".png"), (np.float32, ".tif")]
)
def test_one_scale_for_a_folder_of_counts(tmp_path: Path, kind: type, ending: str) -> None:
    """A dark picture stays darker than a bright one, and levels are left."""
    grey = [RANDOM.integers(0, 256, (16, 16)) // (1 + i % 2) for i in range(20)]
    root = write(tmp_path / "pics", [(7000 + 4 * g).astype(kind) for g in grey], ending)
    progress = Listening()
    images = load_images(f"folder:{root}", size=16, channels=1, progress=progress)
    for row, g in enumerate(grey):
        assert np.abs(images.images[row, 0].numpy().astype(float) - g).max() <= 1
    assert len(np.unique(images.images)) >= 60
    assert images.report is not None and images.report.value_range == (7000, 8020)
    assert any("7000 becomes black and 8020 white" in text for text in progress.said)
    later = write(tmp_path / "later", [(7000 + 4 * grey[1]).astype(kind)], ending)
    options = ReadOptions(value_range=images.report.value_range)
    alike = load_images(f"folder:{later}", size=16, channels=1, options=options)
    assert np.array_equal(alike.images[0].numpy(), images.images[1].numpy())


def test_a_range_that_leaves_few_levels_is_warned_of(tmp_path: Path) -> None:
    counts = [(7000 + RANDOM.integers(0, 500, (16, 16))).astype(np.uint16) for _ in range(4)]
    root = write(tmp_path / "pics", counts)
    progress = Listening()
    options = ReadOptions(value_range=(0, 65535))
    load_images(f"folder:{root}", size=16, progress=progress, options=options)
    assert any(text.startswith("Only ") and "levels are left" in text for text in progress.said)


def test_one_picture_of_another_range_hides_no_lost_levels(tmp_path: Path) -> None:
    counts = [(7000 + 4 * RANDOM.integers(0, 256, (16, 16))).astype(np.uint16) for _ in range(30)]
    counts.append(RANDOM.integers(0, 65536, (16, 16)).astype(np.uint16))
    root = write(tmp_path / "pics", counts)
    progress = Listening()
    images = load_images(f"folder:{root}", size=16, progress=progress)
    left = [len(np.unique(image)) for image in images.images]
    (warning,) = [text for text in progress.said if "left of a typical image" in text]
    assert abs(int(warning.split()[1]) - np.median(left)) <= 1 < 32
    again = Listening()  # from the cache
    load_images(f"folder:{root}", size=16, progress=again)
    assert again.said == progress.said
    rid = Listening()
    options = ReadOptions(value_range=(7000, 8020))
    load_images(f"folder:{root}", size=16, progress=rid, options=options)
    assert not any("left of" in text for text in rid.said)


def test_arrays_that_need_channels_have_one_range_and_their_size(tmp_path: Path) -> None:
    """(13, 20, 24) may be 13 or 24 bands, so the header is understood only with `channels`."""
    bands = [(i + 1) * RANDOM.integers(0, 500, (13, 20, 24)).astype(np.uint16) for i in range(8)]
    for i, values in enumerate(bands):
        np.save(tmp_path / f"{i}.npy", values)
    images = load_images(f"folder:{tmp_path}", options=ReadOptions(channels=13, strict=True))
    assert images.images.shape == (8, 13, 20, 20) and images.report is not None
    assert images.report.value_range == (0, 4095)
    for row, values in enumerate(bands):
        square = values[:, :, 2:22] * (255 / 4095)
        assert np.abs(images.images[row].numpy() - square).max() <= 0.51


def test_bands_are_kept_where_all_files_have_them_and_it_is_said(tmp_path: Path) -> None:
    bands = [RANDOM.integers(0, 10000, (13, 20, 16)).astype(np.uint16) for _ in range(6)]
    root = tmp_path / "pics"
    root.mkdir()
    for i, values in enumerate(bands):
        tifffile.imwrite(
            root / f"{i}.tif", values, photometric="minisblack", planarconfig="separate"
        )
    progress = Listening()
    images = load_images(f"folder:{root}", size=16, progress=progress)
    assert images.images.shape == (6, 13, 16, 16)
    assert images.pictures is not None and images.pictures[0].shape == (13, 20, 16)
    assert any("13 bands, because every picture has 13" in text for text in progress.said)
    black, white = images.report.value_range or (0, 1) if images.report else (0, 1)
    scaled = np.rint((bands[2] - black) * 255 / (white - black)).clip(0, 255)
    assert np.abs(images.pictures[2].numpy() - scaled).max() <= 1
