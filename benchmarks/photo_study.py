"""Does certainty answer its three questions on photographs? The measurements of a stored run.

    python -m benchmarks.photo_study RUN ... --folder DIR [--size 32] [--left-out CLASS ...]

It prints a line for each run; `benchmarks.study --source photographs` trains runs and saves their
lines. DIR has pictures in train/CLASS and test/CLASS. Every second test picture calibrates the
p-values of familiarity; the others are judged. The questions (theory 9), each put to every score:

    right_*    is the answer right? R-AUROC: the AUROC for telling judged pictures whose nearest
               neighbour, vote of 20 neighbours (both by the plain cosine, and by partially whitened
               features) or linear probe is right from the others
    ood_*      is anything of this kind here? AUROC for telling judged pictures from other images
    crop_less  how much does it show? how often a random crop has a lower score than its whole

Random numbers are the same for every run.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.lines import rounded, run_as_command
from sureclr.data.corruptions import CORRUPTIONS
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import UNLABELLED, ImageSet
from sureclr.data.sources import load_images
from sureclr.errors import UserError
from sureclr.evaluation.drawn_views import embed_view_pairs
from sureclr.evaluation.familiarity import Familiarity, conformal_p
from sureclr.evaluation.neighbour_space import NeighbourSpace, choose_space
from sureclr.evaluation.probes import ProbeResult, linear_probe
from sureclr.evaluation.scores import entropy, image_seeds
from sureclr.evaluation.tables import evidence_against
from sureclr.evaluation.view_pairs import (
    calibrate_evidence,
    calibrate_radius,
    training_view_pairs,
)
from sureclr.maths.metrics import auroc, spearman
from sureclr.maths.neighbours import PLAIN, top_k, vote
from sureclr.training.run import Run, load

VOTERS = 20
STRANGE = 500  # judged pictures that are compared with as many images of each other kind
PAIRS = 500  # pictures whose views calibrate radius and evidence
CROPS, VIEWS = 3101, 3102  # streams of seeds
Scores = dict[str, Tensor]


def main() -> None:
    """Print a line for each run."""
    options = arguments()
    torch.set_num_threads(options.threads)
    images = load_images(f"folder:{options.folder}", size=options.size)
    for path in options.runs:
        numbers = measure(load(path), images, options.left_out)
        print(json.dumps(rounded({"run": path.name, **numbers})), flush=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="benchmarks.photo_study", description=__doc__, formatter_class=raw
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32, help="side of the images, in pixels")
    parser.add_argument("--left-out", nargs="*", default=[], help="classes that they have not seen")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def measure(run: Run, images: ImageSet, left_out: Sequence[str] = ()) -> dict[str, Any]:
    """Return the numbers of a run.

    Args:
        run: trained on the training pictures of the images, without the classes left out.
        images: all pictures, with labels.
        left_out: names of classes that the run has not seen: their test pictures are another kind,
            `unseen`, and count for nothing else.
    """
    start = time.process_time()
    train, test = (without(part, left_out) for part in (images.train, images.test))
    judge = Judge.of(run, train, test.select(np.arange(0, len(test), 2)))
    judged = test.select(np.arange(1, len(test), 2))
    table = run.embed(judged)
    scores, answers = judge.judge(table)
    numbers: dict[str, Any] = {name: share(right) for name, right in answers.items()}
    wide = judge.evidence(table, table.direction.shape[1])
    both = scores if wide is None else {**scores, "evidence_of_all_coordinates": wide}
    for name, right in answers.items():
        numbers[f"right_{name}"] = {key: auroc(x, right) for key, x in both.items()}
    own = {key: score[:STRANGE] for key, score in scores.items()}
    some = judged.select(np.arange(min(STRANGE, len(judged))))
    kinds = dict(strange_images(some))
    if left_out:
        kinds = {"unseen": images.test.select(are_of(images.test, left_out)).images[:]}
    for name, pixels in kinds.items():
        other, _ = judge.judge(run.embed(unlabelled(pixels)))
        numbers[f"ood_{name}"] = {key: told_apart(own[key], other[key]) for key in own}
    numbers["ood_mean"] = {key: mean(numbers[f"ood_{name}"][key] for name in kinds) for key in own}
    numbers |= crops(run, some, judge, own) | calibration(run, train, some)
    if table.presence is not None:
        numbers["mean_presence"] = float(table.presence.mean())
    return numbers | {
        "exponent": judge.space.exponent,
        "kernel_dimension": run.kernel_dimension,
        "n_train": len(train),
        "n_calibration": len(test) - len(judged),
        "n_judged": len(judged),
        "n_strange": len(some),
        "measuring_cpu_s": time.process_time() - start,
    }


def are_of(images: ImageSet, classes: Sequence[str]) -> NDArray[np.bool_]:
    """Return which images are of one of these classes, (n,) bool.

    Raises:
        UserError: there is no such class.
    """
    for name in classes:
        if name not in images.classes:
            raise UserError(f"there is no class {name!r} among {', '.join(images.classes)}.")
    numbers = [images.classes.index(name) for name in classes]
    return np.isin(images.labels.numpy(), numbers)


def without(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    """Return the images that are of none of these classes."""
    return images.select(~are_of(images, classes)) if classes else images


def share(right: Tensor) -> float:
    """Return the share of true values."""
    return float(right.double().mean())


def told_apart(own: Tensor, other: Tensor) -> float:
    """Return the AUROC of a score for telling pictures from other images."""
    return auroc(torch.cat([own, other]), torch.arange(len(own) + len(other)) < len(own))


class Judge:
    """What a run's images are compared with: its training pictures.

    Attributes:
        gallery: the training pictures.
        space: partially whitened features, whose exponent is chosen on the training pictures.
        familiarity: with the distances of calibration pictures.
        probe: the linear probe.
    """

    def __init__(
        self,
        gallery: Embeddings,
        space: NeighbourSpace,
        familiarity: Familiarity,
        probe: ProbeResult,
    ) -> None:
        """Keep them."""
        self.gallery, self.space = gallery, space
        self.familiarity, self.probe = familiarity, probe

    @staticmethod
    def of(run: Run, train: ImageSet, calibration: ImageSet) -> "Judge":
        """Return the judge of a run."""
        gallery, held_out = run.embed(train), run.embed(calibration)
        space = choose_space(gallery)
        distances = space.axes.distances(held_out.features).sort().values
        probe = linear_probe(gallery.features, gallery.labels, held_out.features, held_out.labels)
        return Judge(gallery, space, Familiarity(space.axes, distances, "test pictures"), probe)

    def evidence(self, table: Embeddings, dimension: float | None = None) -> Tensor | None:
        """Return the evidence of some pictures against the gallery, (n,) nats; None: no radius.

        Args:
            table: the pictures.
            dimension: m of the kernel; None: the run's own, which is measured.
        """
        gallery = self.gallery
        if dimension is not None:
            gallery = replace(gallery, kernel_dimension=dimension)
        return evidence_against(table, gallery, torch.full((len(table),), -1))

    def judge(self, table: Embeddings) -> tuple[Scores, dict[str, Tensor]]:
        """Judge some pictures.

        Returns:
            every score by name, (n,) each, higher for more certain or familiar; and whether each
            answer is right, (n,) bool by name.
        """
        scores = {
            name: column
            for name in ("certainty", "radius", "presence")
            if (column := getattr(table, name)) is not None
        }
        evidence = self.evidence(table)
        if evidence is not None:
            scores["evidence"] = evidence
        labels, right = self.gallery.labels, {}
        for prefix, unit in (("", PLAIN), ("whitened_", self.space.unit)):
            near, index = top_k(table.features, self.gallery.features, VOTERS, unit=unit)
            scores[f"{prefix}neighbour"] = near[:, 0]
            scores[f"{prefix}mean_of_{VOTERS}"] = near.mean(1)
            voted = vote(near, labels[index], len(self.gallery.classes))
            right[f"{prefix}nearest"] = labels[index[:, 0]] == table.labels
            right[f"{prefix}knn"] = voted == table.labels
        distances = self.familiarity.distances(table.features)
        p = conformal_p(distances, self.familiarity.calibration)
        # The p-value of an image beyond all calibration pictures is the same however far it is
        scores |= {"familiarity": -distances, "p": p}
        if table.presence is not None:
            scores["presence_times_p"] = table.presence * p
        if table.certainty is not None:
            scores["certainty_times_p"] = table.certainty * p
        logits = table.features.double() @ self.probe.weight + self.probe.bias
        scores["negative_entropy"] = -entropy(logits)
        right["linear"] = self.probe.classes[logits.argmax(1)] == table.labels
        return scores, right


def crops(run: Run, whole: ImageSet, judge: Judge, own: Scores) -> dict[str, Any]:
    """Compare pictures with random crops of 8 to 100 % of their area, by score."""
    crop, seeds = CORRUPTIONS["crop"], image_seeds(whole, 0, CROPS)
    strengths = crop.random_strengths(seeds)
    pixels = crop(whole.images[:], seeds, strengths)
    table = run.embed(whole.with_pixels(pixels))
    cropped, answers = judge.judge(table)
    return {
        "crop_less": {key: share(cropped[key] < own[key]) for key in own},
        "crop_spearman": {key: spearman(cropped[key], strengths) for key in own},
        "crop_right_nearest": {key: auroc(cropped[key], answers["nearest"]) for key in own},
    }


def calibration(run: Run, train: ImageSet, test: ImageSet) -> dict[str, Any]:
    """Return how right the radius and the evidence of two views are, in cosine and in nats."""
    views = run.config.views
    pairs = embed_view_pairs(run.embed, test, np.arange(min(PAIRS, len(test))), views, 0, VIEWS)
    if pairs.posterior.radius is None:
        return {}
    training = training_view_pairs(run.embed, train, views, 0, PAIRS)
    radius = calibrate_radius(pairs, training)
    evidence = calibrate_evidence(pairs, training)
    return {
        "calibration_raw": radius.raw.error,
        "calibration_mapped": radius.mapped.error,
        "mean_cosine_different": radius.mean_cosine_different,
        "log_mean_exp": evidence.log_mean_exp,
        "log_loss_evidence": evidence.raw.log_loss,
        "log_loss_evidence_mapped": evidence.mapped.log_loss,
        "log_loss_prior": evidence.log_loss_prior,
    }


# --- Other images -------------------------------------------------------------------------


def unlabelled(pixels: Tensor) -> ImageSet:
    """Return images without labels as an ImageSet."""
    n = len(pixels)
    labels, split = torch.full((n,), UNLABELLED), np.full(n, "unlabelled")
    return ImageSet("strange", pixels, labels, (), split, [f"strange/{i}" for i in range(n)])


def strange_images(pictures: ImageSet) -> Iterator[tuple[str, Tensor]]:
    """Yield each kind of other images with its name, (n, 3, s, s) uint8."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.as_tensor(pictures.images[:])
    n, c, s, _ = pixels.shape

    def normal() -> Tensor:
        return torch.randn(pixels.shape, generator=generator)

    def byte(x: Tensor) -> Tensor:
        return x.round().clamp(0, 255).byte()

    yield "uniform_noise", torch.randint(0, 256, pixels.shape, generator=generator).byte()
    yield "gaussian_noise", byte(128 + 50 * normal())
    colour = torch.randint(0, 256, (n, c, 1, 1), generator=generator).byte()
    yield "constant", colour.expand(-1, -1, s, s).contiguous()
    down, across = torch.fft.fftfreq(s)[:, None], torch.fft.rfftfreq(s)
    frequency = (down.square() + across.square()).sqrt().clamp(min=1 / s)
    pink = torch.fft.irfft2(torch.fft.rfft2(normal()) / frequency, (s, s))
    yield "1/f_noise", byte(128 + 50 * pink / pink.std((1, 2, 3), keepdim=True))
    yield "8px_tiles", shuffled(pixels, 8, generator)
    yield "inverted", 255 - pixels
    yield "upside_down", pixels.flip(2).contiguous()
    for name in ("digits", "fashion-mnist"):
        try:
            other = load_images(name).test.images[:n]
        except UserError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        enlarged = interpolate(other[:].float(), size=(s, s), mode="bilinear", antialias=True)
        yield name, byte(enlarged).expand(-1, c, -1, -1).contiguous()


def shuffled(pixels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Return images whose square tiles are in random order."""
    n, c, s, _ = pixels.shape
    a = s // side
    tiles = pixels.view(n, c, a, side, a, side).permute(0, 2, 4, 1, 3, 5).reshape(n, a * a, -1)
    order = torch.rand(n, a * a, generator=generator).argsort(1)
    tiles = tiles.gather(1, order[:, :, None].expand_as(tiles)).view(n, a, a, c, side, side)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(n, c, s, s).contiguous()


if __name__ == "__main__":
    run_as_command(main)
