"""Time and memory of NT-Xent in tiles, a tidy cross-entropy, the mask-select code, and lightly.

    python -m benchmarks.loss [--peer-python PATH]

Forward and backward of n pairs with d coordinates, one thread. Every measurement is a process of
its own: a cold step gives the loss and the gradient's norm (they must agree) and the extra memory
(how far it raises the process's peak), a second step the process CPU seconds. The configurations
take turns (A B C A B C), and medians are printed. The floor is that of two symmetric sweeps,
4 N^2 d flops for N = 2n (tiles.py), at the speed of this machine's own matrix product.

PATH is the Python of an environment that has lightly (never this package's own):

    python3 -m venv /tmp/peers
    /tmp/peers/bin/pip install -c constraints.txt lightly==1.6.0 torchvision==0.28.0
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

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
    """Use SURE in tiles, with equal radii."""
    from sureclr.maths import tiles

    radii = torch.full((len(x),), 0.5, requires_grad=True)
    return tiles.sure(x, radii, TEMPERATURE, weight=1.0, dimension=20.0)


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


def measure(name: str, n: int, d: int) -> dict[str, float]:
    """Return loss, norm of the gradient, extra MiB and CPU seconds, measured in this process."""
    torch.set_num_threads(1)
    x = inputs(n, d)
    step(LOSSES[name], inputs(16, d))  # imports, and what libraries set up once
    before = peak()
    value, norm, _ = step(LOSSES[name], x)
    return {
        "loss": value,
        "gradient": norm,
        "extra": peak() - before,
        "seconds": step(LOSSES[name], x)[2],
    }


def product_speed(d: int, size: int = 512, times: int = 400) -> float:
    """Return the flops per CPU second of (size, d) x (d, size), the tile's own product."""
    torch.set_num_threads(1)
    a, out = torch.randn(size, d), torch.empty(size, size)
    torch.mm(a, a.T, out=out)
    start = time.process_time()
    for _ in range(times):
        torch.mm(a, a.T, out=out)
    return times * 2 * size * size * d / (time.process_time() - start)


# The race


def fresh(name: str, n: int, d: int, python: str) -> dict[str, float]:
    """Return what `measure` returns in a new process."""
    command = [python, str(Path(__file__)), "--one", name, "-n", str(n), "-d", str(d)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    result = json.loads(
        subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        ).stdout
    )
    return {key: float(value) for key, value in result.items()}


def race(
    names: list[str], n: int, d: int, rounds: int, peer_python: str | None
) -> dict[str, dict[str, float]]:
    """Return the medians of each configuration, which take turns."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            python = peer_python if name == "lightly" and peer_python else sys.executable
            runs[name].append(fresh(name, n, d, python))
    return {
        name: {key: median(run[key] for run in own) for key in own[0]} for name, own in runs.items()
    }


def must_agree(results: dict[str, dict[str, float]]) -> None:
    """Stop unless all rivals have our loss and gradient, to 1e-5."""
    ours = results["nt-xent"]
    for name in results.keys() & {"lightly", *RIVALS}:
        for key in ("loss", "gradient"):
            if abs(results[name][key] / ours[key] - 1) > 1e-5:
                raise SystemExit(
                    f"{name} does not agree in its {key}: {results[name][key]} for {ours[key]}"
                )


def report(results: dict[str, dict[str, float]], n: int, d: int) -> None:
    """Print a table of the results."""
    ours, floor = results["nt-xent"], 4 * (2 * n) ** 2 * d / product_speed(d)
    print(
        f"n = {n} pairs, d = {d}, forward and backward; floor {floor:.3f} CPU s, ours"
        f" {ours['seconds'] / floor:.2f}x"
    )
    print(
        f"  {'':12s} {'CPU s':>8s} {'x ours':>7s} {'MiB extra':>10s} {'x ours':>7s}"
        f" {'loss, nats':>12s} {'|gradient|':>11s}"
    )
    for name, row in results.items():
        time_ratio, memory_ratio = row["seconds"] / ours["seconds"], row["extra"] / ours["extra"]
        print(
            f"  {name:12s} {row['seconds']:8.3f} {time_ratio:7.2f} {row['extra']:10.0f}"
            f" {memory_ratio:7.1f} {row['loss']:12.6f} {row['gradient']:11.4e}",
            flush=True,
        )


def main() -> None:
    """Run the race, or with --one a single measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer-python",
        help="a Python that has lightly; without it, lightly takes part if it is importable here",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=LOSSES, help=argparse.SUPPRESS)
    parser.add_argument("-n", type=int, default=4096, help="pairs")
    parser.add_argument("-d", type=int, default=128, help="coordinates")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.n, options.d)))
        return
    from importlib.util import find_spec

    peers = ["lightly"] if options.peer_python or find_spec("lightly") else []
    results = race(
        ["nt-xent", "sure", *RIVALS, *peers],
        options.n,
        options.d,
        options.rounds,
        options.peer_python,
    )
    must_agree(results)
    report(results, options.n, options.d)
    report(race(["nt-xent"], 4 * options.n, options.d, 1, None), 4 * options.n, options.d)


if __name__ == "__main__":
    main()
