"""The micro-batch that is found where the whole batch does not fit into memory (a pretended one: no
GPU is needed); ruined weights.
"""

import re
import resource
from dataclasses import replace
from typing import Any

import pytest
import torch

from sureclr.config import PretrainConfig
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError
from sureclr.maths.objectives import NTXentLoss
from sureclr.progress import SILENT, SilentProgress
from sureclr.training import accumulate
from sureclr.training.building import recorded
from sureclr.training.setup import fitting_trainer, new_trainer

CONFIG = PretrainConfig(
    "own", encoder="small-8", stem="cifar", projection_dim=8, batch_size=16, epochs=1
)
IMAGES = as_image_set(
    torch.randint(
        0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
)
CPU = torch.device("cpu")


class Messages(SilentProgress):
    """Remembers its messages."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A device that holds so many images at once."""
    holds, real = {"images": 16}, accumulate.backward

    def backward(
        model: Any,
        objective: Any,
        views: Any,
        images: int,
        micro_batch: int | None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        if (micro_batch or images) > holds["images"]:
            raise torch.OutOfMemoryError("pretended")
        return real(model, objective, views, images, micro_batch, *rest, **options)

    monkeypatch.setattr(accumulate, "backward", backward)
    return holds


@pytest.mark.parametrize(("holds", "found"), [(16, None), (15, 8), (8, 8), (5, 4), (2, 2)])
def test_the_largest_half_that_fits_is_found_and_said(
    memory: dict[str, int], holds: int, found: int | None
) -> None:
    memory["images"], told = holds, Messages()
    made = fitting_trainer(CONFIG, IMAGES, CPU, told, probe=True)
    assert made.config.micro_batch == found and made.config.batch_size == 16
    assert len(told.said) == (found is not None) and all(
        f"micro_batch={found} " in text for text in told.said
    )


def test_a_trial_has_the_null_views_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that holds so many rows, of which null views are some."""
    from sureclr.models.simclr import SimCLR

    real, holds = SimCLR.features, 36

    def features(model: SimCLR, images: torch.Tensor) -> torch.Tensor:
        if len(images) > holds:
            raise torch.OutOfMemoryError("pretended")
        return real(model, images)

    monkeypatch.setattr(SimCLR, "features", features)
    for fraction, found in ((0.25, None), (0.26, None), (0.3125, 8), (1.0, 8)):
        config = replace(CONFIG, loss="sure", presence="on", null_fraction=fraction)
        made = fitting_trainer(config, IMAGES, CPU, SILENT, probe=True)
        assert made.config.micro_batch == found and made.config.batch_size == 16


def test_trying_leaves_no_trace(memory: dict[str, int]) -> None:
    """The weights, running statistics and the loss's own state are those of a trainer that nobody
    tried.
    """
    memory["images"] = 8
    tried, fresh = (
        fitting_trainer(CONFIG, IMAGES, CPU, SILENT, probe=True),
        new_trainer(CONFIG, IMAGES, CPU),
    )
    for mine, other in ((tried.model, fresh.model), (tried.objective, fresh.objective)):
        assert all(
            torch.equal(value, other.state_dict()[name])
            for name, value in mine.state_dict().items()
        )
    assert tried.done == 0 and all(p.grad is None for p in tried.model.parameters())


def test_what_the_user_chose_stays_and_nothing_that_fits_is_told(memory: dict[str, int]) -> None:
    memory["images"] = 2
    assert (
        fitting_trainer(
            replace(CONFIG, micro_batch=4), IMAGES, CPU, SILENT, probe=True
        ).config.micro_batch
        == 4
    )
    assert fitting_trainer(CONFIG, IMAGES, CPU, SILENT, probe=False).config.micro_batch is None
    memory["images"] = 1
    with pytest.raises(UserError, match="cannot be halved"):
        fitting_trainer(CONFIG, IMAGES, CPU, SILENT, probe=True)


def test_nothing_that_is_not_finite_is_ever_saved() -> None:
    """Every floating tensor of a checkpoint in turn, one value of it; the sentence names it.

    The loss of a training step reads no running statistic, and a weight whose moment is infinite
    stays where it is for ever with a finite loss, so only this check notices.
    """
    made = new_trainer(CONFIG, IMAGES, CPU)
    made.step()
    made.check_weights()
    parts, _ = made.state()
    tried = 0
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            if tensor.numel() == 0 or not tensor.is_floating_point():
                continue
            first, values = (0,) * tensor.ndim, tensor.detach()
            before = float(values[first])
            values[first] = (torch.nan, torch.inf, -torch.inf)[tried % 3]
            word = name.split(".", 1)[1] if part == "optimizer" else name
            with pytest.raises(UserError, match=f"{re.escape(word)}.* is not finite at step 1"):
                made.check_weights()
            values[first] = before
            tried += 1
    made.check_weights()
    assert tried > 100


@pytest.mark.parametrize(
    "changes",
    [
        {"projection_dim": 1 << 16, "projection_hidden": 1 << 16, "projection_layers": 4},
        {"encoder": "small-9999"},
    ],
    ids=["head", "encoder"],
)
def test_a_network_that_cannot_fit_is_refused_before_memory_is_taken(
    changes: dict[str, Any],
) -> None:
    """R8: every field is within its bound, and together they take 60 GiB and more."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"parameters, which take at least [\d,.]+ GiB"):
        new_trainer(replace(CONFIG, **changes), IMAGES, CPU)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


class ScaledLoss(NTXentLoss):
    """A loss of the user's own, with a number to be learned."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))


def test_a_loss_with_parameters_is_refused_rather_than_left_untrained() -> None:
    loss = ScaledLoss()
    config = recorded(CONFIG, None, loss)
    with pytest.raises(UserError, match="only the network is trained"):
        new_trainer(config, IMAGES, CPU, loss=loss)
    loss.scale.requires_grad_(False)
    new_trainer(config, IMAGES, CPU, loss=loss)
