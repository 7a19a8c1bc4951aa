"""Heads on features made elsewhere. Witnesses: a frozen encoder's run, an unstopped one, laws."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CONFIG, IMAGES, Interrupting, Messages, equal, lines, weights
from tiny_table import CLEAN, LABELS, MACHINE, SETTINGS, SPLIT, VIEWS, F, K, train, write_table

import sureclr
from sureclr.errors import UserError
from sureclr.maths.metrics import spearman
from sureclr.models.encoders import encoder
from sureclr.stopping import Stopped


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> sureclr.Run:
    place = tmp_path_factory.mktemp("heads")
    return train(write_table(place / "x.parquet"), place / "run")


def heads(out: Path, features: Any = VIEWS, **options: Any) -> sureclr.Run:
    return sureclr.heads(features, out=out, **{**MACHINE, **SETTINGS, **options})


def test_a_table_trains_the_heads_that_a_frozen_encoder_trains(tmp_path: Path) -> None:
    torch.manual_seed(1)
    backbone = encoder("small-10", channels=1)
    config = replace(CONFIG, freeze="backbone", cached_views=K, epochs=2)
    of_images = sureclr.pretrain(
        config, IMAGES, encoder=backbone, out=tmp_path / "images", **MACHINE
    )
    shape = (K, 48, backbone.num_features)
    views = np.fromfile(of_images.path / "features" / "values.float16", np.float16).reshape(shape)
    clean = of_images.embed(IMAGES).features
    settings = {name: getattr(config, name) for name in (*SETTINGS, "learning_rate")}
    settings |= {"projection_hidden": 16}
    of_table = heads(
        tmp_path / "table", np.array(views), clean=clean, split=["train"] * 48, **settings
    )
    for name in ("loss", "cosine_positive", "radius_views", "learning_rate"):
        mine, other = ([line[name] for line in lines(r.path)] for r in (of_table, of_images))
        assert mine == other and len(mine) == 6
    mine, other = weights(of_table.path), weights(of_images.path)
    compared = [name for name in mine if "encoder" not in name]
    assert len(compared) > 10 and all(torch.equal(mine[name], other[name]) for name in compared)
    assert torch.equal(of_table.embed(clean).direction, of_images.embed(IMAGES).direction)


def test_a_run_says_what_it_is_of(run: sureclr.Run) -> None:
    config = run.config
    assert config.source == f"table:{(run.path.parent / 'x.parquet').resolve()}"
    assert (config.encoder, config.freeze, config.init) == ("table", "backbone", "random")
    assert (config.cached_views, run.channels, run.size) == (K, F, 1)
    assert not [name for name in weights(run.path) if "backbone" in name]


def test_features_are_embedded_by_the_heads_as_they_came(run: sureclr.Run) -> None:
    opened = sureclr.load(run.path, device="cpu")
    table = opened.embed(CLEAN)
    assert np.array_equal(table.features.numpy(), CLEAN)
    with torch.no_grad():
        projection = opened.model.projection(torch.from_numpy(CLEAN))
    unit = projection / projection.norm(dim=1, keepdim=True)
    assert torch.allclose(table.direction, unit, atol=1e-6)
    assert torch.equal(run.embed(torch.from_numpy(CLEAN)).direction, table.direction)
    untrained = opened.untrained().embed(CLEAN)
    assert torch.equal(untrained.features, table.features)
    assert not torch.allclose(untrained.direction, table.direction, atol=1e-2)
    with pytest.raises(UserError, match="has 5 features of an image"):
        opened.embed(CLEAN[:, :5])
    with pytest.raises(UserError, match="takes no pictures"):
        opened.embed(["a.jpg"])


def test_a_stopped_run_ends_as_one_that_was_not(run: sureclr.Run, tmp_path: Path) -> None:
    source = run.path.parent / "x.parquet"
    stop = Interrupting(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        train(source, tmp_path / "run", progress=stop)
    train(source, tmp_path / "run", resume=True)
    assert equal(tmp_path / "run", run.path)


def test_another_view_of_one_image_is_noticed(run: sureclr.Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    changed = VIEWS.copy()
    changed[2, 7, 0] += 1e-3
    shutil.copy(run.path.parent / "x.parquet", tmp_path / "kept")
    try:
        write_table(run.path.parent / "x.parquet", changed)
        with pytest.raises(UserError, match=r"1 training image was replaced.*photos/07\.jpg"):
            train(run.path.parent / "x.parquet", tmp_path / "run", resume=True)
    finally:
        shutil.copy(tmp_path / "kept", run.path.parent / "x.parquet")


def test_features_given_in_python_stay_in_the_run(tmp_path: Path, run: sureclr.Run) -> None:
    made = heads(tmp_path / "run", clean=CLEAN, labels=LABELS, split=SPLIT)
    assert [line["loss"] for line in lines(made.path)] == [line["loss"] for line in lines(run.path)]
    shutil.move(tmp_path / "run", tmp_path / "moved")
    found = sureclr.evaluate(tmp_path / "moved", "knn", **MACHINE)["knn"]
    expected = sureclr.evaluate(run, "knn", **MACHINE)["knn"]
    assert found.accuracy == expected.accuracy
    stop = Interrupting(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    options = {"clean": CLEAN, "labels": LABELS, "split": SPLIT}
    with pytest.raises(Stopped):
        heads(tmp_path / "again", progress=stop, **options)
    heads(tmp_path / "again", resume=True, **options)
    assert [line["loss"] for line in lines(tmp_path / "again")] == [
        line["loss"] for line in lines(run.path)
    ]
    with pytest.raises(UserError, match="already holds a run"):
        heads(tmp_path / "again", **options)
    heads(tmp_path / "again", overwrite=True, **options)


def test_settings_are_fields_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="epoch"):
        heads(tmp_path / "run", epoch=3)
    for name in ("encoder", "source", "freeze", "init"):
        with pytest.raises(UserError, match=name):
            heads(tmp_path / "run", **{name: "x"})
    with pytest.raises(UserError, match="name that folder"):
        sureclr.heads(VIEWS, resume=True)
    assert not (tmp_path / "run").exists()


def test_a_batch_is_no_larger_than_the_table_and_that_is_said(tmp_path: Path) -> None:
    said = Messages()
    made = heads(tmp_path / "run", batch_size=256, epochs=1, progress=said, split=SPLIT)
    assert made.config.batch_size == 32
    assert any(
        "48 training rows, so the batch_size is 32 in place of 256" in t for t in said.messages
    )


def test_the_radius_finds_which_images_have_noisy_views(tmp_path: Path) -> None:
    random, n, f = np.random.default_rng(3), 512, 16
    latent, mixing = random.normal(size=(n, 4)), random.normal(size=(4, f))
    noise = random.uniform(0.05, 2, size=n)
    visible = np.tanh(noise)[:, None] * random.normal(size=(1, f))  # what tells how noisy it is
    views = [
        (latent + noise[:, None] * random.normal(size=latent.shape)) @ mixing + 5 * visible
        for _ in range(4)
    ]
    settings = {"epochs": 20, "batch_size": 128, "learning_rate": 3e-3}
    off = {"monitor_every": 0, "snapshot_every": 0, "checkpoint_every": 0}
    made = heads(tmp_path / "run", np.array(views), split=["train"] * n, **settings, **off)
    radius = made.embed(views[0]).radius
    assert radius is not None
    assert spearman(radius, torch.from_numpy(noise)) < -0.6
