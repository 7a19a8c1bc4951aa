"""results.json as typed results: what is written is read back, and another form is refused."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sureclr.errors import UserError
from sureclr.evaluation.results import (
    SCHEMA,
    BaselineIntervals,
    Baselines,
    KnnResult,
    Provenance,
    Results,
    read_results,
    save_result,
)
from sureclr.files import sealed

KNN = KnnResult(
    0.5, (0.4, 0.6), 20, 100, 50, Baselines(0.3, 0.2), BaselineIntervals((0, 1), (0, 1))
)
MADE = Provenance("c", "i", "l", "", "0.1.0", "2026-11-26T10:00:00+00:00", 1.5, {})


def test_no_file_is_no_results(tmp_path: Path) -> None:
    results = read_results(tmp_path)
    assert len(results) == 0 and list(results) == []


@pytest.mark.parametrize("kind", ["pipe", "pipe behind a link", "folder", "huge", "deep"])
def test_a_file_that_is_none_is_one_sentence_and_no_wait(tmp_path: Path, kind: str) -> None:
    """R7: a pipe in place of results.json made every command hang."""
    path = tmp_path / "results.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)  # a terabyte that takes no disk
    elif kind == "deep":
        path.write_text("[" * 100_000)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    for act in (read_results, lambda run: save_result(run, "knn", KNN, MADE)):
        with pytest.raises(UserError, match=r"results\.json is damaged .*; move it away") as caught:
            act(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_saved_result_is_read_back_with_its_provenance(tmp_path: Path) -> None:
    save_result(tmp_path, "knn", KNN, MADE)
    results = read_results(tmp_path)
    assert results["knn"] == KNN and results.provenance["knn"] == MADE


def test_keys_that_others_rely_on(tmp_path: Path) -> None:
    save_result(tmp_path, "knn", KNN, MADE)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["schema"] == SCHEMA
    assert content["knn"]["accuracy"] == 0.5 and content["knn"]["interval"] == [0.4, 0.6]
    assert content["knn"]["baselines"] == {"raw_pixels": 0.3, "untrained": 0.2}
    assert content["knn"]["provenance"]["checkpoint"] == "c"


def test_saving_one_result_leaves_the_others(tmp_path: Path) -> None:
    save_result(tmp_path, "knn", KNN, MADE)
    save_result(tmp_path, "knn:fashion-mnist", replace(KNN, accuracy=0.25), MADE)
    save_result(tmp_path, "mine", {"a": [1, 2]}, MADE)
    save_result(tmp_path, "knn", replace(KNN, accuracy=0.75), MADE)
    results = read_results(tmp_path)
    assert list(results) == ["knn", "knn:fashion-mnist", "mine"]
    assert [results["knn"].accuracy, results["knn:fashion-mnist"].accuracy] == [0.75, 0.25]
    assert results["mine"] == {"a": [1, 2]}


def test_a_file_of_schema_1_is_read_and_becomes_one_of_the_present_schema(tmp_path: Path) -> None:
    save_result(tmp_path, "knn", KNN, MADE)
    path = tmp_path / "results.json"
    old = json.loads(path.read_text()) | {"schema": 1}
    for key in ("by_class", "no_pixels", "sha256"):
        del old["knn"][key]
    path.write_text(json.dumps(old))
    assert read_results(tmp_path)["knn"] == KNN and KNN.by_class is None
    save_result(tmp_path, "linear-of-mine", {"a": 1}, MADE)
    content = json.loads(path.read_text())
    assert content["schema"] == SCHEMA > 1 and content["knn"] == sealed(old["knn"], "knn")
    assert read_results(tmp_path)["knn"] == KNN


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "damaged"),
        ("[1]", "damaged"),
        ("{", "damaged"),
        ('{"knn": {}}', "another version"),
        ('{"schema": 99, "knn": {}}', "another version"),
        ('{"schema": true, "knn": {}}', "another version"),
        ('[["schema", 1]]', "damaged"),
    ],
)
def test_another_file_is_refused_in_a_sentence_and_not_written_over(
    tmp_path: Path, content: str, word: str
) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match=word):
        read_results(tmp_path)
    with pytest.raises(UserError, match=word):
        save_result(tmp_path, "knn", KNN, MADE)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda knn: knn | {"accuracy": 0.75}, "does not match its sha256"),
        (lambda knn: {key: value for key, value in knn.items() if key != "sha256"}, "sha256"),
        (lambda knn: sealed(knn, "linear"), "sha256"),
        (lambda knn: sealed(knn | {"more": 1}, "knn"), r"knn\.more is not known"),
        (lambda knn: sealed(knn | {"provenance": 3}, "knn"), "provenance"),
        (lambda knn: 3, "no object"),
        (lambda knn: {"accuracy": 10**400}, "sha256"),
    ],
)
def test_a_damaged_entry_is_left_out_and_named_and_the_others_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, word: str
) -> None:
    for name in ("knn", "mine"):
        save_result(tmp_path, name, KNN, MADE)
    path = tmp_path / "results.json"
    content = json.loads(path.read_text())
    content["knn"] = change(content["knn"])
    path.write_text(json.dumps(content))
    results = read_results(tmp_path)
    assert list(results) == ["mine"] and list(results.damaged) == ["knn"]
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(word, line) and "knn is damaged" in line and "mine" not in line
    assert read_results(tmp_path, quiet=True).damaged and not capsys.readouterr().err
    save_result(tmp_path, "new", KNN, MADE)
    assert json.loads(path.read_text())["knn"] == content["knn"]  # nobody else's to delete
    save_result(tmp_path, "knn", KNN, MADE)
    assert list(read_results(tmp_path)) == ["knn", "mine", "new"] and not capsys.readouterr().err


def test_an_entry_under_another_name_is_damaged(tmp_path: Path) -> None:
    save_result(tmp_path, "knn", KNN, MADE)
    path = tmp_path / "results.json"
    path.write_text(path.read_text().replace('"knn"', '"linear"'))
    assert list(read_results(tmp_path).damaged) == ["linear"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"time": "later", "seconds": 9.0, "version": "2"}, True),
        ({"checkpoint": "x"}, False),
        ({"images": "x"}, False),
        ({"labels": "x"}, False),
        ({"other_checkpoint": "x"}, False),
        ({"options": {"human": "h"}}, False),
    ],
)
def test_the_same_origin_is_the_same_weights_images_labels_and_options(
    change: dict[str, Any], same: bool
) -> None:
    assert MADE.same_origin(replace(MADE, **change)) is same


def test_results_in_a_notebook_show_accuracies_and_are_one_line_elsewhere(tmp_path: Path) -> None:
    results = Results(Path("<b>run</b>"), {"knn": KNN, "ood": object()}, {"knn": MADE, "ood": MADE})
    html = results._repr_html_()
    assert "0.5000" in html and "0.4000 to 0.6000" in html and "&lt;b&gt;" in html
    assert repr(results) == "<Results of <b>run</b>: knn, ood>"
