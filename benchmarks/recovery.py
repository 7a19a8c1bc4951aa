"""Does the radius come out? The experiment of theory 7: known latents, unknown mixing.

    python -m benchmarks.recovery [--only NAME ...] [--d 10 ...] [--noise poisson|vmf ...]
                                  [--latents uniform|clustered ...] [--temperatures 0.2 ...]
                                  [--seeds 0 1 2] [--steps 1500] [--lines FILE]
    python -m benchmarks.recovery --table

A latent z on S^{d-1} has two views, whose radii rho are uniform in [0.1, 0.98] and independent of
z. Their directions mu come from the Poisson kernel at rho z, or from von Mises-Fisher with mean
resultant length rho. So rho mu is the mean of z given the view (for uniform latents). A fixed
random injective network turns rho mu into a 32-d observation; an MLP learns a direction and k from
pairs of observations alone. Then its radius is compared with the true one, which it never saw.

In each world, SURE's temperatures are swept at seed 0, and the one whose log E[exp s] is nearest 0
is run with all seeds: no truth enters that choice. A reference is run with the temperature of its
lowest error: there the truth chooses, in its favour. kappa is read as its mean resultant length. A
finished run is one line of recovery.jsonl, and a run that has its line is not repeated.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg import orthogonal_procrustes
from torch import Tensor, nn

from benchmarks.lines import Line, append_line, read_lines, run_as_command
from benchmarks.study import spread
from sureclr.maths.losses import log_mean_exp_evidence
from sureclr.maths.metrics import calibration_by_bins, spearman
from sureclr.maths.objectives import Objective, objective
from sureclr.maths.sampling import sample, uniform_directions
from sureclr.maths.sphere import Posterior
from sureclr.maths.vmf import sample_vmf, vmf_mean_resultant_length

LINES = Path(__file__).with_suffix(".jsonl")
OBSERVED, WIDTH = 32, 256  # coordinates of an observation; the encoder's hidden width
RATE = 2e-3  # Adam's learning rate, which falls to 0 as a cosine
PAIRS, TEST = 512, 4096  # latents of a step and of the test
NEGATIVES = 1024  # latents of the test for log E[exp s], whose memory is quadratic
RADII = (0.1, 0.98)
# Clustered latents: Poisson kernels of this radius about uniform centres
CENTRES, CLUSTER_RADIUS = 20, 0.7

# Variants of SURE and what differs from its defaults, in addition to weight 1 and measured kernel
SURE: dict[str, dict[str, Any]] = {
    "sure": {},
    "sure-directions": {"softening": "off"},
    "sure-means": {"softening": "means"},
    "sure-prior": {"empirical_prior": 0.5},
}
SWEEP = (0.2, 0.3, 0.5, 1.0)
# The temperatures to try for each loss, in the order in which they run. None: it has none
TEMPERATURES: dict[str, tuple[float | None, ...]] = {
    "sure": SWEEP,
    "mc-infonce": (0.05, 0.1, 0.2, 0.5),
    "poisson-nce": (None,),
    "gaussian-nce": (None,),
    "elk": (1.0, 0.5),
    "cosine-regression": SWEEP,
    "sure-directions": SWEEP,
    "sure-means": SWEEP,
    "sure-prior": SWEEP,
}


@dataclass(frozen=True)
class Job:
    """The settings of a run."""

    name: str
    d: int
    noise: str
    latents: str
    tau: float | None
    seed: int
    steps: int


# The world


class World:
    """Pairs of observations with their truth.

    One seed gives one mixing network, one set of centres and one stream of pairs.
    """

    def __init__(self, job: Job) -> None:
        """Draw the mixing network and the centres."""
        self.job, self.generator = job, torch.Generator().manual_seed(job.seed)
        self.mixing = mixing(job.d, self.generator)
        self.centres = uniform_directions(CENTRES, job.d, self.generator)
        self.kappa = kappa_of_radius(job.d)

    def pairs(self, n: int) -> tuple[Tensor, Posterior]:
        """Draw (2n, 32) observations and their true posteriors.

        Rows i and i + n are the views of latent i.
        """
        low, high = RADII
        radius = low + (high - low) * torch.rand(2 * n, generator=self.generator)
        truth = Posterior(self.noisy(self.latents(n).repeat(2, 1), radius), radius)
        return self.mixing(truth.mean), truth

    def latents(self, n: int) -> Tensor:
        """Draw (n, d) unit vectors z."""
        if self.job.latents == "uniform":
            return uniform_directions(n, self.job.d, self.generator)
        which = torch.randint(CENTRES, (n,), generator=self.generator)
        return sample(
            Posterior(self.centres[which], torch.full((n,), CLUSTER_RADIUS)), self.generator
        )

    def noisy(self, z: Tensor, radius: Tensor) -> Tensor:
        """Draw (n, d) directions mu about z with E[mu | z] = rho z.

        Both laws are symmetric in mu and z.
        """
        if self.job.noise == "poisson":
            return sample(Posterior(z, radius), self.generator)
        return sample_vmf(z, self.kappa(radius), self.generator)


def mixing(d: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return a random injective map of (n, d) to (n, 32).

    It has orthogonal maps, and between them shifts and a leaky rectifier. Without the shifts it
    would be homogeneous: the observation's length would reveal the radius.
    """
    maps = [
        torch.linalg.qr(torch.randn(OBSERVED, OBSERVED, generator=generator))[0] for _ in range(3)
    ]
    shifts = [torch.randn(OBSERVED, generator=generator) / 2 for _ in range(2)]

    def observe(u: Tensor) -> Tensor:
        x: Tensor = math.sqrt(OBSERVED) * u @ maps[0][:d]  # a coordinate of size rho
        for shift, turn in zip(shifts, maps[1:], strict=True):
            x = nn.functional.leaky_relu(x + shift, 0.2) @ turn
        return x

    return observe


def kappa_of_radius(d: int) -> Callable[[Tensor], Tensor]:
    """Return the inverse of A_d by interpolation.

    The relative error of the radius is under 1e-5 inside RADII.
    """
    log_kappa = torch.linspace(math.log(1e-2), math.log(1e4), 8192, dtype=torch.float64)
    radius = vmf_mean_resultant_length(log_kappa.exp(), d).numpy()
    return lambda rho: torch.as_tensor(
        np.exp(np.interp(rho.numpy(), radius, log_kappa.numpy())), dtype=rho.dtype
    )


# A run


def encoder(d: int) -> nn.Module:
    """Return a network (n, 32) -> (n, d + 1): a direction of any length, and k, at first 0."""
    last = nn.Linear(WIDTH, d + 1)
    nn.init.zeros_(last.weight[-1])
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Linear(OBSERVED, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), last
    )


def read(loss: Objective, net: nn.Module, x: Tensor) -> Posterior:
    """Return the posteriors of (n, 32) observations."""
    out = net(x)
    return loss.read(out[:, :-1], out[:, -1])


def train(job: Job, world: World) -> tuple[Objective, nn.Module, float]:
    """Return the trained loss and network, and the CPU seconds of a step without its data."""
    torch.manual_seed(job.seed)  # of the network's start
    name, options = job.name, {}
    if job.name in SURE:
        name, options = "sure", {"weight": 1.0, "dimension": "measured", **SURE[job.name]}
    loss, net = objective(name, temperature=job.tau, **options), encoder(job.d)
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, job.steps)
    seconds = 0.0
    for _ in range(job.steps):
        x, _ = world.pairs(PAIRS)
        start = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        loss(read(loss, net, x), generator=world.generator).backward()
        optimizer.step()
        schedule.step()
        seconds += time.process_time() - start
    return loss.eval(), net, seconds / job.steps


def one_run(job: Job) -> Line:
    """Train, measure on new pairs of the same world, and return the numbers in one flat line."""
    world = World(job)
    loss, net, seconds = train(job, world)
    x, truth = world.pairs(TEST)
    with torch.no_grad():
        predicted = read(loss, net, x)
    m = getattr(loss, "kernel_dimension", None) or job.d
    return {
        **asdict(job),
        **radius_numbers(predicted, truth),
        **pair_numbers(predicted, m),
        "cosine": direction_cosine(predicted, truth),
        "kernel_dimension": m,
        "cpu_s_per_step": seconds,
        "date": date.today().isoformat(),
    }


def radius_numbers(predicted: Posterior, truth: Posterior) -> Line:
    """Compare predicted with true radii, over 2n test views."""
    assert predicted.radius is not None and truth.radius is not None
    error = (predicted.radius - truth.radius).double()
    return {
        "spearman": spearman(predicted.radius, truth.radius),
        "mae": error.abs().mean().item(),
        "bias": error.mean().item(),
    }


def direction_cosine(predicted: Posterior, truth: Posterior) -> float:
    """Return the mean cosine of predicted and true directions, after the best orthogonal map."""
    own, true = predicted.direction.double(), truth.direction.double()
    turn, _ = orthogonal_procrustes(own.numpy(), true.numpy())
    return float((own @ torch.as_tensor(turn) * true).sum(-1).mean())


def pair_numbers(predicted: Posterior, m: float) -> Line:
    """Return the numbers that need no truth.

    They are the calibration of r = rho rho' against the pair's cosine, and log E[exp s] over
    different latents.
    """
    assert predicted.radius is not None
    (first, second), (mu, other) = predicted.radius.chunk(2), predicted.direction.chunk(2)
    rows = torch.arange(NEGATIVES).repeat(2) + torch.tensor([0, TEST]).repeat_interleave(NEGATIVES)
    diagnostic, error = log_mean_exp_evidence(
        Posterior(predicted.direction[rows].double(), predicted.radius[rows].double()), m
    )
    return {
        "calibration": calibration_by_bins(first * second, (mu * other).sum(-1)).error,
        "log_mean_exp": diagnostic,
        "log_mean_exp_se": error,
    }


# Which runs


def main() -> None:
    """Run the jobs that have no line yet, or print the table."""
    options = arguments()
    if options.table:
        print(table([line for line in read_lines(options.lines) if line["steps"] == options.steps]))
        return
    torch.set_num_threads(1)
    for job in jobs(options):
        if astuple(job) not in map(key, read_lines(options.lines)):
            print(as_text(append_line(one_run(job), options.lines)), flush=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="benchmarks.recovery", description=__doc__, formatter_class=raw
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=list(TEMPERATURES), default=list(TEMPERATURES)
    )
    parser.add_argument("--d", nargs="+", type=int, default=[10, 4, 32])
    parser.add_argument(
        "--noise", nargs="+", choices=["poisson", "vmf"], default=["poisson", "vmf"]
    )
    parser.add_argument(
        "--latents", nargs="+", choices=["uniform", "clustered"], default=["uniform", "clustered"]
    )
    parser.add_argument(
        "--temperatures",
        nargs="+",
        type=float,
        help="temperatures to try, in place of each loss's own list",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lines", type=Path, default=LINES, help="the file of finished runs")
    parser.add_argument(
        "--table",
        action="store_true",
        help="print the table of the finished runs, and run nothing",
    )
    return parser.parse_args()


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Yield the jobs world by world, the most important one first.

    That is d = 10, our noise, uniform latents. In each world SURE comes first, then MC-InfoNCE and
    the others.
    """
    first, *others = options.seeds
    for latents, noise, d, name in product(options.latents, options.noise, options.d, options.only):
        sweep = [
            Job(name, d, noise, latents, tau, first, options.steps)
            for tau in temperatures(name, options.temperatures)
        ]
        yield from sweep
        tau = chosen(name, sweep, read_lines(options.lines))
        yield from (Job(name, d, noise, latents, tau, seed, options.steps) for seed in others)


def temperatures(name: str, wanted: list[float] | None) -> tuple[float | None, ...]:
    """Return the temperatures to try for a loss."""
    own = TEMPERATURES[name]
    return own if wanted is None or own == (None,) else tuple(wanted)


def chosen(name: str, sweep: list[Job], lines: list[Line]) -> float | None:
    """Return the temperature for the other seeds: SURE's without the truth, others' by error."""
    runs = [line for line in lines if key(line) in map(astuple, sweep)]
    best: Line = min(
        runs, key=lambda line: abs(line["log_mean_exp"]) if name in SURE else line["mae"]
    )
    tau: float | None = best["tau"]
    return tau


def key(line: Line) -> tuple[Any, ...]:
    """Return the settings of a line's run."""
    return tuple(line[field] for field in Job.__dataclass_fields__)


def as_text(line: Line) -> str:
    """Return a line's names and values, without the date."""
    return "  ".join(f"{name} {value}" for name, value in line.items() if name != "date")


# The table

COLUMNS = {
    "Spearman": "spearman",
    "error of the radius": "mae",
    "bias": "bias",
    "cosine of directions": "cosine",
    "calibration of r": "calibration",
    "log E[exp s]": "log_mean_exp",
    "its standard error": "log_mean_exp_se",
    "m": "kernel_dimension",
    "CPU s a step": "cpu_s_per_step",
}


def table(lines: list[Line]) -> str:
    """Return a Markdown table with one row for each world, loss and temperature.

    Cells are means over seeds, ± the standard deviation where there are several.
    """
    rows = [
        "| latents, noise, d | loss | tau | seeds | " + " | ".join(COLUMNS) + " |",
        "| --- " * (len(COLUMNS) + 4) + "|",
    ]
    worlds: dict[tuple[Any, ...], list[Line]] = {}
    for line in sorted(lines, key=lambda line: line["tau"] or 0):
        worlds.setdefault(
            (line["latents"], line["noise"], line["d"], line["name"], line["tau"]), []
        ).append(line)
    for (latents, noise, d, name, tau), runs in sorted(worlds.items(), key=rank):
        cells = [spread([run[column] for run in runs]) for column in COLUMNS.values()]
        rows.append(
            f"| {latents}, {noise}, {d} | {name} | {tau or '-'} | {len(runs)} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(rows)


def rank(world: tuple[tuple[Any, ...], list[Line]]) -> tuple[Any, ...]:
    """Return the sorting key of a row."""
    (latents, noise, d, name, _), _ = world
    return latents == "clustered", noise, d, list(TEMPERATURES).index(name)


if __name__ == "__main__":
    run_as_command(main)
