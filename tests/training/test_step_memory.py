"""The memory that a step needs, counted on tensors without numbers, against what torch allocates.

The witness is torch's profiler, which hears of every block from the allocator itself.
"""

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.step_memory import peak_bytes
from sureclr.config import PretrainConfig

CONFIG = PretrainConfig(
    "noise", encoder="small-8", stem="cifar", batch_size=32, micro_batch=16, projection_dim=16
)


def allocated() -> int:
    """The most bytes at once of a run on the CPU, those of weights and images included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        peak_bytes(CONFIG, 16, torch.float32, fake=False)
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


def test_the_counted_peak_is_what_the_allocator_sees() -> None:
    """An operator's own memory is seen by the allocator alone."""
    counted = peak_bytes(CONFIG, 16, torch.float32)
    assert counted == peak_bytes(CONFIG, 16, torch.float32, fake=False)
    assert counted <= allocated() < 1.05 * counted
