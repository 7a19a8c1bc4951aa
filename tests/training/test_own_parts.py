"""Encoders and losses that are the user's own objects: trained, resumed, loaded, and compared."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import CONFIG, IMAGES, Interrupting, equal, lines, train
from torch import Tensor, nn

import sureclr
from sureclr.config import from_dict, read_yaml
from sureclr.errors import UserError
from sureclr.maths.objectives import MCInfoNCELoss, NTXentLoss, PoissonNCELoss, SureLoss
from sureclr.stopping import Stopped
from sureclr.training.building import recorded


class Tiny(nn.Module):
    """A small network with BN and dropout, whose width nobody states."""

    def __init__(self, width: int = 12, seed: int = 5) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
            )

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).mean((2, 3))


class HalfLoss(NTXentLoss):
    """A loss that nobody registered."""

    name = "half"

    def forward(self, posterior: Any, generator: torch.Generator | None = None) -> Tensor:
        return super().forward(posterior, generator) / 2


OWN = {"encoder": Tiny(), "loss": NTXentLoss(temperature=0.5)}


def own(out: Path, **options: Any) -> sureclr.Run:
    """`encoder` and `loss` of `tiny.train` are fields of the configuration, so pass objects on."""
    objects = {key: options.pop(key, OWN[key]) for key in ("encoder", "loss")}
    config = options.pop("config", CONFIG)
    arguments = {"out": out, "device": "cpu", "progress": sureclr.progress.SILENT, **options}
    return sureclr.pretrain(config, IMAGES, **objects, **arguments)


def stop() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise ZeroDivisionError("a power cut")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> sureclr.Run:
    return own(tmp_path_factory.mktemp("own") / "run")


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_configuration_names_them_and_reads_back(run: sureclr.Run) -> None:
    assert (run.config.encoder, run.config.loss) == ("custom:Tiny", "nt-xent")
    assert run.config.temperature == 0.5
    assert from_dict(read_yaml(run.path / "config.yaml")) == run.config


def test_the_callers_objects_stay_as_they_are(tmp_path: Path) -> None:
    encoder, loss = Tiny().eval(), SureLoss()
    before = state(encoder), state(loss)
    trained = own(tmp_path / "run", encoder=encoder, loss=loss)
    assert same(before[0], state(encoder)) and same(before[1], state(loss))
    assert not encoder.training and not hasattr(encoder, "num_features")
    assert not same(before[0], state(trained.encoder.backbone))
    assert trained.kernel_dimension is not None and loss.kernel_dimension is None


def test_an_own_loss_that_no_name_records_is_copied_as_well(tmp_path: Path) -> None:
    loss = SureLoss(momentum=0.5)
    before = state(loss)
    trained = own(tmp_path / "run", loss=loss)
    assert same(before, state(loss)) and not same(before, state(trained.objective))


def test_pretrained_weights_by_name_are_nothing_for_an_own_encoder(tmp_path: Path) -> None:
    """A recipe that starts from timm's weights can be used with a module."""
    trained = own(
        tmp_path / "run", config=sureclr.PretrainConfig(**{**vars(CONFIG), "init": "timm"})
    )
    assert trained.config.init == "random"
    assert sureclr.load(trained.path, "cpu", encoder=Tiny()).config == trained.config


def test_the_first_step_is_taken_from_the_given_weights(tmp_path: Path) -> None:
    """The run with a registered loss object is the run with its name, and another start another."""
    by_name = {"temperature": 0.5, "loss": "nt-xent"}
    a = own(tmp_path / "a", loss=None, config=sureclr.PretrainConfig(**{**vars(CONFIG), **by_name}))
    b = own(tmp_path / "b")
    c = own(tmp_path / "c", encoder=Tiny(seed=6))
    assert equal(a.path, b.path) and lines(a.path)[0]["loss"] != lines(c.path)[0]["loss"]


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_resuming_is_exact(run: sureclr.Run, tmp_path: Path, steps: int) -> None:
    """Also when the module that is passed again holds other weights by then."""
    with pytest.raises(Stopped):
        own(tmp_path / "run", progress=Interrupting(steps, stop))
    own(tmp_path / "run", resume=True, encoder=Tiny(seed=9))
    assert equal(run.path, tmp_path / "run")
    initial = (path / "initial.safetensors" for path in (run.path, tmp_path / "run"))
    assert len({path.read_bytes() for path in initial}) == 1


def test_resuming_before_the_first_checkpoint_starts_from_the_initial_weights(
    run: sureclr.Run, tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError):
        own(tmp_path / "run", progress=Interrupting(1, crash))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    own(tmp_path / "run", resume=True, encoder=Tiny(seed=9))
    assert equal(run.path, tmp_path / "run")


def test_an_own_loss_also_starts_again_from_its_initial_state(tmp_path: Path) -> None:
    """The loss that is passed again has been in use meanwhile."""
    used = SureLoss(momentum=0.5)
    for buffer, value in ((used.seen, 0.5), (used.squared_cosine, 0.01)):
        buffer.fill_(value)
    whole = own(tmp_path / "whole", loss=SureLoss(momentum=0.5))
    with pytest.raises(ZeroDivisionError):
        own(tmp_path / "run", loss=SureLoss(momentum=0.5), progress=Interrupting(1, crash))
    own(tmp_path / "run", resume=True, loss=used)
    assert equal(whole.path, tmp_path / "run")


def test_what_is_loaded_is_what_was_trained(run: sureclr.Run) -> None:
    other = Tiny(seed=9)
    before = state(other)
    opened = sureclr.load(run.path, "cpu", encoder=other)
    assert torch.equal(opened.embed(IMAGES).features, run.embed(IMAGES).features)
    assert opened.embed(IMAGES).features.shape == (48, 12)
    assert same(before, state(other)) and opened.checkpoint == run.checkpoint
    sureclr.load(run.path, "cpu", encoder=other, loss=NTXentLoss(temperature=0.5))


def test_the_untrained_run_is_the_given_module(run: sureclr.Run) -> None:
    opened = sureclr.load(run.path, "cpu", encoder=Tiny(seed=9))
    for some in (run, opened):
        start = some.untrained()
        assert same(state(start.encoder.backbone), state(OWN["encoder"]))
        expected = OWN["encoder"].eval()((IMAGES / 255 - run.model.mean) / run.model.std)
        assert torch.allclose(start.embed(IMAGES).features, expected, atol=1e-5)
        assert start.checkpoint == ""
    assert same(state(opened.model), state(run.model))  # and the trained one stays


def test_damaged_initial_weights_are_not_used(run: sureclr.Run, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run.path, tmp_path / "run")
    opened = sureclr.load(tmp_path / "run", "cpu", encoder=Tiny())
    data = bytearray((tmp_path / "run" / "initial.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "run" / "initial.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="weights before training, is missing or damaged"):
        opened.untrained()


def test_redrawn_weights_are_random_and_a_function_of_the_seed(run: sureclr.Run) -> None:
    first, again, other = (run.redrawn(seed) for seed in (1, 1, 2))
    weight = "backbone.body.0.weight"
    assert same(state(first.model), state(again.model))
    for some in (other, run):
        assert not torch.equal(state(first.encoder)[weight], state(some.encoder)[weight])
    projection = first.model.projection[0].weight
    assert not torch.equal(projection, other.model.projection[0].weight)


def test_only_own_objects_have_an_initial_file(run: sureclr.Run, tmp_path: Path) -> None:
    train(tmp_path / "named", epochs=1)
    assert not (tmp_path / "named" / "initial.safetensors").exists()
    names = load_file(run.path / "initial.safetensors").keys()
    assert set(names) == {f"encoder.{name}" for name in state(OWN["encoder"])}


# --- Losses ---------------------------------------------------------------------------


def test_a_loss_that_is_not_registered(tmp_path: Path) -> None:
    trained = own(tmp_path / "run", loss=HalfLoss(0.5))
    assert trained.config.loss == "custom:HalfLoss" and trained.config.temperature is None
    double = own(tmp_path / "double")
    first, whole = (lines(some.path)[0]["loss"] for some in (trained, double))
    assert first == pytest.approx(whole / 2, rel=1e-6)
    with pytest.raises(UserError, match=r"your own loss \(custom:HalfLoss\).*loss=\.\.\."):
        sureclr.load(trained.path, "cpu", encoder=Tiny())
    opened = sureclr.load(trained.path, "cpu", encoder=Tiny(), loss=HalfLoss(0.5))
    assert isinstance(opened.objective, HalfLoss)
    assert torch.equal(opened.embed(IMAGES).direction, trained.embed(IMAGES).direction)


def test_an_own_loss_keeps_its_initial_state_for_the_untrained_run(tmp_path: Path) -> None:
    """Its momentum has no field in the configuration, so it counts as the user's own."""
    trained = own(tmp_path / "run", loss=SureLoss(momentum=0.5))
    assert trained.config.loss == "custom:SureLoss" and trained.kernel_dimension is not None
    assert trained.untrained().kernel_dimension is None


@pytest.mark.parametrize(
    ("loss", "fields"),
    [
        (SureLoss(), {"loss": "sure", "softening": "anchors", "certainty_weight": None}),
        (
            SureLoss(0.3, weight=2.0, dimension="measured", empirical_prior=0.5, softening="off"),
            {
                "temperature": 0.3,
                "certainty_weight": 2.0,
                "kernel_dimension": "measured",
                "empirical_prior": 0.5,
                "softening": "off",
            },
        ),
        (PoissonNCELoss(dimension=7.0), {"loss": "poisson-nce", "kernel_dimension": 7.0}),
        (MCInfoNCELoss(samples=3), {"loss": "mc-infonce", "samples": 3}),
    ],
)
def test_a_registered_loss_is_recorded_so_that_it_is_built_again(loss: Any, fields: dict) -> None:
    from sureclr.maths.objectives import objective

    before = sureclr.PretrainConfig("own", loss="tau", temperature=0.9, samples=4)
    config = recorded(before, None, loss)
    assert {name: getattr(config, name) for name in fields} == fields
    again = objective(config.loss, **config.objective_options())
    assert type(again) is type(loss)
    for name in ("temperature", "weight", "dimension", "empirical_prior", "softening", "samples"):
        assert getattr(again, name, None) == getattr(loss, name, None)
    assert config.encoder == before.encoder


def test_without_objects_the_configuration_is_the_users() -> None:
    assert recorded(CONFIG, None, None) is CONFIG


# --- What is refused ------------------------------------------------------------------


class Maps(Tiny):
    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


class Pair(Tiny):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images), None


class Wrong(Tiny):
    num_features = 99


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(100, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": Maps()}, r"encoder Maps must return features \(n, f\).*\(2, 12, 8, 8\)"),
        ({"encoder": Pair()}, r"encoder Pair must return features.*returned tuple"),
        ({"encoder": Wrong()}, "returns 12 features, but its attribute num_features is 99"),
        ({"encoder": Linear()}, "encoder Linear cannot take images of 8 pixels"),
        ({"encoder": "small"}, "encoder must be a torch.nn.Module, not str"),
        ({"loss": "sure"}, "loss must be a loss object such as sureclr.SureLoss"),
        ({"loss": nn.MSELoss()}, "loss must be a loss object.*not MSELoss"),
    ],
)
def test_bad_objects_are_refused_and_nothing_is_written(
    tmp_path: Path, options: dict, words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        own(tmp_path / "run", **options)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_loading_without_the_objects_or_with_others_is_refused(
    run: sureclr.Run, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"your own encoder \(custom:Tiny\).*encoder=\.\.\."):
        sureclr.load(run.path)
    with pytest.raises(UserError, match=r"another encoder .*custom:Tiny in the run, custom:Maps"):
        sureclr.load(run.path, encoder=Maps())
    with pytest.raises(UserError, match=r"another loss.*temperature: 0.5 in the run, 0.2 now"):
        sureclr.load(run.path, encoder=Tiny(), loss=NTXentLoss())
    with pytest.raises(UserError, match="does not fit.*pass the same encoder and loss"):
        sureclr.load(run.path, encoder=Tiny(width=13))
    named = train(tmp_path / "named", epochs=1)
    with pytest.raises(UserError, match="another encoder.*small-10 in the run, custom:Tiny now"):
        sureclr.load(named.path, encoder=Tiny())


def test_resuming_with_another_loss_names_the_option(run: sureclr.Run) -> None:
    with pytest.raises(UserError, match="temperature was 0.5 and is now 0.4"):
        own(run.path, resume=True, loss=NTXentLoss(0.4))
    with pytest.raises(UserError, match="custom:Tiny is a module of your own"):
        sureclr.pretrain(run.config, IMAGES, out=run.path, resume=True, device="cpu")


def test_a_stated_width_is_used(tmp_path: Path) -> None:
    encoder = deepcopy(OWN["encoder"])
    encoder.num_features = 12
    assert own(tmp_path / "run", encoder=encoder).encoder.num_features == 12
