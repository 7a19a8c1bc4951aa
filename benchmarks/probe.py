"""Our linear probe against scikit-learn's L-BFGS, with the same objective and the same data.

    python -m benchmarks.probe [--large]

Features have the covariance spectrum 1/k in a random basis, and labels come from a noisy linear
teacher. Both solvers are timed in CPU time of the process, interleaved, and judged by one float64
function: the objective, and the norm of its gradient relative to the start. scikit-learn stops on
the largest entry of the gradient, so its tolerance is 1e-6 of the largest entry at the start.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sureclr.evaluation.probes import STRENGTHS
from sureclr.maths.logistic import logistic_regression, standardisation

Solver = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, int]]
CLASSES, STRENGTH, TOLERANCE = 10, 1e-4, 1e-6


def data(n: int, f: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return (n, f) float32 standardised features and (n,) labels.

    Before standardisation the covariance of the features has eigenvalues 1/k.
    """
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(n, f, generator=generator) / torch.arange(1, f + 1).sqrt()
    teacher = torch.randn(f, CLASSES, generator=generator)
    gumbel = -torch.log(
        -torch.log(torch.rand(n, CLASSES, generator=generator).clamp(1e-9, 1 - 1e-7))
    )
    target = (2 * latent @ teacher + gumbel).argmax(1)
    basis = torch.linalg.qr(torch.randn(f, f, generator=generator))[0]
    features = latent @ basis
    mean, scale = standardisation(features)
    return (features - mean) / scale, target


def judge(
    x: Tensor, target: Tensor, weight: Tensor, bias: Tensor, strength: float
) -> tuple[float, float]:
    """Return J in nats and |gradient| / |gradient at 0|, in float64.

    They are computed by autograd over blocks of rows, without code of the solver.
    """
    value, norm = _value_and_norm(x, target, weight.double(), bias.double(), strength)
    start = _value_and_norm(x, target, 0 * weight.double(), 0 * bias.double(), strength)[1]
    return value, norm / start


def _value_and_norm(
    x: Tensor, target: Tensor, w: Tensor, b: Tensor, strength: float
) -> tuple[float, float]:
    w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
    total = strength / 2 * w.square().sum()
    total.backward()
    value = total.item()
    for rows, labels in zip(x.split(4096), target.split(4096), strict=True):
        loss = torch.nn.functional.cross_entropy(
            rows.double() @ w + b, labels, reduction="sum"
        ) / len(x)
        loss.backward()
        value += loss.item()
    assert w.grad is not None and b.grad is not None
    return value, float(w.grad.square().sum() + b.grad.square().sum()) ** 0.5


def ours(x: Tensor, target: Tensor, tolerance: float = TOLERANCE) -> tuple[Tensor, Tensor, int]:
    """Fit with our solver; return weight, bias and the number of iterations."""
    fit = logistic_regression(x, target, [STRENGTH], tolerance, 2000)
    return fit.weight[0], fit.bias[0], fit.iterations


def sklearn(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, int]:
    """Fit with scikit-learn; return weight, bias and the number of iterations."""
    one_hot = torch.nn.functional.one_hot(target, CLASSES).to(x.dtype)
    largest = (x.T @ (one_hot - 1 / CLASSES) / len(x)).abs().max().item()
    model = LogisticRegression(C=1 / (len(x) * STRENGTH), tol=TOLERANCE * largest, max_iter=20000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what it reached is judged and printed
        model.fit(x.numpy(), target.numpy())
    return (
        torch.from_numpy(model.coef_.T),
        torch.from_numpy(model.intercept_),
        int(model.n_iter_[0]),
    )


def timed(name: str, solve: Solver, x: Tensor, target: Tensor) -> tuple[float, float]:
    """Time a solver, print its line, and return its CPU seconds and its gradient."""
    start = time.process_time()
    weight, bias, iterations = solve(x, target)
    seconds = time.process_time() - start
    value, norm = judge(x, target, weight, bias, STRENGTH)
    print(
        f"  {name:36s} {seconds:8.2f} CPU s  {iterations:5d} iterations  J {value:.9f}  gradient"
        f" {norm:.1e}",
        flush=True,
    )
    return seconds, norm


def race(n: int, f: int, rounds: int) -> None:
    """Time the solvers in turn, after a first call of ours that does not count.

    In float32 scikit-learn stops early, so ours is also timed to the gradient where it stopped.
    """
    x, target = data(n, f)
    print(
        f"{n} x {f}, {CLASSES} classes, strength {STRENGTH}, {rounds} rounds,"
        f" {torch.get_num_threads()} thread",
        flush=True,
    )
    ours(x[:500], target[:500])
    runs = []
    for _ in range(rounds):
        mine, _ = timed("ours, float32", ours, x, target)
        short, reached = timed("scikit-learn, float32", sklearn, x, target)
        same, _ = timed(
            "ours, float32, to its gradient", partial(ours, tolerance=reached), x, target
        )
        full, _ = timed("scikit-learn, float64", sklearn, x.double(), target)
        runs.append((mine, short, same, full))
    mine, short, same, full = (median(times) for times in zip(*runs, strict=True))
    print(
        f"  CPU time, medians: scikit-learn float64 / ours {full / mine:.1f}; float32 / ours"
        f" {short / mine:.1f}, / ours to its gradient {short / same:.1f}",
        flush=True,
    )
    print(
        f"  floor, the products of our iterations alone: {floor(x, ours(x, target)[2]):.2f} CPU s",
        flush=True,
    )


def floor(x: Tensor, iterations: int) -> float:
    """Return the CPU seconds of two products per iteration, which no such solver can avoid."""
    weight, residual = torch.randn(CLASSES, x.shape[1]), torch.randn(CLASSES, len(x))
    start = time.process_time()
    for _ in range(iterations):
        weight @ x.T, residual @ x
    return time.process_time() - start


def strengths(n: int, f: int, in_turn: bool) -> None:
    """Time eight strengths in one batch, and each of them in turn."""
    x, target = data(n, f)
    batch, converged = clock(x, target, STRENGTHS)
    print(
        f"  {len(STRENGTHS)} strengths in one batch: {batch:.2f} CPU s, {sum(converged)} converged",
        flush=True,
    )
    if in_turn:
        alone = [clock(x, target, [strength])[0] for strength in STRENGTHS]
        each = ", ".join(f"{s:.0e}: {t:.2f}" for s, t in zip(STRENGTHS, alone, strict=True))
        print(f"  in turn: {sum(alone):.2f} ({each})", flush=True)
        print(
            f"  batch / in turn {batch / sum(alone):.2f}, batch / slowest {batch / max(alone):.2f}",
            flush=True,
        )


def clock(x: Tensor, target: Tensor, grid: Sequence[float]) -> tuple[float, list[bool]]:
    """Return our solver's CPU seconds on a grid of strengths, and which of them converged."""
    start = time.process_time()
    fit = logistic_regression(x, target, grid, TOLERANCE, 2000)
    return time.process_time() - start, fit.converged.tolist()


def main() -> None:
    """Run the race and the comparison of strengths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--large",
        action="store_true",
        help="50,000 x 2,048, once, instead of 10,000 x 512, three times",
    )
    large = parser.parse_args().large
    torch.set_num_threads(1)
    n, f = (50_000, 2048) if large else (10_000, 512)
    race(n, f, rounds=1 if large else 3)
    strengths(n, f, in_turn=not large)


if __name__ == "__main__":
    main()
