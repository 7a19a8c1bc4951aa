"""The way of a user with photographs and few labels: from a folder through label-next and back.

The labels are written into the file by the csv module, from what the pictures show; rows F2 and F6
to F9 of the list of inputs that failed.
"""

import csv
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import FLAGS, weights
from tiny import lines as lines_of

from sureclr.cli import main
from sureclr.data.image_report import inert
from sureclr.files import as_cell

TINY = [*FLAGS, "--epochs", "1", "--batch-size", "8", "--size", "12"]
QUICK = ["--epochs", "1", "--seeds", "1", "--lr", "0.03", "--batch-size", "4", "--device", "cpu"]
ODD = (
    *("blank at the end .png", " lead.png", 'q"uote.png', "co,mma.png", "line\nbreak.png"),
    *("wide\u3000.png", "semi;colon.png", "tab\tname.png", "cafe\u0301.png", "back\\slash.png"),
    *("l\udce9on.png", "'single'.png", "=formula.png", "100% sure #1.png"),
)
KINDS = ("ant", "bee", "cow")


def kind_of(file: Path) -> str:
    """The class that a picture shows: where it is bright."""
    with Image.open(file) as picture:
        rows = np.asarray(picture).astype(float).mean((1, 2))
    return KINDS[int(rows.reshape(3, 4).mean(1).argmax())]


def photos(folder: Path, names: list[str]) -> Path:
    random = np.random.default_rng(0)
    for i, name in enumerate(names):
        pixels = random.integers(0, 120, (12, 12, 3), dtype=np.uint8)
        pixels[4 * (i % 3) : 4 * (i % 3) + 4] += 120
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of 80 pictures, none labelled, and a run; `next.csv` chooses 50 of them."""
    place = tmp_path_factory.mktemp("round_trip")
    photos(place / "photos", [*ODD, *(f"{i}.png" for i in range(80 - len(ODD)))])
    main(["pretrain", f"folder:{place / 'photos'}", *TINY, "--out", str(place / "run")])
    main(["label-next", str(place / "run"), "--budget", "50", "--out", str(place / "next.csv")])
    return place


def filled(place: Path, count: int, to: Path, **dialect: Any) -> Path:
    """next.csv with labels in its first rows, as a program for tables might save it."""
    by_name = {
        as_cell(inert(name)): place / "photos" / name for name in os.listdir(place / "photos")
    }
    with (place / "next.csv").open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    for row in rows[:count]:
        row["label"] = kind_of(by_name[row["path"]])
    encoding = dialect.pop("encoding", "utf-8")
    with to.open("w", newline="", encoding=encoding, errors="replace") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), **dialect)
        writer.writeheader()
        writer.writerows(rows)
    return to


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    main([*words, "--json"])
    said, err = capsys.readouterr()
    return json.loads(said), err


def test_labels_of_chosen_images_train_and_test_every_classifier(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """cases.md, F2: the part that is tested is the same for all, and never trained on."""
    run, file = str(place / "run"), filled(place, 30, tmp_path / "mine.csv")
    common = ["--labels", str(file), "--device", "cpu"]
    linear, said = answer(capsys, "linear", run, *common)
    knn, _ = answer(capsys, "knn", run, *common)
    tuned, _ = answer(capsys, "finetune", run, "--labels", str(file), *QUICK)
    tests = linear["n_test"]
    assert 6 <= tests <= 10 and tests == knn["n_test"] == tuned["n_test"]
    assert linear["n_train"] == knn["n_train"] == tuned["n_labels"] == 30 - tests
    assert "20 of 50 rows have no label" in said and f"{tests} are held out for testing" in said
    assert linear["accuracy"] > 0.5, "bright thirds are told apart"
    new = ["predict", run, str(place / "photos" / "0.png"), "--labels", str(file)]
    main([*new, "--out", str(tmp_path / "new.csv"), "--device", "cpu"])
    with (tmp_path / "new.csv").open(newline="", encoding="utf-8") as opened:
        (row,) = csv.DictReader(opened)
    assert kind_of(place / "photos" / "0.png") in row.values()
    assert list((place / "run" / "finetuned").glob("*.safetensors"))


def test_excel_may_have_saved_the_file(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    excel = {"delimiter": ";", "encoding": "cp1252", "lineterminator": "\r\n"}
    mine, other = (
        filled(place, 30, tmp_path / "a.csv"),
        filled(place, 30, tmp_path / "b.csv", **excel),
    )
    counts = [
        answer(capsys, "knn", str(place / "run"), "--labels", str(file), "--device", "cpu")[0]
        for file in (mine, other)
    ]
    assert counts[0] == counts[1] or counts[0]["n_train"] - counts[1]["n_train"] <= 1


def test_a_few_labels_are_told_how_many_more_are_needed(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = str(place / "run"), filled(place, 14, tmp_path / "few.csv")
    with pytest.raises(SystemExit) as stopped:
        main(["linear", run, "--labels", str(file), "--device", "cpu"])
    err = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and "label 6 more images" in err[-1]
    tuned, said = answer(capsys, "finetune", run, "--labels", str(file), *QUICK)
    assert tuned["accuracy"] is None and tuned["n_test"] == 0 and tuned["n_labels"] == 14
    assert "The classifier is not tested: 14 labels are too few" in said
    main(["finetune", run, "--labels", str(file), *QUICK])
    text = capsys.readouterr().out
    assert "not tested: 14 labels are too few" in text and "The classifier is" in text


def test_the_next_choice_leaves_out_what_is_filled_in_alone(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = filled(place, 30, tmp_path / "mine.csv")
    for flag in ("--known", "--labels"):
        words = [flag, str(file), "--budget", "25", "--out", str(tmp_path / f"{flag}.csv")]
        found, _ = answer(capsys, "label-next", str(place / "run"), *words, "--device", "cpu")
        with file.open(newline="", encoding="utf-8") as opened:
            labelled = {row["path"] for row in csv.DictReader(opened) if row["label"]}
        assert found["known"] == 30 and not labelled & {row["path"] for row in found["next"]}


def test_every_odd_name_goes_through_label_next_and_back(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that may be chosen is chosen; what comes back is what was labelled."""
    with pytest.raises(SystemExit):
        main(
            ["label-next", str(place / "run"), "--budget", "999", "--out", str(tmp_path / "x.csv")]
        )
    free = int(capsys.readouterr().err.split(" training images")[0].split()[-1].replace(",", ""))
    everything = tmp_path / "next.csv"
    main(["label-next", str(place / "run"), "--budget", str(free), "--out", str(everything)])
    file = filled(tmp_path_with(place, tmp_path), free, tmp_path / "all.csv")
    _, said = answer(capsys, "knn", str(place / "run"), "--labels", str(file), "--device", "cpu")
    assert (
        f"of the {free} labels" in said and "not among" not in said and "have no label" not in said
    )


def tmp_path_with(place: Path, folder: Path) -> Path:
    """`folder` with the pictures of `place`."""
    if not (folder / "photos").exists():
        shutil.copytree(place / "photos", folder / "photos")
    return folder


@pytest.mark.parametrize(
    ("form", "header"),
    [
        ("{0},{1}", "filename,label"),  # F6
        ("{0}\t{1}", "\ufeffimage\tclass"),  # F7
        (".\\{0},{1}", "path,label"),  # F8
        ("./{0},{1}", "path,label"),
        ("{2},{1}", "path,label"),
        ("{3},{1}", "path,label"),
        ("{0};{1}", None),
        ("{2},extra,{1}", "photo,note,taxon"),
    ],
)
def test_files_as_people_have_them(
    form: str, header: str | None, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [] if header is None else [header]
    for i in range(40):
        file = place / "photos" / f"{i}.png"
        lines.append(form.format(file.name, kind_of(file), file, file.stem))
    (tmp_path / "mine.csv").write_text("\n".join(lines), encoding="utf-8")
    words = ["--labels", str(tmp_path / "mine.csv"), "--device", "cpu"]
    columns = ["--label-column", "taxon"] if header and "taxon" in header else []
    found, _ = answer(capsys, "knn", str(place / "run"), *words, *columns)
    assert found["n_test"] > 0 and found["n_test"] + found["n_train"] == 40


def test_a_class_folder_whose_name_ends_in_a_blank_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """cases.md, F9."""
    names = [f"{kind}/{i}.png" for kind in ("left ", "right") for i in range(15)]
    source = f"folder:{photos(tmp_path / 'photos', names)}"
    main(["pretrain", source, *TINY, "--out", str(tmp_path / "run")])
    main(["label-next", str(tmp_path / "run"), "--budget", "16", "--out", str(tmp_path / "n.csv")])
    with (tmp_path / "n.csv").open(newline="") as opened:
        rows = [{**row, "label": row["path"].split("/")[0]} for row in csv.DictReader(opened)]
    for labels in ([row["label"] for row in rows], [row["label"].strip() for row in rows]):
        with (tmp_path / "mine.csv").open("w", newline="") as opened:
            pairs = zip((row["path"] for row in rows), labels, strict=True)
            csv.writer(opened).writerows([("path", "label"), *pairs])
        words = [str(tmp_path / "run"), "--labels", str(tmp_path / "mine.csv"), *QUICK]
        found, said = answer(capsys, "finetune", *words)
        assert found["n_labels"] == 16 and found["n_test"] == 6 and "are not those of" not in said


def test_labels_of_several_people_are_human_uncertainty_for_any_images(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["image,annotator,label"]
    for i in range(60):
        kind = kind_of(place / "photos" / f"{i}.png")
        votes = [kind] * 3 if i % 2 else [kind, kind, KINDS[i % 3]]
        lines += [f"{i}.png,{number},{vote}" for number, vote in enumerate(votes)]
    (tmp_path / "votes.csv").write_text("\n".join(lines))
    words = ["--labels", str(tmp_path / "votes.csv"), "--device", "cpu"]
    found, said = answer(capsys, "uncertainty", str(place / "run"), *words)
    people = found["ood"]["human_agreement"]
    assert people["n"] > 5 and set(people["spearman"]) >= {"certainty", "feature_norm"}
    assert "labelled images have more than one label" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["knn", "--labels", "none.csv"], "there is no file of labels"),
        (["knn", "--label-column", "2"], "name it with --labels"),
        (["knn", "--labels", "FILE", "--label-column", "kind"], "unknown column of"),
        (["knn", "--labels", "FILE", "--image-column", "9"], "--image-column 9 is none of them"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = [str(place / "next.csv") if word == "FILE" else word for word in words]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([command, str(place / "run"), *rest, "--device", "cpu"])
    printed, err = capsys.readouterr()
    assert stopped.value.code == 2 and printed == "" and said in err.splitlines()[-1]
    assert "Traceback" not in err


def test_labels_show_how_a_run_learns_and_change_nothing_of_it(place: Path, tmp_path: Path) -> None:
    lines = [f"{i}.png,{kind_of(place / 'photos' / f'{i}.png')}" for i in range(60)]
    (tmp_path / "mine.csv").write_text("path,label\n" + "\n".join(lines))
    words = ["pretrain", f"folder:{place / 'photos'}", *TINY]
    words[words.index("--monitor-every") + 1] = "1"
    main([*words, "--out", str(tmp_path / "without")])
    main([*words, "--out", str(tmp_path / "with"), "--labels", str(tmp_path / "mine.csv")])
    (without,), (labelled,) = (
        [entry for entry in lines_of(tmp_path / name) if "effective_rank" in entry]
        for name in ("without", "with")
    )
    assert 0 <= labelled.pop("knn") <= 1 and "knn" not in without
    assert labelled == without
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            weights(tmp_path / "without").values(), weights(tmp_path / "with").values(), strict=True
        )
    )
    report = json.loads((tmp_path / "with" / "images.json").read_text())
    assert report["monitor_labels"] == str(tmp_path / "mine.csv")


def test_the_next_command_of_pretrain_repeats_the_labels_and_can_be_pasted(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [file.name for file in (place / "photos").glob("[0-9]*.png")]
    lines = [f"{name},{kind_of(place / 'photos' / name)}" for name in names]
    Path("-kinds.csv").write_text("\n".join(["file,kind", *lines]))
    columns = ["--image-column", "file", "--label-column", "kind"]
    given = ["--labels=-kinds.csv", *columns, "--out=-run"]
    main(["pretrain", f"folder:{place / 'photos'}", *TINY, *given])
    words = shlex.split(capsys.readouterr().out.split("next: sureclr ")[1])
    assert words == ["evaluate", "./-run", "--labels", "./-kinds.csv", *columns]
    main(["knn", *words[1:]])
    assert "accuracy" in capsys.readouterr().out
