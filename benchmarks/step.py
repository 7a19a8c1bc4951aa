"""A whole training step (views, network, loss, gradient, Adam) against lightly and another commit.

    python -m benchmarks.step [--device cuda] [--encoder resnet18] [--batch 256]
                              [--against COMMIT] [--peer-python PATH] [--memory]

Every measurement is a process of its own: it takes `--warm` steps and then the timed ones, on noise
images of 32 pixels. The entrants take turns (A B C A B C), and medians are printed: process CPU
seconds of one thread on a CPU, the time between two events of the stream on a GPU. Beside them
stand the FLOP/s that ours achieves, and those of this device's own matrix product (which is no
ceiling on an AMD CPU: oneDNN's convolutions are faster there than MKL's product).

  ours      this tree: `Trainer.step` with NT-Xent
  COMMIT    the same of another commit, in a git worktree
  lightly   lightly's views (`SimCLRTransform`, one image at a time, as its data sets do),
            projection head and loss, with torchvision's encoder, on the same images
  network   lightly's head and loss on views that are there already

Before anything is timed, COMMIT must have our loss in its first step, and lightly must have our
loss of the same weights and views. PATH is the Python of an environment that has lightly (never
this package's own):

    python3 -m venv /tmp/peers
    /tmp/peers/bin/pip install -c constraints.txt lightly==1.6.0 torchvision==0.28.0
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
SIZE, TEMPERATURE, RATE = 32, 0.5, 1e-3
ON_CPU, ON_GPU = (1, 1), (10, 50)  # steps before the timed ones, and timed steps
AGREE = 1e-4  # relative difference of two losses of the same weights and views


def noise(images: int) -> Tensor:
    """Return noise images, (n, 3, 32, 32) uint8."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (images, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


# One process


def our_trainer(options: argparse.Namespace) -> Any:
    """Return a trainer on noise, of the tree that Python imports; also of older commits."""
    from dataclasses import replace

    from sureclr.config import PretrainConfig
    from sureclr.data.user_images import as_image_set
    from sureclr.training.setup import new_trainer

    config = PretrainConfig(
        "noise",
        encoder=options.encoder,
        stem="cifar",
        loss="nt-xent",
        temperature=TEMPERATURE,
        epochs=1000,
        batch_size=options.batch,
        micro_batch=options.micro_batch,
        learning_rate=RATE,
        warmup_epochs=0,
        precision=options.precision,
    )
    images, device = as_image_set(noise(2 * options.batch)), torch.device(options.device)
    return new_trainer(config, replace(images, images=images.images.to(device)), device)


def ours(options: argparse.Namespace, folder: Path) -> Callable[[], Any]:
    """Return our step; with --keep, write weights, views and their loss for lightly."""
    trainer = our_trainer(options)
    if options.keep:
        views = torch.rand(2 * options.batch, 3, SIZE, SIZE, generator=torch.manual_seed(0))
        model, objective = trainer.model, trainer.objective
        with torch.no_grad():
            loss = float(objective(model(views.to(options.device))[1]))
        state = {key: value.cpu() for key, value in trainer.model.state_dict().items()}
        torch.save({"state": state, "views": views, "loss": loss}, folder / "ours.pt")
        trainer = our_trainer(options)  # whose statistics have not moved
    step: Callable[[], Any] = trainer.step
    return step


def lightly_network(options: argparse.Namespace) -> Any:
    """Return torchvision's encoder with a CIFAR stem and lightly's projection head."""
    import sureclr.compat  # noqa: F401, I001  (before lightly, which imports torchvision)
    import torchvision
    from lightly.models.modules import SimCLRProjectionHead
    from torch import nn

    body = getattr(torchvision.models, options.encoder)()
    width = body.fc.in_features
    body.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    body.maxpool, body.fc = nn.Identity(), nn.Identity()
    head = SimCLRProjectionHead(width, width, 128)
    network = nn.Sequential(body, head).to(options.device)
    return network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def as_lightly(state: dict[str, Tensor], network: Any) -> None:
    """Put our weights into lightly's network; both have the same tensors in the same order."""
    mine = [v for k, v in state.items() if k.startswith(("encoder.backbone.", "projection."))]
    own = network.state_dict()
    if [value.shape for value in own.values()] != [value.shape for value in mine]:
        raise SystemExit("lightly's network is another one than ours")
    network.load_state_dict(dict(zip(own, mine, strict=True)))


def lightly(options: argparse.Namespace, folder: Path) -> Callable[[], Any]:
    """Return lightly's step with its views, or without, after a check of its loss."""
    network = lightly_network(options)
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform
    from torchvision.transforms.functional import to_pil_image

    loss_of = NTXentLoss(temperature=TEMPERATURE)
    kept = torch.load(folder / "ours.pt", weights_only=True)
    state = kept["state"]
    as_lightly(state, network)
    mean, std = (state[f"encoder.{name}"].view(1, 3, 1, 1) for name in ("mean", "std"))
    views = ((kept["views"] - mean) / std).to(options.device)
    with torch.no_grad():
        theirs = float(loss_of(*network(views).chunk(2)))
    if abs(theirs / kept["loss"] - 1) > AGREE:
        raise SystemExit(f"lightly's loss is {theirs}, and ours {kept['loss']}")
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    transform = SimCLRTransform(input_size=SIZE, cj_strength=1.0)
    pictures = [to_pil_image(image) for image in noise(options.batch)]

    def on(batch: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        kind = torch.device(options.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=options.precision == "bfloat16"):
            projections = network(batch.contiguous(memory_format=torch.channels_last))
        loss_of(*projections.float().chunk(2)).backward()
        optimizer.step()

    def whole() -> None:
        pairs = [transform(picture) for picture in pictures]
        both = [torch.stack([pair[view] for pair in pairs]) for view in (0, 1)]
        on(torch.cat(both).to(options.device))

    return whole if options.one == "lightly" else lambda: on(views)


def seconds_a_step(step: Callable[[], Any], device: str, warm: int, timed: int) -> float:
    """Return CPU seconds of a step, or seconds between two events of a GPU's stream."""
    for _ in range(warm):
        step()
    if torch.device(device).type != "cuda":
        start = time.process_time()
        for _ in range(timed):
            step()
        return (time.process_time() - start) / timed
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    for _ in range(timed):
        step()
    end_event.record()
    end_event.synchronize()
    return float(start_event.elapsed_time(end_event)) / 1000 / timed


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Return the first loss, the seconds and the flops of a step, measured in this process."""
    if options.device == "cpu":
        torch.set_num_threads(1)
    folder = Path(options.folder)
    warm, timed = ON_CPU if options.device == "cpu" else ON_GPU
    if options.one not in ("ours", "commit"):
        return {"seconds": seconds_a_step(lightly(options, folder), options.device, warm, timed)}
    from torch.utils.flop_counter import FlopCounterMode

    step = ours(options, folder)
    with FlopCounterMode(display=False) as counter:
        first = float(step()[0])
    seconds = seconds_a_step(step, options.device, warm, timed)
    return {
        "loss": first,
        "seconds": seconds,
        "flops": float(counter.get_total_flops()),
        "product": product_speed(options.device, options.precision),
    }


def product_speed(device: str, precision: str) -> float:
    """Return the flops a second of this device's matrix product, as large as fills it."""
    size = 1024 if device == "cpu" else 8192
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a = torch.randn(size, size, device=device, dtype=kind)
    seconds = seconds_a_step(lambda: torch.mm(a, a), device, 5, 20)
    return 2 * size**3 / seconds


# The race


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """Give the files of a commit in a git worktree, which is removed afterwards."""
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def fresh(
    name: str, python: str, tree: Path, options: argparse.Namespace, folder: str, keep: bool = False
) -> dict[str, float]:
    """Return what `measure` returns in a new process that imports a tree."""
    shown = {
        "one": name,
        "device": options.device,
        "encoder": options.encoder,
        "batch": options.batch,
        "precision": options.precision,
        "folder": folder,
    }
    if options.micro_batch:
        shown["micro-batch"] = options.micro_batch
    words = [word for key, value in shown.items() for word in (f"--{key}", str(value))]
    command = [python, str(Path(__file__)), *words, *(["--keep"] if keep else [])]
    # A file's own folder is where Python looks first, and this package is not there
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    run = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=tree
    )
    return {key: float(value) for key, value in json.loads(run.stdout).items()}


def race(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the medians of each entrant, which take turns; the losses must agree before."""
    with TemporaryDirectory() as folder:
        if options.against:
            with tree_of(options.against) as tree:
                return _race(options, folder, tree)
        return _race(options, folder, None)


def _race(
    options: argparse.Namespace, folder: str, other: Path | None
) -> dict[str, dict[str, float]]:
    peer = options.peer_python or (sys.executable if find_spec("lightly") else None)
    entrants = {"ours": ("ours", sys.executable, ROOT)}
    if other:
        entrants[options.against] = ("commit", sys.executable, other)
    if peer:
        entrants |= {name: (name, peer, ROOT) for name in ("lightly", "network")}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in entrants}
    for number in range(options.rounds):
        for name, (kind, python, tree) in entrants.items():
            keep = kind == "ours" and number == 0
            runs[name].append(fresh(kind, python, tree, options, folder, keep))
            first, mine = runs[name][-1].get("loss"), runs["ours"][0]["loss"]
            if first is not None and abs(first / mine - 1) > AGREE:
                raise SystemExit(f"{name} does not agree: its loss is {first}, and ours {mine}")
    return {
        name: {key: median(run[key] for run in own) for key in own[0]} for name, own in runs.items()
    }


def report(results: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    """Print a table of the results."""
    mine = results["ours"]
    speed, ceiling = mine["flops"] / mine["seconds"], mine["product"]
    print(
        f"{options.encoder}, {options.batch} images of {SIZE} px, {options.device},"
        f" {options.precision}, median of {options.rounds}; loss {mine['loss']:.6f} nats"
    )
    for name, row in results.items():
        print(
            f"  {name:10s} {row['seconds']:9.4f} s   {row['seconds'] / mine['seconds']:6.2f}x ours"
        )
    print(
        f"  ours: {mine['flops'] / 1e9:,.0f} GFLOP a step, {speed / 1e9:,.1f} GFLOP/s,"
        f" {speed / ceiling:.0%} of the matrix product's {ceiling / 1e9:,.1f}"
    )


def main() -> None:
    """Run the race, print the memory, or with --one take a single measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--encoder", default="resnet18", help="a name of torchvision's ResNets")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", help="another commit, which takes part")
    parser.add_argument("--peer-python", help="a Python that has lightly")
    parser.add_argument("--memory", action="store_true", help="print the peak memory of steps")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
    elif options.memory:
        from benchmarks.step_memory import print_memory

        print_memory()
    else:
        report(race(options), options)


if __name__ == "__main__":
    main()
