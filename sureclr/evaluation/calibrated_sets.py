"""Prediction sets beside answers, calibrated on images that nobody learned from.

The guarantee needs images that are exchangeable with the calibration images: drawn alike, from the
same places in the same way. An image that is a calibration image itself would be judged by its own
score, so the calibration images are cut into two halves by a fixed hash, and each half is judged by
the thresholds of the other one (cross-conformal prediction, Vovk 2015, with two folds).
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sureclr.data.counter_rng import hashed, sample_rows
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.classifiers import FittedClassifier, itself_among
from sureclr.evaluation.results import PredictionSets
from sureclr.maths.conformal_sets import SetRule, calibrate_sets, check_coverage, least_images
from sureclr.maths.metrics import wilson_interval

if TYPE_CHECKING:
    from sureclr.evaluation.session import Session

COVERAGE = 0.9  # that is asked for by default
MOST_CALIBRATION = 10_000  # images, in a sample that is always the same
AT_ONCE = 4096  # of them, whose probabilities are computed together
SAMPLED, HALVES = 2008, 2009  # streams of seeds


@dataclass(frozen=True, eq=False)
class SetCalibration:
    """How the sets of images are made.

    Attributes:
        whole: the rule of all n calibration images, for images that are none of them.
        halves: the rules of the first and of the second half.
        half: (n,) int64, to which half a calibration image belongs, 0 or 1.
    """

    whole: SetRule
    halves: tuple[SetRule, SetRule]
    half: Tensor

    @staticmethod
    def of(
        probabilities: Tensor, target: Tensor, coverage: float, names: Tensor
    ) -> "SetCalibration":
        """Calibrate with n images.

        Args:
            probabilities: (n, K), rows sum to 1.
            target: (n,) int64, the right columns.
            coverage: between 0 and 1.
            names: (n,) int64, a number that an image shares with its copies alone, so that they
                come into the same half.

        Raises:
            UserError: there are too few images for this coverage, or a number does not fit.
        """
        whole = calibrate_sets(probabilities, target, coverage)
        different, image = names.unique(return_inverse=True)
        place = hashed(different, HALVES, 1)[:, 0].argsort().argsort()
        half = place[image] & 1  # as many in the one as in the other
        halves = []
        for k in (0, 1):
            there = half == k
            if int(there.sum()) < least_images(coverage):  # only all classes have the coverage
                nothing = torch.zeros_like(whole.images)
                halves.append(
                    SetRule(coverage, whole.thresholds + torch.inf, nothing, nothing.bool())
                )
            else:
                halves.append(calibrate_sets(probabilities[there], target[there], coverage))
        return SetCalibration(whole, (halves[0], halves[1]), half)

    def contains(self, probabilities: Tensor, own: Tensor) -> Tensor:
        """Return which classes are in the set of each image, (q, K) bool.

        Args:
            probabilities: (q, K), rows sum to 1.
            own: (q,) int64, the place of the calibration image that an image is itself, or -1; it
                gets the thresholds of the other half.
        """
        found = self.whole.contains(probabilities)
        for k in (0, 1):
            among = (own >= 0) & (self.half[own] == k)
            found[among] = self.halves[1 - k].contains(probabilities[among])
        return found

    def summary(self, sizes: Tensor, hits: Tensor, unknown: int, note: str) -> PredictionSets:
        """Return the numbers of the sets of q images.

        Args:
            sizes: (q,) int64, classes in each set.
            hits: (m,) bool, for those images whose right class is known: whether it is in the set.
            unknown: number of labelled images of a class that the classifier does not know.
            note: what the thresholds rest on, as a sentence.
        """
        m, right, classes = len(hits), int(hits.sum()), len(self.whole.thresholds)
        return PredictionSets(
            coverage=self.whole.coverage,
            n_calibration=len(self.half),
            own_thresholds=int(self.whole.alone.sum()),
            classes=classes,
            n=len(sizes),
            mean_size=float(sizes.double().mean()),
            empty=float((sizes == 0).double().mean()),
            full=float((sizes == classes).double().mean()),
            n_observed=m,
            observed=right / m if m else None,
            interval=wilson_interval(right, m) if m else None,
            n_unknown=unknown,
            note=note,
        )


def measure_sets(
    probabilities: Tensor, target: Tensor, coverage: float = COVERAGE
) -> PredictionSets | None:
    """Return the numbers of the sets of labelled images, each half judged by the other.

    Args:
        probabilities: (n, K), rows sum to 1, of images that nobody learned from.
        target: (n,) int64, the right columns; -1 where there is none.
        coverage: between 0 and 1.

    Returns:
        None if one half has too few images for this coverage.
    """
    known = target >= 0
    probabilities, target, places = probabilities[known], target[known], known.nonzero()[:, 0]
    least = least_images(coverage)
    if len(target) < least:
        return None
    calibration = SetCalibration.of(probabilities, target, coverage, places)
    if min(int((calibration.half == k).sum()) for k in (0, 1)) < least:
        return None
    found = calibration.contains(probabilities, torch.arange(len(target)))
    return calibration.summary(
        found.sum(1),
        found.gather(1, target[:, None])[:, 0],
        int((~known).sum()),
        "each half of the test images is judged by the other half",
    )


@dataclass(frozen=True, eq=False)
class HeldOutSets:
    """The sets of a classifier, calibrated on n labelled test images.

    Attributes:
        calibration: how sets are made.
        fitted: the classifier.
        features: (n, f) of the calibration images.
        place_of: name of an image's pixels -> its place among them; None where they have no pixels
            any more.
    """

    calibration: SetCalibration
    fitted: FittedClassifier
    features: Tensor
    place_of: dict[int, int] | None

    def contains(
        self, probabilities: Tensor, images: ImageSet, features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return which classes are in the sets of q images.

        Args:
            probabilities: (q, K), of the classifier.
            images: the images.
            features: (q, f), theirs.

        Returns:
            (q, K) bool; and whether an image is a calibration image itself, (q,) bool.
        """
        if self.place_of is None:
            own = itself_among(features, self.features)
        else:
            places = [self.place_of.get(_name(pixels), -1) for pixels in images.images]
            own = torch.tensor(places, dtype=torch.int64)
        usable = self.fitted.without_test_images(probabilities)
        return self.calibration.contains(usable, own), own >= 0

    def note(self, own: bool) -> str:
        """Return what the thresholds rest on, as a sentence.

        Args:
            own: whether some of the images that were judged are calibration images.
        """
        words = f"calibrated on {len(self.features):,} labelled test images"
        return f"{words}; these are judged half by half, by the other half" if own else words


def _name(pixels: Tensor) -> int:
    """Return a 64-bit number of an image (c, h, w) at the run's size, the same for copies."""
    digest = blake2b(pixels.cpu().contiguous().numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def asked_coverage(coverage: float | None) -> float:
    """Return the coverage, or `COVERAGE` for None.

    Raises:
        UserError: it is not between 0 and 1.
    """
    if coverage is None:
        return COVERAGE
    check_coverage(coverage)
    return coverage


def calibrate_on_test_images(
    session: "Session", fitted: FittedClassifier, coverage: float | None
) -> HeldOutSets | str:
    """Return the sets of a classifier, or as a sentence why there are none.

    They are calibrated on the labelled test images (at most 10,000) that the encoder was not
    trained on and whose class the classifier knows. A temperature that was fitted on test images is
    taken out of the probabilities first, since it has seen the right answers.

    Args:
        session: an open session.
        fitted: the classifier.
        coverage: between 0 and 1; None: `COVERAGE`, and no sets if it cannot be had.

    Raises:
        UserError: the coverage was asked for and cannot be had.
    """
    asked = asked_coverage(coverage)
    least = least_images(asked)
    table, images = session.inputs.table, session.catalogue
    column = {name: k for k, name in enumerate(fitted.facts.classes)}
    columns = [column.get(name, -1) for name in table.classes]
    target = torch.tensor([*columns, -1])[table.labels]  # of no label, the last entry
    test = torch.from_numpy((table.split == "test") & (session.source_split == "test"))
    every = (test & (target >= 0)).nonzero()[:, 0]
    if len(every) < least:
        reason = (
            f"sets with a coverage of {asked:g} need {least:,} labelled images or more that neither"
            f" the encoder nor the classifier learned from, and there"
            f" {'is' if len(every) == 1 else 'are'} {len(every):,}; label test images, or ask for a"
            " lower coverage."
        )
        if coverage is not None:
            raise UserError(reason)
        return reason
    rows = sample_rows(every, MOST_CALIBRATION, SAMPLED)
    found = []
    for part in rows.split(AT_ONCE):
        p = fitted.probabilities(images.select(part.numpy()), table.select(part.numpy()))
        found.append(fitted.without_test_images(p))
    names, place_of = rows, None
    if images.images.device.type != "meta":
        names = torch.tensor([_name(images.images[row]) for row in rows.tolist()])
        place_of = {name: place for place, name in enumerate(names.tolist())}
    return HeldOutSets(
        SetCalibration.of(torch.cat(found), target[rows], asked, names),
        fitted,
        table.features[rows],
        place_of,
    )
