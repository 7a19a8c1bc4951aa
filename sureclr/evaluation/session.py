"""The evaluations by name: each a function of the material that returns one key of results.json."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sureclr.data.counter_rng import sample_rows
from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.evaluation import feature_space as geometry_of
from sureclr.evaluation.certainty_quality import uncertainty as uncertainty_of
from sureclr.evaluation.explanations import explanation as explanation_of
from sureclr.evaluation.foreign_images import ood as ood_of
from sureclr.evaluation.inputs import Material, labelled_split
from sureclr.evaluation.invariances import sensitivity as sensitivity_of
from sureclr.evaluation.neighbour_vote import knn_accuracy
from sureclr.evaluation.training_history import learning as learning_of
from sureclr.maths.losses import Softening
from sureclr.models.embedding import embed_blocks
from sureclr.training.run import Run

Result = dict[str, Any]
BLOCK_NUMBERS = 1 << 28  # outputs of all blocks for all images kept at once: 1 GiB in float32
LEAST_TRAINING = 1000  # images of a sample, whatever the width


def linear(material: Material) -> Result:
    """Accuracy of a linear probe on the features, with its 95 % interval, beside raw pixels and the
    untrained encoder.

    `posterior_mean`: the same on u, whose linear read-out is averaged over the posterior (theory
        1); on the direction where the loss
    has no radius (`of` says which). `blocks`: the same on each block of the encoder, averaged over
    positions.
    """

    def one(table: Embeddings) -> Result:
        train, test = labelled_split(table, "linear", material.images.name)
        return _probe(material, train.features, train.labels, test.features, test.labels)

    result = _beside_baselines(material, one)
    of, mean = (
        ("direction", material.table.direction)
        if material.table.radius is None
        else ("u", material.table.posterior.mean)
    )
    return {
        **result,
        "posterior_mean": {"of": of, **one(replace(material.table, features=mean))},
        "blocks": block_probes(material),
    }


def _probe(
    material: Material, train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor
) -> Result:
    probe = material.probes(train_x, train_y, test_x, test_y)
    return {
        "accuracy": probe.accuracy,
        "interval": list(probe.interval),
        "strength": probe.strength,
        "strengths": [list(pair) for pair in probe.strengths],
        "converged": probe.converged,
        "n_train": len(train_x),
        "n_test": len(test_x),
        "features": train_x.shape[1],
    }


def block_probes(material: Material) -> list[Result]:
    """A linear probe on each block of the encoder, in order: where does the class become linear?

    Of many images and wide encoders the training images are a sample, so that all blocks' outputs
    stay within BLOCK_NUMBERS.
    """
    table, model, images = material.table, material.run.model, material.images
    split = {
        name: np.flatnonzero((table.split == name) & (table.labels.numpy() >= 0))
        for name in ("train", "test")
    }
    width = sum(output.shape[1] for output in embed_blocks(model, images.select([0])).values())
    room = max(BLOCK_NUMBERS // max(width, 1) - len(split["test"]), LEAST_TRAINING)
    train, test = sample_rows(torch.from_numpy(split["train"]), room, 0).numpy(), split["test"]
    outputs = embed_blocks(
        model, images, np.concatenate([train, test]), each_batch=material.each_batch
    )
    train_y, test_y = (table.labels[torch.from_numpy(rows)] for rows in (train, test))
    return [
        {"name": name, **_probe(material, h[: len(train)], train_y, h[len(train) :], test_y)}
        for name, h in outputs.items()
    ]


def knn(material: Material) -> Result:
    """Accuracy of a weighted vote of the 20 nearest training images, with its 95 % interval, beside
    the same baselines.
    """

    def one(table: Embeddings) -> Result:
        train, test = labelled_split(table, "knn", material.images.name)
        found = knn_accuracy(
            train.features, train.labels, test.features, test.labels, k=min(20, len(train))
        )
        return {
            "accuracy": found.accuracy,
            "interval": list(found.interval),
            "k": found.k,
            "n_train": len(train),
            "n_test": len(test),
        }

    return _beside_baselines(material, one)


def _beside_baselines(material: Material, one: Callable[[Embeddings], Result]) -> Result:
    result = one(material.table)
    raw, untrained = one(material.raw), one(material.untrained)
    return {
        **result,
        "baselines": {"raw_pixels": raw["accuracy"], "untrained": untrained["accuracy"]},
        "baseline_intervals": {"raw_pixels": raw["interval"], "untrained": untrained["interval"]},
    }


def uncertainty(material: Material) -> Result:
    """How sure the model is, and whether it is right to be: see uncertainty.py."""
    return uncertainty_of(
        material.run,
        material.images,
        material.table,
        reference=material.reference,
        each=material.each_batch,
    )


def ood(material: Material) -> Result:
    """Is it less sure of images from elsewhere? See ood.py."""
    return ood_of(
        material.run,
        material.images,
        material.table,
        human=material.human,
        root=material.root,
        reference=material.reference,
        each=material.each_batch,
    )


def learning(material: Material) -> Result:
    """How it learned: see learning.py."""
    _own(material, "learning")
    softening: Softening = getattr(material.run.objective, "softening", "off")
    return learning_of(
        material.run.directory.snapshots,
        material.images,
        temperature_of(material.run),
        softening,
        material.each_batch,
    )


def geometry(material: Material) -> Result:
    """What it sees, with the map of the images in map.parquet: see geometry.py."""
    _own(material, "geometry")
    result, columns = geometry_of.geometry(material.table, each=material.each_batch)
    geometry_of.save_map(material.run.path / "map.parquet", columns)
    return result


def sensitivity(material: Material) -> Result:
    """What it ignores: see sensitivity.py."""
    return sensitivity_of(
        lambda some: material.run.embed(some, material.each_batch),
        material.images,
        material.run.config.views,
    )


def explanation(material: Material) -> Result:
    """Why it is unsure: see explain.py."""
    _own(material, "an explanation")
    return explanation_of(material.run, material.images, material.table, material.each_batch)


def temperature_of(run: Run) -> float:
    """tau of the run's loss; SimCLR's usual 0.2 where the loss has none."""
    return float(getattr(run.objective, "temperature", 0.2))


def _own(material: Material, what: str) -> None:
    """Results that name rows of embeddings.parquet are of the run's own images only."""
    if material.images.name != material.run.source:
        raise UserError(
            f"{what} is told of the images that the run was trained on ({material.run.source}), "
            f"not of {material.images.name}; leave out --data."
        )


EVALUATIONS: dict[str, Callable[[Material], Result]] = {
    "knn": knn,
    "linear": linear,
    "uncertainty": uncertainty,
    "ood": ood,
    "learning": learning,
    "geometry": geometry,
    "sensitivity": sensitivity,
    "explanation": explanation,
}
