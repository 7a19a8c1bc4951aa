"""The choice of the device, and torch's generators inside a seeded block."""

import pytest
import torch

from sureclr.errors import UserError
from sureclr.models.devices import choose_device, seeded


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_fastest_device_that_is_there(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto").type == choose_device().type == chosen
    if not mps:
        with pytest.raises(UserError, match=r"device mps is not available.*use one of cpu"):
            choose_device("mps")


def test_a_seeded_block_draws_by_its_seed_and_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    drawn = []
    for seed in (3, 3, 4):
        with seeded(seed):
            drawn.append(torch.rand(2))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), before)
