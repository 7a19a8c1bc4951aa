"""Time and memory of SURE and NT-Xent in tiles, of the losses as people write them, and lightly's.

    python -m benchmarks.loss [--peer-python PATH] [--before TREE] [--pairs 256 1024 4096]

Forward and backward of n pairs with d coordinates, one thread. Each configuration has a process of
its own. Its first step at each n gives the loss and the gradient's norm (rivals must agree) and the
extra memory: how far the step raises the process's peak. Then all processes take turns (A B C A B
C), and the medians of their process CPU seconds are printed. The floor is that of two symmetric
sweeps, 4 N^2 d flops for N = 2n (tiles.py), at the speed of this machine's own matrix product; a
small n needs 3 N^2 d.

PATH is the Python of an environment that has lightly (never this package's own):

    python3 -m venv /tmp/peers
    /tmp/peers/bin/pip install -c constraints.txt lightly==1.6.0 torchvision==0.28.0

TREE is a checkout of another commit, whose losses take part: `git worktree add TREE COMMIT`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sureclr.maths.losses import TEMPERATURE

RIVALS = ("tidy", "mask-select")
Loss = Callable[[Tensor], Tensor]


# The rivals, as people write them, and ours: functions of (2n, d) unit vectors


def tidy_cross_entropy(x: Tensor) -> Tensor:
    """Fill the diagonal of the similarities, and use cross-entropy with the partner as class."""
    logits = (x @ x.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(x)).roll(len(x) // 2))


def mask_select(x: Tensor) -> Tensor:
    """Select positives and negatives by boolean masks and join them, as many repositories do."""
    image = torch.arange(len(x) // 2).repeat(2)
    same, itself = image[None, :] == image[:, None], torch.eye(len(x), dtype=torch.bool)
    similarity = (x @ x.T)[~itself].view(len(x), -1)
    same = same[~itself].view(len(x), -1)
    positives, negatives = similarity[same].view(len(x), -1), similarity[~same].view(len(x), -1)
    logits = torch.cat([positives, negatives], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))


def lightly(x: Tensor) -> Tensor:
    """Use lightly's NTXentLoss."""
    import sureclr.compat  # noqa: F401, I001  (before lightly, which imports torchvision)
    from lightly.loss import NTXentLoss

    result: Tensor = NTXentLoss(temperature=TEMPERATURE)(*x.chunk(2))
    return result


def nt_xent(x: Tensor) -> Tensor:
    """Use our NT-Xent in tiles."""
    from sureclr.maths import tiles

    return tiles.nt_xent(x, TEMPERATURE)


def sure(x: Tensor) -> Tensor:
    """Use SURE in tiles with its defaults, and radii as far apart as they can be."""
    from sureclr.maths import tiles

    generator = torch.Generator().manual_seed(1)
    radii = torch.rand(len(x), generator=generator).requires_grad_()
    return tiles.sure(x, radii, TEMPERATURE)


LOSSES: dict[str, Loss] = {
    "nt-xent": nt_xent,
    "sure": sure,
    "tidy": tidy_cross_entropy,
    "mask-select": mask_select,
    "lightly": lightly,
}


# One process


def inputs(n: int, d: int) -> Tensor:
    """Return (2n, d) unit vectors, rows i and i + n close to each other."""
    generator = torch.Generator().manual_seed(0)
    latent, blur = (
        torch.randn(n, d, generator=generator),
        torch.randn(2 * n, d, generator=generator),
    )
    return F.normalize(latent.repeat(2, 1) + 0.5 * blur, dim=1).requires_grad_()


def peak() -> float:
    """Return the peak memory of this process in MiB.

    On Linux it is VmHWM, since ru_maxrss starts from the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step(loss: Loss, x: Tensor) -> tuple[float, float, float]:
    """Return the loss (nats), the norm of the gradient, and CPU seconds."""
    x.grad, start = None, time.process_time()
    # lightly normalises inside; without this, gradients would differ by their radial part
    value = loss(F.normalize(x, dim=1))
    value.backward()
    seconds = time.process_time() - start
    assert x.grad is not None
    return value.item(), x.grad.norm().item(), seconds


def answer(name: str, d: int) -> None:
    """Read numbers of pairs, one a line, and print for each what its steps cost, as JSON.

    A number's first answer has loss, gradient and extra memory (so numbers must grow), the others
    CPU seconds: the median of as many steps as make about 1,024 pairs.
    """
    torch.set_num_threads(1)
    step(LOSSES[name], inputs(16, d))  # imports, and what libraries set up once
    seen: dict[int, Tensor] = {}
    for line in sys.stdin:
        n = int(line)
        if n in seen:
            steps = [step(LOSSES[name], seen[n])[2] for _ in range(max(1, 1024 // n))]
            print(json.dumps({"seconds": median(steps)}), flush=True)
            continue
        seen[n], before = inputs(n, d), peak()
        value, norm, _ = step(LOSSES[name], seen[n])
        print(json.dumps(dict(loss=value, gradient=norm, extra=peak() - before)), flush=True)


def product_speed(d: int, size: int = 256, times: int = 1600) -> float:
    """Return the flops per CPU second of (size, d) x (d, size), the tile's own product."""
    torch.set_num_threads(1)
    a, out = torch.randn(size, d), torch.empty(size, size)
    torch.mm(a, a.T, out=out)
    start = time.process_time()
    for _ in range(times):
        torch.mm(a, a.T, out=out)
    return times * 2 * size * size * d / (time.process_time() - start)


# The race


class Runner:
    """A process that answers for one loss, of this tree or of another one."""

    def __init__(self, name: str, d: int, python: str, tree: Path) -> None:
        """Start the process."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
        self.process = subprocess.Popen(
            [python, str(Path(__file__)), "--answer", name, "-d", str(d)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, n: int) -> dict[str, float]:
        """Return what `answer` prints for n pairs."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        result: dict[str, float] = json.loads(self.process.stdout.readline())
        return result


def runners(options: Any) -> dict[str, Runner]:
    """Start all configurations, by name."""
    tree, d = Path(__file__).parents[1], options.d
    started = {name: Runner(name, d, sys.executable, tree) for name in ("nt-xent", "sure", *RIVALS)}
    if options.before:
        for name in ("nt-xent", "sure"):
            started[f"{name}, before"] = Runner(name, d, sys.executable, Path(options.before))
    if options.peer_python:
        started["lightly"] = Runner("lightly", d, options.peer_python, tree)
    return started


def race(started: dict[str, Runner], n: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return the results of each configuration at n pairs; the times are medians of the rounds."""
    results = {name: runner.ask(n) for name, runner in started.items()}
    times: dict[str, list[float]] = {name: [] for name in started}
    for _ in range(rounds):
        for name, runner in started.items():
            times[name].append(runner.ask(n)["seconds"])
    return {name: {**row, "seconds": median(times[name])} for name, row in results.items()}


def must_agree(results: dict[str, dict[str, float]]) -> None:
    """Stop unless all rivals have our loss and gradient, to 1e-5, and an older tree has, too."""
    pairs = [(name, "nt-xent") for name in (*RIVALS, "lightly")]
    pairs += [(f"{name}, before", name) for name in ("nt-xent", "sure")]
    for name, own in pairs:
        for key in ("loss", "gradient") if name in results else ():
            if abs(results[name][key] / results[own][key] - 1) > 1e-5:
                raise SystemExit(
                    f"{name} does not agree in its {key}: {results[name][key]} for"
                    f" {results[own][key]}"
                )


def report(results: dict[str, dict[str, float]], n: int, d: int, rounds: int) -> None:
    """Print a table of the results."""
    ours, floor = results["nt-xent"], 4 * (2 * n) ** 2 * d / product_speed(d)
    sure_ratio = results["sure"]["seconds"] / ours["seconds"]
    print(
        f"n = {n} pairs, d = {d}, forward and backward, {rounds} rounds: SURE / NT-Xent"
        f" {sure_ratio:.2f}; floor {1000 * floor:.2f} CPU ms, NT-Xent"
        f" {ours['seconds'] / floor:.2f}x"
    )
    print(
        f"  {'':15s} {'CPU ms':>8s} {'/ NT-Xent':>9s} {'MiB extra':>10s} {'loss, nats':>11s}"
        f" {'|gradient|':>11s}"
    )
    for name, row in results.items():
        print(
            f"  {name:15s} {1000 * row['seconds']:8.2f} {row['seconds'] / ours['seconds']:9.2f}"
            f" {row['extra']:10.1f} {row['loss']:11.6f} {row['gradient']:11.4e}",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the race, or with --answer one of its processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", help="a Python that has lightly, which then takes part")
    parser.add_argument("--before", help="a checkout of another commit, which then takes part")
    parser.add_argument("--pairs", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--answer", choices=LOSSES, help=argparse.SUPPRESS)
    parser.add_argument("-d", type=int, default=128, help="coordinates")
    options = parser.parse_args(arguments)
    if options.answer:
        return answer(options.answer, options.d)
    started = runners(options)
    for n in sorted(set(options.pairs)):
        results = race(started, n, options.rounds)
        must_agree(results)
        report(results, n, options.d, options.rounds)
    for runner in started.values():
        runner.process.communicate()
    return None


if __name__ == "__main__":
    main()
