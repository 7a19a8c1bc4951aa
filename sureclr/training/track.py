"""The numbers of a run in TensorBoard or Weights & Biases (`pip install 'sureclr[track]'`)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from sureclr.config import PretrainConfig
from sureclr.errors import UserError, unknown
from sureclr.files import make_folder

Tracker = Callable[[dict[str, float]], None]
TRACKERS = ("tensorboard", "wandb")


def check_tracker(name: str | None) -> None:
    """Raise a `UserError` if the tracker is unknown or not installed; None is no tracker."""
    if name is not None and name not in TRACKERS:
        raise unknown("tracker", name, TRACKERS)
    if name is not None and find_spec(name) is None:
        raise UserError(
            f"track={name!r} needs the package {name}; install it with: pip install"
            " 'sureclr[track]'."
        )


@contextmanager
def open_tracker(name: str | None, folder: Path, config: PretrainConfig) -> Iterator[Tracker]:
    """Open a tracker, and close it at the end of the block.

    Args:
        name: tensorboard or wandb; None: no tracker.
        folder: where the tracker writes its files.
        config: is stored with the numbers by wandb.

    Yields:
        A function that takes the numbers of each step.
    """
    if name is None:
        yield lambda numbers: None
        return
    make_folder(folder)  # raises where it is a link, which the trackers would follow
    write, close = _tensorboard(folder) if name == "tensorboard" else _wandb(folder, config)
    try:
        yield write
    finally:
        close()


def _tensorboard(folder: Path) -> tuple[Tracker, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def write(numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, int(numbers["step"]))

    return write, writer.close


def _wandb(folder: Path, config: PretrainConfig) -> tuple[Tracker, Callable[[], None]]:
    import wandb

    run = wandb.init(dir=str(folder), config=asdict(config), project="sureclr")
    return lambda numbers: run.log(numbers, step=int(numbers["step"])), run.finish
