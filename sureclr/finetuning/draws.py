"""Which images a fine-tuning is trained and tested on."""

from dataclasses import dataclass

from sureclr.data.image_set import ImageSet
from sureclr.data.label_request import LabelRequest
from sureclr.data.labels import Labelled, choose_labels, labelled_rows, read_labels, why_not_tested
from sureclr.errors import UserError
from sureclr.finetuning.config import FinetuneConfig
from sureclr.progress import SILENT, Progress


@dataclass(frozen=True)
class Draw:
    """The labels of one repetition, from a fold of the data set or (None) from all of it."""

    seed: int
    fold: int | None
    labelled: Labelled


def label_draws(
    images: ImageSet, config: FinetuneConfig, seed: int = 0, progress: Progress = SILENT
) -> list[Draw]:
    """Choose the labels of every repetition.

    Labels from a file are the same in each. The images of a draw are then those given with the
    labels of the file, of which some may have become test images.

    Args:
        images: with or without labels.
        config: the settings.
        seed: of the labels in a file that are held out for testing.
        progress: gets what there is to say about a file.

    Raises:
        UserError: the labels or folds asked for do not exist.
    """
    request = LabelRequest.of(config.label_request, config.image_column, config.label_column)
    if request.file is not None:
        if config.fold is not None:
            raise UserError(
                f"labels come from the file {request.file.path} or from fold {config.fold}, not"
                " from both; leave one out."
            )
        labelled = read_labels(request.file, images, seed, progress)
        return [Draw(number, None, labelled) for number in config.seed_numbers]
    if config.fold != "all":
        return [
            Draw(number, config.fold, choose_labels(images, request, config.fold, number))
            for number in config.seed_numbers
        ]
    count = 0 if images.folds is None else len(images.folds)
    return [  # without folds, fold 0 raises the error that says so
        Draw(fold, fold, choose_labels(images, request, fold, fold))
        for fold in range(max(1, count))
    ]


def test_images_of(draw: Draw) -> tuple[Labelled, str]:
    """Return the labelled test images of a draw, and why there are none ("" where there are some).

    There may be none where the labels come from a file and are too few to hold some of them out.

    Raises:
        UserError: the images have labels of their own, and no test image has one.
    """
    images = draw.labelled.images
    test = labelled_rows(images, "test")
    why = why_not_tested(images)
    if len(test) == 0 and not draw.labelled.from_file:
        raise UserError(
            f"fine-tuning needs labelled test images, and {images.name} has none; put images into"
            " test/CLASS/ folders, or set data to a source that has some."
        )
    return test, why
