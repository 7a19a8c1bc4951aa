"""Folders as people have them, on the command line: odd names, damaged files, wide values."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import FLAGS

import sureclr
from sureclr.cli import main

QUICK = [*FLAGS, "--epochs", "1", "--batch-size", "8", "--out", "run"]


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def noise(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        pixels = random.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of a command that must end with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_folder_under_any_name_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cases F12 and F13: relative, with an ideographic blank and bytes that are not UTF-8."""
    name = "x\u3000y " + os.fsdecode(b"\xff")
    folder = tmp_path / name
    for seed, (split, each) in enumerate([("Train", 12), ("Test", 4)]):
        for number, kind in enumerate(("left ", "right")):
            noise(tmp_path / "plain" / split / kind, each, 2 * seed + number)
    os.rename(tmp_path / "plain", folder)
    main(["pretrain", f"folder:{name}", *QUICK])
    said = capsys.readouterr().err
    assert "32 images (24 train, 8 test), 2 classes" in said and "folders Train/, Test/" in said
    report = json.loads((tmp_path / "run" / "images.json").read_text())
    assert report["source"] == f"folder:{folder}" and report["splits"] == {"train": 24, "test": 8}
    assert sureclr.load(tmp_path / "run", "cpu").config.source == f"folder:{folder}"
    monkeypatch.chdir("/")
    capsys.readouterr()
    main(["knn", str(tmp_path / "run"), "--device", "cpu", "--json"])
    assert json.loads(capsys.readouterr().out)["n_test"] == 8


def test_unreadable_files_stop_a_run_only_where_they_should(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"folder:{noise(tmp_path / 'photos', 24, 0)}"
    for i in range(3):
        (tmp_path / "photos" / f"bad{i}.png").write_bytes(b"x")
    words = ["pretrain", source, *QUICK]
    assert "by --allow-unreadable" in refusal(words, capsys)
    assert "leave out --strict" in refusal([*words, "--strict"], capsys)
    assert "by --allow-unreadable" in refusal(["views", source], capsys)
    assert not (tmp_path / "run").exists()
    main([*words, "--allow-unreadable"])
    assert "3 of 27 image files could not be read: bad0.png" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "run" / "images.json").read_text())["refused"]) == 3


def test_the_range_of_a_folder_is_stored_and_used_for_later_images(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(16):
        counts = (7000 + 4 * random.permutation(256).reshape(16, 16)).astype(np.uint16)
        Image.fromarray(counts).save(tmp_path / "photos" / f"{i}.png")
    main(["pretrain", "folder:photos", *QUICK])
    run = sureclr.load(tmp_path / "run", "cpu")
    assert run.config.value_range == (7000, 8020) and run.size == 16
    dark = tmp_path / "dark.png"
    Image.fromarray(np.full((16, 16), 7100, np.uint16)).save(dark)
    grey = np.full((1, 16, 16), round((7100 - 7000) * 255 / 1020), np.uint8)
    found, expected = run.embed([dark]), run.embed(grey)
    assert torch.allclose(found.features, expected.features, atol=1e-6)


def test_verify_reaches_the_cache_from_every_command_that_has_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noise(tmp_path / "photos", 16, 0)
    for flags in ([], ["--verify"]):
        main(["pretrain", "folder:photos", *QUICK, "--size", "8", "--dry-run", *flags])
        told = capsys.readouterr()
        assert ("Every byte of the cache" in told.err) is bool(flags) and "verify" not in told.out
    given: list[object] = []

    def opened(*run: object, **options: object) -> None:
        given.append(options["verify"])
        raise sureclr.UserError("enough.")

    monkeypatch.setattr("sureclr.evaluation.session.Session", opened)
    for command in ("evaluate", "linear", "knn", "uncertainty"):
        for flags in ([], ["--verify"]):
            refusal([command, "run", *flags], capsys)
    assert given == [False, True] * 4
