"""Does the radius come out? The experiment of theory 7: known latents, unknown mixing.

    python -m benchmarks.recovery [--only NAME ...] [--d 10 ...] [--noise poisson|vmf ...]
                                  [--latents uniform|clustered ...] [--temperatures 0.2 ...]
                                  [--absent 0 0.1 0.3] [--kinds hidden visible]
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

With `--absent`, that share of the views shows nothing of the latent: their direction comes from
another one, which is uniform. Where the kinds are hidden, nothing in an observation says so, and
the true presence of every view is 1 less the share. Where they are visible, a coordinate of its own
tells the true presence: 0 for half of the share of the views, 1/2 for the share, and 1 for the
others. Null views are observations whose coordinates come from different views each.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, astuple, dataclass
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
from sureclr.maths.metrics import auroc, calibration_by_bins, spearman
from sureclr.maths.objectives import Objective, objective
from sureclr.maths.sampling import sample, uniform_directions
from sureclr.maths.sphere import Posterior, expected_cosine
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
    "sure-nulls": {},
    "sure-presence": {"presence": "on"},
    "sure-presence-nulls": {"presence": "on"},
}
WITH_NULLS = ("sure-nulls", "sure-presence-nulls")
NULLS = 128  # null views of a step: an eighth of its views
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
    "sure-nulls": SWEEP,
    "sure-presence": SWEEP,
    "sure-presence-nulls": SWEEP,
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
    absent: float = 0.0
    kinds: str = "hidden"


# The world


class World:
    """Pairs of observations with their truth.

    One seed gives one mixing network, one set of centres and one stream of pairs.
    """

    def __init__(self, job: Job) -> None:
        """Draw the mixing network and the centres."""
        self.job, self.generator = job, torch.Generator().manual_seed(job.seed)
        self.mixing = mixing(job.d + (job.kinds == "visible"), self.generator)
        self.centres = uniform_directions(CENTRES, job.d, self.generator)
        self.kappa = kappa_of_radius(job.d)

    def pairs(self, n: int) -> tuple[Tensor, Posterior]:
        """Draw (2n, 32) observations and their true posteriors.

        Rows i and i + n are the views of latent i.
        """
        low, high = RADII
        radius = low + (high - low) * torch.rand(2 * n, generator=self.generator)
        latents, shown = self.latents(n).repeat(2, 1), None
        if self.job.absent:
            shown = self.presences(2 * n)
            nothing = torch.rand(2 * n, generator=self.generator) >= shown
            others = uniform_directions(2 * n, self.job.d, self.generator)
            latents = torch.where(nothing[:, None], others, latents)
        truth = Posterior(self.noisy(latents, radius), radius, presence=shown)
        seen = radius[:, None] * truth.direction
        if self.job.kinds == "visible":
            assert shown is not None
            seen = torch.cat((seen, shown[:, None] - 0.5), 1)
        return self.mixing(seen), truth

    def presences(self, views: int) -> Tensor:
        """Draw the true presence of each view."""
        share = self.job.absent
        if self.job.kinds == "hidden":
            return torch.full((views,), 1 - share)
        chance = torch.rand(views, generator=self.generator)
        return torch.where(chance < share / 2, 0.0, torch.where(chance < 1.5 * share, 0.5, 1.0))

    def nulls(self, views: Tensor, n: int) -> Tensor:
        """Draw (n, 32) observations, each coordinate that of a view of its own."""
        rows = torch.randint(len(views), (n, OBSERVED), generator=self.generator)
        return views.gather(0, rows)

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


def encoder(d: int, numbers: int) -> nn.Module:
    """Return a network (n, 32) -> (n, d + numbers): a direction of any length, and k, at first 0.

    The numbers of k are those that the loss reads, one or two.
    """
    last = nn.Linear(WIDTH, d + numbers)
    nn.init.zeros_(last.weight[d:])
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Linear(OBSERVED, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), last
    )


def read(loss: Objective, net: nn.Module, x: Tensor) -> Posterior:
    """Return the posteriors of (n, 32) observations."""
    out = net(x)
    d = out.shape[1] - loss.numbers
    return loss.read(out[:, :d], out[:, d] if loss.numbers == 1 else out[:, d:])


def train(job: Job, world: World) -> tuple[Objective, nn.Module, float]:
    """Return the trained loss and network, and the CPU seconds of a step without its data."""
    torch.manual_seed(job.seed)  # of the network's start
    name, options = job.name, {}
    if job.name in SURE:
        name, options = "sure", {"weight": 1.0, "dimension": "measured", **SURE[job.name]}
    loss = objective(name, temperature=job.tau, **options)
    net = encoder(job.d, loss.numbers)
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, job.steps)
    seconds = 0.0
    for _ in range(job.steps):
        x, _ = world.pairs(PAIRS)
        nothing = world.nulls(x, NULLS) if job.name in WITH_NULLS else x[:0]
        start = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        everything = read(loss, net, torch.cat((x, nothing)))
        views, nulls = everything.part(slice(len(x))), everything.part(slice(len(x), None))
        value = loss(views, generator=world.generator)
        if len(nothing):
            value = value + loss.null_loss(views, nulls)
        value.backward()
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
        nulls = read(loss, net, world.nulls(x, TEST))
    m = getattr(loss, "kernel_dimension", None) or job.d
    return {
        **asdict(job),
        **radius_numbers(predicted, truth),
        **pair_numbers(predicted, m),
        **presence_numbers(predicted, truth, nulls),
        "cosine": direction_cosine(predicted, truth),
        "kernel_dimension": m,
        "cpu_s_per_step": seconds,
        "date": date.today().isoformat(),
    }


def radius_numbers(predicted: Posterior, truth: Posterior) -> Line:
    """Compare predicted with true radii, over the test views that may show something."""
    assert predicted.radius is not None and truth.radius is not None
    may = slice(None) if truth.presence is None else truth.presence > 0
    own, true = predicted.radius[may], truth.radius[may]
    error = (own - true).double()
    return {
        "spearman": spearman(own, true),
        "mae": error.abs().mean().item(),
        "bias": error.mean().item(),
    }


def presence_numbers(predicted: Posterior, truth: Posterior, nulls: Posterior) -> Line:
    """Compare predicted with true presences, and views with null views.

    `presence_at_X` is the mean predicted presence of the views whose true presence is X, and
    `presence_mae` the mean absolute difference. `nulls_auroc` is how well the certainty, pi rho,
    separates views from null views.
    """
    assert predicted.certainty is not None and nulls.certainty is not None
    certainty = torch.cat((predicted.certainty, nulls.certainty))
    numbers: Line = {"nulls_auroc": auroc(certainty, torch.arange(len(certainty)) < 2 * TEST)}
    if predicted.presence is None:
        return numbers
    assert nulls.presence is not None
    own = predicted.presence
    true = torch.ones_like(own) if truth.presence is None else truth.presence
    kinds = {f"presence_at_{x:.2f}": own[true == x].mean().item() for x in true.unique().tolist()}
    if len(kinds) > 1:
        numbers["kinds_auroc"] = auroc(own, true == 1)
    return {
        **numbers,
        **kinds,
        "presence_mae": (own - true).abs().mean().item(),
        "presence_sd": own.std().item(),
        "presence_of_nulls": nulls.presence.mean().item(),
    }


def direction_cosine(predicted: Posterior, truth: Posterior) -> float:
    """Return the mean cosine of predicted and true directions, after the best orthogonal map."""
    own, true = predicted.direction.double(), truth.direction.double()
    turn, _ = orthogonal_procrustes(own.numpy(), true.numpy())
    return float((own @ torch.as_tensor(turn) * true).sum(-1).mean())


def pair_numbers(predicted: Posterior, m: float) -> Line:
    """Return the numbers that need no truth.

    They are the calibration of r = rho rho' (with presences pi pi' rho rho') against the pair's
    cosine, and log E[exp s] over different latents.
    """
    halves, (mu, other) = (slice(TEST), slice(TEST, None)), predicted.direction.chunk(2)
    rows = torch.arange(NEGATIVES).repeat(2) + torch.tensor([0, TEST]).repeat_interleave(NEGATIVES)
    some = predicted.part(rows)
    presence = None if some.presence is None else some.presence.double()
    assert some.radius is not None
    diagnostic, error = log_mean_exp_evidence(
        Posterior(some.direction.double(), some.radius.double(), presence=presence), m
    )
    expected = expected_cosine(*(predicted.part(half) for half in halves))
    return {
        "calibration": calibration_by_bins(expected, (mu * other).sum(-1)).error,
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
    parser.add_argument(
        "--absent", nargs="+", type=float, default=[0.0], help="shares of views that show nothing"
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=["hidden", "visible"],
        default=["hidden"],
        help="whether an observation tells its presence; counts only where views are absent",
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
    worlds = product(
        options.latents, options.noise, options.d, options.absent, options.kinds, options.only
    )
    for latents, noise, d, absent, kinds, name in worlds:
        if kinds == "visible" and not absent:
            continue
        own: dict[str, Any] = {"absent": absent, "kinds": kinds}
        sweep = [
            Job(name, d, noise, latents, tau, first, options.steps, **own)
            for tau in temperatures(name, options.temperatures)
        ]
        yield from sweep
        tau = chosen(name, sweep, read_lines(options.lines))
        for seed in others:
            yield Job(name, d, noise, latents, tau, seed, options.steps, **own)


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
    return tuple(
        line[name] if field.default is MISSING else line.get(name, field.default)
        for name, field in Job.__dataclass_fields__.items()
    )


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
