"""A look at the header of every picture file, from which size, channels and value range follow."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sureclr.config import DEFAULT_SIZE
from sureclr.data.decoding import FileRef, PictureFacts, inspect, sample_values
from sureclr.data.folder_cache import Listing, kept_json
from sureclr.data.image_report import Sizes
from sureclr.progress import SILENT, Progress, report_progress

# Even where all is grey: one colour picture more must not change the model; pretrained encoders
# expect RGB
DEFAULT_CHANNELS = 3
MAY_BE_ENLARGED = 0.05  # share of the pictures, by the default size
SAMPLED_IMAGES = 256  # of more than 8 bits, for the value range
PERCENTILES = (0.1, 99.9)  # a few dead or hot pixels do not stretch the range
KEPT_VALUES = 4096  # of the sample, for counting levels
FEW_LEVELS = 32
FULL_SCALES = (1, 255, 1023, 4095, 16383, 65535)  # of cameras and file formats
COVERED = 0.75  # share of a full scale from which on the scale itself is the range


@dataclass(frozen=True)
class Survey:
    """What the headers of n files say.

    Attributes:
        facts: n facts, or the reason why a file cannot be read.
        values: (m,) sorted distinct values of pictures of more than 8 bits, thinned out.
        low: the low percentile of a pooled sample of their values.
        high: the high percentile.
        typical: (k,) sorted distinct values of one of those pictures, whose values are spread as
            widely as those of half of them.
    """

    facts: list[PictureFacts | str]
    values: NDArray[np.float64]
    low: float
    high: float
    typical: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @property
    def readable(self) -> list[PictureFacts]:
        """Return the facts of the files that can be read."""
        return [facts for facts in self.facts if not isinstance(facts, str)]


def surveyed(listing: Listing, progress: Progress = SILENT, channels: int | None = None) -> Survey:
    """Look at every file of a source. What was found is kept in the cache.

    Args:
        listing: the files.
        progress: what to report to.
        channels: as for `inspect`.

    Raises:
        UserError: the cache cannot be written.
    """
    kept = kept_json(
        listing.cache_file("survey", channels, suffix="-survey"),
        listing,
        lambda: _as_json(look_at(listing.files, progress, channels)),
    )
    facts = [fact if isinstance(fact, str) else PictureFacts(*fact) for fact in kept["facts"]]
    values, typical = (np.array(kept[key], dtype=np.float64) for key in ("values", "typical"))
    return Survey(facts, values, kept["low"], kept["high"], typical)


def _as_json(found: Survey) -> dict[str, Any]:
    facts = [fact if isinstance(fact, str) else astuple(fact) for fact in found.facts]
    return {
        "facts": facts,
        "values": found.values.tolist(),
        "low": found.low,
        "high": found.high,
        "typical": found.typical.tolist(),
    }


def look_at(
    files: Sequence[FileRef], progress: Progress = SILENT, channels: int | None = None
) -> Survey:
    """Inspect the header of every file, and sample values of those with more than 8 bits."""
    facts: list[PictureFacts | str] = []
    with report_progress(progress, "Looking at the images", len(files)) as update:
        for done, file in enumerate(files, 1):
            facts.append(inspect(file, channels))
            update(done)
    wide = [row for row, fact in enumerate(facts) if not isinstance(fact, str) and fact.wide]
    chosen = np.unique(np.linspace(0, len(wide) - 1, min(len(wide), SAMPLED_IMAGES)).astype(int))
    samples = [sample_values(files[wide[row]], channels=channels) for row in chosen if wide]
    return with_values(facts, [sample for sample in samples if not isinstance(sample, str)])


def with_values(facts: list[PictureFacts | str], samples: Sequence[NDArray[np.float64]]) -> Survey:
    """Return a survey of pictures of which some values are known.

    Args:
        facts: of the pictures.
        samples: values of each of some pictures of more than 8 bits.
    """
    samples = [sample for sample in samples if len(sample)]
    if not samples:
        return Survey(facts, np.empty(0), 0.0, 0.0)
    values = np.concatenate(samples)
    low, high = np.percentile(values, PERCENTILES, method="nearest")
    distinct = np.unique(values)
    kept = np.linspace(0, len(distinct) - 1, min(len(distinct), KEPT_VALUES)).astype(int)
    spread = [float(np.ptp(np.percentile(sample, PERCENTILES))) for sample in samples]
    typical = np.unique(samples[int(np.argsort(spread)[len(spread) // 2])])
    return Survey(facts, distinct[kept], float(low), float(high), typical)


def fitting_size(sides: Sequence[int]) -> int:
    """Return the largest size, at most 96, that enlarges at most 5 % of the pictures.

    Args:
        sides: the shorter side of each picture in pixels.
    """
    if not sides:
        return DEFAULT_SIZE
    return min(DEFAULT_SIZE, sorted(sides)[math.floor(MAY_BE_ENLARGED * len(sides))])


def found_sizes(facts: Sequence[PictureFacts], size: int | None) -> Sizes | None:
    """Return what sizes pictures have; None where there are none.

    Args:
        facts: of the pictures.
        size: side in pixels of the squares that are used; None: no picture is resized.
    """
    if not facts:
        return None
    pairs = sorted(((f.width, f.height) for f in facts), key=lambda pair: (min(pair), max(pair)))
    sides = [min(pair) for pair in pairs]
    enlarged = 0 if size is None else sum(side < size for side in sides)
    return Sizes(
        pairs[0],
        pairs[len(pairs) // 2],
        pairs[-1],
        len(set(pairs)),
        enlarged,
        fitting_size(sides),
    )


def fitting_channels(facts: Sequence[PictureFacts]) -> tuple[int, str]:
    """Return the channels to use, and in words why they are not 3 ("" where they are).

    They are 3, unless all pictures have the same other number of bands, which is not 1.
    """
    bands = {fact.bands for fact in facts}
    if len(bands) == 1 and not bands & {1, 3}:
        (count,) = bands
        return count, f"because every picture has {count}"
    return DEFAULT_CHANNELS, ""


def fitting_range(found: Survey) -> tuple[float, float] | None:
    """Return one value range for all pictures of more than 8 bits; None where there are none.

    It is that of the 0.1st and the 99.9th percentile, rounded outwards to three digits; or 0 and a
    full scale (1, 255, 1023, 4095, 16383 or 65535), where the values fill most of it.
    """
    if not len(found.values):
        return None
    least, greatest = float(found.values[0]), float(found.values[-1])
    whole_numbers = bool((found.values == np.rint(found.values)).all())
    scales = FULL_SCALES[1:] if whole_numbers and greatest > 1 else FULL_SCALES
    enough = [scale for scale in scales if least >= 0 and greatest <= scale]
    span = found.high - found.low
    if enough and (span == 0 or span >= COVERED * enough[0]):
        return 0.0, float(enough[0])
    if span == 0:
        return found.low, found.low + 1
    step = 10.0 ** (math.floor(math.log10(span)) - 2)
    step = max(step, 1.0) if whole_numbers else step
    # Rounding to the decimals of the step keeps 0.3 from becoming 0.30000000000000004
    digits = max(0, -math.floor(math.log10(step)))
    low, high = math.floor(found.low / step) * step, math.ceil(found.high / step) * step
    return round(low, digits), round(high, digits)


def levels(values: NDArray[np.float64], value_range: tuple[float, float]) -> int:
    """Return how many of 256 levels are left of some values after scaling."""
    low, high = value_range
    scaled = np.rint((values - low) * (255 / (high - low))).clip(0, 255)
    return len(np.unique(scaled))


def few_levels(found: Survey, value_range: tuple[float, float]) -> str:
    """Return a warning where scaling leaves few levels of values that had more; else ""."""
    low, high = value_range
    for values, words in (
        (found.values, "images with {:,} different values or more"),
        (found.typical, "a typical image with {:,} different values"),
    ):
        left = levels(values, value_range) if len(values) else 0
        if left < min(FEW_LEVELS, len(values)):
            return (
                f"Only {left} level{'s are' if left > 1 else ' is'} left of"
                f" {words.format(len(values))}, because {low:g} becomes black and {high:g} white;"
                " set value_range to the values that matter."
            )
    return ""
