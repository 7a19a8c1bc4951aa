"""Pictures and folders that strangers have, one of each kind, as their reports numbered them.

Each was trained on silently, or refused without a way out, by the version of 2026-11-24.
"""

import csv
import io
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from tiny import FLAGS

from sureclr.cli import main
from sureclr.data.image_set import ImageSet
from sureclr.data.sources import load_images
from sureclr.errors import UserError
from sureclr.progress import SilentProgress
from sureclr.training.run import load

TINY = [*FLAGS, "--batch-size", "6", "--epochs", "1"]


def noise(n: int, side: int = 16, seed: int = 0) -> np.ndarray:
    """(n, side, side, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


class Said(SilentProgress):
    """The messages."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(autouse=True)
def own_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def photo(row: int = 0, side: int = 96) -> Image.Image:
    """A square of one of two photographs, another for each row."""
    picture = Image.fromarray(load_sample_images().images[row % 2])
    left, top = 37 * row % (picture.width - 200), 23 * row % (picture.height - 200)
    return picture.crop((left, top, left + 200, top + 200)).resize((side, side))


def photos(folder: str, count: int, ending: str = "jpg", side: int = 32) -> Path:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for row in range(count):
        photo(row, side).save(Path(folder, f"{row:03d}.{ending}"))
    return Path(folder)


def read(folder: Path | str, **options: object) -> tuple[ImageSet, list[str]]:
    images = load_images(f"folder:{folder}", progress=(said := Said()), **options)  # type: ignore[arg-type]
    return images, said.texts


def refused(folder: Path | str) -> dict[str, str]:
    images, said = read(folder)
    assert images.report is not None
    bad = dict(images.report.refused)
    assert len(images) + len(bad) == len(list(Path(folder).iterdir()))
    assert any(text.startswith(f"{len(bad)} of ") and next(iter(bad)) in text for text in said)
    return bad


def test_p1_one_bit_of_a_png() -> None:
    folder = photos("p", 20)
    for row in range(40):
        photo(row).save("a.png")
        data = bytearray(Path("a.png").read_bytes())
        data[len(data) // 2] ^= 1
        with pytest.raises(Exception), Image.open(io.BytesIO(data)) as image:  # noqa: B017
            image.convert("RGB")
        if row == 0:
            (folder / "bad.png").write_bytes(data)
    assert list(refused(folder)) == ["bad.png"]


def test_p2_a_tenth_of_a_tiff_is_zero() -> None:
    folder = photos("p", 20)
    photo().save(folder / "bad.tif", compression="tiff_adobe_deflate")
    data = (folder / "bad.tif").read_bytes()
    half, tenth = len(data) // 2, len(data) // 10
    (folder / "bad.tif").write_bytes(data[:half] + bytes(tenth) + data[half + tenth :])
    assert list(refused(folder)) == ["bad.tif"]


def test_p3_a_compression_that_nobody_here_has() -> None:
    """The number of the compression is changed to one that does not exist."""
    folder = photos("p", 20)
    photo().save(folder / "bad.tif", compression="tiff_adobe_deflate")
    data = (folder / "bad.tif").read_bytes()
    entry = bytes([0x03, 0x01, 3, 0, 1, 0, 0, 0])  # tag 259, SHORT, one value
    at = data.index(entry) + len(entry)
    (folder / "bad.tif").write_bytes(data[:at] + (60606).to_bytes(2, "little") + data[at + 2 :])
    assert "60606" in refused(folder)["bad.tif"] or "compression" in refused(folder)["bad.tif"]


@pytest.mark.parametrize("case", ["p4", "p5"])
def test_p4_p5_one_scale_for_all_of_16_bits(case: str) -> None:
    """Counts of a thermal camera in TIFF; 12 of 16 bits in PNG."""
    Path("p").mkdir()
    grey = [np.asarray(photo(row).convert("L"), np.uint16) for row in range(20)]
    values = [7000 + 4 * g for g in grey] if case == "p4" else [16 * g for g in grey]
    for row, value in enumerate(values):
        Image.fromarray(value).save(f"p/{row:02d}.{'tif' if case == 'p4' else 'png'}")
    images, said = read("p", size=96, channels=1)
    for image, value in zip(images.images.numpy(), values, strict=True):
        assert len(np.unique(image)) >= 0.9 * len(np.unique(value))
    assert len(np.unique(images.images)) >= 60
    assert sum("more than 8 bits" in text for text in said) == 1
    report = images.report
    assert report is not None and report.value_range is not None
    low, high = report.value_range
    exact = [(value.astype(float) - low) / (high - low) * 255 for value in values]
    for image, expected in zip(images.images.numpy(), exact, strict=True):
        assert np.abs(image[0] - expected.clip(0, 255)).max() <= 0.5001


def test_p6_thirteen_bands(capsys: pytest.CaptureFixture[str]) -> None:
    Path("p").mkdir()
    random = np.random.default_rng(0)
    for row in range(24):
        bands = random.integers(0, 4000, (16, 16, 13), dtype=np.uint16)
        tifffile.imwrite(f"p/{row:02d}.tif", bands, photometric="minisblack", planarconfig="contig")
    main(["pretrain", "folder:p", *TINY, "--size", "8", "--channels", "13", "--out", "run"])
    assert load("run", "cpu").channels == 13
    with pytest.raises(SystemExit) as exited:
        main(["pretrain", "folder:p", *TINY, "--size", "8", "--channels", "3", "--out", "other"])
    assert exited.value.code == 2 and "13 bands" in capsys.readouterr().err


def test_p7_near_infrared_is_not_transparency() -> None:
    """The fourth sample is "unspecified"; taken for alpha it would whiten the picture."""
    Path("p").mkdir()
    random = np.random.default_rng(0)
    values = [random.integers(0, 256, (16, 16, 4), dtype=np.uint8) for _ in range(12)]
    for row, value in enumerate(values):
        tifffile.imwrite(f"p/{row:02d}.tif", value, photometric="rgb", extrasamples=[0])
    images, said = read("p")
    assert torch.equal(images.images, torch.from_numpy(np.stack(values)).permute(0, 3, 1, 2))
    assert any("4 bands" in text for text in said)


def test_p8_other_endings_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photos("p", 10)
    for row in range(10):
        (folder / f"{row}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    for name in ("scan.dcm", "notes.txt"):
        (folder / name).write_bytes(b"1")
    for module in ("pillow_heif", "pydicom"):
        monkeypatch.setitem(sys.modules, module, None)
    images, said = read(folder)
    (left,) = [text for text in said if text.startswith("Left out")]
    assert len(images) == 10 and "10 .heic" in left and "sureclr[heif]" in left
    assert "1 .dcm" in left and "sureclr[dicom]" in left and "1 .txt" in left


def test_p9_copies_stay_on_one_side() -> None:
    """Forty pictures of noise, three copies of each; no copy may be in the other split."""
    Path("p").mkdir()
    for row, pixels in enumerate(noise(40)):
        for copy in range(3):
            Image.fromarray(pixels).save(f"p/{copy}-{row:02d}.{('png', 'bmp', 'tif')[copy]}")
    images, said = read("p")
    side = {}
    for path, split in zip(images.paths, images.split, strict=True):
        side.setdefault(path[2:4], set()).add(str(split))
    assert all(len(splits) == 1 for splits in side.values()) and len(side) == 40
    assert any("exact duplicates within train" in text for text in said)
    (twins,) = [text for text in said if "exact duplicates" in text]
    assert sum(int(part.split()[0]) for part in twins.split("; ")) == 80


def test_p10_a_picture_of_177_million_pixels_takes_no_gigabytes() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    Path("p").mkdir()
    side = 13_300
    header = side.to_bytes(4, "big") * 2 + bytes([16, 0, 0, 0, 0])
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(1 + 2 * side)) for _ in range(side)) + packer.flush()
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)
    Path("p/large.png").write_bytes(data + chunk(b"IEND", b""))
    code = (
        "from sureclr.data.decoding import Decoding, FileRef, decode\n"
        "result = decode(FileRef('p/large.png'), Decoding(96, 3))\n"
        "print(result if isinstance(result, str) else 'read')\n"
        "print([l for l in open('/proc/self/status') if l.startswith('VmHWM')][0].split()[1])"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of memory is read from /proc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result, peak = done.stdout.splitlines()
    assert result == "read" or "13,300" in result
    assert int(peak) <= 512 * 1024


def test_p11_small_pictures_are_not_enlarged(capsys: pytest.CaptureFixture[str]) -> None:
    photos("p", 24)
    main(["pretrain", "folder:p", *TINY, "--out", "run"])
    run = load("run", "cpu")
    assert (run.size, run.config.stem) == (32, "cifar")
    said = capsys.readouterr().err
    assert "32 px" in said and "stem cifar" in said
    main(["views", "folder:p", "--size", "96", "--out", "views.png"])
    said = capsys.readouterr().err
    assert "--size 96 enlarges 24 of them" in said and "--size 32" in said


def test_f1_capital_letters_of_split_folders() -> None:
    for split, first in (("Train", 0), ("Test", 40)):
        for number, kind in enumerate("ab"):
            Path(split, kind).mkdir(parents=True)
            for row in range(6):
                photo(first + 10 * number + row, 16).save(Path(split, kind, f"{row}.png"))
    images, _ = read(".")
    assert images.classes == ("a", "b") and {*images.split} == {"train", "test"}
    assert len(images.train) == len(images.test) == 12


def test_f3_replaced_pictures_are_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    """Every picture is replaced by noise under its name: the accuracy is measured anew."""
    for split in ("train", "test"):
        for number, kind in enumerate("ab"):
            Path("p", split, kind).mkdir(parents=True)
            for row in range(12):
                seed = row + 100 * number + 50 * (split == "test")
                shade = noise(1, seed=seed)[0] // 4 + 150 * number
                Image.fromarray(shade.astype(np.uint8)).save(
                    Path("p", split, kind, f"{row}{split}.png")
                )
    main(["pretrain", "folder:p", *TINY, "--out", "run"])
    capsys.readouterr()
    main(["knn", "run", "--json"])
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1
    for row, file in enumerate(sorted(Path("p").rglob("*.png"))):
        Image.fromarray(noise(1, seed=1000 + row)[0]).save(file)
    main(["knn", "run", "--json"])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["accuracy"] < 1 and "anew" in captured.err


def test_a_folder_of_nothing_readable_is_refused() -> None:
    Path("p").mkdir()
    Path("p/a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no image that can be read"):
        read("p")


def test_the_file_of_label_next_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """F2: an unlabelled folder; what is filled in trains a classifier, and a part of it tests."""
    photos("p", 60, side=16)
    main(["pretrain", "folder:p", *TINY, "--out", "run"])
    main(["label-next", "run", "--budget", "30", "--out", "next.csv"])
    with Path("next.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[:24]:
        row["label"] = "china" if int(row["path"].split(".")[0]) % 2 == 0 else "flower"
    with Path("next.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    capsys.readouterr()
    main(["knn", "run", "--labels", "next.csv", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["n_train"] + answer["n_test"] == 24 and 4 <= answer["n_test"] <= 12


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("0:4095", (0.0, 4095.0)),
        ("-1e2:50", (-100.0, 50.0)),
        ("5", "two numbers with a colon"),
        ("a:b", "two numbers with a colon"),
        ("9:1", "smaller first"),
    ],
)
def test_a_range_is_two_numbers(
    words: str, found: tuple[float, float] | str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos("p", 24, side=16)
    command = ["pretrain", "folder:p", *TINY, "--range", words, "--dry-run", "--json"]
    if isinstance(found, str):
        with pytest.raises(SystemExit) as exited:
            main(command)
        assert exited.value.code == 2 and found in capsys.readouterr().err
    else:
        main(command)
        assert tuple(json.loads(capsys.readouterr().out)["value_range"]) == found
