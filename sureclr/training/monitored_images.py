"""How the images that a monitor follows are embedded: by the network, or from features in memory.

The features of a frozen encoder never change, so those of the followed images are held.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.counter_rng import hashed
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.views import two_views
from sureclr.maths.sphere import Posterior
from sureclr.models.devices import autocast
from sureclr.models.embedding import embed, evaluating
from sureclr.models.simclr import SimCLR
from sureclr.training.step_views import FeatureViews


@dataclass(frozen=True)
class HeldFeatures:
    """The features of the images with which a run with a frozen encoder is monitored.

    Attributes:
        rows: (m,) rows of the training images, ascending.
        whole: (m, f) features of these images without augmentation.
        views: (2p, f) features of two views of each probe.
    """

    rows: Tensor
    whole: Tensor
    views: Tensor

    @staticmethod
    def of(features: FeatureViews, rows: Tensor, probes: Tensor) -> "HeldFeatures":
        """Read the features of some images, and of views 0 and 1 of the probes.

        Args:
            features: of the training images.
            rows: of the images, in any order, also several times.
            probes: (p,) rows of those of which views are followed.
        """
        once = rows.unique()
        both = torch.arange(2).repeat_interleave(len(probes))
        return HeldFeatures(once, features.whole(once), features.rows(both, probes.repeat(2)))


def embedded(
    model: SimCLR,
    images: ImageSet,
    rows: Tensor,
    precision: torch.dtype,
    held: HeldFeatures | None,
) -> Embeddings:
    """Return the table of some of the training images, whole.

    Args:
        model: the network, in any mode.
        images: the training images.
        rows: (m,) rows of these.
        precision: in which the network runs.
        held: their features; None: the images pass through the network.
    """
    some = images.select(rows)
    if held is None:
        return embed(model, some, precision=precision)
    features = held.whole[torch.searchsorted(held.rows, rows)]
    with evaluating(model):
        posterior = model.read(*model.heads(features.to(model.device)))
    return Embeddings(
        features,
        posterior.direction.cpu(),
        None if posterior.radius is None else posterior.radius.cpu(),
        None if posterior.certainty is None else posterior.certainty.cpu(),
        some.labels.cpu(),
        some.classes,
        some.split,
        some.paths,
        presence=None if posterior.presence is None else posterior.presence.cpu(),
    )


def embedded_views(
    model: SimCLR,
    images: ImageSet,
    rows: Tensor,
    seed: int,
    views: ViewConfig,
    precision: torch.dtype,
    held: HeldFeatures | None,
) -> tuple[Posterior, Posterior, Tensor]:
    """Return the posteriors of two views of some images, and the features (m, f) of the first.

    Args:
        model: the network, in any mode.
        images: the training images.
        rows: (m,) rows of these.
        seed: of the views.
        views: how they are made.
        precision: in which the network runs.
        held: the features of both views, whose seed is the run's; None: views are made.
    """
    with evaluating(model):
        if held is not None:
            h, other = held.views.to(model.device).chunk(2)
            return model.read(*model.heads(h)), model.read(*model.heads(other)), h
        seeds = hashed(rows, stream=seed, count=1)[:, 0]
        pixels = images.for_views(rows).to(model.device)
        both = two_views(pixels, seeds, views, images.images.shape[-1])
        with autocast(model.device, precision):
            (h, first), (_, second) = (model(part) for part in both.chunk(2))
        return first, second, h.float()
