"""The evaluations by name: each a function of the material that returns one key of results.json."""

from collections.abc import Callable
from typing import Any

from sureclr.evaluation.knn import knn_accuracy
from sureclr.evaluation.linear_probe import linear_probe
from sureclr.evaluation.material import Material, labelled_split
from sureclr.evaluation.ood import ood as ood_of
from sureclr.evaluation.uncertainty import uncertainty as uncertainty_of
from sureclr.models.embed import Embeddings

Result = dict[str, Any]


def linear(material: Material) -> Result:
    """Accuracy of a linear probe on the features, with its 95 % interval, beside raw pixels and the untrained encoder."""
    def one(table: Embeddings) -> Result:
        train, test = labelled_split(table, "linear", material.images.name)
        probe = linear_probe(train.features, train.labels, test.features, test.labels)
        return {"accuracy": probe.accuracy, "interval": list(probe.interval), "strength": probe.strength,
                "strengths": [list(pair) for pair in probe.strengths], "converged": probe.converged,
                "n_train": len(train), "n_test": len(test), "features": train.features.shape[1]}

    return _beside_baselines(material, one)


def knn(material: Material) -> Result:
    """Accuracy of a weighted vote of the 20 nearest training images, with its 95 % interval, beside the same baselines."""
    def one(table: Embeddings) -> Result:
        train, test = labelled_split(table, "knn", material.images.name)
        found = knn_accuracy(train.features, train.labels, test.features, test.labels, k=min(20, len(train)))
        return {"accuracy": found.accuracy, "interval": list(found.interval), "k": found.k, "n_train": len(train), "n_test": len(test)}

    return _beside_baselines(material, one)


def _beside_baselines(material: Material, one: Callable[[Embeddings], Result]) -> Result:
    result = one(material.table)
    raw, untrained = one(material.raw), one(material.untrained)
    return {**result, "baselines": {"raw_pixels": raw["accuracy"], "untrained": untrained["accuracy"]},
            "baseline_intervals": {"raw_pixels": raw["interval"], "untrained": untrained["interval"]}}


def uncertainty(material: Material) -> Result:
    """How sure the model is, and whether it is right to be: see uncertainty.py."""
    return uncertainty_of(material.run, material.images, material.table, reference=material.reference, each=material.each_batch)


def ood(material: Material) -> Result:
    """Is it less sure of images from elsewhere? See ood.py."""
    return ood_of(material.run, material.images, material.table, human=material.human, root=material.root,
                  reference=material.reference, each=material.each_batch)


EVALUATIONS: dict[str, Callable[[Material], Result]] = {"knn": knn, "linear": linear, "uncertainty": uncertainty, "ood": ood}
