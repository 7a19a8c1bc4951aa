"""The model: its heads layer by layer, where it starts, what its gradients reach, and its
standardisation.
"""

import pytest
import torch
from torch import nn

from sureclr.config import PretrainConfig, ViewConfig
from sureclr.data.views import two_views
from sureclr.errors import UserError
from sureclr.maths.objectives import OBJECTIVES
from sureclr.models.simclr import CertaintyHead, ProjectionHead, SimCLR, StandardisedEncoder
from sureclr.training.building import build

IMAGES = torch.randint(
    0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
VIEWS = two_views(IMAGES, torch.arange(12), ViewConfig())
MEAN, STD = torch.tensor([0.5]), torch.tensor([0.25])


def model_and_loss(**changes: object) -> tuple[SimCLR, nn.Module]:
    config = PretrainConfig(
        "digits",
        **{"encoder": "small", "stem": "cifar", "projection_dim": 16, "loss": "sure", **changes},
    )
    model, criterion = build(config, 1, MEAN, STD)
    return model.train(), criterion.train()


def gradients(model: SimCLR, criterion: nn.Module) -> dict[str, torch.Tensor]:
    _, posterior = model(VIEWS)
    criterion(posterior, generator=torch.Generator().manual_seed(0)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_projection_head_layer_by_layer(layers: int) -> None:
    head = ProjectionHead(10, 6, hidden=7, layers=layers)
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * (layers - 1)
    assert [type(module) for module in head] == [
        *hidden,
        nn.Linear,
        nn.BatchNorm1d,
    ]  # BN behind the last layer too, no ReLU
    linear = [module for module in head if isinstance(module, nn.Linear)]
    assert [m.in_features for m in linear] == [10, 7, 7, 7][:layers]
    assert [m.out_features for m in linear] == [7, 7, 7, 6][4 - layers :]
    assert all(module.bias is None for module in linear)
    assert head(torch.randn(5, 10)).shape == (5, 6)


def test_hidden_layers_are_as_wide_as_the_features_by_default() -> None:
    assert ProjectionHead(10, 6)[0].out_features == 10


def test_every_view_starts_at_k_zero_and_radius_one_half() -> None:
    model, _ = model_and_loss()
    features, posterior = model(VIEWS)
    assert torch.equal(model.heads(features)[1], torch.zeros(24))
    assert torch.equal(posterior.radius, torch.full((24,), 0.5))


def test_the_certainty_head_moves_after_one_step() -> None:
    model, criterion = model_and_loss()
    gradients(model, criterion)
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert float(model(VIEWS)[1].radius.detach().std()) > 0


def test_directions_are_unit_vectors_and_features_the_encoders() -> None:
    model, _ = model_and_loss()
    features, posterior = model.eval()(VIEWS)
    assert torch.allclose(posterior.direction.norm(dim=1), torch.ones(24), atol=1e-6)
    assert torch.equal(
        features,
        model.encoder.backbone(
            ((VIEWS - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
        ),
    )


def test_nt_xent_has_no_certainty() -> None:
    model, _ = model_and_loss(loss="nt-xent")
    _, posterior = model(VIEWS)
    assert model.certainty is None and posterior.radius is None and posterior.certainty is None


def test_equal_seeds_give_equal_weights_whatever_the_loss() -> None:
    """The certainty head is drawn last, so losses are compared from the same start."""
    sure, plain, other = (
        model_and_loss(**o)[0].state_dict() for o in ({}, {"loss": "nt-xent"}, {"seed": 1})
    )
    assert all(torch.equal(sure[name], value) for name, value in plain.items())
    assert not torch.equal(sure["projection.0.weight"], other["projection.0.weight"])


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    model_and_loss()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_without_its_gradient_the_encoder_is_bit_for_bit_simclrs(start: float) -> None:
    """At the start (k = 0) and with a head that moved."""
    plain = gradients(*model_and_loss(loss="nt-xent"))
    model, criterion = model_and_loss(certainty_gradient="off")
    nn.init.normal_(
        model.certainty.body[-1].weight, std=start, generator=torch.Generator().manual_seed(0)
    )
    cut = gradients(model, criterion)
    assert all(torch.equal(cut[name], gradient) for name, gradient in plain.items())
    assert float(cut["certainty.body.3.weight"].abs().max()) > 0  # the head itself learns


@pytest.mark.parametrize("softening", ["off", "anchors", "means"])
def test_with_its_gradient_the_certainty_reaches_the_encoder_and_not_the_projection_head(
    softening: str,
) -> None:
    """Beside SURE without its second term: that is NT-Xent, or with a head that has moved, NT-Xent
    of the posterior means.
    """
    found = []
    for weight in (0.0, None):
        model, criterion = model_and_loss(softening=softening, certainty_weight=weight)
        nn.init.normal_(
            model.certainty.body[-1].weight, std=0.3, generator=torch.Generator().manual_seed(0)
        )
        found.append(gradients(model, criterion))
    plain, full = found
    assert (
        float(
            (
                full["encoder.backbone.layer1.body.0.weight"]
                - plain["encoder.backbone.layer1.body.0.weight"]
            )
            .abs()
            .max()
        )
        > 1e-4
    )
    assert all(
        torch.equal(full[name], plain[name]) for name in plain if name.startswith("projection")
    )
    simclr = gradients(*model_and_loss(loss="nt-xent"))
    assert all(torch.equal(plain[name], g) for name, g in simclr.items()) == (softening == "off")


@pytest.mark.parametrize("gradient", [True, False])
def test_certainty_head_stops_the_gradient_at_the_features(gradient: bool) -> None:
    head = CertaintyHead(5, gradient=gradient)
    nn.init.ones_(head.body[-1].weight)
    features = torch.randn(6, 5, requires_grad=True)
    (head(features) * torch.arange(6)).sum().backward()
    assert (features.grad is not None) == gradient


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_one_step_of_every_loss_changes_the_encoder(loss: str) -> None:
    found = gradients(*model_and_loss(loss=loss))
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())
    assert float(found["encoder.backbone.stem.0.weight"].abs().max()) > 0


def test_reading_is_float32_when_the_network_runs_in_bfloat16() -> None:
    model, _ = model_and_loss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = model.heads(model.features(VIEWS))
    assert raw[0].dtype == torch.bfloat16
    posterior = model.read(*raw)
    assert posterior.direction.dtype == posterior.radius.dtype == torch.float32
    assert torch.allclose(
        posterior.direction, nn.functional.normalize(raw[0].float(), dim=1), atol=1e-6
    )


def test_whole_numbers_are_refused_by_the_encoder() -> None:
    """uint8 images would be read as 255 times too bright, without a word."""
    encoder = StandardisedEncoder(nn.Flatten(), torch.zeros(1), torch.ones(1))
    assert encoder(torch.rand(2, 1, 4, 4)).shape == (2, 16)
    with pytest.raises(UserError, match="divide uint8 images by 255"):
        encoder(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
