"""The report of a run on a folder with hostile names: its numbers in their places, all else inert
text, gaps told in sentences.
"""

import base64
import copy
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import train

from sureclr.cli import main
from sureclr.reporting.page import render
from sureclr.reporting.run_files import Numbers, read_numbers

FILES = (
    "<img src=x onerror=alert(1)>",
    '"onmouseover="alert(2)',
    "{{ 7 * 7 }}{% raw %}",
    "&amp;'`${alert(3)}",
    "line\nbreak",
    "\u202egnp.exe",
    "]]><!--",
    "a" * 200,
    "plain",
)
CLASSES = ("<script>alert(4)", "{{config}}\u2066")
VOID = {"meta", "link", "img", "input", "br", "image", "path", "line", "rect", "circle"}
FRAME = (
    "html head meta title link style body a header p span button div nav ol ul li main h1 h2 h3 h4"
    " bdi section footer script noscript"
)
FIGURES = (
    "figure figcaption svg desc text path line rect circle image g details summary table thead"
    " tbody tr th td dl dt dd strong"
)
CONTROLS = "img small label input canvas aside"
OOD = {
    "inverted": {
        "n": 9,
        "auroc": {"certainty": 0.61, "feature_norm": 0.52},
        "note": "255 minus </script><script>alert(5)</script>",
    }
}


class Page(HTMLParser):
    """Elements with their attributes, text outside scripts, and the text of each block by the key
    of its numbers.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[tuple[str, str]] = []
        self.text, self.raw = "", dict[str, list[str]]()
        self.blocks: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes.get("data-key", "")))
        self._note(f"<{tag} {sorted(attributes.items())}>")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._note(f"<{tag} {sorted(attrs)}>")

    def handle_endtag(self, tag: str) -> None:
        while self.open and tag not in VOID and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        inside = self.open[-1][0] if self.open else ""
        if inside in ("script", "style"):
            self.raw.setdefault(inside, []).append(data)
        else:
            self.text += data
        self._note(data)

    def _note(self, what: str) -> None:
        key = next((key for _, key in reversed(self.open) if key), "")
        self.blocks[key] = self.blocks.get(key, "") + what


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny run on 36 images of two classes, with every evaluation."""
    folder, path = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("runs") / "tiny"
    random = np.random.default_rng(0)
    for split, copies in (("train", 2), ("test", 1)):
        for k, kind in enumerate(CLASSES):
            (folder / split / kind).mkdir(parents=True)
            for i, name in enumerate(FILES * copies):
                pixels = random.integers(0, 128, (8, 8, 3), dtype=np.uint8) + np.uint8(100 * k)
                Image.fromarray(pixels).save(folder / split / kind / f"{i}{name}.png")
    train(path, None, source=f"folder:{folder}", size=8)
    (path / "results.json").write_text(
        json.dumps({"ood": OOD})
    )  # the one evaluation that reads other data sets
    main(["report", str(path), "--json"])
    yield path


@pytest.fixture(scope="module")
def numbers(run: Path) -> Numbers:
    return read_numbers(run)


def page_with(numbers: Numbers, results: dict[str, Any], **other: Any) -> str:
    from dataclasses import replace

    return render([replace(numbers, results=results, **other)])


# --- Inert ----------------------------------------------------------------------------


def test_nothing_of_the_users_becomes_markup(run: Path) -> None:
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.elements} <= set(f"{FRAME} {FIGURES} {CONTROLS}".split())
    names = [name for _, attributes in page.elements for name in attributes]
    assert not [name for name in names if name.startswith("on") or name == "style"]
    outside = [
        value
        for tag, a in page.elements
        for name in ("src", "href", "xlink:href", "action", "srcset")
        if (value := a.get(name))
    ]
    assert outside and all(value.startswith(("data:image/", "data:,", "#")) for value in outside)


def test_hostile_names_are_shown_as_they_are(run: Path) -> None:
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert CLASSES[0] in page.text and "{{config}}" in page.text
    assert "255 minus </script><script>alert(5)</script>" in page.text
    assert any(
        "{{ 7 * 7 }}{% raw %}" in value
        for _, a in page.elements
        for value in (a.get("alt", ""), a.get("aria-label", ""))
    )


def test_the_policy_allows_this_pages_own_script_and_style_and_nothing_else(run: Path) -> None:
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    policy = next(
        a["content"]
        for tag, a in page.elements
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert (
        rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
        and rules["img-src"] == "data:"
    )
    assert "unsafe" not in policy and "http" not in policy.replace("http-equiv", "")
    kinds = [a.get("type", "") for tag, a in page.elements if tag == "script"]
    code = [
        text
        for kind, text in zip(kinds, page.raw["script"], strict=True)
        if kind != "application/json"
    ]
    data = [
        text
        for kind, text in zip(kinds, page.raw["script"], strict=True)
        if kind == "application/json"
    ]
    assert data and not any(
        mark in text for text in data for mark in "<>&"
    )  # no name ends its script element or opens a comment in it
    assert rules["script-src"].split() == [quoted_hash(text) for text in code]
    assert rules["style-src"].split() == [quoted_hash(text) for text in page.raw["style"]]


def quoted_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_landmarks_headings_and_text_alternatives(run: Path) -> None:
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("main") == tags.count("h1") == tags.count("nav") == 1
    assert (
        next(a for tag, a in page.elements if tag == "a")["href"] == "#main"
    )  # the skip link comes first
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    drawings = [a for tag, a in page.elements if tag == "svg"]
    assert drawings and all(
        a.get("aria-hidden") == "true" or (a.get("role") == "img" and a.get("aria-label"))
        for a in drawings
    )
    assert all("alt" in a for tag, a in page.elements if tag == "img")
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for tag, a in page.elements if tag == "a"} <= set(ids)


# --- Numbers --------------------------------------------------------------------------


CHANGES: list[tuple[str, tuple[Any, ...], float]] = [
    ("knn", ("accuracy",), 0.314),
    ("linear", ("interval", 0), 0.123),
    ("linear", ("blocks", 0, "accuracy"), 0.234),
    ("learning", ("alignment", 0), 1.777),
    ("learning", ("gradient", "top_share", 0), 0.321),
    ("geometry", ("explained", 1), 0.0321),
    ("geometry", ("directions", 0, "share"), 0.987),
    ("sensitivity", ("transformations", "blur", "direction", 1), 0.456),
    ("sensitivity", ("transformations", "noise", "certainty", 1), -0.789),
    ("uncertainty", ("clean", "r_auroc", "certainty"), 0.654),
    ("uncertainty", ("calibration", "raw", "observed", 0), 0.222),
    ("ood", ("inverted", "auroc", "certainty"), 0.432),
    ("explanation", ("certainty", 0, "value"), 0.111),
    ("explanation", ("sanity", "rank_correlation_randomised"), 0.765),
]


@pytest.fixture(scope="module")
def usual(numbers: Numbers) -> dict[str, str]:
    return Page(page_with(numbers, numbers.results, images=None)).blocks


@pytest.mark.parametrize(
    "key, way, value", CHANGES, ids=lambda part: part if isinstance(part, str) else None
)
def test_a_changed_number_shows_in_its_place_and_nowhere_else(
    numbers: Numbers, usual: dict[str, str], key: str, way: tuple[Any, ...], value: float
) -> None:
    changed = copy.deepcopy(numbers.results)
    *path, last = way
    place = changed[key]
    for step in path:
        place = place[step]
    place[last] = value
    before, after = usual, Page(page_with(numbers, changed, images=None)).blocks
    moved = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    assert moved and all(part.split(".")[0] == key for name in moved for part in name.split())
    shown = f"{value:.3f}".replace("-", "\u2212")
    assert any(
        after.get(name, "").count(shown) > before.get(name, "").count(shown) for name in moved
    )


def test_the_same_numbers_make_the_same_page(numbers: Numbers) -> None:
    assert render([numbers]) == render([numbers])


# --- Gaps -----------------------------------------------------------------------------


def test_without_evaluations_each_section_says_what_makes_them(numbers: Numbers) -> None:
    page = Page(page_with(numbers, {}, table=None, places=None))
    assert page.text.count("sureclr evaluate") >= 6
    keys = " ".join(a.get("data-key", "") for tag, a in page.elements if tag == "figure")
    assert not set(
        re.findall("linear|knn|learning|geometry|sensitivity|uncertainty|ood|explanation", keys)
    )


def second_level(results: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (key, inner) for key, value in results.items() if isinstance(value, dict) for inner in value
    ]


def test_a_number_that_is_gone_or_null_never_stops_the_page(numbers: Numbers) -> None:
    for key, inner in second_level(numbers.results):
        null, gone = (
            {**numbers.results[key], inner: None},
            {k: v for k, v in numbers.results[key].items() if k != inner},
        )
        for results in ({key: null}, {key: gone}):
            page = page_with(numbers, results, images=None, places=None)
            assert not re.search(r'<div class="panels[^>]*>\s*</div>', page), (
                f"an empty figure without {key}.{inner}"
            )


def test_skipped_evaluations_tell_why(numbers: Numbers) -> None:
    for key in ("learning", "explanation"):
        assert (
            "because <b>so</b>"
            in Page(
                page_with(numbers, {**numbers.results, key: {"skipped": "because <b>so</b>"}})
            ).text
        )


def test_a_run_whose_images_are_gone_has_its_page_and_says_so(numbers: Numbers) -> None:
    page = Page(page_with(numbers, numbers.results, images=None, no_images="the folder was moved"))
    assert "the folder was moved" in page.text
    assert not [
        a
        for tag, a in page.elements
        if tag in ("img", "image") and a.get("src", a.get("href", "")).startswith("data:image/")
    ]


# --- Command --------------------------------------------------------------------------


def test_no_evaluate_draws_what_is_there_to_the_file_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "results.json").read_bytes()
    main(
        [
            "report",
            str(run),
            "--no-evaluate",
            "--out",
            str(tmp_path / "new" / "page.html"),
            "--json",
        ]
    )
    told = json.loads(capsys.readouterr().out)
    assert (
        Path(told["report"]).stat().st_size == told["bytes"]
        and (run / "results.json").read_bytes() == before
    )
    assert not [file for file in (tmp_path / "new").iterdir() if file.name != "page.html"]


def test_two_runs_stand_beside_each_other(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(run, other)
    main(["report", str(run), str(other), "--no-evaluate", "--json"])
    file = run / "comparison-other.html"
    assert json.loads(capsys.readouterr().out)["report"] == str(file)
    page = Page(file.read_text(encoding="utf-8"))
    assert sum(tag == "h1" for tag, _ in page.elements) == 2 and "Compare" in page.text
    kept = json.loads((run / "results.json").read_text())[f"comparison:{other}"]
    assert kept["cka_features"] == pytest.approx(1, abs=1e-6) and kept[
        "agreement_knn"
    ] == pytest.approx(1)
    assert [kept["cka_blocks"]["matrix"][i][i] for i in range(2)] == pytest.approx([1, 1], abs=1e-6)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere"], "not a run folder"),
        (["{run}", "--no-evaluate", "--out", "/proc/x/y"], "--out"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(
    run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["report", *(word.format(run=run) for word in words)])
    assert stopped.value.code == 2 and said in capsys.readouterr().err
