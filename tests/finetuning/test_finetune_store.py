"""The saved classifier: it is the one whose accuracy is reported, and damage is noticed."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from few_labels import IMAGES, ONE_TRAINING, tune

from sureclr.data.image_set import recolour, resize
from sureclr.errors import UserError
from sureclr.files import sealed
from sureclr.finetuning.experiment import new_classifier
from sureclr.finetuning.store import file_name, load_finetuned, save_finetuned
from sureclr.training.run import Run


def test_the_saved_weights_give_the_accuracy_that_is_reported(run: Run) -> None:
    result = tune(run, data="made")
    loaded = load_finetuned(run.path, "18:made", "cpu")
    best = max(result.per_seed, key=lambda seed: seed.finetune.validation)
    probabilities = loaded.probabilities(IMAGES.test)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(30))
    accuracy = float((probabilities.argmax(1) == IMAGES.test.labels).double().mean())
    assert accuracy == pytest.approx(best.finetune.accuracy)
    record = loaded.record
    assert (record.seed, record.accuracy) == (best.seed, best.finetune.accuracy)
    assert (record.epoch, record.learning_rate) == (
        best.finetune.epoch,
        best.finetune.learning_rate,
    )
    assert loaded.classes == IMAGES.classes and not loaded.model.training
    assert len(list((run.path / "finetuned").iterdir())) == 2
    with pytest.raises(UserError, match="unknown fine-tuned classifier '18'"):
        load_finetuned(run.path, "18", "cpu")


def test_images_of_another_size_and_colour_are_converted(run: Run) -> None:
    tune(run, ONE_TRAINING)
    loaded = load_finetuned(run.path, "18", "cpu")
    grey = IMAGES.images[:5]
    expected = loaded.probabilities(grey.numpy())
    assert torch.equal(loaded.probabilities(grey.expand(-1, 3, -1, -1).numpy()), expected)
    large = torch.randint(0, 256, (5, 3, 12, 10), dtype=torch.uint8)
    fitting = recolour(resize(large, 8), 1)
    assert torch.equal(loaded.probabilities(large.numpy()), loaded.probabilities(fitting.numpy()))
    assert not torch.allclose(loaded.probabilities(fitting.numpy()), expected)


def test_a_classifier_shows_itself_in_one_line(run: Run) -> None:
    result = tune(run, ONE_TRAINING)
    assert repr(load_finetuned(run.path, "18", "cpu")) == (
        f"<Finetuned 18: small-10, 3 classes, 18 labels, test accuracy {result.accuracy:.4f}>"
    )


def test_without_a_classifier_the_error_names_the_way_to_one(run: Run) -> None:
    with pytest.raises(UserError, match="has no fine-tuned classifier; fine-tune it first"):
        load_finetuned(run.path, "10%", "cpu")


def edit_record(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(sealed({**json.loads(path.read_text()), **changes})))


def drop_classes(path: Path) -> None:
    content = json.loads(path.read_text())
    del content["classes"]
    path.write_text(json.dumps(sealed(content)))


def change_digit(path: Path) -> None:
    text = path.read_text()
    assert '"n_labels": 18' in text
    path.write_text(text.replace('"n_labels": 18', '"n_labels": 19'))


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda record, weights: flip_bit(weights), "does not match its sha256"),
        (lambda record, weights: weights.unlink(), "cannot be read .*; fine-tune the run again"),
        (lambda record, weights: record.write_text("{"), "cannot be read .*; fine-tune"),
        (lambda record, weights: change_digit(record), "does not match its sha256"),
        (
            lambda record, weights: edit_record(record, key="finetune:9"),
            "'finetune:9', which",
        ),
        (lambda record, weights: edit_record(record, checkpoint="a"), "of another checkpoint"),
        (lambda record, weights: drop_classes(record), "classes is missing"),
        (lambda record, weights: edit_record(record, size="8"), "size is '8'"),
        (
            lambda record, weights: edit_record(record, classes=["ant", "bee"]),
            "does not describe the weights",
        ),
    ],
    ids=[
        "bit",
        "no weights",
        "no JSON",
        "digit",
        "key",
        "checkpoint",
        "no classes",
        "text for a number",
        "other classes",
    ],
)
def test_damage_is_one_sentence(run: Run, damage: Callable[[Path, Path], None], words: str) -> None:
    result = tune(run, ONE_TRAINING)
    damage(run.path / "finetuned" / "18.json", run.path / result.weights.file)
    with pytest.raises(UserError, match=words):
        load_finetuned(run.path, "18", "cpu")


def test_a_record_cannot_name_a_file_elsewhere(run: Run, tmp_path: Path) -> None:
    result = tune(run, ONE_TRAINING)
    elsewhere = tmp_path / "elsewhere.safetensors"
    (run.path / result.weights.file).rename(elsewhere)
    edit_record(run.path / "finetuned" / "18.json", file=str(elsewhere))
    with pytest.raises(UserError, match="cannot be read"):
        load_finetuned(run.path, "18", "cpu")


def test_older_weights_of_the_same_key_alone_are_removed(run: Run) -> None:
    seed = tune(run, ONE_TRAINING).per_seed[0]
    folder = run.path / "finetuned"
    (first,) = folder.glob("*.safetensors")
    neighbour = folder / "18-made-0123456789ab.safetensors"
    neighbour.write_bytes(b"of another key")
    model = new_classifier(run, "scratch", 3, 5)
    weights = save_finetuned(run, "finetune:18", model, IMAGES.classes, seed, ("a", "b"))
    assert not first.exists() and neighbour.exists() and (run.path / weights.file).exists()
    loaded = load_finetuned(run.path, "18", "cpu")
    assert loaded.record.weights_sha256 == weights.sha256 != first.stem
    record = loaded.record
    assert (record.checkpoint, record.images, record.labels) == (run.checkpoint, "a", "b")
    assert asdict(record)["classes"] == ("ant", "bee", "cow")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("finetune:10%", "10%"),
        ("finetune:100%:fold-3:stl10", "100%-fold-3-stl10"),
        ("finetune:mine.csv", "mine.csv"),
    ],
)
def test_plain_keys_are_names_of_files(key: str, name: str) -> None:
    assert file_name(key) == name


def test_keys_that_differ_in_odd_characters_alone_have_different_files() -> None:
    names = {file_name(f"finetune:{path}") for path in ("a/b.csv", "a b.csv", "a*b.csv", "a-b.csv")}
    assert len(names) == 4 and all("/" not in name and "*" not in name for name in names)


def test_a_path_of_a_label_file_finds_its_classifier(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "my labels[1].csv"
    lines = (f"{i:02d}.png,{IMAGES.classes[i % 3]}\n" for i in range(12))
    file.write_text("path,label\n" + "".join(lines))
    for epochs in (1, 2):  # the second one replaces the weights of the first
        tune(run, replace(ONE_TRAINING, labels=str(file), epochs=epochs))
    assert load_finetuned(run.path, str(file).replace(" ", ""), "cpu").record.n_labels == 12
    assert len(list((run.path / "finetuned").iterdir())) == 2
