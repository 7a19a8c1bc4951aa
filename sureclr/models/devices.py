"""The device that a run uses, its precision, and torch's random generators."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sureclr.errors import UserError

DEVICES = ("auto", "cuda", "mps", "cpu")


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


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type in which the network computes.

    `auto` is bfloat16 on GPUs that compute in it, else float32: on a CPU, bfloat16 was ten times
    slower (measured once).
    """
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


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
