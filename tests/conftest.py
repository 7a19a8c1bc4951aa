"""One thread a test process (two run side by side), and torchvision importable."""

import torch

import sureclr.compat  # noqa: F401

torch.set_num_threads(1)
