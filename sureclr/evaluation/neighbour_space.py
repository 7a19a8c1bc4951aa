"""In which space the product looks up neighbours: partially whitened features (theory 10).

Cosines of raw features are ruled by the few axes of largest variance, which say little of the
class. The features are scaled to length 1, centred, and their principal coordinates multiplied by
eigenvalue^-a. The exponent a is chosen on labelled training images alone, by leave-one-out kNN.
"""

from dataclasses import dataclass

import numpy as np
import torch

from sureclr.data.counter_rng import sample_rows
from sureclr.data.embeddings import Embeddings
from sureclr.maths.neighbours import Unit, top_k, vote
from sureclr.maths.whitening import PrincipalAxes, principal_axes

EXPONENTS = (0.0, 0.125, 0.25, 0.375, 0.5)  # from the cosine to the Mahalanobis cosine
WITHOUT_LABELS = 0.25
VOTERS = 20  # of the leave-one-out vote
FEWEST = 100  # labelled training images below which no exponent is chosen
MOST = 3000  # labelled training images on which it is chosen, in a sample where there are more
CHOSEN_ON = 3007  # stream of seeds


@dataclass(frozen=True, eq=False)
class NeighbourSpace:
    """Partially whitened features.

    Attributes:
        axes: mean and covariance of the unit-length features of the training images.
        exponent: a in [0, 1/2].
        n_chosen_on: labelled training images on which the exponent was chosen; 0: it is 1/4.
        unit: features (n, f) -> rows (n, f) of length 1, whose cosines are compared.
    """

    axes: PrincipalAxes
    exponent: float
    n_chosen_on: int
    unit: Unit


def choose_space(
    table: Embeddings,
    axes: PrincipalAxes | None = None,
    *,
    seed: int = 0,
    device: torch.device | None = None,
) -> NeighbourSpace:
    """Return the space in which the neighbours of a table's images are looked up.

    Each exponent of EXPONENTS has an accuracy: how often the vote of the 20 nearest others names
    the class of a labelled training image, among at most 3,000 of these. The highest wins, the
    smaller exponent of equals. With fewer than 100 of them the exponent is 1/4.

    Args:
        table: the embeddings; its test split takes no part.
        axes: of the unit-length features of the training images; None: they are computed.
        seed: of the sample.
        device: which compares the rows; None: that of the table.

    Raises:
        UserError: there are no images, or a number is not finite.
    """
    training = np.flatnonzero(table.split != "test")
    if axes is None:
        rows = torch.from_numpy(training) if len(training) else None
        axes = principal_axes(table.features, of_unit_rows=True, rows=rows)
    known = torch.from_numpy(training[table.labels.numpy()[training] >= 0])
    if len(known) < FEWEST:
        return NeighbourSpace(axes, WITHOUT_LABELS, 0, axes.whitening(WITHOUT_LABELS))
    chosen = sample_rows(known, MOST, CHOSEN_ON, seed)
    features, labels = table.features[chosen], table.labels[chosen]
    names, named = labels.unique(return_inverse=True)

    def right(exponent: float) -> int:
        near, index = top_k(
            *(features, features, VOTERS),
            exclude_self=True,
            device=device,
            unit=axes.whitening(exponent),
        )
        return int((vote(near, named[index], len(names)) == named).sum())

    best = max(EXPONENTS, key=right)  # the first of equals
    return NeighbourSpace(axes, best, len(chosen), axes.whitening(best))
