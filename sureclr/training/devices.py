"""Which machine part a run uses, and in which precision."""

import torch

from sureclr.errors import UserError

DEVICES = ("auto", "cuda", "mps", "cpu")


def choose_device(name: str = "auto") -> torch.device:
    """`auto`: cuda, else mps, else cpu. UserError where the named one is not there."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, present in there.items() if present))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"unknown device {name!r}; use one of {', '.join(DEVICES)} (or cuda:1)."
        ) from error
    if not there.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        present = ", ".join(kind for kind, here in there.items() if here)
        raise UserError(
            f"device {name} is not available to torch {torch.__version__} here; available:"
            f" {present}."
        )
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 on GPUs that compute in it, else float32 (on a CPU bfloat16 measured ten
    times slower).
    """
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """The network in bfloat16, or nothing where the precision is float32."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)
