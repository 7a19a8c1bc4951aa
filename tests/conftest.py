"""One thread a test process (two run side by side), torchvision importable, no UMAP even where a
developer has it (it is slow), and float32 even on CPUs that are faster in bfloat16. Nothing waits
until a disk has what was written, which only a power cut could show: a run of a second waits 45
times. Tests of the waiting itself replace `os.fsync` by their own.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

import sureclr.compat  # noqa: F401

torch.set_num_threads(1)
for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
    setattr(torch.cpu, name, lambda: False)
os.fsync = lambda descriptor: None
sys.modules["umap"] = None  # type: ignore[assignment]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Hugging Face's cache, and one of torch's, both of which hold nothing yet."""
    from huggingface_hub import constants

    folder = tmp_path / "huggingface" / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    return folder
