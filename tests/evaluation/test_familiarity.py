"""Familiarity: the p-value's law, what it is compared with, and the file that is kept.

Witnesses: counts in a loop, the law of conformal p-values by simulation, numpy's inverse of a
covariance, and the bytes of the run folder.
"""

import shutil
from pathlib import Path
from typing import Any

import mahalanobis_by_numpy
import numpy as np
import pytest
import torch
from tiny import Messages
from tiny_table import CLEAN, MACHINE, SPLIT, train, write_table

import sureclr
from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.evaluation.embedded_source import embed_source
from sureclr.evaluation.familiarity import (
    FILE,
    conformal_p,
    fit_familiarity,
    kept_familiarity,
)
from sureclr.evaluation.session import Session
from sureclr.files import write_atomically
from sureclr.training.run_dir import checked_safetensors, read_checked_safetensors

TRAIN = np.array([part == "train" for part in SPLIT])


def table_of(features: torch.Tensor, split: Any) -> Embeddings:
    n = len(features)
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    labels = torch.full((n,), -1)
    return Embeddings(
        features, unit, None, None, labels, (), np.array(split), [str(i) for i in range(n)]
    )


def made_up(n: int, f: int, seed: int, split: str) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, f, generator=generator) * torch.logspace(0, -2, f) + 1
    kinds = {"some": np.where(np.arange(n) % 5 == 4, "test", "train")}
    return table_of(x, kinds.get(split, np.full(n, split)))


def test_conformal_p_is_the_count_of_a_loop_and_ties_count_as_far() -> None:
    calibration = torch.tensor([0.1, 0.2, 0.2, 0.7]).double()
    distance = torch.tensor([0.05, 0.1, 0.2, 0.5, 0.7, 0.9]).double()
    wanted = [(1 + sum(c >= d for c in calibration.tolist())) / 5 for d in distance.tolist()]
    assert conformal_p(distance, calibration).tolist() == wanted == [1.0, 1.0, 0.8, 0.4, 0.4, 0.2]
    rounded = distance * (1 + 1e-6)
    assert conformal_p(rounded, calibration).tolist() == wanted
    assert conformal_p(distance, calibration[:0]).isnan().all()


def test_p_values_of_images_that_are_alike_are_rarely_low() -> None:
    """The law: P(p <= alpha) <= alpha, also with many ties, and it is nearly reached without."""
    random = np.random.default_rng(0)
    for decimals, least in ((8, 0.08), (1, 0.0)):
        low = 0
        for _ in range(3000):
            far = torch.from_numpy(random.random(40).round(decimals))
            low += int(conformal_p(far[:1], far[1:].sort().values)[0] <= 0.1)
        assert least <= low / 3000 <= 0.1 + 3 * (0.09 / 3000) ** 0.5


@pytest.mark.parametrize(("n", "f"), [(200, 6), (40, 60)])
def test_p_values_are_those_of_numpy(n: int, f: int) -> None:
    """With more images than dimensions, and with fewer."""
    table, new = made_up(n, f, 0, "some"), made_up(30, f, 1, "train").features
    found = fit_familiarity(table)
    split = table.split == "test"
    known, unseen = table.features[torch.from_numpy(~split)], table.features[split]
    assert found.compared_with == "test images" and len(found.calibration) == split.sum()
    wanted = mahalanobis_by_numpy.p_values(new, known, unseen)
    assert np.allclose(found.p_values(new), wanted)
    for scale in (1e-3, 1e3):  # a harmless scaling
        again = fit_familiarity(table_of(table.features * scale, table.split))
        assert np.allclose(again.p_values(new * scale), wanted)


@pytest.mark.parametrize("split", ["train", "test"])
def test_without_images_that_were_not_trained_on_it_says_so(split: str) -> None:
    table = made_up(60, 5, 0, split)
    found = fit_familiarity(table)
    assert found.compared_with == "training images, so too low"
    wanted = mahalanobis_by_numpy.distances(table.features, table.features)
    assert np.allclose(found.calibration, sorted(wanted))


def test_images_held_out_for_labels_are_training_images() -> None:
    """The encoder was trained on them, so they calibrate nothing."""
    table = made_up(50, 5, 0, "some")
    source = np.where(np.arange(50) < 10, "test", "train")
    found = fit_familiarity(table, source)
    same = fit_familiarity(table_of(table.features, source))
    assert torch.equal(found.calibration, same.calibration) and len(same.calibration) == 10


def test_constant_features_and_one_image_are_numbers() -> None:
    constant = table_of(torch.ones(20, 4), ["train"] * 15 + ["test"] * 5)
    found = fit_familiarity(constant)
    new = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert np.allclose(found.p_values(new), [1, 1 / 6, 1 / 6])
    one = fit_familiarity(table_of(torch.ones(1, 4), ["train"]))
    assert np.allclose(one.p_values(new), [1, 1 / 2, 1 / 2])


# --- The file in the run folder ---------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table of features, which has its file of familiarity."""
    place = tmp_path_factory.mktemp("familiar")
    train(write_table(place / "x.parquet"), place / "run", epochs=1)
    embed_source(place / "run", **MACHINE)
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of the run beside its table, whose path stays."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path


def familiar(run: Path, **more: Any) -> tuple[list[float], list[str]]:
    messages = Messages()
    found = embed_source(run, CLEAN[:9], **{**MACHINE, "progress": messages, **more})
    assert found.familiar is not None
    return found.familiar.tolist(), list(messages.messages)


def test_it_is_kept_and_used_again_without_a_change(place: Path) -> None:
    file = place / "run" / FILE
    before = file.read_bytes()
    f = sureclr.load(place / "run", "cpu").embed(CLEAN[:1]).features.shape[1]
    n = int((~TRAIN).sum())
    assert 8 * (f * f + 2 * f + n) < len(before) < 8 * (f * f + 2 * f + n) + 2000  # no gallery
    first, said = familiar(place / "run")
    wanted = mahalanobis_by_numpy.p_values(CLEAN[:9], CLEAN[TRAIN], CLEAN[~TRAIN])
    assert np.allclose(first, wanted)
    assert file.read_bytes() == before and not [s for s in said if FILE in s]
    file.unlink()
    assert familiar(place / "run")[0] == first and file.read_bytes() == before


def test_a_damaged_file_and_one_of_other_weights_are_made_anew(place: Path) -> None:
    file = place / "run" / FILE
    whole, (first, _) = file.read_bytes(), familiar(place / "run")
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for damaged in (bytes(flipped), whole[:100], b"", b"no safetensors"):
        write_atomically(file, damaged)
        again, said = familiar(place / "run")
        assert again == first and file.read_bytes() == whole
        assert [s for s in said if "familiarity.safetensors cannot be used" in s]
    tensors, about = read_checked_safetensors(file, "familiarity")
    for name in ("checkpoint", "images", "method"):
        other = {**tensors, "calibration": tensors["calibration"] + 1}
        write_atomically(file, checked_safetensors(other, "familiarity", {**about, name: "other"}))
        again, said = familiar(place / "run")
        assert again == first and file.read_bytes() == whole


def test_other_images_than_the_runs_own_are_not_kept(place: Path) -> None:
    before = (place / "run" / FILE).read_bytes()
    with Session(place / "run", CLEAN[:30], **MACHINE) as session:
        found = kept_familiarity(session)
    assert len(found.calibration) < (~TRAIN).sum()  # 20 % of 30, by a hash of their features
    assert (place / "run" / FILE).read_bytes() == before


def test_without_the_runs_images_the_file_is_enough(place: Path, made: Path) -> None:
    wanted, _ = familiar(place / "run")
    (place / "run" / "embeddings.parquet").unlink()
    moved = made / "x.parquet"
    moved.rename(made / "moved.parquet")
    try:
        found, said = familiar(place / "run")
        assert found == wanted and [s for s in said if "column evidence is left out" in s]
    finally:
        (made / "moved.parquet").rename(moved)


def test_where_it_cannot_be_written_the_answers_are_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _ = familiar(place / "run")
    (place / "run" / FILE).unlink()
    (place / "run" / FILE).mkdir()  # so that no file can take its place
    (place / "run" / FILE / "of the user").write_text("stays")
    again, said = familiar(place / "run")
    assert again == wanted and [s for s in said if "could not be kept" in s]
    assert (place / "run" / FILE / "of the user").read_text() == "stays"


def test_features_that_are_not_finite_are_refused() -> None:
    table = made_up(50, 5, 0, "some")
    table.features[3, 0] = float("nan")
    with pytest.raises(UserError, match="finite"):
        fit_familiarity(table)
