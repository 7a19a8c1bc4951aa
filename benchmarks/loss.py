"""`python -m benchmarks.loss [--peer-python PATH]`: NT-Xent in tiles against a tidy cross-entropy,
the common mask-select code, lightly.

Forward and backward of n pairs with d coordinates, one thread. Every measurement is a process of
its own: one cold step gives the loss and the gradient's norm (they must agree) and the extra memory
(how far it lifts the process's peak), a second one the process CPU seconds. The configurations take
turns (A B C A B C); medians are printed. The floor is that of two symmetric sweeps, 4 N^2 d flops
for N = 2n (tiles.py), at the speed of this machine's own matrix product.

PATH is the Python of an environment that has lightly (never this package's own):
    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install -c constraints.txt lightly==1.6.0
    torchvision==0.28.0
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

TEMPERATURE = 0.2
RIVALS = ("tidy", "mask-select")
Loss = Callable[[Tensor], Tensor]


# The rivals, as people write them, and ours: functions of (2n, d) unit vectors


def tidy_cross_entropy(x: Tensor) -> Tensor:
    """The similarity matrix with its diagonal filled, and cross-entropy with the partner as the
    class.
    """
    logits = (x @ x.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(x)).roll(len(x) // 2))


def mask_select(x: Tensor) -> Tensor:
    """Positives and negatives picked by boolean masks and joined again, as in many repositories."""
    image = torch.arange(len(x) // 2).repeat(2)
    same, itself = image[None, :] == image[:, None], torch.eye(len(x), dtype=torch.bool)
    similarity = (x @ x.T)[~itself].view(len(x), -1)
    same = same[~itself].view(len(x), -1)
    positives, negatives = similarity[same].view(len(x), -1), similarity[~same].view(len(x), -1)
    logits = torch.cat([positives, negatives], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))


def lightly(x: Tensor) -> Tensor:
    import sureclr.compat  # noqa: F401, I001  (before lightly, which imports torchvision)
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=TEMPERATURE)(*x.chunk(2))


def nt_xent(x: Tensor) -> Tensor:
    from sureclr.maths import tiles

    return tiles.nt_xent(x, TEMPERATURE)


def sure(x: Tensor) -> Tensor:
    from sureclr.maths import tiles

    return tiles.sure(
        x,
        torch.full((len(x),), 0.5, requires_grad=True),
        TEMPERATURE,
        dimension=20.0,
        softening="anchors",
    )


LOSSES: dict[str, Loss] = {
    "nt-xent": nt_xent,
    "sure": sure,
    "tidy": tidy_cross_entropy,
    "mask-select": mask_select,
    "lightly": lightly,
}


# One process


def inputs(n: int, d: int) -> Tensor:
    """(2n, d) unit vectors, rows i and i + n close to each other."""
    generator = torch.Generator().manual_seed(0)
    latent, blur = (
        torch.randn(n, d, generator=generator),
        torch.randn(2 * n, d, generator=generator),
    )
    return F.normalize(latent.repeat(2, 1) + 0.5 * blur, dim=1).requires_grad_()


def peak() -> float:
    """MiB, the most this process ever held. Linux: VmHWM, since ru_maxrss starts from the peak of
    whoever started the process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step(loss: Loss, x: Tensor) -> tuple[float, float, float]:
    """Loss (nats), norm of the gradient, CPU seconds."""
    x.grad, start = None, time.process_time()
    value = loss(
        F.normalize(x, dim=1)
    )  # lightly normalises inside: without this, gradients would differ by their radial part
    value.backward()
    seconds = time.process_time() - start
    assert x.grad is not None
    return value.item(), x.grad.norm().item(), seconds


def measure(name: str, n: int, d: int) -> dict[str, float]:
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
    """Flops a CPU second of (size, d) x (d, size), the tile's own product."""
    torch.set_num_threads(1)
    a, out = torch.randn(size, d), torch.empty(size, size)
    torch.mm(a, a.T, out=out)
    start = time.process_time()
    for _ in range(times):
        torch.mm(a, a.T, out=out)
    return times * 2 * size * size * d / (time.process_time() - start)


# The race


def fresh(name: str, n: int, d: int, python: str) -> dict[str, float]:
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
    """Medians of each configuration, taking turns."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            python = peer_python if name == "lightly" and peer_python else sys.executable
            runs[name].append(fresh(name, n, d, python))
    return {
        name: {key: median(run[key] for run in of) for key in of[0]} for name, of in runs.items()
    }


def must_agree(results: dict[str, dict[str, float]]) -> None:
    ours = results["nt-xent"]
    for name in results.keys() & {"lightly", *RIVALS}:
        for key in ("loss", "gradient"):
            if abs(results[name][key] / ours[key] - 1) > 1e-5:
                raise SystemExit(
                    f"{name} does not agree in its {key}: {results[name][key]} for {ours[key]}"
                )


def report(results: dict[str, dict[str, float]], n: int, d: int) -> None:
    ours, floor = results["nt-xent"], 4 * (2 * n) ** 2 * d / product_speed(d)
    print(
        f"n = {n} pairs, d = {d}, forward and backward; floor {floor:.3f} CPU s, ours"
        f" {ours['seconds'] / floor:.2f}x"
    )
    print(
        f"  {'':12s} {'CPU s':>8s} {'x ours':>7s} {'MiB extra':>10s} {'x ours':>7s}"
        f" {'loss, nats':>12s} {'|gradient|':>11s}"
    )
    for name, one in results.items():
        time_ratio, memory_ratio = one["seconds"] / ours["seconds"], one["extra"] / ours["extra"]
        print(
            f"  {name:12s} {one['seconds']:8.3f} {time_ratio:7.2f} {one['extra']:10.0f}"
            f" {memory_ratio:7.1f} {one['loss']:12.6f} {one['gradient']:11.4e}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer-python",
        help="a Python that has lightly; without it lightly is raced if it is importable here",
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
