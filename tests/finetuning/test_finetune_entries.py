"""The entry in results.json: its key, what it was made of, and that it is read back as it was."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch
from few_labels import IMAGES, ONE_RATE, ONE_TRAINING, QUICK, inverted, tune

from sureclr import __version__
from sureclr.errors import UserError
from sureclr.evaluation.results import SCHEMA, read_results
from sureclr.files import sealed
from sureclr.finetuning.entries import provenance_of, read_entry, result_key
from sureclr.finetuning.results import FinetuningResult
from sureclr.schema import from_json, to_json
from sureclr.training.run import Run


@pytest.mark.parametrize(
    ("config", "data", "key"),
    [
        (QUICK, None, "finetune:18"),
        (replace(QUICK, labels=None), None, "finetune:10%"),
        (replace(QUICK, fold=0), None, "finetune:18:fold-0"),
        (replace(QUICK, labels="10 %", fold=3), "stl10", "finetune:10%:fold-3:stl10"),
    ],
)
def test_keys_tell_questions_apart(config: object, data: str | None, key: str) -> None:
    assert result_key(config, data) == key


def test_a_saved_result_is_read_back_as_it_was(run: Run) -> None:
    result = tune(run, ONE_RATE)
    results = read_results(run.path)
    assert isinstance(results["finetune:18"], FinetuningResult)
    assert results["finetune:18"] == result == tune(run, ONE_RATE)
    assert from_json(FinetuningResult, json.loads(json.dumps(to_json(result)))) == result
    assert read_entry(run, "finetune:18:stl10") is None


def test_the_entry_says_what_it_was_made_of(run: Run) -> None:
    before = datetime.now(UTC)
    result = tune(run, ONE_TRAINING)
    provenance = read_results(run.path).provenance["finetune:18"]
    assert (provenance.version, provenance.other_checkpoint) == (__version__, "")
    assert provenance.options == {
        "labels": "18",
        "epochs": 1,
        "batch_size": 6,
        "learning_rates": [0.1],
    }
    finished = datetime.fromisoformat(provenance.time)
    assert before.replace(microsecond=0) <= finished <= datetime.now(UTC)
    seed = result.per_seed[0]
    assert provenance.seconds >= seed.finetune.seconds + seed.scratch.seconds


def test_seconds_add_up_over_calls(run: Run) -> None:
    seconds = []
    for seeds in (1, 2):
        result = tune(run, replace(ONE_TRAINING, seeds=seeds))
        seconds.append(read_results(run.path).provenance["finetune:18"].seconds)
    last = result.per_seed[1]
    assert seconds[1] >= seconds[0] + last.finetune.seconds + last.scratch.seconds


def test_every_origin_has_its_own_digest(run: Run) -> None:
    one = provenance_of(run, IMAGES, QUICK)
    assert one.same_origin(provenance_of(run, IMAGES, replace(QUICK, seeds=9)))
    labels = IMAGES.labels.clone()
    labels[0] = 1
    named = [*IMAGES.paths[:-1], "other.png"]
    split = IMAGES.split.copy()
    split[0] = "unlabelled"
    others = [
        provenance_of(run, inverted(slice(0, 1)), QUICK),
        provenance_of(run, replace(IMAGES, labels=labels), QUICK),
        provenance_of(run, replace(IMAGES, classes=("ant", "bee", "dog")), QUICK),
        provenance_of(run, replace(IMAGES, paths=named), QUICK),
        provenance_of(run, replace(IMAGES, split=split), QUICK),
        provenance_of(run, IMAGES, replace(QUICK, epochs=3)),
    ]
    assert not any(one.same_origin(other) for other in others)
    assert one.images == others[1].images and one.labels == others[0].labels
    memory_format = replace(IMAGES, images=IMAGES.images.to(memory_format=torch.channels_last))
    assert one.same_origin(provenance_of(run, memory_format, QUICK))


def test_other_entries_stay_as_they_are(run: Run) -> None:
    tune(run, ONE_TRAINING)
    path = run.directory.results
    content = json.loads(path.read_text())
    assert content["schema"] == SCHEMA
    made = content["finetune:18"]["provenance"]
    mine = sealed({"accuracy": 0.5, "provenance": made}, "mine")
    path.write_text(json.dumps({**content, "mine": mine}))
    tune(run, ONE_TRAINING, data="other")
    after = json.loads(path.read_text())
    assert after["mine"] == mine and after["finetune:18"] == content["finetune:18"]
    assert set(after) == {"schema", "mine", "finetune:18", "finetune:18:other"}


def test_results_of_another_schema_are_refused(run: Run) -> None:
    run.directory.results.write_text('{"schema": 0}')
    with pytest.raises(UserError, match="another version of SureCLR"):
        tune(run, ONE_TRAINING)
