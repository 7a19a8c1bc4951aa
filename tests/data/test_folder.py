"""folder:PATH: known pixels through every mode of Pillow, classes and splits, the cache, and
hostile files.
"""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dying import die
from PIL import Image

from sureclr.data import decoding
from sureclr.data.decoding import decode
from sureclr.data.folder import find_images, held_out, inert
from sureclr.data.image_set import ImageSet
from sureclr.data.parallel_decoding import POOL_FROM, decode_files
from sureclr.data.sources import load_images
from sureclr.errors import UserError
from sureclr.stopping import Stopped

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were decoded, as they are."""
    names: list[str] = []

    def counting(file: str, size: int, channels: int) -> Any:
        names.append(os.path.basename(file))
        return decode(file, size, channels)

    monkeypatch.setattr(decoding, "decode", counting)
    return names


def picture(
    file: Path, colour: Any = RED, mode: str = "RGB", size: tuple[int, int] = (8, 8)
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file)
    return file


def tree(root: Path, *names: str) -> Path:
    """Images with these names below root, each of its own grey."""
    for number, name in enumerate(names):
        picture(root / name, (number, number, number))
    return root


def read(root: Path, **options: Any) -> ImageSet:
    return load_images(f"folder:{root}", **{"size": 8} | options)


class Recorder:
    """Remembers what was reported."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int]] = []
        self.done: list[int] = []
        self.messages: list[str] = []
        self.open = 0

    def begin(self, task: str, total: int, done: int = 0) -> None:
        self.tasks.append((task, total))
        self.open += 1

    def update(self, done: int, numbers: Any = None) -> None:
        self.done.append(done)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def finish(self) -> None:
        self.open -= 1


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


def test_bad_files_are_listed_and_not_fatal(tmp_path: Path, own_cache: Path, capfd: Any) -> None:
    root = tree(tmp_path / "pics", "cat/a.png", "cat/b.png", "dog/a.png", "dog/b.png")
    for name, data in BAD.items():
        (root / "cat" / name).write_bytes(data)
    os.symlink("nowhere", root / "dog" / "gone.jpg")
    recorder = Recorder()
    images = read(root, progress=recorder)
    assert images.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert images.labels.tolist() == [0, 0, 1, 1]
    (manifest,) = own_cache.glob("*.json")
    assert sorted(json.loads(manifest.read_text())["bad"]) == sorted(
        [*(f"cat/{name}" for name in BAD), "dog/gone.jpg"]
    )
    (message,) = recorder.messages
    assert message.startswith("7 of 11 image files could not be read: cat/bomb.png (")
    assert message in images.note and capfd.readouterr() == ("", "")
    assert "script.jpg" not in message and str(manifest) in message  # the first few, where all are
    again = Recorder()
    assert read(root, progress=again).note == images.note  # also from the cache
    assert again.messages == recorder.messages and again.tasks == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", "no files that end as images"),
        ("bad", "1 of 1 image files"),
        ("missing", "No such file"),
        ("a.png", "Not a dir"),
        ("a\0b", "null"),
    ],
    ids=["empty", "bad", "missing", "file", "null byte"],
)
def test_nothing_readable_is_one_sentence(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"x")
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


def test_a_folder_that_may_not_be_listed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        read(tmp_path)


# --- which files, classes, splits


def test_hidden_files_and_other_files_are_skipped_and_the_order_is_by_name(tmp_path: Path) -> None:
    root = tree(tmp_path, "b.png", "a.PNG", ".hidden.png", ".git/x.png", "deep/er/c.jpeg")
    (root / "notes.txt").write_text("no picture")
    os.mkfifo(root / "pipe.png")
    assert list(find_images(root)) == ["a.PNG", "b.png", "deep/er/c.jpeg"]


def test_link_loops_end_and_a_link_never_takes_a_folders_place(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", "cat/a.png", "dog/b.png")
    tree(tmp_path / "far", "c.png")
    os.symlink(root, root / "cat" / "loop")
    os.symlink(root / "dog", root / "also dog")
    os.symlink(tmp_path / "far", root / "far")
    os.symlink(tmp_path / "far", root / "far again")
    os.symlink("itself", root / "itself")
    os.symlink(root / "cat" / "a.png", root / "dog" / "copy.png")
    assert list(find_images(root)) == ["cat/a.png", "dog/b.png", "dog/copy.png", "far/c.png"]


def test_names_are_inert(tmp_path: Path, capfd: Any) -> None:
    root = tree(tmp_path, "a\x1b[31m\n[red]/é\u202e.png", "ß/日本.png")
    with open(os.fsencode(root) + b"/\xff.png", "wb") as file:
        file.write((root / "ß/日本.png").read_bytes())
    (root / "bad\r\x07.png").write_bytes(b"")
    images = read(root)
    assert images.classes == ("a\\x1b[31m\\n[red]", "ß")
    assert list(images.paths) == ["a\\x1b[31m\\n[red]/é\\u202e.png", "ß/日本.png", "\\udcff.png"]
    assert all(path.encode() and path.isprintable() for path in images.paths)
    assert read(root).images[:, 0, 0, 0].tolist() == [0, 1, 1]  # and again from the cache
    recorder = Recorder()
    read(root, progress=recorder)
    assert recorder.messages and "\x07" not in recorder.messages[0] + images.note
    assert capfd.readouterr() == ("", "")
    assert inert("plain name.jpg") == "plain name.jpg"


def test_classes_are_the_first_sub_folders_by_name(tmp_path: Path) -> None:
    images = read(tree(tmp_path, "dog/x/1.png", "cat/1.png", "cat/2021/2.png", "loose.png"))
    assert images.classes == ("cat", "dog")
    assert list(images.paths) == ["cat/1.png", "cat/2021/2.png", "dog/x/1.png", "loose.png"]
    assert images.labels.tolist() == [0, 0, 1, -1]
    assert images.split[3] == "unlabelled"
    images = read(tree(tmp_path, *(f"loose {i}.png" for i in range(9))))
    assert (
        images.split[3:].tolist() == ["unlabelled"] * 10
    )  # never held out: they could not be scored


@pytest.mark.parametrize("folder", ["", "holiday/"])
def test_an_unlabelled_folder_holds_out_a_fifth_and_says_so(tmp_path: Path, folder: str) -> None:
    images = read(tree(tmp_path, *(f"{folder}{i}.png" for i in range(20))))
    assert not images.labelled and images.classes == ()
    assert len(images.train) == 16 and len(images.test) == 4
    assert "a random 20 % of all images, seed 0" in images.note and "no labels" in images.note


@pytest.mark.parametrize("seed", [0, 7, -1])
def test_a_fifth_of_each_class_is_held_out_by_seed(seed: int) -> None:
    groups = np.repeat([0, 1, 2, 3, 4], [100, 40, 7, 2, 1])
    mask = held_out(groups, seed)
    assert np.bincount(groups[mask], minlength=5).tolist() == [20, 8, 1, 1, 0]
    assert np.array_equal(mask, held_out(groups, seed)) and not np.array_equal(
        mask, held_out(groups, seed + 1)
    )
    often = np.mean([held_out(groups, s) for s in range(300)], axis=0)
    assert (
        np.abs(often[:140] - 0.2).max() < 0.12
    )  # 5 standard deviations: no image is always or never chosen


def test_the_split_of_a_folder_is_the_held_out_fifth(tmp_path: Path) -> None:
    images = read(tree(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(10))), seed=3)
    assert np.array_equal(images.split == "test", held_out(images.labels.numpy(), 3))
    assert "each class, seed 3" in images.note


def test_split_folders_decide_where_there_is_train(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        "train/b/1.png",
        "train/a/1.png",
        "train/odd.png",
        "test/a/2.png",
        "test/c/2.png",
        "test/odd.png",
    )
    tree(root, "val/a/3.png", "unlabelled/x/4.png", "other/5.png")
    images = read(root)
    assert images.classes == ("a", "b", "c")
    assert list(zip(images.paths, images.split.tolist(), images.labels.tolist(), strict=True)) == [
        ("train/a/1.png", "train", 0),
        ("train/b/1.png", "train", 1),
        ("train/odd.png", "unlabelled", -1),
        ("unlabelled/x/4.png", "unlabelled", -1),
        ("test/a/2.png", "test", 0),
        ("test/c/2.png", "test", 2),
        ("test/odd.png", "test", -1),
    ]
    assert images.note == "splits: the folders train/, unlabelled/, test/"


def test_val_is_the_test_split_without_test_and_train_alone_is_all_training(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/1.png", "train/2.png")
    assert read(root).split.tolist() == ["train", "train"]
    tree(root, "val/3.png")
    assert read(root).split.tolist() == ["train", "train", "test"]


# --- size, channels, cache


def test_default_is_96_pixels_and_three_channels_and_both_can_be_asked(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 50, "L", (20, 10))
    assert read(tmp_path, size=None).images.shape == (1, 3, 96, 96)
    assert read(tmp_path, size=5, channels=1).images.tolist() == [[[[50] * 5] * 5]]


def test_the_second_time_nothing_is_decoded_and_the_pixels_are_mapped(
    tmp_path: Path, decoded: list[str], own_cache: Path
) -> None:
    root = tree(tmp_path / "pics", "a.png", "b.png")
    (root / "bad.png").write_bytes(b"x")
    first = read(root)
    assert sorted(decoded) == ["a.png", "b.png", "bad.png"]
    second = read(root, seed=5)
    assert len(decoded) == 3
    assert second.images.tolist() == first.images.tolist() and list(second.paths) == list(
        first.paths
    ) == ["a.png", "b.png"]
    (pixels,) = own_cache.glob("*.bin")
    assert pixels.name in Path("/proc/self/maps").read_text()
    first.images.fill_(9)  # a private copy: the cache keeps what it had
    assert read(root).images[:, 0, 0, 0].tolist() == [0, 1]
    assert len(decoded) == 3
    assert sorted(path.name for path in root.iterdir()) == ["a.png", "b.png", "bad.png"]


@pytest.mark.parametrize(
    "change",
    [
        lambda root: picture(root / "a.png", (9, 9, 9), size=(9, 9)),
        lambda root: os.utime(root / "a.png", ns=(1, 1)),
        lambda root: picture(root / "c.png"),
        lambda root: (root / "b.png").unlink(),
        lambda root: (root / "b.png").rename(root / "d.png"),
    ],
    ids=["content", "time", "more", "fewer", "name"],
)
def test_a_changed_folder_is_decoded_anew_and_the_old_cache_goes(
    tmp_path: Path, decoded: list[str], own_cache: Path, change: Callable[[Path], Any]
) -> None:
    root = tree(tmp_path / "pics", "a.png", "b.png")
    read(root)
    decoded.clear()
    change(root)
    images = read(root)
    assert sorted(decoded) == sorted(path.name for path in root.iterdir()) == sorted(images.paths)
    assert len(list(own_cache.iterdir())) == 2


def test_sizes_and_channels_have_caches_of_their_own(tmp_path: Path, decoded: list[str]) -> None:
    root = tree(tmp_path / "pics", "a.png")
    for _ in range(2):
        shapes = [
            tuple(read(root, size=size, channels=channels).images.shape)
            for size in (4, 8)
            for channels in (1, 3)
        ]
        assert shapes == [(1, 1, 4, 4), (1, 3, 4, 4), (1, 1, 8, 8), (1, 3, 8, 8)]
    assert len(decoded) == 4


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def swap_names(file: Path) -> None:
    file.write_text(file.read_text().replace('"a.png"', '"z.png"'))


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a flipped bit": ("*.bin", flip_a_bit),
    "cut short": ("*.bin", lambda file: os.truncate(file, 5)),
    "pixels gone": ("*.bin", lambda file: file.unlink()),
    "no manifest": ("*.json", lambda file: file.unlink()),
    "half a manifest": ("*.json", lambda file: file.write_bytes(file.read_bytes()[:50])),
    "another manifest": ("*.json", lambda file: file.write_text("[1, 2]")),
    "a changed name": ("*.json", swap_names),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_noticed_and_built_again(
    tmp_path: Path, decoded: list[str], own_cache: Path, damage: str
) -> None:
    root = tree(tmp_path / "pics", "a.png", "b.png")
    whole = read(root)
    pattern, harm = DAMAGE[damage]
    harm(next(own_cache.glob(pattern)))
    decoded.clear()
    again = read(root)
    assert sorted(decoded) == ["a.png", "b.png"]
    assert again.images.tolist() == [[[[value] * 8] * 8] * 3 for value in (0, 1)] and list(
        again.paths
    ) == list(whole.paths)
    read(root)
    assert len(decoded) == 2


def test_a_stop_in_the_middle_leaves_nothing_behind(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path / "pics", "a.png", "b.png")

    def stop(file: str, size: int, channels: int) -> Any:
        if file.endswith("b.png"):
            raise KeyboardInterrupt
        return decode(file, size, channels)

    monkeypatch.setattr(decoding, "decode", stop)
    with pytest.raises(KeyboardInterrupt):
        read(root)
    assert list(own_cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set SURECLR_CACHE"):
        read(tree(tmp_path / "pics", "a.png"))


def test_processes_give_what_one_gives_in_order_and_report(tmp_path: Path) -> None:
    root = tree(tmp_path / "pics", *(f"{i:02d}.png" for i in range(40)))
    (root / "bad.png").write_bytes(b"x")
    files = [str(file) for file in sorted(root.iterdir())]
    recorder = Recorder()
    here = list(decode_files(files, 6, 3, pool_from=42))
    there = list(decode_files(files, 6, 3, recorder, pool_from=41))
    assert [x if isinstance(x, str) else x.tolist() for x in there] == [
        x if isinstance(x, str) else x.tolist() for x in here
    ]
    assert isinstance(here[-1], str) and here[7][0, 0, 0] == 7  # type: ignore[index]
    assert recorder.tasks == [("Decoding images", 41)] and recorder.open == 0
    assert recorder.done == list(range(1, 42))


def test_a_process_that_dies_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "decode", die)
    root = tree(tmp_path / "pics", *(f"{i}.png" for i in range(POOL_FROM)))
    with pytest.raises(UserError, match="died"):
        read(root)
    assert list(own_cache.iterdir()) == []


def test_a_stop_while_decoding_leaves_nothing_and_ends_the_task(
    tmp_path: Path, own_cache: Path
) -> None:
    class Stopping(Recorder):
        def update(self, done: int, numbers: Any = None) -> None:
            super().update(done)
            if done == 2:
                raise Stopped(15, "nothing was saved")

    recorder = Stopping()
    with pytest.raises(Stopped):
        read(tree(tmp_path / "pics", "a.png", "b.png", "c.png"), progress=recorder)
    assert recorder.done == [1, 2] and recorder.open == 0 and list(own_cache.iterdir()) == []


@pytest.mark.parametrize(("bad", "more"), [(3, False), (4, True)])
def test_up_to_three_bad_files_are_named(tmp_path: Path, bad: int, more: bool) -> None:
    root = tree(tmp_path / "pics", "good.png")
    for i in range(bad):
        (root / f"bad{i}.png").write_bytes(b"x")
    recorder = Recorder()
    read(root, progress=recorder)
    (message,) = recorder.messages
    assert message.count("no image format") == 3 and ("all in" in message) is more


def test_a_damaged_cache_is_reported(tmp_path: Path, own_cache: Path) -> None:
    root = tree(tmp_path / "pics", "a.png", "b.png")
    read(root)
    flip_a_bit(next(own_cache.glob("*.bin")))
    recorder = Recorder()
    read(root, progress=recorder)
    (message,) = recorder.messages
    assert message.startswith(f"The cache {own_cache}") and "is damaged" in message
    assert recorder.tasks == [("Decoding images", 2)]
