"""Embedding any source, and evaluating tables. Witnesses: loops over pairs, predict, numpy."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mahalanobis_by_numpy
import numpy as np
import pytest
import tiny
import torch
from pyarrow import parquet
from tiny_table import CLEAN, LABELS, MACHINE, PATHS, SPLIT, VIEWS, train, write_table

import sureclr
from sureclr.cli import main
from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.evaluation.embedded_source import embed_source
from sureclr.evaluation.tables import evidence_against, evidence_dimension
from sureclr.maths.sphere import Posterior, evidence

TRAIN = np.array([part == "train" for part in SPLIT])
UNIT = CLEAN / np.linalg.norm(CLEAN, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> sureclr.Run:
    place = tmp_path_factory.mktemp("table")
    made = train(write_table(place / "x.parquet"), place / "run", epochs=4)
    sureclr.evaluate(made, "knn", **MACHINE)  # which stores the table of its own images
    return made


def evidence_of(table: Embeddings, row: int) -> float:
    """By a loop over pairs: log mean_j exp s(u, u_j)."""
    parts, m = [], evidence_dimension(table)

    def posterior(i: int) -> Posterior:
        whole = table.posterior
        assert whole.radius is not None and whole.gap is not None
        at = slice(i, i + 1)
        return Posterior(whole.direction[at], whole.radius[at], whole.gap[at])

    for j in range(len(table)):
        if TRAIN[j] and j != row:
            parts.append(math.exp(float(evidence(posterior(row), posterior(j), m))))
    return math.log(sum(parts) / len(parts))


def test_a_table_is_compared_with_the_training_images(run: sureclr.Run, tmp_path: Path) -> None:
    found = embed_source(run, f"table:{run.path.parent / 'x.parquet'}", **MACHINE)
    assert found.familiar is not None and found.evidence is not None
    for row in (0, 1, 5, 8, 59):  # images of both splits
        wanted = mahalanobis_by_numpy.p_values(CLEAN[[row]], CLEAN[TRAIN], CLEAN[~TRAIN])
        assert float(found.familiar[row]) == pytest.approx(float(wanted[0]))
        assert float(found.evidence[row]) == pytest.approx(evidence_of(found.table, row), abs=1e-4)
    own = embed_source(run, **MACHINE)
    assert own.familiar is not None and torch.equal(own.familiar, found.familiar)
    assert (own.n_compared, own.compared_with) == (12, "test images")
    given = embed_source(run, CLEAN[:7], **MACHINE)
    assert given.familiar is not None and torch.equal(given.familiar, found.familiar[:7])


def test_evidence_of_many_images_is_that_of_few(
    run: sureclr.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, none = run.embed(CLEAN), torch.full((60,), -1)
    whole = evidence_against(table, table, none)
    monkeypatch.setattr("sureclr.evaluation.tables.EVIDENCE_AT_ONCE", 100)
    parts = evidence_against(table, table, none)
    assert whole is not None and parts is not None and torch.allclose(whole, parts, atol=1e-5)
    assert evidence_against(replace(table, radius=None), table, none) is None


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_the_saved_table_is_read_by_other_programs(
    run: sureclr.Run, tmp_path: Path, ending: str
) -> None:
    found = embed_source(run, f"table:{run.path.parent / 'x.parquet'}", **MACHINE)
    path = found.save(tmp_path / f"out.{ending}")
    columns: Any
    if ending == "npz":
        columns = dict(np.load(path))
        names, paths = [columns["classes"][k] for k in columns["labels"]], columns["paths"].tolist()
    else:
        read = parquet.read_table(path)
        columns = {name: np.array(read[name].to_pylist()) for name in read.column_names}
        classes = json.loads(read.schema.metadata[b"classes"])
        names, paths = [classes[k] for k in columns["label"]], columns["path"].tolist()
        assert torch.equal(Embeddings.read(path).direction, found.table.direction)
    assert (names, paths) == (LABELS, PATHS) and columns["split"].tolist() == SPLIT
    for name in ("features", "direction", "radius", "certainty", "information"):
        assert np.array_equal(columns[name], getattr(found.table, name).numpy()), name
    for name in ("familiar", "evidence"):
        assert np.array_equal(columns[name], getattr(found, name).numpy()), name
    with pytest.raises(UserError, match="exists already"):
        found.save(path)
    again = embed_source(run, f"table:{path}", **MACHINE)  # ours is a table of features, too
    assert torch.equal(again.table.direction, found.table.direction)


def test_images_are_embedded_as_predict_sees_them(tmp_path: Path) -> None:
    photos = tiny.write_photos(tmp_path / "photos")
    other = tiny.write_photos(tmp_path / "other", seed=1)
    made = tiny.train(tmp_path / "run", None, source=f"folder:{photos}", size=8, batch_size=8)
    sureclr.evaluate(made, "knn", **MACHINE)
    before = (made.path / "embeddings.parquet").read_bytes()
    for source in (f"folder:{other}", f"folder:{photos}"):
        found = embed_source(made, source, **MACHINE)
        answers = sureclr.predict(made, source, **MACHINE)
        assert found.familiar is not None and torch.equal(found.familiar, answers.familiar)
        assert list(found.table.paths) == list(answers.paths)
    assert (made.path / "embeddings.parquet").read_bytes() == before
    with pytest.raises(
        UserError, match="is a table of features, and this run was trained on image"
    ):
        embed_source(made, "table:x.npz", **MACHINE)
    shutil.rmtree(photos)
    (made.path / "embeddings.parquet").unlink()
    (made.path / "familiarity.safetensors").unlink()
    alone = embed_source(made, f"folder:{other}", **MACHINE)
    assert alone.familiar is None and alone.evidence is None and len(alone.table) == 24


# --- The evaluations of a table -----------------------------------------------------


def test_what_needs_no_pixels_is_evaluated(run: sureclr.Run) -> None:
    said = tiny.Messages()
    found = sureclr.evaluate(run, device="cpu", progress=said)
    assert set(found) == {"knn", "linear", "heads", "uncertainty", "learning", "geometry"}
    assert set(found.skipped) == {"ood", "sensitivity", "explanation"}
    for why in found.skipped.values():
        assert "is a table of features, which has no pixels" in why and why.count(".") <= 2
    cosine = UNIT[~TRAIN] @ UNIT[TRAIN].T
    named = np.array(LABELS)
    votes = []
    for row in cosine:
        order = np.argsort(-row)[:20]
        weight = {n: np.exp(row[order] / 0.1)[named[TRAIN][order] == n].sum() for n in set(LABELS)}
        votes.append(max(weight, key=lambda n: weight[n]))
    assert found["knn"].accuracy == pytest.approx((np.array(votes) == named[~TRAIN]).mean())
    assert found["knn"].baselines is None and "has no pixels" in found["knn"].no_pixels
    result = found["uncertainty"]
    assert result.corruptions == {} and "no pixels" in result.skipped["corruptions"]
    assert result.calibration.n == 12 and result.calibration.n_map == 48
    again = tiny.Messages()
    assert sureclr.evaluate(run, "knn", device="cpu", progress=again)["knn"] == found["knn"]
    assert not any("anew" in text for text in again.messages)


def test_pairs_of_views_are_two_of_the_table(run: sureclr.Run) -> None:
    from sureclr.config import ViewConfig
    from sureclr.data.feature_table import read_feature_table
    from sureclr.evaluation.drawn_views import embed_view_pairs

    images = read_feature_table(str(run.path.parent / "x.parquet"))
    rows = np.arange(0, 60, 3)
    found = embed_view_pairs(run.embed, images, rows, ViewConfig(), 0, 1)
    first, second = (side.features.numpy() for side in found.sides())
    chosen = set()
    for i, row in enumerate(rows):
        which = [
            [k for k in range(3) if np.array_equal(VIEWS[k, row], side[i])]
            for side in (first, second)
        ]
        assert [len(each) for each in which] == [1, 1] and which[0] != which[1]
        chosen.add((which[0][0], which[1][0]))
    assert len(chosen) >= 5  # of 6


def test_a_table_that_is_gone_leaves_what_was_stored(run: sureclr.Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    source = run.path.parent / "x.parquet"
    expected = sureclr.evaluate(run, "knn", **MACHINE)["knn"]
    found = embed_source(run, CLEAN, **MACHINE)
    shutil.move(source, tmp_path / "kept.parquet")
    try:
        (tmp_path / "run" / "results.json").unlink(missing_ok=True)
        said = tiny.Messages()
        got = sureclr.evaluate(tmp_path / "run", "knn", device="cpu", progress=said)["knn"]
        assert got.accuracy == expected.accuracy
        assert any("data=table:PATH" in text for text in said.messages)
        with pytest.raises(UserError, match="pixels are needed here, and there is no table"):
            sureclr.evaluate(tmp_path / "run", "uncertainty", **MACHINE)
        still = embed_source(tmp_path / "run", CLEAN, **MACHINE)
        assert found.familiar is not None and still.familiar is not None
        assert torch.equal(still.familiar, found.familiar)
        moved = f"table:{tmp_path / 'kept.parquet'}"
        there = sureclr.evaluate(tmp_path / "run", "uncertainty", data=moved, **MACHINE)
        assert there["uncertainty"].n_test == 12
    finally:
        shutil.move(tmp_path / "kept.parquet", source)


def test_a_report_of_a_table_is_drawn_without_pictures(run: sureclr.Run, tmp_path: Path) -> None:
    path = sureclr.report(run, out=tmp_path / "report.html", **MACHINE)
    text = Path(path).read_text(encoding="utf-8")
    assert "is a table of features, which has no pixels" in text and "data:image" not in text
    assert "the table&#39;s own features" in text and "the images could not be read" not in text


def test_what_has_no_network_is_refused(run: sureclr.Run) -> None:
    with pytest.raises(UserError, match="has no encoder to fine-tune"):
        sureclr.finetune(run, labels=12, **MACHINE)


def test_the_command(run: sureclr.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = f"table:{run.path.parent / 'x.parquet'}", tmp_path / "out.npz"
    words = ["embed", str(run.path), source, "--out", str(out), "--device", "cpu"]
    main([*words, "--json"])
    answer = json.loads(capsys.readouterr().out)
    found = embed_source(run, source, **MACHINE)
    assert found.evidence is not None and found.table.radius is not None
    assert (answer["images"], answer["features"], answer["dimensions"]) == (60, 12, 8)
    assert answer["mean"]["evidence"] == pytest.approx(float(found.evidence.mean()), abs=1e-5)
    assert answer["compared_with"] == {"images": 12, "what": "test images"}
    for refused, sentence in (
        (words, "exists already; give another --out, or --overwrite"),
        ([*words[:-3], str(tmp_path / "out.csv")], "must end in .parquet or .npz"),
        (["embed", str(run.path), "digits", *words[3:], "--overwrite"], "takes no pictures"),
        (["pretrain", source, "--encoder", "resnet50"], "leave out --encoder"),
        (["pretrain", source, "--views.flip", "0"], "leave out --views.flip"),
        (["views", source], "has no pixels to draw views of"),
        (["pretrain", f"{source}.csv"], "must be a .parquet or an .npz file"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(refused)
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert caught.value.code == 2 and sentence in said, said
    main([*words, "--overwrite"])
    text = capsys.readouterr().out
    assert "60 images with 12 features" in text and "compares each image with 12 test" in text
