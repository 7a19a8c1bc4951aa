"""The choice of device and precision, and torch's generators inside a seeded block."""

import pytest
import torch

from sureclr.errors import UserError
from sureclr.models.devices import (
    choose_device,
    choose_precision,
    embedding_precision,
    resolve_precision,
    seeded,
    why_bfloat16,
)


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


@pytest.mark.parametrize(
    ("instructions", "reason"),
    [
        ("_is_amx_tile_supported", "this CPU has AMX"),
        ("_is_avx512_bf16_supported", "this CPU has AVX-512 BF16"),
        (None, ""),
    ],
)
def test_a_cpu_with_instructions_for_it_computes_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, instructions: str | None, reason: str
) -> None:
    """Also where torch does not know of the other instructions, and where it knows of none."""
    cpu = torch.device("cpu")
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name)
    if instructions is not None:
        monkeypatch.setattr(torch.cpu, instructions, lambda: True, raising=False)
    assert why_bfloat16(cpu) == reason
    chosen, sentence = resolve_precision("auto", cpu)
    taken = "AMX" in reason  # the gain of AVX-512 BF16 is smaller: it must be asked for
    assert chosen == ("bfloat16" if taken else "float32")
    assert (reason in sentence and "precision=float32" in sentence) if taken else not sentence
    assert resolve_precision("float32", cpu) == ("float32", "")
    assert choose_precision("auto", cpu) == choose_precision("float32", cpu) == torch.float32
    asked, sentence = resolve_precision("bfloat16", cpu)
    assert asked == "bfloat16" and ("slow" in sentence or "faster" in sentence) == (not reason)
    assert choose_precision("bfloat16", cpu) == torch.bfloat16
    expected = torch.bfloat16 if reason else torch.float32
    assert embedding_precision("bfloat16", cpu) == expected
    assert embedding_precision("float32", cpu) == embedding_precision("auto", cpu) == torch.float32


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_trains_in_bfloat16_if_it_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    """Emulation does not count."""

    def is_supported(including_emulation: bool = True) -> bool:
        return supported or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    expected = torch.bfloat16 if supported else torch.float32
    gpu = torch.device("cuda")
    assert choose_precision("auto", gpu) == embedding_precision("bfloat16", gpu) == expected
    assert resolve_precision("auto", gpu)[0] == ("bfloat16" if supported else "float32")
    assert resolve_precision("auto", torch.device("mps")) == ("float32", "")
