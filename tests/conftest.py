"""One thread a test process (two run side by side), torchvision importable, and no UMAP even where
a developer has it: it is slow.
"""

import sys

import torch

import sureclr.compat  # noqa: F401

torch.set_num_threads(1)
sys.modules["umap"] = None  # type: ignore[assignment]
