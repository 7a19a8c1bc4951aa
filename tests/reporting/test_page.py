"""The page of a run on a folder with hostile names: its numbers in their places, all else inert
text, gaps explained in sentences.
"""

import base64
import copy
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import example_run
import numpy as np
import pytest
from fresh_modules import fresh_modules
from PIL import Image

from sureclr.config import FirstEncoder
from sureclr.data.sources import load_images
from sureclr.evaluation.results import Comparison, Results, Sample
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.results import (
    FinetuningResult,
    ProbeScore,
    SavedWeights,
    SeedResult,
    TrainedScore,
)
from sureclr.finetuning.summary import summarise
from sureclr.reporting.page import write_page
from sureclr.reporting.rendering import render
from sureclr.reporting.run_files import RunFiles, read_run_files
from sureclr.reporting.sections.class_by_class import classes_of_one_split
from sureclr.reporting.sections.what_was_trained import setting_text
from sureclr.schema import SchemaError, from_json, to_json

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
NOTE = "255 minus </script><script>alert(5)</script>"


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
    """A run made by hand on 54 images of two classes, with every result and its page."""
    folder, path = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("runs") / "tiny"
    random = np.random.default_rng(0)
    for split, copies in (("train", 2), ("test", 1)):
        for k, kind in enumerate(CLASSES):
            (folder / split / kind).mkdir(parents=True)
            for i, name in enumerate(FILES * copies):
                pixels = random.integers(0, 128, (8, 8, 3), dtype=np.uint8) + np.uint8(100 * k)
                Image.fromarray(pixels).save(folder / split / kind / f"{i}{name}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        source = f"folder:{folder}"
        images = load_images(source, size=8)
        example_run.write_run(path, images, source, NOTE)
        write_page(render([read_run_files(path)]), path / "report.html")
        yield path


@pytest.fixture(scope="module")
def files(run: Path) -> RunFiles:
    return read_run_files(run)


def page_with(files: RunFiles, entries: dict[str, Any], **other: Any) -> str:
    return render([replace(files, results=Results(files.path, entries), **other)])


def changed(result: Any, way: tuple[Any, ...], value: Any) -> Any:
    """The result with another value at this place of its JSON form.

    SchemaError where the place does not take such a value.
    """
    content = copy.deepcopy(to_json(result))
    *path, last = way
    place = content
    for step in path:
        place = place[step]
    place[last] = value
    return from_json(type(result), content)


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
    ("knn", ("by_class", "classes", 1, "precision"), 0.313),
    ("linear", ("by_class", "macro_f1"), 0.315),
    ("linear", ("by_class", "majority_baseline"), 0.316),
    ("linear", ("interval", 0), 0.123),
    ("linear", ("blocks", 0, "accuracy"), 0.234),
    ("heads", ("knn_directions", "accuracy"), 0.235),
    ("heads", ("r_auroc", "evidence", "interval", 1), 0.936),
    ("learning", ("alignment", 0), 1.777),
    ("learning", ("gradient", "top_share", 0), 0.321),
    ("geometry", ("explained", 1), 0.0321),
    ("geometry", ("directions", 0, "share"), 0.987),
    ("sensitivity", ("transformations", "blur", "responses", "direction", 1), 0.456),
    ("sensitivity", ("transformations", "noise", "responses", "certainty", 1), -0.789),
    ("uncertainty", ("clean", "r_auroc", "certainty"), 0.654),
    ("uncertainty", ("information", "quantiles", 2), 5.432),
    ("uncertainty", ("information", "mean"), 5.678),
    ("uncertainty", ("calibration", "raw", "observed", 0), 0.222),
    ("ood", ("kinds", "inverted", "auroc", "certainty"), 0.432),
    ("explanation", ("certainty", 0, "value"), 0.111),
    ("explanation", ("sanity", "rank_correlation_randomised"), 0.765),
]


@pytest.fixture(scope="module")
def usual(files: RunFiles) -> dict[str, str]:
    return Page(page_with(files, files.results.entries, images=None)).blocks


@pytest.mark.parametrize(
    "key, way, value", CHANGES, ids=lambda part: part if isinstance(part, str) else None
)
def test_a_changed_number_shows_in_its_place_and_nowhere_else(
    files: RunFiles, usual: dict[str, str], key: str, way: tuple[Any, ...], value: float
) -> None:
    entries = {**files.results.entries, key: changed(files.results[key], way, value)}
    before, after = usual, Page(page_with(files, entries, images=None)).blocks
    moved = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    assert moved and all(part.split(".")[0] == key for name in moved for part in name.split())
    shown = f"{value:.3f}".replace("-", "\u2212")
    assert any(
        after.get(name, "").count(shown) > before.get(name, "").count(shown) for name in moved
    )


COMPARED: list[tuple[str, tuple[Any, ...], float]] = [
    ("comparison.cka_features", ("cka_features",), 0.345),
    ("comparison.cka_directions", ("cka_directions",), 0.346),
    ("comparison.certainty_spearman", ("certainty_spearman",), -0.347),
    ("comparison.agreement_knn", ("agreement_knn",), 0.348),
    ("comparison.neighbour_overlap", ("neighbour_overlap",), 0.349),
    ("comparison.neighbour_overlap", ("neighbour_overlap_chance",), 0.042),
    ("comparison.cka_blocks", ("cka_blocks", "matrix", 0, 1), 0.351),
]


@pytest.mark.parametrize("key, way, value", COMPARED, ids=[way[0] for _, way, _ in COMPARED])
def test_a_changed_comparison_shows_in_its_place(
    files: RunFiles, key: str, way: tuple[Any, ...], value: float
) -> None:
    bare = replace(files, results=Results(files.path), images=None, places=None)

    def blocks(comparison: Comparison) -> dict[str, str]:
        return Page(render([bare, bare], comparison)).blocks

    usual = example_run.comparison()
    before, after = blocks(usual), blocks(changed(usual, way, value))
    assert [name for name in after if after[name] != before[name]] == [key]
    assert f"{value:.3f}".replace("-", "\u2212") in after[key]


def rows_of(page: str, key: str) -> list[list[str]]:
    """The cells of the table in a block."""
    block = page[page.index(f'data-key="{key}"') :]
    body = block[block.index("<tbody>") : block.index("</tbody>")]
    return [
        [re.sub("<[^>]*>", "", cell) for cell in re.findall("<td>(.*?)</td>", row)]
        for row in re.findall("<tr>(.*?)</tr>", body)
    ]


def test_classes_are_listed_with_the_lowest_accuracy_first(files: RunFiles) -> None:
    names = tuple(f"class {i}" for i in range(30))
    result = example_run.linear(names)
    assert result.by_class is not None and result.by_class.confusion is not None
    page = page_with(files, {"linear": result}, images=None)
    rows = rows_of(page, "linear.by_class.classes")
    accuracies = [float(row[1]) for row in rows]
    assert len(rows) == 30 and accuracies == sorted(accuracies) and accuracies[0] < accuracies[-1]
    by_name = {each.name: each for each in result.by_class.classes}
    for name, accuracy, _, n_test, n_train, _, _, taken_for in rows:
        score = by_name[name]
        assert (f"{score.accuracy:.3f}", str(score.n_test)) == (accuracy, n_test)
        assert n_train == str(score.n_train) and taken_for.startswith(score.taken_for or "\u2013")
    assert "Only the 20 classes with the lowest accuracy are shown." in page
    cells = rows_of(page, "linear.by_class.confusion")
    assert [row[0] for row in cells] == [f"{i + 1} {rows[i][0]}" for i in range(20)]
    order = [list(by_name).index(row[0]) for row in rows[:20]]
    for row, i in zip(cells, order, strict=True):
        counts = result.by_class.confusion[i]
        assert [float(cell) for cell in row[1:]] == pytest.approx(
            [counts[j] / sum(counts) for j in order], abs=5e-4
        )
    assert "count as wrong: class 0." in Page(page).text


def test_a_sentence_names_thirty_classes_and_counts_the_others() -> None:
    numbers = example_run.by_class(("cat", "dog"))
    many = replace(numbers, only_test=tuple(f"c{i}" for i in range(45)), only_train=("z",))
    first, second = classes_of_one_split(many)
    assert first.text.endswith(
        ": c0, " + ", ".join(f"c{i}" for i in range(1, 30)) + " and 15 more."
    )
    assert second.text.endswith(": z.")


def test_numbers_per_class_of_an_older_file_are_asked_for(files: RunFiles) -> None:
    text = Page(page_with(files, {"knn": replace(example_run.knn(), by_class=None)})).text
    assert "numbers of each class are missing" in text and "sureclr knn" in text


@pytest.mark.parametrize(
    ("accuracy", "interval", "words"),
    [
        (0.3, (0.25, 0.35), "is worse than the raw pixels, outside both intervals"),
        (0.9, (0.85, 0.95), "is better than the raw pixels, outside both intervals"),
        (0.7, (0.65, 0.75), "is not found to differ from the raw pixels"),
    ],
)
def test_the_verdict_against_the_baselines_is_two_sided(
    files: RunFiles, accuracy: float, interval: tuple[float, float], words: str
) -> None:
    """Case F11's kind: what is worse is called worse."""
    result = replace(example_run.knn(), accuracy=accuracy, interval=interval)
    assert words in Page(page_with(files, {"knn": result})).text


def test_the_verdict_between_two_runs_is_two_sided(files: RunFiles) -> None:
    def entries(accuracy: float) -> Results:
        interval = (accuracy - 0.05, accuracy + 0.05)
        made = replace(example_run.knn(), accuracy=accuracy, interval=interval)
        return Results(files.path, {"knn": made})

    for first, second, words in (
        (0.3, 0.6, "b is better than a, outside both intervals"),
        (0.6, 0.3, "b is worse than a, outside both intervals"),
        (0.6, 0.62, "b is not found to differ from a"),
    ):
        runs = [
            replace(files, path=Path(name), results=entries(value), images=None, places=None)
            for name, value in (("a", first), ("b", second))
        ]
        assert f"By the nearest neighbours, {words}" in Page(render(runs, "not compared")).text


def test_the_information_of_an_image_is_shown_in_nats(files: RunFiles) -> None:
    text = Page(page_with(files, files.results.entries, images=None)).text
    assert "An image at the median tells 6.400 nats about its latent point" in text
    assert "which has 8 coordinates" in text
    without = replace(files.results["uncertainty"], information=None)
    text = Page(page_with(files, {"uncertainty": without}, images=None)).text
    assert "latent point" not in text


def test_of_how_many_test_images_the_numbers_are_is_said_where_it_is_a_sample(
    files: RunFiles,
) -> None:
    whole = {name: files.results[name] for name in ("uncertainty", "ood")}
    sampled = {name: replace(result, sample=Sample(5000, 10_000)) for name, result in whole.items()}
    text = Page(page_with(files, sampled, images=None)).text
    assert text.count("5,000 of the 10,000 test images") == 2
    assert "in a sample" not in Page(page_with(files, whole, images=None)).text


def test_the_same_numbers_make_the_same_page(files: RunFiles) -> None:
    assert render([files]) == render([files])


# --- Gaps -----------------------------------------------------------------------------


def test_without_evaluations_each_section_says_what_makes_them(files: RunFiles) -> None:
    page = Page(page_with(files, {}, table=None, places=None))
    assert page.text.count("sureclr evaluate") >= 6
    keys = " ".join(a.get("data-key", "") for tag, a in page.elements if tag == "figure")
    assert not set(
        re.findall("linear|knn|learning|geometry|sensitivity|uncertainty|ood|explanation", keys)
    )


def ways(content: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of JSON: every key of an object, the first element of a list."""
    steps = content if isinstance(content, dict) else range(min(1, len(content)))
    for step in steps if isinstance(content, dict | list) else ():
        yield (*way, step)
        if isinstance(content[step], dict | list):
            yield from ways(content[step], (*way, step))


ALIKE = {"noise", "occlusion", "neighbour_similarity", "feature_norm", "negative_entropy"}


def nullable() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The places of all results at which there may be no number; of those alike, one."""
    for name, result in example_run.results(Path("run"), ("cat", "dog"), 54).items():
        for way in ways(to_json(result)):
            if ALIKE & set(way):
                continue
            try:
                changed(result, way, None)
            except SchemaError:
                continue
            yield name, way


NULLABLE = list(nullable())


def test_many_numbers_may_be_missing() -> None:
    names = {"knn", "linear", "uncertainty", "ood", "learning", "geometry", "sensitivity"}
    names |= {"explanation", "heads"}
    assert len(NULLABLE) > 50 and {name for name, _ in NULLABLE} == names


def test_a_pretrained_backbone_is_no_untrained_encoder(files: RunFiles) -> None:
    """A frozen one has one point beside the raw pixels: it is its own baseline."""

    def drawn(first: FirstEncoder) -> tuple[str, list[str]]:
        knn = replace(files.results["knn"], first_encoder=first)
        page = page_with(files, {"knn": knn}, images=None)
        return page, [row[0] for row in rows_of(page, "knn")]

    page, names = drawn("untrained")
    assert names == ["trained encoder", "raw pixels", "untrained encoder"]
    page, names = drawn("pretrained")
    assert names == ["trained encoder", "raw pixels", "backbone as it came"]
    assert "untrained encoder" not in page and "against raw pixels and the backbone as" in page
    page, names = drawn("frozen")
    assert names == ["backbone as it came", "raw pixels"] and "0.655" not in page
    assert "training has added nothing to them" in page
    bare = replace(
        files.results["knn"], first_encoder="frozen", baselines=None, baseline_intervals=None
    )
    page = page_with(files, {"knn": bare}, images=None)
    assert "The raw pixels are missing" in page and "before training are missing" not in page


def test_settings_are_written_in_words() -> None:
    assert setting_text((0.08, 1.0)) == "0.08 to 1"
    assert setting_text((0.485, 0.456, 0.406)) == "0.485, 0.456, 0.406"
    assert setting_text(("noise", "tiles")) == "noise, tiles"
    assert setting_text({"path": "x.pth", "sha256": "ab"}) == "path x.pth, sha256 ab"


@pytest.mark.parametrize("name, way", NULLABLE, ids=lambda part: str(part))
def test_a_missing_number_never_stops_the_page(
    files: RunFiles, name: str, way: tuple[Any, ...]
) -> None:
    result = changed(files.results[name], way, None)
    page = page_with(files, {name: result}, table=None, places=None, images=None)
    assert not re.search(r'<div class="panels[^>]*>\s*</div>', page)


@pytest.mark.parametrize(
    "field", ["cka_features", "cka_directions", "cka_blocks", "certainty_spearman", "agreement_knn"]
)
def test_a_missing_number_of_a_comparison_never_stops_the_page(files: RunFiles, field: str) -> None:
    comparison = replace(example_run.comparison(), **{field: None})
    page = Page(render([files, files], comparison))
    assert (
        f"comparison.{field}" not in page.blocks and "comparison.neighbour_overlap" in page.blocks
    )


def test_an_error_while_drawing_is_not_hidden(files: RunFiles) -> None:
    with pytest.raises(AttributeError):
        page_with(files, {"knn": object()})


@pytest.mark.parametrize("key", ["learning", "explanation"])
def test_skipped_evaluations_say_why(files: RunFiles, key: str) -> None:
    entries = {name: each for name, each in files.results.items() if name != key}
    results = Results(files.path, entries, {}, {key: "because <b>so</b>"})
    assert "because <b>so</b>" in Page(render([replace(files, results=results)])).text


def test_a_run_whose_images_are_gone_has_its_page_and_says_so(files: RunFiles) -> None:
    entries = files.results.entries
    page = Page(page_with(files, entries, images=None, no_images="the folder was moved"))
    assert "the folder was moved" in page.text
    assert not [
        a
        for tag, a in page.elements
        if tag in ("img", "image") and a.get("src", a.get("href", "")).startswith("data:image/")
    ]


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"schema": 0}, "another version of SureCLR"),
        ({}, "another version of SureCLR"),
        ("{", "is damaged"),
    ],
)
def test_results_that_cannot_be_read_are_one_note_and_the_rest_is_drawn(
    run: Path, tmp_path: Path, content: Any, reason: str
) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(run, other)
    text = content if isinstance(content, str) else json.dumps(content)
    (other / "results.json").write_text(text)
    page = Page(render([read_run_files(other)]))
    assert page.text.count("results.json") == 2  # the note and the footer
    assert reason in page.text and "evaluate the run again" in page.text
    assert {"metrics.jsonl", "embeddings", "map.parquet"} <= page.blocks.keys()
    assert "projection_dim" in page.text and "has not been evaluated" not in page.text


# --- Without models -------------------------------------------------------------------


def test_the_page_needs_no_model_code(run: Path, tmp_path: Path) -> None:
    """The same page, byte for byte, from the files alone."""
    out = tmp_path / "page.html"
    with fresh_modules("sureclr.models", "timm", "torchvision"):
        from sureclr.reporting import page, rendering, run_files

        with pytest.raises(ImportError):
            import sureclr.models.embedding  # noqa: F401
        page.write_page(rendering.render([run_files.read_run_files(run)]), out)
    assert page.write_page is not write_page, "the module was not imported anew"
    assert out.read_bytes() == (run / "report.html").read_bytes()


def finetuned(accuracy: float, scratch: float) -> FinetuningResult:
    """One seed whose fine-tuned classifier has the classes of the example's vote."""
    numbers = example_run.by_class(("cat", "dog"))
    of = {"balanced_accuracy": 0.41, "macro_f1": 0.42}
    first, second = (
        TrainedScore(value, 0.1, 1, None, (), 1.0, 1.0, **of, by_class=numbers)
        for value in (accuracy, scratch)
    )
    seed = SeedResult(0, None, 20, 4, 280, "a", "b", 0, first, second, ProbeScore(0.5, 0.1, **of))
    return summarise([seed], FinetuneConfig(), 1, SavedWeights("finetuned/x", "0", 0))


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ((0.336, 0.572), "worse than the network from scratch, outside both intervals"),
        ((0.572, 0.336), "better than the network from scratch, outside both intervals"),
        ((0.57, 0.55), "not found to differ from the network from scratch"),
    ],
)
def test_fine_tuning_is_drawn_with_its_verdict_and_its_classes(
    files: RunFiles, accuracies: tuple[float, float], words: str
) -> None:
    """Case F11, on the page."""
    page = page_with(files, {"finetune:10%": finetuned(*accuracies)}, images=None)
    assert f"The fine-tuned network is {words}" in Page(page).text
    assert {"finetune:10%", "finetune:10%.per_seed.classes"} <= Page(page).blocks.keys()
    assert {row[0] for row in rows_of(page, "finetune:10%.per_seed.classes")} == {"cat", "dog"}
