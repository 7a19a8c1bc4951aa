"""Whether an image is like those that a run was trained on: a conformal p-value (theory 9).

The score is the Mahalanobis distance of the image's features, scaled to length 1, from the training
images. It is compared with the distances of images that the encoder was not trained on, so no
training image has to be kept for it: mean, axes and these distances are familiarity.safetensors in
the run folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.evaluation.classifiers import spread_rows
from sureclr.evaluation.neighbour_space import choose_space
from sureclr.evaluation.session import Session
from sureclr.files import why, write_atomically
from sureclr.maths.neighbours import Unit
from sureclr.maths.whitening import PrincipalAxes, principal_axes
from sureclr.training.run import Run
from sureclr.training.run_dir import checked_safetensors, read_checked_safetensors

FILE = "familiarity.safetensors"
METHOD = "Mahalanobis distance of unit features, 1"  # raise it when a kept one would be another
# Share of a distance that is rounding. An image that is as far as a calibration image up to this
# counts as that far, so that copies of one image are never told apart
ROUNDING = 1e-5
UNSEEN = "test images"
SEEN = "training images, so too low"


@dataclass(frozen=True, eq=False)
class Familiarity:
    """What new images are compared with.

    Attributes:
        axes: mean and covariance of the unit-length features of the training images.
        calibration: (m,) float64, ascending, distances of images that are known to be like these.
        compared_with: what the m images are, in words.
    """

    axes: PrincipalAxes
    calibration: Tensor
    compared_with: str

    def distances(self, features: Tensor) -> Tensor:
        """Return the Mahalanobis distance of unit-length features, (q,) float64, without a unit.

        Args:
            features: (q, f), of any length.

        Raises:
            UserError: a number is not finite, or there are other columns.
        """
        return self.axes.distances(features)

    def p_values(self, features: Tensor) -> Tensor:
        """Return `conformal_p` of each image, (q,) float64; NaN where nothing can be compared.

        Args:
            features: (q, f), of any length.

        Raises:
            UserError: as for `distances`.
        """
        return conformal_p(self.distances(features), self.calibration)


def neighbour_unit(table: Embeddings, compared: Familiarity) -> Unit:
    """Return what maps features to rows of length 1 by whose cosines neighbours are looked up.

    Its axes are those of the familiarity; `choose_space` chooses the exponent.

    Args:
        table: the images among which the neighbours are.
        compared: of the same images.
    """
    return choose_space(table, compared.axes).unit


def conformal_p(distances: Tensor, calibration: Tensor) -> Tensor:
    """Return (1 + number of calibration distances at least as far) / (m + 1), (q,) float64.

    If an image and the m calibration images are drawn alike, in whatever way, its p-value is at
    most alpha with a probability of at most alpha (Vovk et al. 2005). Equal distances, up to
    rounding, count as at least as far, so that ties keep this true.

    Args:
        distances: (q,), at least 0, large for an image that is unlike the others.
        calibration: (m,) ascending. Without any, p-values are NaN.
    """
    m = len(calibration)
    if m == 0:
        return torch.full_like(distances, torch.nan, dtype=torch.float64)
    nearer = torch.searchsorted(calibration, (distances * (1 - ROUNDING)).contiguous())
    return (1 + m - nearer).double() / (m + 1)


def fit_familiarity(table: Embeddings, split: NDArray[np.str_] | None = None) -> Familiarity:
    """Return what tells whether an image is like the training images of a table.

    Mean and covariance are those of the images that are not of the test split; they are compared
    with the test images (at most 5,000, evenly spread). Where there are none, with the training
    images themselves: the axes were fitted on those, and the encoder, so they are nearer than new
    images of the same kind, and the p-values of new images come out too low.

    Args:
        table: the images.
        split: (n,) their splits before labelled images were held out for testing, since the encoder
            was trained on such; None: those of the table.

    Raises:
        UserError: there is no image, or a number is not finite.
    """
    test = (table.split if split is None else split) == "test"
    words = UNSEEN if 0 < test.sum() < len(test) else SEEN
    fitted, compared = (~test, test) if words == UNSEEN else (test | ~test, test | ~test)
    known = torch.from_numpy(np.flatnonzero(fitted))
    axes = principal_axes(table.features, of_unit_rows=True, rows=known)
    rows = torch.from_numpy(np.flatnonzero(compared))
    distances = axes.distances(table.features[rows[spread_rows(len(rows))]])
    return Familiarity(axes, distances.sort().values, words)


# --- The file in the run folder ---------------------------------------------------------


def kept_familiarity(session: Session) -> Familiarity:
    """Return the familiarity of a session's images: the kept one of the same origin, or a new one.

    That of the run's own images is kept beside its results, with the checkpoint and the digest of
    the images that it was made of.

    Raises:
        UserError: there is no image, or a number is not finite.
    """
    run = session.run
    origin = {
        "method": METHOD,
        "checkpoint": run.checkpoint,
        "images": f"{run.made_in}{session.digest}",
    }
    if session.own and (kept := _read(session, origin)) is not None:
        return kept
    found = fit_familiarity(session.inputs.table, session.source_split)
    if session.own and not run.not_kept:
        tensors = {
            "mean": found.axes.mean,
            "variance": found.axes.variance,
            "axes": found.axes.axes,
            "calibration": found.calibration,
        }
        about = {**origin, "compared_with": found.compared_with}
        path = run.results_folder / FILE
        try:
            write_atomically(path, checked_safetensors(tensors, "familiarity", about))
        except (OSError, UserError) as error:
            reason = why(error) if isinstance(error, OSError) else str(error)
            session.progress.message(
                f"{path} could not be kept ({reason}); the p-values are right all the same."
            )
    return found


def _read(session: Session, origin: Mapping[str, str]) -> Familiarity | None:
    """Return the kept familiarity of an origin, or None; of a damaged file a sentence is said."""
    path = session.run.stored(FILE)
    if not path.is_file():
        return None
    try:
        found, about = _from_file(path)
        _check_width(found, session.inputs.table.features.shape[1])
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        session.progress.message(f"{path} cannot be used ({reason}); it is made anew.")
        return None
    return found if all(about.get(name) == origin[name] for name in origin) else None


def familiarity_without_images(run: Run) -> Familiarity | None:
    """Return the kept familiarity of a run's weights, whatever images it was made of, or None."""
    try:
        found, about = _from_file(run.stored(FILE))
    except (OSError, ValueError, KeyError):
        return None
    same = about.get("method") == METHOD and about.get("checkpoint") == run.checkpoint
    return found if same else None


def _from_file(path: Any) -> tuple[Familiarity, dict[str, Any]]:
    """Return what a file holds, and what it says of itself.

    Raises:
        OSError, ValueError, KeyError: it is damaged.
    """
    tensors, about = read_checked_safetensors(path, "familiarity")
    mean, variance, axes = (tensors[name] for name in ("mean", "variance", "axes"))
    calibration, f = tensors["calibration"], len(mean)
    if variance.shape != (f,) or axes.shape != (f, f) or calibration.ndim != 1:
        raise ValueError("its numbers have other shapes")
    words = about["compared_with"]
    if not isinstance(words, str) or any(x.dtype != torch.float64 for x in tensors.values()):
        raise ValueError("its numbers have another type")
    found = PrincipalAxes(mean, variance, axes, of_unit_rows=True)
    return Familiarity(found, calibration, words), about


def _check_width(found: Familiarity, features: int) -> None:
    if len(found.axes.mean) != features:
        raise ValueError(f"it is of {len(found.axes.mean)} features, and the run has {features}")
