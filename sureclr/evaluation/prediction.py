"""Classifying images with a run: a class, how sure it is, and whether the image is familiar.

    answers = sureclr.predict("runs/tour", "new_photographs", labels="labels.csv")
    answers.save("answers.csv")

Every image gets an answer, and every answer says how far to trust it: a calibrated probability, the
labelled images that are most similar, and a p-value of being like the training data. An image that
is unlike them keeps its class and is marked, because a classifier that knows ten classes names one
of the ten for anything at all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sureclr.data.image_set import UNLABELLED, ImageSet
from sureclr.errors import UserError, unknown
from sureclr.evaluation.calibrated_sets import HeldOutSets, asked_coverage, calibrate_on_test_images
from sureclr.evaluation.classified_images import ClassifiedSource, Part
from sureclr.evaluation.classifiers import (
    FittedClassifier,
    Gallery,
    Network,
    itself_among,
    kept_linear,
    knn_classifier,
    neighbours_without,
    network_classifier,
)
from sureclr.evaluation.evidence_vote import EvidenceGallery, evidence_classifier
from sureclr.evaluation.familiarity import Familiarity, kept_familiarity, neighbour_unit
from sureclr.evaluation.prediction_table import NEIGHBOURS, Predictions, SourceAccuracy
from sureclr.evaluation.run_images import Labels
from sureclr.evaluation.session import Session
from sureclr.progress import Progress, report_progress
from sureclr.training.run import Run

HIT, UNKNOWN, NOT_JUDGED = 1, -1, -2  # of a set: the right class is in it, or cannot be known
UNFAMILIAR = 0.01  # p-value at or below which an image is marked
CLASSIFIERS = ("linear", "knn", "evidence")


# --- The answers ----------------------------------------------------------------------


def predict(
    run: str | Path | Run,
    images: Any = None,
    labels: Labels | None = None,
    classifier: str | Network = "linear",
    *,
    data: Any = None,
    unfamiliar: float = UNFAMILIAR,
    coverage: float | None = None,
    checkpoint: str | int | None = None,
    device: str = "auto",
    root: Path | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Classify images with a run, and say how sure each answer is.

    The probabilities are calibrated by temperature scaling: the logits z become softmax(z / T),
    where T is fitted on labelled images that the classifier did not learn from (a fifth of them in
    turn, by cross-validation; for kNN, each image without its own vote; for a fine-tuned network,
    the test images). With fewer than 20 such images T stays 1, the probabilities are those of the
    classifier alone, and `Predictions.classifier.calibration` says so.

    The set of an image holds every class that is probable enough, and contains the right one with
    the probability `coverage`, however wrong the probabilities are (split conformal prediction).
    This needs images that are exchangeable with the calibration images: drawn alike. Those are the
    labelled test images of the run that nobody learned from. An image that is one of them is judged
    by thresholds from the other half of them.

    Images are embedded some thousand at a time, so that the memory does not grow with their number
    beyond the answers themselves.

    Args:
        run: a run folder, or a `Run`.
        images: what to classify: anything that `sureclr.as_image_set` takes; None means the run's
            own images. Of a list of files, those that cannot be read are in `Predictions.errors`.
        labels: of the images that the classifier learns from: one for each, or the path of a label
            file; None means the labels that the images have themselves.
        classifier: "linear", the logistic regression on the frozen features, which is kept in the
            run folder and used again while checkpoint, images and labels are the same; "knn", the
            vote of the 20 nearest labelled images in whitened features (`neighbour_space`);
            "evidence", the vote of all labelled images by evidence, for a loss with a radius; or a
            network that has learned already, such as `sureclr.load_finetuned(run)`: any object with
            the names `classes` and a function `probabilities(images)`.
        data: the images that the classifier learns from; None means those that the run was trained
            on. Those of the test split are not learned from; the accuracy is measured on them.
        unfamiliar: images whose p-value `familiar` is at most this are marked as unfamiliar: about
            this share of images that are like the training data.
        coverage: how often a set contains the right class, above 0 and below 1. None: .9, and no
            sets where there are too few labelled test images.
        checkpoint: "last", "best" or a number of steps; None: the last, or that of a `Run`.
        device: auto, cuda, mps or cpu; a `Run` stays where it is.
        root: the folder of downloaded data sets.
        progress: what to report to; None reports on stderr.

    Raises:
        UserError: the run, the images or the labels cannot be used, there are labels of fewer than
            two classes, there is no such classifier, or too few labelled test images for the asked
            coverage.
        Stopped: SIGINT or SIGTERM came.
    """
    if isinstance(classifier, str) and classifier not in CLASSIFIERS:
        if classifier == "finetuned":
            raise UserError(
                "the fine-tuned classifier is an object; pass"
                " classifier=sureclr.load_finetuned(run)."
            )
        raise unknown("classifier", classifier, CLASSIFIERS)
    if not 0 <= unfamiliar < 1:
        raise UserError(
            f"unfamiliar must be a share of at least 0 and below 1, not {unfamiliar}; try 0.01."
        )
    asked_coverage(coverage)
    with Session(
        run, data, labels, device=device, root=root, progress=progress, checkpoint=checkpoint
    ) as session:
        table = session.inputs.table
        gallery = Gallery.of(table)
        comparison = kept_familiarity(session)
        unit = neighbour_unit(table, comparison)
        fitted = _fitted(session, classifier, gallery, unit)
        sets = calibrate_on_test_images(session, fitted, coverage)
        source = ClassifiedSource.of(session, images, root)
        answering = _Answering.of(session, fitted, comparison, gallery, unit, sets)
        answers: list[dict[str, Any]] = []
        with report_progress(session.progress, "Classifying images", source.total) as update:
            for part, embedded in source.parts():
                if len(part):
                    answers.append(answering.answer((part, embedded)))
                update(min(source.total, sum(len(a["paths"]) for a in answers)))
    joined = {name: _join([answer[name] for answer in answers]) for name in answers[0]}
    hits, itself = joined.pop("hits"), joined.pop("itself")
    labelled = gallery.labelled
    return Predictions(
        **joined,
        errors=source.errors,
        labelled_paths=labelled.paths,
        labelled_classes=[labelled.classes[k] for k in labelled.labels],
        classifier=fitted.facts,
        accuracy=SourceAccuracy.of(joined, fitted.facts.classes),
        threshold=unfamiliar,
        n_compared=len(comparison.calibration),
        compared_with=comparison.compared_with,
        n_evidence=len(answering.expecting.images),
        coverage=None
        if isinstance(sets, str)
        else sets.calibration.summary(
            joined["set_sizes"],
            hits[hits >= 0] == HIT,
            int((hits == UNKNOWN).sum()),
            sets.note(bool(itself.any())),
        ),
        no_sets=sets if isinstance(sets, str) else "",
        note="; ".join(filter(None, source.notes)),
    )


def _fitted(
    session: Session, classifier: str | Network, gallery: Gallery, unit: Callable[[Tensor], Tensor]
) -> FittedClassifier:
    if classifier == "linear":
        return kept_linear(session)
    if isinstance(classifier, str):
        table, name = session.inputs.table, session.catalogue.name
        if classifier == "evidence":
            return evidence_classifier(table, name, gallery)
        return knn_classifier(table, name, gallery, unit)
    return network_classifier(classifier, session.images, session.inputs.table)


@dataclass(frozen=True, eq=False)
class _Answering:
    """What answers need beside an image.

    Attributes:
        gallery: what new images are compared with.
        unit: features (q, f) to rows by whose cosines their neighbours are looked up.
        sets: how sets are made, or why there are none.
        expecting: images of the gallery with which others are compared by evidence.
        row_of: digest of an image's pixels -> its row in the gallery; None where these have no
            pixels any more.
    """

    session: Session
    fitted: FittedClassifier
    comparison: Familiarity
    gallery: Gallery
    unit: Callable[[Tensor], Tensor]
    sets: HeldOutSets | str
    expecting: EvidenceGallery
    row_of: dict[bytes, int] | None

    @staticmethod
    def of(
        session: Session,
        fitted: FittedClassifier,
        comparison: Familiarity,
        gallery: Gallery,
        unit: Callable[[Tensor], Tensor],
        sets: HeldOutSets | str,
    ) -> "_Answering":
        images = session.catalogue
        row_of: dict[bytes, int] | None = None
        if images.images.device.type != "meta":
            row_of = {}
            for row, index in enumerate(gallery.rows.tolist()):
                # Of equal images, one with a label counts, and those come first
                row_of.setdefault(_digest(images.images[index]), row)
        expecting = EvidenceGallery.of(gallery.others)
        return _Answering(session, fitted, comparison, gallery, unit, sets, expecting, row_of)

    def answer(self, part: Part) -> dict[str, Any]:
        """Return the columns of `Predictions` for some images, and two of what became of sets."""
        images, embedded = part
        table = self.session.run.embed(images) if embedded is None else embedded
        probabilities = self.fitted.probabilities(images, table)
        best, order = probabilities.topk(min(2, probabilities.shape[1]), dim=1)
        own = self._own(images, table.features)
        own_labelled = own.where(own < self.gallery.known, -1)
        cosine, nearest = neighbours_without(
            table.features,
            own_labelled,
            self.gallery.labelled.features,
            NEIGHBOURS,
            self.unit,
        )
        missing = NEIGHBOURS - nearest.shape[1]
        return {
            "paths": list(images.paths),
            "label": order[:, 0],
            "probability": best[:, 0],
            "second": order[:, -1],
            "second_probability": best[:, -1],
            "familiar": self.comparison.p_values(table.features),
            "nearest": torch.nn.functional.pad(nearest, (0, missing), value=-1),
            "nearest_cosine": torch.nn.functional.pad(cosine, (0, missing), value=torch.nan),
            "learned_from": own_labelled >= 0,
            "radius": table.radius,
            "certainty": table.certainty,
            "presence": table.presence,
            "evidence": self.expecting.evidence(table, own),
            "own_label": [
                None if k == UNLABELLED else images.classes[k] for k in images.labels.tolist()
            ],
            **self._sets(images, table.features, probabilities, own),
        }

    def _sets(
        self, images: ImageSet, features: Tensor, probabilities: Tensor, own: Tensor
    ) -> dict[str, Any]:
        """Return the columns of the sets: their classes, whether they hit, and `itself`."""
        if isinstance(self.sets, str):
            return dict.fromkeys(("set_sizes", "set_members", "hits", "itself"))
        contains, itself = self.sets.contains(probabilities, images, features)
        order = probabilities.argsort(dim=1, descending=True, stable=True)
        column = {name: k for k, name in enumerate(self.fitted.facts.classes)}
        names = [column.get(name, UNKNOWN) for name in images.classes]
        right = torch.tensor([*names, NOT_JUDGED])[images.labels.cpu()]
        right = torch.where(own >= 0, NOT_JUDGED, right)
        hit = contains.gather(1, right.clamp_min(0)[:, None])[:, 0]
        return {
            "set_sizes": contains.sum(1),
            "set_members": order[contains.gather(1, order)],
            "hits": torch.where(right >= 0, hit.long(), right),
            "itself": itself,
        }

    def _own(self, images: ImageSet, features: Tensor) -> Tensor:
        """Return which training image each image is itself, (q,) int64; -1 where it is none.

        Without the pixels of the training images, an image is one of them if its features are the
        same up to rounding.
        """
        if self.row_of is not None:
            return torch.tensor([self.row_of.get(_digest(pixels), -1) for pixels in images.images])
        return itself_among(features, self.gallery.others.features)


def _digest(pixels: Tensor) -> bytes:
    """Return what identifies an image (c, h, w) at the run's size."""
    return blake2b(pixels.cpu().contiguous().numpy().tobytes(), digest_size=16).digest()


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], list):
        return [entry for part in parts for entry in part]
    return None if parts[0] is None else torch.cat(parts)
