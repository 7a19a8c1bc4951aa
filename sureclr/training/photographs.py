"""What a run on people's own pictures starts from: the recipe `photos`, by what is at hand."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sureclr.config import PICTURE_SOURCES, PretrainConfig
from sureclr.data.sources import FILE_SOURCES
from sureclr.errors import UserError
from sureclr.models.encoders import fitting_side, timm_defaults
from sureclr.models.hub_cache import with_weights
from sureclr.progress import SILENT, Progress
from sureclr.recipes import FEW_PICTURES, PHOTO_ENCODERS, photos

LARGEST_SIDE = 224  # of the images of a pretrained encoder; DINOv2's own 518 have 5 times as many


def recipe_for_pictures(
    source: str, chosen: Mapping[str, Any] | None = None, progress: Progress = SILENT
) -> PretrainConfig:
    """Return the recipe `photos` for a source of pictures, and say in a line what it begins with.

    The pictures are listed and not read, and nothing is downloaded. Pretrained weights that lie on
    this machine are used: frozen where there are fewer than 20,000 pictures, else trained on.

    Args:
        source: "folder:PATH", or another source of picture files.
        chosen: fields that the user chose already: the recipe fits itself to `encoder`, `init` and
            `freeze`. They are not in the result.
        progress: gets the line.

    Raises:
        UserError: the source is none of picture files, or there are none.
    """
    chosen = {} if chosen is None else chosen
    kind, _, place = source.partition(":")
    if kind not in PICTURE_SOURCES or not place:
        raise UserError(
            f"the recipe photos is for picture files, such as folder:PATH, and {source} is another"
            " data source; use that one's own recipe."
        )
    splits = FILE_SOURCES[kind](place).splits
    count, training = len(splits), sum(split != "test" for split in splits)
    if None in splits:  # the content decides, and about a fifth is held out
        training = training * 4 // 5
    init = chosen.get("init")
    encoder = _encoder(chosen.get("encoder"), init)
    of_run = init is not None and Path(init).expanduser().is_dir()
    frozen = chosen.get("freeze", "backbone" if count < FEW_PICTURES and not of_run else "off")
    config = photos(encoder, frozen=frozen == "backbone", images=training)
    defaults = None if encoder is None else timm_defaults(encoder)
    if encoder is not None and defaults is not None and defaults.input_size[-1] > LARGEST_SIDE:
        config = replace(config, size=fitting_side(encoder, LARGEST_SIDE))
    if init is None:
        progress.message(_what_it_begins_with(config, chosen, count))
    if config.batch_size < photos().batch_size and "batch_size" not in chosen:
        progress.message(
            f"A batch has {config.batch_size} images, because there are about {training:,} to train"
            " on; batch_size=N sets another number."
        )
    return config


def _encoder(wanted: str | None, init: str | None) -> str | None:
    """Return the pretrained encoder to begin with; None: it begins with random weights."""
    if init == "random":
        return None
    if init is not None and init != "timm":
        return wanted or photos().encoder  # which the file or the run has to fit
    if init == "timm" and wanted is not None:
        return wanted
    at_hand = with_weights(PHOTO_ENCODERS if wanted is None else [wanted])
    if at_hand:
        return at_hand[0]
    return None if init is None else PHOTO_ENCODERS[0]


def _what_it_begins_with(config: PretrainConfig, chosen: Mapping[str, Any], count: int) -> str:
    pictures = f"there are {count:,} picture{'s' * (count != 1)}"
    if not config.pretrained:
        wanted = chosen.get("encoder")
        if wanted is not None and timm_defaults(wanted) is None:
            return f"The encoder {wanted} begins with random weights; there are no others for it."
        of_what = "" if wanted is None else f" of {wanted}"
        name = f" encoder={PHOTO_ENCODERS[0]}" if wanted is None else ""
        return (
            f"The encoder {wanted or config.encoder} begins with random weights, because no"
            f" pretrained weights{of_what} are on this machine; with init=timm{name} they are"
            " downloaded once, and training takes minutes."
        )
    ways = "init=random begins without its weights, and encoder=NAME takes another"
    if config.freeze == "backbone":
        return (
            f"The encoder {config.encoder} is pretrained (its weights are on this machine) and"
            f" stays as it is, and heads are trained on its features, because {pictures}, fewer"
            f" than {FEW_PICTURES:,}; freeze=off trains it as well, {ways}."
        )
    because = f", because {pictures}, at least {FEW_PICTURES:,}" * ("freeze" not in chosen)
    return (
        f"The encoder {config.encoder} is pretrained (its weights are on this machine) and is"
        f" trained on with layer_decay={config.layer_decay}{because}; freeze=backbone trains heads"
        f" on its features alone, {ways}."
    )
