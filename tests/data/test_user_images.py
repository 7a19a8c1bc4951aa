"""Whatever users have in hand becomes the same ImageSet as Pillow by hand gives; every mistake is
one sentence.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset

from sureclr.config import ReadOptions
from sureclr.data.image_set import ImageSet, resize
from sureclr.data.sources import load_images
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))


def noise(*shape: int) -> NDArray[np.uint8]:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def square_by_hand(image: Image.Image, size: int, mode: str = "RGB") -> NDArray[np.uint8]:
    """The witness: the centre square of a picture, (c, size, size)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert(mode).crop((left, top, left + side, top + side))
    pixels = np.array(square.resize((size, size), Image.Resampling.BILINEAR))
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


# Width and height of pictures of mixed sizes
SIZES = [(20, 14), (9, 30), (12, 12)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(len(SIZES))]
    for path, (width, height) in zip(paths, SIZES, strict=True):
        Image.fromarray(noise(height, width, 3)).save(path)
    return paths


def by_hand(files: Sequence[Path], size: int) -> list[Any]:
    return [square_by_hand(Image.open(file), size).tolist() for file in files]


# --- Image sets, folders, sources


def test_an_image_set_passes_through_or_is_converted() -> None:
    images = load_images("digits")
    assert as_image_set(images) is images
    assert as_image_set(images, size=8, channels=1) is images
    assert as_image_set(images, channels=3).images.shape == (1797, 3, 8, 8)
    small = as_image_set(images, size=5, channels=3)
    assert torch.equal(small.images[:, 1:2], resize(images.images, 5))
    assert torch.equal(small.labels, images.labels) and small.name == "digits"


def test_the_name_of_a_source() -> None:
    images, own = as_image_set("digits", size=6), load_images("digits", size=6)
    assert torch.equal(images.images, own.images) and images.name == "digits"
    assert images.split.tolist() == own.split.tolist()


@pytest.mark.parametrize("form", [Path, str, lambda p: f"folder:{p}"], ids=["Path", "str", "name"])
def test_a_folder(tmp_path: Path, form: Callable[[Path], Any]) -> None:
    for name in ("cat/a.png", "cat/b.png", "dog/a.png", "dog/b.png"):
        (tmp_path / "pics" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(9, 12, 3)).save(tmp_path / "pics" / name)
    images = as_image_set(form(tmp_path / "pics"), size=8, channels=1)
    own = load_images(f"folder:{tmp_path / 'pics'}", size=8, channels=1)
    assert torch.equal(images.images, own.images) and images.classes == ("cat", "dog")
    assert images.name == own.name and images.images.shape == (4, 1, 8, 8)


@pytest.mark.parametrize(
    "images", [lambda _: load_images("digits"), lambda _: "digits", lambda folder: folder]
)
def test_images_with_labels_of_their_own_take_no_others(
    tmp_path: Path, images: Callable[[Path], Any]
) -> None:
    with pytest.raises(UserError, match="has labels of its own; leave out labels"):
        as_image_set(images(tmp_path), labels=[0, 1])


# --- Files


def test_files_become_their_centre_squares(files: list[Path]) -> None:
    images = as_image_set(files, size=10, name="mine")
    assert images.images.tolist() == by_hand(files, 10)
    assert images.name == "mine" and list(images.paths) == [str(file) for file in files]
    assert images.split.tolist() == ["train"] * 3 and images.labels.tolist() == [-1] * 3
    assert images.classes == () and images.note == ""


@pytest.mark.parametrize("form", ["str", "np.str_", "array", "tuple"])
def test_paths_in_every_form(files: list[Path], form: str) -> None:
    words = [str(file) for file in files]
    images: Any = {
        "str": words,
        "np.str_": [np.str_(word) for word in words],
        "array": np.array(words),
        "tuple": tuple(files),
    }[form]
    assert as_image_set(images, size=10).images.tolist() == by_hand(files, 10)


@pytest.mark.parametrize("form", [str, Path])
def test_a_single_file_keeps_its_own_size(files: list[Path], form: Callable[[Path], Any]) -> None:
    images = as_image_set(form(files[0]))
    assert images.images.shape == (1, 3, 14, 20) and images.note == ""
    assert np.array_equal(images.images[0].permute(1, 2, 0).numpy(), Image.open(files[0]))


def test_files_of_mixed_sizes_get_one_that_enlarges_none_and_the_note_says_so(
    files: list[Path],
) -> None:
    images = as_image_set(files)
    assert images.images.tolist() == by_hand(files, 9)
    assert images.note == "images of 3 different sizes, each resized to 9 pixels"
    assert images.pictures is not None
    for row, file in enumerate(files):
        whole = np.asarray(Image.open(file)).transpose(2, 0, 1)
        assert np.array_equal(images.pictures[row].numpy(), whole)  # none has 2 x 9 or more


def test_turned_files_count_as_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.fromarray(noise(5, 8, 3)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(noise(8, 5, 3)).save(tmp_path / "upright.png")
    for_files = as_image_set([tmp_path / "turned.png", tmp_path / "upright.png"])
    pictures = [Image.open(tmp_path / name) for name in ("turned.png", "upright.png")]
    assert for_files.images.shape == (2, 3, 8, 5)
    assert torch.equal(as_image_set(pictures).images, for_files.images)


def test_grey_files_stay_grey_unless_there_are_colours_beside_them(tmp_path: Path) -> None:
    Image.fromarray(noise(6, 6)).save(tmp_path / "grey.png")
    Image.fromarray(noise(6, 6, 3)).save(tmp_path / "colour.png")
    grey, colour = tmp_path / "grey.png", tmp_path / "colour.png"
    assert as_image_set([grey, grey]).images.shape == (2, 1, 6, 6)
    both = as_image_set([grey, colour])
    assert torch.equal(both.images[0], as_image_set([grey]).images[0].expand(3, -1, -1))
    luma = as_image_set([grey, colour], channels=1).images
    assert luma[1].tolist() == square_by_hand(Image.open(colour), 6, "L").tolist()


def test_files_that_cannot_be_read_are_named(tmp_path: Path, files: list[Path]) -> None:
    names = [f"bad {i}.png" for i in range(4)]
    for name in names[1:]:
        (tmp_path / name).write_bytes(b"x")
    bad = [tmp_path / name for name in names]
    with pytest.raises(UserError, match="1 of 4 image files cannot be read") as caught:
        as_image_set([*files, bad[0]], size=8)
    assert f"{bad[0]} (No such file or directory); leave them out." in str(caught.value)
    with pytest.raises(UserError, match="4 of 4 image files") as caught:
        as_image_set(bad)
    assert "bad 2.png (no image format that is known here), ...;" in str(caught.value)
    assert "bad 3" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        as_image_set(bad[:3])
    assert "..." not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("digit", "unknown image file, folder or data source 'digit': did you mean digits"),
        ("no/such/folder", "unknown image file, folder or data source 'no/such/folder'"),
        ("missing.png", "1 of 1 image files cannot be read: missing.png .No such file"),
        ("folder:PATH", "unknown image file, folder or data source"),
    ],
)
def test_a_word_that_names_nothing(word: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        as_image_set(word)


# --- Pictures of Pillow


def stored(image: Image.Image, form: str) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return Image.open(buffer)


MODES = {
    "P": Image.fromarray(noise(8, 8, 3)).quantize(16),
    "1": Image.fromarray(noise(8, 8)).convert("1"),
    "RGBA": Image.fromarray(noise(8, 8, 4)),
    "LA": Image.fromarray(noise(8, 8, 2)),
    "CMYK": Image.fromarray(noise(8, 8, 3)).convert("CMYK"),
    "I;16": Image.fromarray(RANDOM.integers(0, 65536, (8, 8), dtype=np.uint16)),
    "F": Image.fromarray(RANDOM.random((8, 8), dtype=np.float32)),
    "L": Image.fromarray(noise(8, 8)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [None, 5])
def test_a_picture_of_any_mode_is_what_its_file_would_be(
    tmp_path: Path, mode: str, size: int | None
) -> None:
    MODES[mode].save(tmp_path / "a.tif")
    mine = as_image_set([MODES[mode]], size=size)
    assert torch.equal(mine.images, as_image_set([tmp_path / "a.tif"], size=size).images)
    assert mine.images.shape[1] == (1 if mode in ("1", "I;16", "F", "L", "LA") else 3)


def test_a_palette_gives_colours_and_not_indices() -> None:
    images = as_image_set([MODES["P"]])
    assert np.array_equal(images.images[0].permute(1, 2, 0), np.array(MODES["P"].convert("RGB")))


def test_pictures_of_mixed_sizes_and_modes(files: list[Path]) -> None:
    pictures = [Image.open(file) for file in files]
    pictures[1] = pictures[1].convert("L")
    images = as_image_set(pictures, size=7)
    expected = by_hand(files, 7)
    expected[1] = np.repeat(square_by_hand(pictures[1], 7, "L"), 3, axis=0).tolist()
    assert images.images.tolist() == expected and images.paths[2] == "train/00002"
    assert as_image_set(pictures).images.shape == (3, 3, 9, 9)
    assert "3 different sizes" in as_image_set(pictures).note


def test_a_list_of_pictures_of_one_size_keeps_its_pixels() -> None:
    colour = noise(3, 5, 6, 3)
    images = as_image_set([Image.fromarray(image) for image in colour])
    assert np.array_equal(images.images.permute(0, 2, 3, 1).numpy(), colour)
    grey = as_image_set([Image.fromarray(image[..., 0]) for image in colour])
    assert np.array_equal(grey.images[:, 0].numpy(), colour[..., 0])
    assert images.split.tolist() == ["train"] * 3 and not images.labelled and images.note == ""


def test_a_single_picture() -> None:
    assert as_image_set(MODES["L"]).images.tolist() == [[np.array(MODES["L"]).tolist()]]


def test_pictures_do_not_change(files: list[Path]) -> None:
    picture = Image.open(files[0]).convert("RGB")
    before = picture.tobytes()
    as_image_set([picture], size=4, channels=1)
    assert picture.tobytes() == before and picture.size == SIZES[0]


@pytest.mark.parametrize("cut", ["PNG", "JPEG"])
def test_a_picture_whose_file_is_cut_is_named(cut: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(buffer, cut)
    picture = Image.open(io.BytesIO(buffer.getvalue()[:2000]))
    with pytest.raises(UserError, match=r"image 1 cannot be read \(.*truncated.*\); leave it out"):
        as_image_set([MODES["L"], picture], size=8)


# --- Arrays and tensors


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 5, 6), (0, 3, 1, 2)),
        ((2, 1, 5, 6), (0, 1, 2, 3)),
        ((2, 3, 5, 6), (0, 1, 2, 3)),
        ((2, 5, 6, 1), (0, 3, 1, 2)),
        ((2, 5, 6, 3), (0, 3, 1, 2)),
        ((1, 5, 6), (0, 3, 1, 2)),
        ((3, 5, 6), (0, 3, 1, 2)),
    ],
)
def test_arrays_of_every_shape(
    kind: Callable[[NDArray[np.uint8]], Any], shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    array = noise(*shape)
    expected = (array if array.ndim == 4 else array[..., None]).transpose(axes)
    images = as_image_set(kind(array))
    assert images.images.dtype == torch.uint8 and images.images.tolist() == expected.tolist()
    assert images.images.is_contiguous() and images.split.tolist() == ["train"] * len(array)
    assert list(images.paths) == [f"train/{i:05d}" for i in range(len(array))]


def test_arrays_are_resized_and_recoloured() -> None:
    array = torch.from_numpy(noise(2, 1, 9, 12))
    images = as_image_set(array, size=5, channels=3)
    assert torch.equal(images.images[:, 2:], resize(array, 5)) and images.images.shape[1] == 3
    assert as_image_set(array, channels=3).images.shape == (2, 3, 9, 12)
    assert as_image_set(array).images.data_ptr() == array.data_ptr()  # nothing is copied


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["read-only", "reversed", "strided"])
def test_arrays_of_unusual_memory(form: str) -> None:
    array = noise(4, 5, 8)
    if form == "read-only":
        array.setflags(write=False)
    view = {"read-only": array, "reversed": array[::-1], "strided": array[::2, :, ::2]}[form]
    assert as_image_set(view).images[:, 0].tolist() == view.tolist()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 4, 4)), "images must be uint8, not float64; multiply them by 255 if they"),
        (torch.zeros(2, 4, 4), "not torch.float32; multiply"),
        (torch.zeros(2, 4, 4, dtype=torch.bfloat16), "not torch.bfloat16; multiply"),
        (np.zeros((2, 4, 4), np.int64), "not int64; convert them to uint8"),
        (np.zeros((2, 4, 4), bool), "not bool; convert"),
        (noise(2, 3, 4, 3), r"shape \(3, 4, 3\) could be \(c, h, w\) or \(h, w, c\)"),
        (noise(2, 1, 4, 1), "could be"),
        (noise(2, 4, 5, 5), r"1 or 3 channels, without transparency.* have the shape \(4, 5, 5\)"),
        (noise(2, 5, 5, 4), "without transparency"),
        (noise(2, 5, 5, 2), r"1 or 3 channels, as the first or the last axis"),
        (noise(5, 6, 3), r"not \(5, 6, 3\); for one image, add a first axis"),
        (noise(5, 6, 1), "for one image"),
        (noise(5, 6), r"not \(5, 6\); for one image, add a first axis: images.None."),
        (noise(5), r"not \(5,\); reshape it"),
        (noise(1, 2, 3, 5, 5), "reshape it"),
        (noise(0, 3, 5, 5), r"no images in an array of shape \(0, 3, 5, 5\)"),
        (noise(2, 3, 0, 5), "no images in an array"),
        ([], "there are no images"),
        ((), "there are no images"),
        ([np.zeros((4, 4))], "image 0 cannot be used: images must be uint8, not float64; multiply"),
        ([noise(4, 4), noise(4, 4, 2)], "image 1 cannot be used: .* 1 or 3 channels"),
        ([noise(4)], r"image 0 cannot be used: an image must be \(h, w\).* not \(4,\)"),
        ([noise(0, 4)], "not empty"),
        ([noise(4, 4), 7], "image 1 must be a PIL image or a uint8 array or tensor, not int"),
        ([noise(4, 4), "a.png"], "image 1 must be .* not str"),
        (7, "images must be an ImageSet, paths .* not int"),
        (None, "not NoneType"),
        ({"a": 1}, "not dict"),
        (b"bytes", "not bytes"),
        (iter([1]), "not list_iterator"),
    ],
)
def test_what_cannot_be_images_is_one_sentence(images: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        as_image_set(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "size must be at least 1 pixel, or None; got 0"),
        ({"channels": 33}, "channels must be 1 .grey., 3 .RGB., .* up to 32, or None; got 33"),
    ],
)
def test_impossible_shapes_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        as_image_set(noise(2, 4, 4), **options)


@pytest.mark.parametrize("size", [None, 12])
def test_wide_pictures_after_others_have_one_scale(size: int | None) -> None:
    wide = [RANDOM.integers(0, 800 * (i + 1), (12, 12)).astype(np.uint16) for i in range(5)]
    narrow = noise(12, 12)
    pictures = [Image.fromarray(narrow), *map(Image.fromarray, wide)]
    images = as_image_set(pictures, size=size)
    assert np.array_equal(images.images[0, 0], narrow)
    assert images.report is not None and images.report.value_range == (0, 4095)
    for row, values in enumerate(wide, 1):
        assert np.abs(images.images[row, 0].numpy() - values * (255 / 4095)).max() <= 0.51
    given = as_image_set(pictures, size=size, options=ReadOptions(value_range=(0, 5000)))
    assert given.report is not None and given.report.value_range == (0, 5000)


def test_wide_pictures_and_files_have_one_scale(tmp_path: Path) -> None:
    """Also where they are read one by one from a data set."""
    grey = [RANDOM.permutation(256).reshape(16, 16) // (i + 1) for i in range(6)]
    pictures = [Image.fromarray((7000 + 4 * g).astype(np.uint16)) for g in grey]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for images in (pictures, paths, Pairs(pictures, [0] * 6)):
        for size in (None, 16):
            found = as_image_set(images, size=size)
            for row, g in enumerate(grey):
                assert np.abs(found.images[row, 0].numpy().astype(int) - g).max() <= 1
            assert found.report is not None and found.report.value_range == (7000, 8020)


def test_arrays_with_bands_and_what_they_keep_for_views() -> None:
    array = noise(4, 9, 14, 5)
    images = as_image_set(array, channels=5, size=6)
    assert images.images.shape == (4, 5, 6, 6) and images.pictures is not None
    assert np.array_equal(images.pictures[2].permute(1, 2, 0).numpy(), array[2])
    assert as_image_set(array.transpose(0, 3, 1, 2), channels=5).images.shape == (4, 5, 9, 14)


def test_a_list_of_arrays_is_that_of_their_pictures() -> None:
    arrays: list[Any] = [noise(9, 5), noise(6, 7, 3), torch.from_numpy(noise(3, 4, 8))]
    pictures = [
        Image.fromarray(arrays[0]),
        Image.fromarray(arrays[1]),
        Image.fromarray(arrays[2].permute(1, 2, 0).numpy()),
    ]
    mine, theirs = as_image_set(arrays, size=6), as_image_set(pictures, size=6)
    assert torch.equal(mine.images, theirs.images) and mine.images.shape == (3, 3, 6, 6)
    assert as_image_set(arrays).images.shape == (3, 3, 4, 4)


@pytest.mark.parametrize("shape", [(5, 6), (1, 5, 6), (5, 6, 1)])
def test_a_list_of_equal_arrays_keeps_their_pixels(shape: tuple[int, ...]) -> None:
    arrays = [noise(*shape) for _ in range(3)]
    images = as_image_set(arrays)
    assert images.images.tolist() == [array.reshape(1, 5, 6).tolist() for array in arrays]


# --- Data sets


class Pairs:
    """A map-style data set of pairs, which counts what is read from it."""

    def __init__(self, images: Sequence[Any], labels: Sequence[Any], **facts: Any) -> None:
        self.images, self.labels, self.reads = images, labels, 0
        for name, value in facts.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.images[index], self.labels[index]


class Alone(Pairs):
    """A data set of images without labels."""

    def __getitem__(self, index: int) -> Any:
        return self.images[index]


IMAGES = [noise(5, 6, 3) for _ in range(4)]
EXPECTED = np.stack(IMAGES).transpose(0, 3, 1, 2).tolist()


@pytest.mark.parametrize(
    "kind",
    [
        lambda array: Image.fromarray(array),
        lambda array: array,
        lambda array: torch.from_numpy(array),
        lambda array: torch.from_numpy(array).permute(2, 0, 1),
    ],
    ids=["PIL", "array", "tensor", "channels first"],
)
@pytest.mark.parametrize("form", [Pairs, Alone])
def test_a_data_set_of_every_kind_of_image(kind: Callable[[Any], Any], form: type[Pairs]) -> None:
    dataset = form([kind(image) for image in IMAGES], [1, 0, 1, 1])
    images = as_image_set(dataset)
    assert images.images.tolist() == EXPECTED
    assert images.labels.tolist() == ([1, 0, 1, 1] if form is Pairs else [-1] * 4)
    assert images.classes == (("0", "1") if form is Pairs else ())
    assert images.split.tolist() == ["train"] * 4 and images.note == ""


def test_each_item_is_read_once() -> None:
    dataset = Pairs(IMAGES, [0] * 4)
    as_image_set(dataset)
    as_image_set(dataset, size=4)
    assert dataset.reads == 8


def test_a_data_set_of_mixed_sizes() -> None:
    arrays = [noise(9, 5), noise(6, 7, 3)]
    images = as_image_set(Pairs(arrays, ["b", "a"]))
    assert torch.equal(images.images, as_image_set(arrays, size=5).images)
    assert images.labels.tolist() == [1, 0] and images.classes == ("a", "b")
    assert "2 different sizes" in images.note


def test_torchs_own_data_sets() -> None:
    x = torch.from_numpy(noise(4, 3, 5, 6))
    both = as_image_set(TensorDataset(x, torch.tensor([7, 3, 7, 3])))
    assert torch.equal(both.images, x) and both.classes == ("3", "7")
    assert both.labels.tolist() == [1, 0, 1, 0]
    assert torch.equal(as_image_set(TensorDataset(x)).images, x)
    some = as_image_set(Subset(TensorDataset(x, torch.arange(4)), [2, 0]))
    assert torch.equal(some.images, x[[2, 0]]) and some.classes == ("0", "2")


@pytest.mark.parametrize(
    ("labels", "classes", "targets", "names"),
    [
        ([2, 0, 2, 1], ["a", "b", "c"], [2, 0, 2, 1], ("a", "b", "c")),
        ([2, 0, 2, 0], ("a", "b", "c"), [2, 0, 2, 0], ("a", "b", "c")),
        (["b", "a", "b", "a"], ["c", "b", "a"], [1, 2, 1, 2], ("c", "b", "a")),
        ([7, 3, 7, 3], [["tench", "fish"], ["x"]], [1, 0, 1, 0], ("3", "7")),
        ([1, 0, 1, 0], ["a", "a"], [1, 0, 1, 0], ("0", "1")),
        ([1, 0, 1, 0], "ab", [1, 0, 1, 0], ("0", "1")),
        ([10, 9, 2, 2], None, [2, 1, 0, 0], ("2", "9", "10")),
        ([-1, 1, None, 0], ["a", "b"], [-1, 1, -1, 0], ("a", "b")),
        ([-1, -1, -1, -1], ["a", "b"], [-1] * 4, ()),
        (list(np.array([1, 0, 1, 1])), None, [1, 0, 1, 1], ("0", "1")),
        (list(np.array(["x", "y", "x", "x"])), None, [0, 1, 0, 0], ("x", "y")),
    ],
)
def test_labels_and_class_names_of_a_data_set(
    labels: list[Any], classes: Any, targets: list[int], names: tuple[str, ...]
) -> None:
    images = as_image_set(Pairs(IMAGES, labels, classes=classes))
    assert images.labels.tolist() == targets and images.classes == names
    assert all(type(name) is str for name in images.classes)


@pytest.mark.parametrize(
    ("facts", "split"),
    [
        ({"train": True}, "train"),
        ({"train": False}, "test"),
        ({"split": "test"}, "test"),
        ({"split": "val"}, "test"),
        ({"split": "unlabeled"}, "unlabelled"),
        ({"split": "train"}, "train"),
        ({"split": "train+unlabeled"}, "train"),
        ({"train": lambda: None}, "train"),
        ({"train": None}, "train"),
        ({"split": "train", "train": False}, "train"),
    ],
)
def test_a_data_set_may_say_its_split(facts: dict[str, Any], split: str) -> None:
    images = as_image_set(Pairs(IMAGES, [0] * 4, **facts))
    assert set(images.split.tolist()) == {split} and images.paths[3] == f"{split}/00003"


def test_reading_a_data_set_is_reported() -> None:
    done: list[int] = []

    class Recorder:
        def begin(self, task: str, total: int, done: int = 0) -> None:
            assert (task, total) == ("Reading images", 4)

        def update(self, n: int, numbers: Any = None) -> None:
            done.append(n)

        def message(self, text: str) -> None: ...

        def finish(self) -> None:
            done.append(-1)

    as_image_set(Pairs(IMAGES, [0] * 4), size=4, progress=Recorder())  # type: ignore[arg-type]
    assert done == [1, 2, 3, 4, -1]


class Broken(Pairs):
    def __getitem__(self, index: int) -> Any:
        if index == 2:
            raise ZeroDivisionError("by zero")
        return super().__getitem__(index)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(IMAGES)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (Broken(IMAGES, [0] * 4), r"item 2 of the data set cannot be read \(ZeroDivisionError: by"),
        (Pairs([], []), "there are no images"),
        (Alone([(1, 2, 3)], []), r"item 0 of the data set must be .* not 3 values"),
        (Alone([()], []), "not 0 values"),
        (Alone([{"image": 1}], []), "image 0 of the data set must be a PIL image .* not dict"),
        (Pairs([torch.zeros(3, 4, 4)], [0]), "image 0 of the data set .*float32.*ToTensor"),
        (Pairs(IMAGES[:1], [0.5]), r"class number \(int\), .* not 0.5 \(image 0\)"),
        (Pairs(IMAGES[:1], [True]), "not True"),
        (Pairs(IMAGES[:1], [-2]), "0 or more, or -1 .* not -2"),
        (Pairs(IMAGES[:2], [0, "a"]), "all class numbers or all class names"),
        (Pairs(IMAGES[:1], [2], classes=["a", "b"]), "2 class names but a label 2; use 0 to 1"),
        (Pairs(IMAGES[:1], ["bee"], classes=["be", "a"]), "unknown class 'bee': did you mean be"),
        (Stream(), "images must be .* not Stream"),
    ],
)
def test_mistakes_of_a_data_set_are_one_sentence(dataset: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        as_image_set(dataset)
    assert "\n" not in str(caught.value)


def test_a_data_set_with_labels_takes_no_others_and_one_without_does() -> None:
    with pytest.raises(UserError, match="the data set has labels of its own; leave out labels"):
        as_image_set(Pairs(IMAGES, [0] * 4), labels=[0] * 4)
    images = as_image_set(Alone(IMAGES, [], classes=["a", "b"]), labels=[1, 0, 1, None])
    assert images.labels.tolist() == [1, 0, 1, -1] and images.classes == ("a", "b")


# --- Labels of lists and arrays


@pytest.mark.parametrize(
    ("labels", "targets", "names"),
    [
        (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
        (("dog", None, "dog"), [0, -1, 0], ("dog",)),
        ([5, 2, -1], [1, 0, -1], ("2", "5")),
        (np.array([5, 2, 5]), [1, 0, 1], ("2", "5")),
        (torch.tensor([5, 2, 5]), [1, 0, 1], ("2", "5")),
        (np.array(["b", "a", "b"]), [1, 0, 1], ("a", "b")),
        ([np.int64(5), torch.tensor(2), 5], [1, 0, 1], ("2", "5")),
        ([None, None, None], [-1, -1, -1], ()),
        (None, [-1, -1, -1], ()),
    ],
)
def test_labels_of_every_form(labels: Any, targets: list[int], names: tuple[str, ...]) -> None:
    images = as_image_set(noise(3, 4, 4), labels=labels)
    assert images.labels.tolist() == targets and images.classes == names
    assert images.labels.dtype == torch.int64


def test_labels_go_with_files_and_pictures(files: list[Path]) -> None:
    for images in (files, [Image.open(file) for file in files]):
        labelled = as_image_set(images, size=4, labels=["x", "y", "x"])
        assert labelled.labels.tolist() == [0, 1, 0] and labelled.images.tolist() == by_hand(
            files, 4
        )


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1], "there are 3 images but 2 labels; each image needs one"),
        ([0, 1, 0, 1], "3 images but 4 labels"),
        ("abc", "a list with one label an image, not str"),
        ({0: 1, 1: 2, 2: 3}, "not dict"),
        ({0, 1, 2}, "not set"),
        (iter([0, 1, 0]), "not list_iterator"),
        (5, "not int"),
        (torch.tensor(5), "not int"),
        ([0.0, 1.0, 2.0], r"not 0.0 \(image 0\)"),
        (np.array([0, 1, 0.5]), "not 0.0"),
        ([0, [1], 0], r"not \[1\] \(image 1\)"),
        ([0, "a", 1], "all class numbers or all class names"),
    ],
)
def test_mistakes_in_labels_are_one_sentence(labels: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        as_image_set(noise(3, 4, 4), labels=labels)


def test_the_result_is_an_image_set_like_any_other() -> None:
    images = as_image_set(noise(3, 4, 4), labels=[0, 1, 0])
    assert isinstance(images, ImageSet) and isinstance(images.images, Tensor)
    assert len(images.train) == 3 and len(images.test) == 0
