"""The device that a run uses, its precision, and torch's random generators."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from sureclr.errors import UserError

DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AVX512 = "this CPU has AVX-512 BF16"


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of this name; `auto` is cuda, else mps, else cpu.

    Raises:
        UserError: the device is unknown or not available.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, present in available.items() if present))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"unknown device {name!r}; use one of {', '.join(DEVICES)} (or cuda:1)."
        ) from error
    if not available.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        names = ", ".join(kind for kind, present in available.items() if present)
        raise UserError(
            f"device {name} is not available to torch {torch.__version__} here; use one of {names}."
        )
    return device


def why_bfloat16(device: torch.device) -> str:
    """Return why the network is faster in bfloat16 on this device, such as "this CPU has AMX".

    Steps were 2.6 to 3.1 times faster with AMX, and 1.5 to 1.8 times with AVX-512 BF16 (small and
    ResNet-18, one thread of an AMD EPYC). Accuracies and R-AUROC stay within the noise of seeds
    (benchmarks/precision.py).

    Returns:
        "" where it is not faster: without instructions for it, bfloat16 was ten times slower on a
        CPU (measured once).
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "this GPU computes in it"
    if device.type == "cpu":
        for name, reason in (
            ("_is_amx_tile_supported", "this CPU has AMX"),
            ("_is_avx512_bf16_supported", AVX512),
        ):
            supported = getattr(torch.cpu, name, None)  # private: not in every version of torch
            if supported is not None and supported():
                return reason
    return ""


def resolve_precision(
    asked: Literal["auto", "float32", "bfloat16"], device: torch.device
) -> tuple[Literal["float32", "bfloat16"], str]:
    """Return the precision of a training on this device, and a sentence to say about it or "".

    Args:
        asked: auto is bfloat16 on GPUs that compute in it and on CPUs with AMX, else float32. With
            AVX-512 BF16 the gain is smaller, and a loss of .005 in linear accuracy is not excluded
            (NOTEBOOK.md), so it must be asked for.
        device: on which the network runs.
    """
    reason = why_bfloat16(device)
    if asked == "auto" and reason not in ("", AVX512):
        return (
            "bfloat16",
            f"The network runs in bfloat16, since {reason}; precision=float32 changes it.",
        )
    if asked == "bfloat16" and not reason:
        return asked, (
            f"The network runs in bfloat16, but this {device.type.upper()} has no instructions for"
            " it: float32 may be several times faster."
        )
    return "float32" if asked == "auto" else asked, ""


def choose_precision(recorded: str, device: torch.device) -> torch.dtype:
    """Return the type in which the network is trained.

    Args:
        recorded: the precision in a run's configuration. `auto` is only in those of versions before
            `resolve_precision`; it meant bfloat16 on GPUs that compute in it, else float32.
        device: on which the network runs.
    """
    if recorded == "auto":
        return torch.bfloat16 if device.type == "cuda" and why_bfloat16(device) else torch.float32
    return PRECISIONS[recorded]


def embedding_precision(recorded: str, device: torch.device) -> torch.dtype:
    """Return the type in which the network embeds images after or between steps of training.

    It is bfloat16 if the network was trained in that and the device is faster in it. Else it is
    float32, which is more exact.

    Args:
        recorded: the precision in a run's configuration.
        device: on which the network runs.
    """
    trained = recorded == "bfloat16" and why_bfloat16(device)
    return torch.bfloat16 if trained else torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Return a context in which the network runs in this precision."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's own generators inside the block, and restore them afterwards.

    Args:
        seed: decides initial weights and dropout masks.
        device: whose generator is restored beside the CPU's; None: the CPU's alone.
    """
    if device is None or device.type == "cpu":
        kind, devices = "cuda", []
    else:
        kind, devices = device.type, [device]
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(seed)
        yield
