"""Null views in a run: which they are, that it resumes bit for bit, and features of them."""

import os
import signal
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_frozen import BACKBONE, cached, frozen
from tiny import CONFIG, IMAGES, Interrupting, Messages, equal, lines, train

import sureclr
from sureclr.config import to_yaml
from sureclr.errors import UserError
from sureclr.maths.objectives import NTXentLoss, Objective
from sureclr.maths.sphere import Posterior
from sureclr.progress import SILENT
from sureclr.stopping import Stopped
from sureclr.training import feature_cache
from sureclr.training.accumulate import null_rows
from sureclr.training.continuing import completed, configuration_changes
from sureclr.training.run_dir import RunDir
from sureclr.training.setup import new_trainer
from sureclr.training.step_views import (
    FeatureViews,
    nulls_of_run,
    prepared_features,
    prepared_views,
)

CPU = torch.device("cpu")
GIVEN = sureclr.as_image_set(IMAGES, size=8, channels=1)
NULLS: dict[str, Any] = {"loss": "sure", "presence": "on", "null_fraction": 0.25}  # 4 of 16
SMALL = {**NULLS, "encoder": "small-4"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> sureclr.Run:
    return train(tmp_path_factory.mktemp("nulls") / "run", micro_batch=8, **SMALL)


@pytest.fixture(scope="module")
def frozen_run(tmp_path_factory: pytest.TempPathFactory) -> sureclr.Run:
    return frozen(tmp_path_factory.mktemp("nulls") / "frozen", **NULLS)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# --- Of images ------------------------------------------------------------------------


def test_each_step_has_its_own_null_views_behind_those_of_images() -> None:
    """Each is a function of the seed and of its number; of three, kinds go on in the next step."""
    config = replace(CONFIG, **NULLS | {"null_fraction": 0.2})  # 3 of 16
    known = nulls_of_run(config, GIVEN, range(12), CPU)
    assert len({row.numpy().tobytes() for row in known}) == 12
    for done in range(4):
        step = prepared_views(config, GIVEN, done, CPU)
        without = prepared_views(replace(config, null_fraction=0.0), GIVEN, done, CPU)
        whole = step.of(slice(0, 16))
        assert torch.equal(whole[:32], without.of(slice(0, 16)))  # the images have theirs
        assert torch.equal(whole[32:], known[3 * done : 3 * done + 3])
        parts = [step.of(part)[16:] for part in (slice(0, 8), slice(8, 16))]
        assert torch.equal(torch.cat(parts), whole[32:])
    tiles = {tuple(sorted(view.flatten().tolist())) for view in known[1::2]}
    assert len(tiles) == 6 and all(len(set(one)) > 20 for one in tiles)
    other = nulls_of_run(replace(config, seed=1), GIVEN, range(12), CPU)
    assert not torch.isclose(known, other).flatten(1).all(1).any()
    assert torch.equal(nulls_of_run(config, GIVEN, range(5, 9), CPU), known[5:9])


def test_slices_of_a_batch_share_null_views_evenly() -> None:
    for images, nulls, size in ((16, 4, 8), (16, 5, 3), (7, 20, 2), (10, 1, 4)):
        starts = range(0, images, size)
        rows = [null_rows(slice(s, min(s + size, images)), images, nulls) for s in starts]
        assert [i for part in rows for i in range(nulls)[part]] == list(range(nulls))


def test_a_line_tells_views_and_null_views_apart(run: sureclr.Run) -> None:
    """The witness: the first step again, with the network and the loss at hand."""
    trainer = new_trainer(replace(run.config, micro_batch=None), GIVEN, CPU)
    views = prepared_views(trainer.config, GIVEN, 0, CPU).of(slice(0, 16))
    with torch.no_grad():
        posterior = trainer.model(views)[1]
    whole = train(run.path.parent / "whole", epochs=1, **SMALL)
    line = lines(whole.path)[0]
    first, second = posterior.direction[:16], posterior.direction[16:32]
    assert line["cosine_positive"] == pytest.approx(float((first * second).sum(1).mean()), abs=1e-5)
    for name in ("radius", "presence"):
        values = getattr(posterior, name)
        assert line[f"{name}_views"] == pytest.approx(float(values[:32].mean()), abs=1e-6)
        assert line[f"{name}_nulls"] == pytest.approx(float(values[32:].mean()), abs=1e-6)
    measured = [line for line in lines(run.path) if "effective_rank" in line]
    assert all(0 < line["presence"] < 1 for line in measured) and len(measured) == 2


def test_presence_of_null_views_falls(run: sureclr.Run) -> None:
    record = lines(run.path)
    assert record[-1]["presence_nulls"] < record[0]["presence_nulls"]


def test_a_run_with_null_views_ends_with_the_same_bits_wherever_it_is_stopped(
    run: sureclr.Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for steps in (1, 7):
        with pytest.raises(Stopped):
            progress = Interrupting(steps, stop)
            train(out, micro_batch=8, progress=progress, resume=out.exists(), **SMALL)
    assert len(lines(out)) == 8
    train(out, micro_batch=8, resume=True, **SMALL)
    assert equal(out, run.path)


def test_presence_is_fixed_and_the_share_of_null_views_is_a_change(tmp_path: Path) -> None:
    """A run that does not record them, as older versions wrote it, had no presence and no nulls."""
    directory = RunDir(tmp_path)
    for before, change, words in (
        ({"presence": "on"}, {"presence": "off"}, "presence was on and is now off"),
        ({}, {"presence": "on"}, "presence was off and is now on"),
    ):
        recorded = replace(CONFIG, loss="sure", **before)
        directory.config.write_text(to_yaml(recorded))
        with pytest.raises(UserError, match=f"cannot go on, because {words}, and the weights"):
            configuration_changes(
                directory, recorded, completed(replace(CONFIG, **change), recorded)
            )
    same = {"presence": "off", "null_fraction": 0.0}
    for recorded, now in ((CONFIG, CONFIG), (CONFIG, replace(CONFIG, **same))):
        directory.config.write_text(to_yaml(recorded))
        assert configuration_changes(directory, recorded, completed(now, recorded)) == []
    more = completed(replace(CONFIG, null_fraction=0.5), CONFIG)
    assert configuration_changes(directory, CONFIG, more) == [
        "null_fraction was 0.0 and is now 0.5"
    ]


def test_the_share_of_null_views_can_change_in_a_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train(out, progress=Interrupting(3, stop), **SMALL)
    changed = SMALL | {"null_fraction": 0.0}
    with pytest.raises(UserError, match=r"null_fraction was 0\.25 and is now 0\.0"):
        train(out, resume=True, **changed)
    run = train(out, resume=True, accept_changes=True, **changed)
    assert run.config.null_fraction == 0 and run.config.presence == "on"
    assert ["presence_nulls" in line for line in lines(out)] == [True] * 3 + [False] * 9


class Repelling(NTXentLoss):
    """A loss of the user's own with a use for null views: away from the mean direction."""

    def null_loss(self, views: Posterior, nulls: Posterior) -> torch.Tensor:
        return (nulls.direction @ views.direction.mean(0)).square().mean()


class Deaf(NTXentLoss):
    """A loss of the user's own without one."""


def test_own_losses_have_null_views_if_they_use_them(tmp_path: Path) -> None:
    def own(name: str, loss: Objective, share: float | None, images: Any = IMAGES) -> sureclr.Run:
        config = replace(CONFIG, encoder="small-4", epochs=1, null_fraction=share)
        given = {"loss": loss, "out": tmp_path / name, "device": "cpu", "progress": SILENT}
        return sureclr.pretrain(config, images, **given)

    run, plain = own("run", Repelling(), 0.25), own("plain", Repelling(), None)
    assert run.config.null_fraction == 0.25 and plain.config.null_fraction == 0
    assert lines(run.path)[0]["loss"] != lines(plain.path)[0]["loss"]
    for loss, name in ((Deaf(), "custom:Deaf"), (NTXentLoss(), "nt-xent")):
        sentence = f"null_fraction is 0.25, and the loss {name} learns nothing from null views;"
        with pytest.raises(UserError, match=sentence):
            own("none", loss, 0.25, images="/not/there")
    assert not (tmp_path / "none").exists()


def test_heads_on_features_have_a_presence_without_null_views(tmp_path: Path) -> None:
    features = torch.rand(3, 40, 6, generator=torch.Generator().manual_seed(0))
    options = {"epochs": 1, "batch_size": 16, "presence": "on", "device": "cpu"}
    run = sureclr.heads(features, out=tmp_path / "run", progress=SILENT, **options)
    assert run.config.null_fraction == 0 and "presence_nulls" not in lines(run.path)[0]
    presence = run.embed(features[0]).presence
    assert presence is not None and presence.min() > 0 and presence.max() < 1
    with pytest.raises(UserError, match="a table of features has no images of which null views"):
        sureclr.heads(features, out=tmp_path / "none", null_fraction=0.1, **options)


# --- Of features ----------------------------------------------------------------------


def test_the_stored_features_are_those_of_a_loop_over_null_views(frozen_run: sureclr.Run) -> None:
    """18 = 1/4 of 48 images, for as many epochs as 3 views of them last: one and a half."""
    path = frozen_run.path / "features" / "nulls" / "values.float16"
    values = np.fromfile(path, np.float16).reshape(18, 80)
    views = nulls_of_run(frozen_run.config, GIVEN, range(18), CPU)
    with torch.no_grad():
        for view, found in zip(views, values, strict=True):
            expected = frozen_run.encoder(view[None])[0]
            assert torch.allclose(
                torch.from_numpy(found.astype(np.float32)), expected, rtol=1e-3, atol=1e-6
            )
    assert frozen_run.config.null_fraction == 0.25 and "presence_nulls" in lines(frozen_run.path)[0]


def test_a_step_draws_from_all_null_views() -> None:
    """Each value says which view of which image, or which null view, it is of."""
    of = np.arange(48, dtype=np.float32)[None, :, None].repeat(4, 0)
    pool = np.arange(1000, 1030, dtype=np.float16)[:, None]
    features = FeatureViews(of, lambda rows: rows, nulls=pool)
    config = replace(CONFIG, **NULLS)
    drawn = []
    for done in range(300):
        step = prepared_features(config, features, done, CPU)
        whole = step.of(slice(0, 16))
        assert whole.shape == (36, 1) and whole[:32].max() < 48
        assert torch.equal(step.of(slice(4, 8))[8:], whole[33:34])
        assert torch.equal(prepared_features(config, features, done, CPU).of(slice(0, 16)), whole)
        drawn.append(whole[32:, 0] - 1000)
    counts = torch.bincount(torch.cat(drawn).long(), minlength=30).double()
    assert len(counts) == 30 and ((counts - 40).square() / 40).sum() < 58.3  # 29 df, p = .001


def test_stored_features_of_null_views_can_be_stopped_damaged_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "BLOCK_IMAGES", 5)  # blocks begin with either kind
    whole, out = frozen(tmp_path / "whole", **NULLS).path, tmp_path / "run"
    nulls = out / "features" / "nulls"
    with pytest.raises(Stopped, match="features that are done stay; continue with resume=True"):
        frozen(out, progress=Interrupting(2, stop), **NULLS)
    assert len((nulls / "blocks.jsonl").read_text().splitlines()) == 2
    assert not (out / "features" / "values.float16").exists()
    with pytest.raises(Stopped):  # while it takes its steps
        frozen(out, resume=True, progress=Interrupting(2 + 2 + 10 + 7, stop), **NULLS)
    assert 0 < len(lines(out)) < 12
    data = bytearray((nulls / "values.float16").read_bytes())
    data[2 * 80 * 7] ^= 1
    (nulls / "values.float16").write_bytes(data)
    said = Messages()
    frozen(out, resume=True, progress=said, **NULLS)
    damaged, again = (text for text in said.messages if str(nulls) in text)
    assert damaged.startswith(f"1 of 4 blocks of features in {nulls} are damaged")
    assert "of 5 null views once (the other 13 are done). They take 2,880 bytes" in again
    for name in ("features/nulls/values.float16", "features/values.float16"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert equal(out, whole)


def test_features_of_images_stay_where_those_of_null_views_change(
    frozen_run: sureclr.Run, tmp_path: Path
) -> None:
    model = frozen_run.model
    values = cached(tmp_path, model)
    assert not (tmp_path / "nulls").exists()
    for changes, sentence in (
        ({"null_fraction": 0.25}, "features of 18 null views once."),
        ({"null_fraction": 0.5}, "features of 36 null views once."),
        ({"null_fraction": 0.5, "null_kinds": ("tiles",)}, "features of 36 null views once."),
    ):
        said = Messages()
        assert np.array_equal(cached(tmp_path, model, said, **changes), values)
        assert sentence in said.messages[-1] and len(said.messages) < 3
        assert not any("views of each image" in text for text in said.messages)
        if len(said.messages) == 2:
            assert said.messages[0].startswith(f"The features in {tmp_path / 'nulls'} are of")


def test_features_of_null_views_need_room_too(
    frozen_run: sureclr.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "free_bytes", lambda folder: 2_879)
    with pytest.raises(UserError, match=r"18 null views take 2,880 bytes .*smaller null_fraction"):
        cached(tmp_path, frozen_run.model, null_fraction=0.25)


def test_a_feature_of_a_null_view_that_is_too_large_is_named(tmp_path: Path) -> None:
    huge = deepcopy(BACKBONE)
    huge.layer3.body[4].weight.data *= 1e8
    with pytest.raises(UserError, match=r"puts out a feature of .* for null view \d+, and"):
        frozen(tmp_path / "run", encoder=huge, **NULLS)
