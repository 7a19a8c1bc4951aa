"""Heads on the features of a frozen encoder, and an encoder of which the last stage is trained."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny import CONFIG, IMAGES, WIDTH, Interrupting, Messages, equal, lines, weights
from torch import Tensor, nn

import sureclr
from sureclr.data.batches import batch
from sureclr.data.counter_rng import hashed
from sureclr.data.views import one_view
from sureclr.errors import UserError
from sureclr.models.encoders import encoder
from sureclr.models.simclr import SimCLR, StandardisedEncoder
from sureclr.progress import SILENT
from sureclr.stopping import Stopped
from sureclr.training import feature_cache
from sureclr.training.setup import new_trainer
from sureclr.training.step_views import FeatureViews, prepared_features

K = 3
LABELS = torch.arange(48) % 3


def network(seed: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = encoder("small-10", channels=1)
    for norm in module.modules():  # statistics as of a trained network
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 2)
    return module


BACKBONE = network()


def frozen(out: Path, images: Any = None, **options: Any) -> sureclr.Run:
    module = options.pop("encoder", BACKBONE)
    known = {name: options.pop(name) for name in list(options) if hasattr(CONFIG, name)}
    config = replace(CONFIG, **{"freeze": "backbone", "cached_views": K, "loss": "sure", **known})
    given = sureclr.as_image_set(IMAGES, size=8, channels=1) if images is None else images
    given = replace(given, labels=LABELS, classes=("a", "b", "c"))
    arguments = {"encoder": module, "out": out, "device": "cpu", "progress": SILENT, **options}
    return sureclr.pretrain(config, given, **arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> sureclr.Run:
    return frozen(tmp_path_factory.mktemp("frozen") / "run")


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_backbone_stays_bit_for_bit_and_the_heads_learn(run: sureclr.Run) -> None:
    before, untrained = BACKBONE.state_dict(), run.untrained().model.state_dict()
    loaded = sureclr.load(run.path, encoder=network(7), device="cpu").model.state_dict()
    for state in (run.model.state_dict(), loaded, untrained):
        assert same({name: state[f"encoder.backbone.{name}"] for name in before}, before)
    assert same(loaded, run.model.state_dict())
    heads = [name for name in loaded if name.startswith(("projection", "certainty"))]
    assert heads and not any(
        torch.equal(loaded[name], untrained[name]) for name in heads if name.endswith("0.weight")
    )
    saved = load_file(run.path / "encoder.safetensors")
    assert same(saved, before)
    assert {name.split(".")[0] for name in weights(run.path)} == {"model", "objective", "optimizer"}
    assert [n for n in weights(run.path) if "encoder" in n] == [
        "model.encoder.mean",
        "model.encoder.std",
    ]
    assert all(parameter.requires_grad for parameter in run.model.parameters())


def test_the_cache_is_that_of_a_loop_over_images_and_views(run: sureclr.Run) -> None:
    """The witness: each view alone through the encoder in evaluation mode."""
    values = np.fromfile(run.path / "features" / "values.float16", np.float16).reshape(K, 48, 80)
    seeds = hashed(torch.arange(48), (CONFIG.seed << 32) - 1, 1)[:, 0]
    with torch.no_grad():
        for i in (0, 17, 47):
            for v in range(K):
                pixels = one_view(IMAGES[i : i + 1], seeds[i : i + 1], v, CONFIG.views)
                expected = run.encoder(pixels)[0]
                found = torch.from_numpy(values[v, i].astype(np.float32))
                assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6)
    assert len({row.tobytes() for row in values.reshape(-1, 80)}) == K * 48


def test_a_step_draws_two_views_of_each_image_alike() -> None:
    """Each value says which view and which image it is of."""
    of = torch.arange(4)[:, None] * 1000 + torch.arange(48)
    features = FeatureViews(of[..., None].numpy().astype(np.float32), lambda rows: rows)
    config = replace(CONFIG, batch_size=16)
    pairs = []
    for done in range(300):
        step = prepared_features(config, features, done, torch.device("cpu"))
        found = step.of(slice(0, 16)).long().squeeze(1)
        images = batch(config.seed, done // 3, done % 3, 48, 16).indices
        assert torch.equal(found % 1000, images.repeat(2))
        assert torch.equal(step.of(slice(4, 8)).squeeze(1), found[[4, 5, 6, 7, 20, 21, 22, 23]])
        pairs.append((found // 1000).view(2, 16))
    first, second = torch.cat(pairs, 1)
    counts = torch.bincount(4 * first + second, minlength=16).view(4, 4)
    assert counts.diagonal().sum() == 0
    others = counts[~torch.eye(4, dtype=torch.bool)].double()
    assert ((others - 400).square() / 400).sum() < 31.3  # chi-squared with 11 df, p = .001


def test_a_run_that_is_stopped_anywhere_ends_with_the_same_bits(
    run: sureclr.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (run.path / "features" / "values.float16").read_bytes()
    monkeypatch.setattr(feature_cache, "BLOCK_IMAGES", 10)
    out, saved = tmp_path / "run", "features that are done stay; continue with resume=True"
    with pytest.raises(Stopped, match=saved):
        frozen(out, progress=Interrupting(2, stop))
    assert len((out / "features" / "blocks.jsonl").read_text().splitlines()) == 2
    with pytest.raises(Stopped):  # while it takes its steps
        frozen(out, resume=True, progress=Interrupting(2 + 3 + 1 + 7, stop))
    assert 0 < len(lines(out)) < 12
    shutil.rmtree(out / "features")  # the user may
    frozen(out, resume=True)
    assert (out / "features" / "values.float16").read_bytes() == whole
    assert equal(out, run.path)


def test_heads_begin_alike_however_the_network_was_made(tmp_path: Path) -> None:
    """A run from a file that was stopped before its first checkpoint goes on without the file."""
    file = tmp_path / "weights.safetensors"
    save_file(BACKBONE.state_dict(), file)
    named = {"encoder": f"small-{WIDTH}", "init": str(file), "channels": 1}

    def begun(out: Path, **options: Any) -> sureclr.Run:
        config = replace(CONFIG, freeze="backbone", cached_views=K, epochs=2, **named)
        return sureclr.pretrain(config, IMAGES, out=out, device="cpu", **options)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = begun(whole, progress=SILENT)
    start = new_trainer(run.config, sureclr.as_image_set(IMAGES), torch.device("cpu"))
    assert same(run.untrained().model.state_dict(), start.model.state_dict())
    with pytest.raises(Stopped, match="features that are done stay"):
        begun(parts, progress=Interrupting(1, stop))
    file.unlink()
    begun(parts, resume=True, progress=SILENT)
    assert equal(whole, parts)
    assert same(sureclr.load(parts, device="cpu").model.state_dict(), run.model.state_dict())


@pytest.fixture(scope="module")
def model(run: sureclr.Run) -> SimCLR:
    return run.model


def cached(
    folder: Path, model: SimCLR, progress: Any = SILENT, **changes: Any
) -> NDArray[np.float16]:
    digests = {"backbone": changes.pop("backbone", "a"), "images": "b"}
    config = replace(CONFIG, cached_views=K, **changes)
    images = sureclr.as_image_set(IMAGES, size=8, channels=1)
    found = feature_cache.computed_features(
        folder,
        config,
        images,
        model,
        torch.float32,
        digests=digests,
        stopped="",
        progress=progress,
    )
    return np.array(found.values)


@pytest.mark.parametrize(
    "damage", ["flipped bit", "truncated", "half a line", "strange lines", "no manifest"]
)
def test_damaged_features_are_computed_again(
    damage: str, model: SimCLR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "BLOCK_IMAGES", 10)
    whole, said = cached(tmp_path, model), Messages()
    path, mine = tmp_path / "values.float16", tmp_path / "mine.txt"
    mine.write_text("a note")
    data = bytearray(path.read_bytes())
    if damage == "flipped bit":
        data[2 * 80 * 48 + 160 * 25] ^= 1  # of view 1 of image 25
        path.write_bytes(data)
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "half a line":
        written = (tmp_path / "blocks.jsonl").read_bytes()
        (tmp_path / "blocks.jsonl").write_bytes(written[:-5])
    elif damage == "strange lines":
        (tmp_path / "blocks.jsonl").write_text(f"[-1, 0]\n[{10**30}, 0]\n[1e999, 0]\n[[], 1]\n")
    else:
        (tmp_path / "manifest.json").write_text("{")
    assert np.array_equal(cached(tmp_path, model, said), whole)
    again = next(text for text in said.messages if "computes the features" in text)
    count = {"flipped bit": 10, "half a line": 8}.get(damage, 48)
    assert f"{K * count} views of {count} images" in again and "23,040 bytes" in again
    said.messages.clear()
    assert np.array_equal(cached(tmp_path, model, said), whole) and said.messages == []
    assert mine.read_text() == "a note"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("backbone", {"backbone": "c"}),
        ("views", {"views": replace(CONFIG.views, strength=0.1)}),
        ("seed", {"seed": 3}),
    ],
)
def test_features_of_something_else_are_not_used(
    name: str, changes: dict[str, Any], model: SimCLR, tmp_path: Path
) -> None:
    said, before = Messages(), cached(tmp_path, model)
    after = cached(tmp_path, model, said, **changes)
    assert f"of another {name}, so they are computed anew" in said.messages[0]
    assert np.array_equal(before, after) == (name == "backbone")  # here only its name changed


def test_features_that_float16_cannot_hold_end_the_run_with_a_sentence(tmp_path: Path) -> None:
    huge, broken = network(), network()
    huge.layer3.body[4].weight.data *= 1e8
    broken.layer3.relu = nn.Softplus(beta=float("nan"))
    for module in (huge, broken):
        with pytest.raises(UserError, match=r"puts out a feature of .* up to 65,504"):
            frozen(tmp_path / "run", encoder=module, overwrite=True)


def test_a_full_disk_is_noticed_before_the_features_are_computed(
    model: SimCLR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "free_bytes", lambda folder: 23_039)
    with pytest.raises(UserError, match=r"take 23,040 bytes .* and 23,039 are free"):
        cached(tmp_path, model)


def test_the_weights_of_the_backbone_must_be_those_of_the_heads(
    run: sureclr.Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run.path, out)
    initial = sureclr.training.run_dir.RunDir(out)
    other = network(9).state_dict()
    initial.save_initial({f"encoder.{name}": value for name, value in other.items()})
    with pytest.raises(UserError, match="other weights than the frozen encoder"):
        sureclr.load(out, encoder=BACKBONE, device="cpu")
    with pytest.raises(UserError, match="other weights than the frozen encoder"):
        frozen(out, resume=True)
    (out / "initial.safetensors").unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        sureclr.load(out, encoder=BACKBONE, device="cpu")


def test_the_monitor_follows_the_directions(run: sureclr.Run) -> None:
    read = lines(run.path)
    measured = [line for line in read if "knn_directions" in line]
    assert len(measured) == 2 and not any("knn" in line for line in read)
    assert {"knn_directions_untrained", "knn_untrained"} <= read[0].keys()
    numbers = run.directory.checkpoint_numbers()
    assert numbers["monitor"]["knn"] == measured[-1]["knn_directions"]
    # The witness: the table of the final weights, and a vote in numpy
    table = run.embed(sureclr.as_image_set(IMAGES, size=8, channels=1))
    order = hashed(torch.arange(48), stream=CONFIG.seed, count=1)[:, 0].argsort()
    queries, bank = order[:9], order[9:]
    for vectors, value in (
        (table.direction, measured[-1]["knn_directions"]),
        (table.features, read[0]["knn_untrained"]),
    ):
        unit = nn.functional.normalize(vectors)
        cosine = unit[queries] @ unit[bank].T
        right = 0
        for row, query in zip(cosine, queries, strict=True):
            near = row.topk(20).indices
            votes = torch.zeros(3)
            votes.index_add_(0, LABELS[bank[near]], (row[near] / 0.1).exp())
            right += int(votes.argmax() == LABELS[query])
        assert value == pytest.approx(right / 9)


def test_overwriting_removes_the_features(tmp_path: Path) -> None:
    frozen(tmp_path / "run", epochs=1)
    assert (tmp_path / "run" / "features").is_dir()
    frozen(tmp_path / "run", epochs=1, freeze="off", overwrite=True)
    assert not (tmp_path / "run" / "features").exists()


def test_all_but_the_last_stage_stay_bit_for_bit(tmp_path: Path) -> None:
    run = frozen(tmp_path / "run", freeze="stages", epochs=2)
    before, after = BACKBONE.state_dict(), run.encoder.backbone.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"layer3"}
    assert not torch.equal(
        before["layer3.body.1.running_mean"], after["layer3.body.1.running_mean"]
    )
    assert not (run.path / "features").exists()
    loaded = sureclr.load(run.path, encoder=network(7), device="cpu")
    assert same(loaded.model.state_dict(), run.model.state_dict())


@pytest.mark.parametrize(
    ("name", "options", "first"),
    [
        ("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 12, "num_heads": 3}, "blocks.2."),
        ("resnet18", {}, "layer4."),
        ("tf_efficientnet_lite0", {}, "blocks.6."),
    ],
)
def test_the_last_stage_and_what_stands_behind_it_is_trained(
    name: str, options: dict[str, Any], first: str
) -> None:
    import timm

    module = timm.create_model(name, num_classes=0, **options)
    StandardisedEncoder(module).train().freeze("stages", name)
    flags = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    trained = [name for name in flags if flags[name]]
    assert trained == list(flags)[-len(trained) :] and trained[0].startswith(first)
    assert not any(p.startswith(first) for p in flags if not flags[p])
    modes = [m.training for m in module.modules() if not list(m.children())]
    assert modes == sorted(modes) and set(modes) == {False, True}


def test_an_encoder_without_stages_gets_a_sentence(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match="custom:Sequential has no stages or blocks"):
        frozen(tmp_path / "run", encoder=plain, freeze="stages")
    with pytest.raises(UserError, match="those of init random are worth nothing"):
        frozen(tmp_path / "run", encoder=None)
