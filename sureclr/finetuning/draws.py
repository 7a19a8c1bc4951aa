"""Which images a fine-tuning is trained and tested on."""

from dataclasses import dataclass

from sureclr.data.image_set import ImageSet
from sureclr.data.label_request import LabelRequest
from sureclr.data.labels import Labelled, choose_labels, labelled_rows
from sureclr.errors import UserError
from sureclr.finetuning.config import FinetuneConfig


@dataclass(frozen=True)
class Draw:
    """The labels of one repetition, from a fold of the data set or (None) from all of it."""

    seed: int
    fold: int | None
    labelled: Labelled


def label_draws(images: ImageSet, config: FinetuneConfig) -> list[Draw]:
    """Choose the labels of every repetition.

    Raises:
        UserError: the labels or folds asked for do not exist.
    """
    request = LabelRequest.of(config.label_request)
    if config.fold != "all":
        return [
            Draw(seed, config.fold, choose_labels(images, request, config.fold, seed))
            for seed in config.seed_numbers
        ]
    count = 0 if images.folds is None else len(images.folds)
    return [  # without folds, fold 0 raises the error that says so
        Draw(fold, fold, choose_labels(images, request, fold, fold))
        for fold in range(max(1, count))
    ]


def test_images_of(images: ImageSet) -> Labelled:
    """Return the labelled test images.

    Raises:
        UserError: there are none.
    """
    test = labelled_rows(images, "test")
    if len(test) == 0:
        raise UserError(
            f"fine-tuning needs labelled test images, and {images.name} has none; put images into"
            " test/CLASS/ folders, or set data to a source that has some."
        )
    return test
