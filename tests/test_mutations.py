"""A changed byte in a file of a run never changes a number without a word, nor is it a traceback.

One tiny run has every kind of file. A mutation changes one of them; then everything that a user
sees is read with the public functions, and compared with what the untouched run shows. The verdict
on each thing that is read:

    harmless   the same numbers
    missing    fewer numbers, and none that differ (a file or an entry is not there)
    refused    a `UserError`
    said       other numbers, or others are made anew, and a message says so
    silent     other numbers and no word: the test fails
    traceback  any other exception: the test fails
"""

import hashlib
import html
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import train, write_photos

import sureclr
from sureclr.errors import UserError
from sureclr.evaluation.classifiers import kept_linear
from sureclr.evaluation.session import Session
from sureclr.evaluation.training_history import evaluate_learning
from sureclr.finetuning.config import FinetuneConfig
from sureclr.progress import SilentProgress
from sureclr.reporting.rendering import render
from sureclr.reporting.run_files import read_run_files
from sureclr.schema import to_json
from sureclr.training.continuing import configuration_changes, recorded_configuration
from sureclr.training.image_record import ImageRecord, check_recorded_images
from sureclr.training.run_dir import RunDir, read_checked_safetensors

EVALUATIONS = ("knn", "linear", "learning", "geometry")
TUNED = FinetuneConfig(labels="8", seeds=1, epochs=1, batch_size=4, learning_rates=(0.1,))
WORST = ("traceback", "silent", "refused", "said", "missing", "harmless")  # verdicts in order
BAD = WORST[:2]
NOT_READ = ("lock", "report.html")  # nobody reads numbers from the first; the second is a page


class Saying(SilentProgress):
    """Collects messages."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


# --- A run with everything in it ------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A run that may be changed, its untouched copy, and another run."""

    run: Path
    untouched: Path
    other: Path

    def restore(self) -> None:
        shutil.rmtree(self.run)
        shutil.copytree(self.untouched, self.run)

    def paths(self) -> list[Path]:
        """All files of the untouched run that are read, relative to it."""
        found = [path.relative_to(self.untouched) for path in self.untouched.rglob("*")]
        return sorted(p for p in found if (self.untouched / p).is_file() and p.name not in NOT_READ)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("mutations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURECLR_CACHE", str(folder / "cache"))
        source = f"folder:{write_photos(folder / 'photos')}"
        quick: dict[str, Any] = dict(size=8, batch_size=8, snapshot_every=1, epochs=2)
        train(folder / "run", None, source=source, **quick)
        train(folder / "other", None, source=source, **quick, seed=1)
        options: dict[str, Any] = {"device": "cpu", "progress": SilentProgress()}
        sureclr.evaluate(folder / "run", EVALUATIONS, **options)
        sureclr.evaluate(folder / "other", ("knn", "geometry"), **options)
        sureclr.compare(folder / "run", folder / "other", **options)
        sureclr.finetune(folder / "run", config=TUNED, **options)
        with Session(folder / "run", **options) as session:
            kept_linear(session)
        shutil.copytree(folder / "run", folder / "untouched")
        yield Place(folder / "run", folder / "untouched", folder / "other")


# --- What a user sees of it -----------------------------------------------------------


PAGES: dict[str, str] = {}  # of what the page is drawn from: drawing takes most of the time


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def see_features(place: Place, said: Saying) -> Any:
    run = sureclr.load(place.run, "cpu")
    table = run.embed(torch.arange(4 * 192, dtype=torch.uint8).reshape(4, 3, 8, 8))
    named = dict(re.findall(r"<th>([^<]*)</th><td>([^<]*)</td>", run._repr_html_()))
    said.texts += [text for text in named.values() if text.endswith("evaluate the run again")]
    return {"features": digest(table.features), "config": to_json(run.config), "notebook": named}


def see_results(place: Place, said: Saying) -> Any:
    content = sureclr.read_results(place.run).to_json()
    return {name: entry for name, entry in content.items() if name != "schema"}


def see_evaluations(place: Place, said: Saying) -> Any:
    with Session(place.run, device="cpu", progress=said) as session:
        seen = {name: to_json(session.evaluate(name)) for name in ("knn", "geometry")}
        table = session.inputs.table
        classifier = kept_linear(session)
        probabilities = classifier.probabilities(session.images, table)
        seen["predict"] = {"linear": digest(probabilities), "facts": to_json(classifier.facts)}
        seen["learning"] = to_json(evaluate_learning(session.inputs))
    other = sureclr.compare(place.run, place.other, device="cpu", progress=said)
    return {**seen, "comparison": to_json(other)}


def see_finetuned(place: Place, said: Saying) -> Any:
    tuned = sureclr.load_finetuned(place.run, "8", "cpu")
    pixels = torch.arange(4 * 192, dtype=torch.uint8).reshape(4, 3, 8, 8)
    return {"record": to_json(tuned.record), "answers": digest(tuned.probabilities(pixels))}


def see_page(place: Place, said: Saying) -> Any:
    run = read_run_files(place.run)
    table = None if run.table is None else (run.table.digest, str(run.table.certainty))
    places = run.places and {name: column.tolist() for name, column in run.places.items()}
    rest = (run.config, run.environment, run.lines, run.results.to_json(), run.results.skipped)
    words = (run.images is None, run.no_images, run.no_results, run.problems)
    content = repr((table, places, rest, words))
    if content not in PAGES:
        PAGES[content] = render([run])
    page = PAGES[content]
    text = html.unescape(re.sub(r"<(style|script)\b[^>]*>.*?</\1>", " ", page, flags=re.S))
    said.texts += re.findall(r'<p class="[^"]*(?:remark|missing)[^"]*">(.*?)</p>', page, re.S)
    said.texts += run.problems
    data = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    shown = {word for word in re.split(r'[<>\s"=,;()]+', text) if re.search(r"\d", word)}
    return {"words": dict.fromkeys(shown), "map": data, "environment": run.environment}


def see_encoder(place: Place, said: Saying) -> Any:
    try:
        tensors, about = read_checked_safetensors(place.run / "encoder.safetensors", "sureclr")
    except (OSError, ValueError) as error:  # what it promises
        raise UserError(" ".join(str(error).split())) from error
    return {"about": about, **{name: digest(value) for name, value in tensors.items()}}


def see_resuming(place: Place, said: Saying) -> Any:
    """What `--resume` compares: the configuration, and the images with those of the run."""
    directory = RunDir(place.run)
    recorded = recorded_configuration(directory)
    numbers = directory.load_checkpoint().numbers
    now = ImageRecord(["another"], bytes(16))
    differences = check_recorded_images(directory.images, numbers["images"], numbers["count"], now)
    said.texts += [text for text in differences if text.startswith("the training images are not")]
    said.texts += configuration_changes(directory, recorded, recorded)
    return {"config": to_json(recorded), "differences": differences}


SEEN: dict[str, Callable[[Place, Saying], Any]] = {
    "features": see_features,
    "results": see_results,
    "finetuned": see_finetuned,
    "page": see_page,
    "encoder": see_encoder,
    "resuming": see_resuming,
    "evaluations": see_evaluations,  # the last one, as it makes anew what is damaged
}


@dataclass(frozen=True)
class Sight:
    """What one function saw: the numbers, and what was said; or why it was refused, or crashed."""

    value: Any = None
    said: frozenset[str] = frozenset()
    refusal: str = ""
    traceback: str = ""


def look(
    place: Place, capsys: pytest.CaptureFixture[str], eyes: Collection[str]
) -> dict[str, Sight]:
    """Read what a user sees by the functions of these names."""
    sights = {}
    for name in eyes:
        see, progress = SEEN[name], Saying()
        capsys.readouterr()
        try:
            value = see(place, progress)
            texts = [*progress.texts, *capsys.readouterr().err.splitlines()]
            sights[name] = Sight(value, frozenset(filter(None, texts)))
        except UserError as error:
            sights[name] = Sight(refusal=str(error))
        except Exception as error:
            sights[name] = Sight(traceback=f"{type(error).__name__}: {error}")
    return sights


def fewer(now: Any, before: Any) -> bool:
    """Whether `now` has no number that `before` has not."""
    if isinstance(now, dict) and isinstance(before, dict):
        return all(name in before and fewer(value, before[name]) for name, value in now.items())
    if isinstance(now, int) and isinstance(before, int) and not isinstance(now, bool):
        return now == before
    return now in (before, None, [], "")


def verdict(now: Sight, before: Sight) -> str:
    if now.traceback:
        return "traceback"
    if now.refusal:
        return "refused" if "\n" not in now.refusal else "traceback"
    if now.value == before.value:
        return "harmless"
    if now.said - before.said:
        return "said"
    return "missing" if fewer(now.value, before.value) else "silent"


# --- Mutations ------------------------------------------------------------------------


def flip(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def change_digit(data: bytes, draw: random.Random) -> bytes:
    """Change a digit in a number, the likeliest damage that still can be read."""
    places = [m.start() for m in re.finditer(rb"\d", data)]
    if not places:
        return flip(data, draw)
    at = draw.choice(places)
    other = draw.choice([digit for digit in b"123456789" if digit != data[at]])
    return data[:at] + bytes([other]) + data[at + 1 :]


def truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def zero(data: bytes, draw: random.Random) -> bytes:
    at, length = draw.randrange(len(data)), draw.choice([1, 16, 512])
    return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]


def remove_line(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[draw.randrange(len(lines))]
    return b"".join(lines)


def append(data: bytes, draw: random.Random) -> bytes:
    return data + draw.choice([b"\n", b"0", b"x" * 64, bytes(64), data])


CHANGES = (flip, change_digit, truncate, zero, remove_line, append)
KINDS = (*(change.__name__ for change in CHANGES), "delete", "swap")


def mutate(place: Place, path: Path, kind: str, draw: random.Random) -> str:
    """Change a file of the run; return in words what was done."""
    file = place.run / path
    if kind == "delete":
        file.unlink()
        return f"{path} deleted"
    if kind == "swap":
        alike = [p for p in place.paths() if p != path and p.suffix == path.suffix]
        other = draw.choice(alike or [p for p in place.paths() if p != path])
        one, two = file.read_bytes(), (place.run / other).read_bytes()
        file.write_bytes(two)
        (place.run / other).write_bytes(one)
        return f"{path} and {other} swapped"
    change = CHANGES[KINDS.index(kind)]
    data = file.read_bytes()
    file.write_bytes(change(data, draw))
    return f"{path}: {kind} ({len(data)} bytes)"


def try_mutations(
    place: Place,
    wanted: list[tuple[Path, str]],
    capsys: pytest.CaptureFixture[str],
    seed: int,
    eyes: Collection[str] = tuple(SEEN),
) -> tuple[Counter[str], list[str]]:
    """Count the verdicts on mutations, the worst of each, and describe the bad ones.

    Args:
        place: a run, which is restored at the end.
        wanted: the file and the kind of each mutation.
        capsys: what is printed while a function reads is what it says.
        seed: of the mutations.
        eyes: names of the functions that read.
    """
    place.restore()
    before = look(place, capsys, eyes)
    assert not any(sight.refusal or sight.traceback for sight in before.values()), before
    counts: Counter[str] = Counter()
    bad = []
    for number, (path, kind) in enumerate(wanted):
        place.restore()
        words = mutate(place, path, kind, random.Random(f"{seed} {number}"))
        sights = look(place, capsys, eyes)
        verdicts = {name: verdict(sights[name], before[name]) for name in eyes}
        counts[min(verdicts.values(), key=WORST.index)] += 1
        bad += [
            f"{words} [{seed} {number}], {name}: {found} {sights[name].traceback}"
            for name, found in verdicts.items()
            if found in BAD
        ]
    place.restore()
    return counts, bad


def in_words(counts: Counter[str]) -> str:
    """The fixed line of the report of the slow tests."""
    kinds = ("refused", "said", "missing", "harmless", "silent", "traceback")
    parts = ", ".join(f"{counts[kind]:,} {kind}" for kind in kinds)
    return f"mutations: {counts.total():,} tried, {parts.removesuffix('traceback')}tracebacks"


# --- The tests ------------------------------------------------------------------------


def test_a_mutation_of_each_file_is_seen_or_harmless(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (".json", ".jsonl", ".yaml")
    others = cycle(kind for kind in KINDS if kind != "change_digit")
    wanted = [(p, "change_digit" if p.suffix in text else next(others)) for p in place.paths()]
    evaluated = ("embeddings", "map", "linear-", "epoch-00001")
    some = [pair for pair in wanted if pair[0].name.startswith(evaluated)]
    counts, bad = try_mutations(place, wanted, capsys, 0, [n for n in SEEN if n != "evaluations"])
    _, bad_evaluations = try_mutations(place, some, capsys, 0, ["evaluations"])
    assert not bad + bad_evaluations
    assert counts["refused"] + counts["said"] > counts.total() / 2


def test_without_the_checks_changed_numbers_are_silent(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a test that could find nothing would prove nothing."""

    def unchecked(content: Any, name: str = "", *, required: bool = True) -> Any:
        return {key: value for key, value in content.items() if key != "sha256"}

    for module in [m for n, m in sys.modules.items() if n.startswith("sureclr.")]:
        if hasattr(module, "unsealed"):
            monkeypatch.setattr(module, "unsealed", unchecked)
    names = ("results.json", "environment.json", "finetuned/8.json")
    wanted = [(Path(name), "change_digit") for name in names for _ in range(3)]
    counts, bad = try_mutations(place, wanted, capsys, 0, ["results", "finetuned", "page"])
    assert counts["silent"] > 3 and len({text.split(":")[0] for text in bad}) == len(names)


@pytest.mark.parametrize(
    ("file", "eye", "words"),
    [
        ("map.parquet", "page", "The map is left out: .* other weights or images"),
        ("map.parquet", "evaluations", "map of the images is made anew: .* other weights"),
        ("snapshots/epoch-00001.safetensors", "evaluations", "1 of 2 are left out: .* another run"),
        ("results.json", "page", "made of other weights"),
        ("results.json", "evaluations", "knn was made of other weights"),
        ("embeddings.parquet", "page", "embeddings are left out"),
        ("embeddings.parquet", "evaluations", "made of other weights or images; .* embedded anew"),
        ("config.yaml", "page", "config.yaml was changed after training .seed."),
        ("config.yaml", "features", "made with another seed"),
        ("config.yaml", "resuming", "seed was 0 and is now in config.yaml 1"),
    ],
)
def test_a_file_of_another_run_is_named(
    place: Place, capsys: pytest.CaptureFixture[str], file: str, eye: str, words: str
) -> None:
    place.restore()
    before = look(place, capsys, [eye])[eye]
    place.restore()
    shutil.copy(place.other / file, place.run / file)
    now = look(place, capsys, [eye])[eye]
    place.restore()
    assert verdict(now, before) in ("refused", "said", "harmless")
    assert any(re.search(words, text) for text in (now.said - before.said) | {now.refusal})


def test_snapshots_that_are_missing_or_misnamed_are_named(place: Place) -> None:
    place.restore()
    first, second = sorted((place.run / "snapshots").iterdir())
    shutil.copy(second, first)
    texts = []
    for act in (lambda: None, first.unlink):
        act()
        with Session(place.run, device="cpu", progress=(said := Saying())) as session:
            result = evaluate_learning(session.inputs)
        assert result.epochs == (2,) and list(result.damaged) == [first.name]
        texts += [text for text in said.texts if "Of the snapshots" in text]
    assert "1 of 2" in texts[0] and "of epoch 2, which is not what its name says" in texts[0]
    assert "1 of 2" in texts[1] and "it is missing" in texts[1]
    place.restore()


def test_lines_that_are_missing_are_counted_on_the_page(place: Place) -> None:
    place.restore()
    lines = (place.run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    (place.run / "metrics.jsonl").write_bytes(b"".join(lines[:1] + lines[2:3]))
    assert any("lacks 2 of the steps" in text for text in read_run_files(place.run).problems)
    place.restore()


def test_no_link_is_followed_to_keep_a_classifier(place: Place, tmp_path: Path) -> None:
    place.restore()
    shutil.move(place.run / "classifiers", tmp_path / "elsewhere")
    (place.run / "classifiers").symlink_to(tmp_path / "elsewhere")
    before = {path: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()}
    with (
        Session(place.run, device="cpu", progress=Saying()) as session,
        pytest.raises(UserError, match="classifiers is a link"),
    ):
        kept_linear(session, again=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()}
    (place.run / "classifiers").unlink()
    place.restore()


@pytest.mark.slow
def test_a_thousand_mutations(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    draw, paths = random.Random(1), place.paths()
    wanted = [
        (paths[i % len(paths)], draw.choice(KINDS) if i % 3 else "change_digit")
        for i in range(1000)
    ]
    counts, bad = try_mutations(place, wanted, capsys, 1)
    with capsys.disabled():
        print(f"\n{in_words(counts)}")
    assert not bad
