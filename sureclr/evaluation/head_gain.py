"""What do the heads add to the features? Neighbours by direction, and scores of certainty.

A frozen backbone has its features without any training, so this is all that a run of heads alone
can add; kNN and a linear probe on the features say nothing of it.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.evaluation.neighbour_vote import vote_on_table
from sureclr.evaluation.results import HeadsResult, ScoreArea, VoteAccuracy
from sureclr.evaluation.scores import JUDGED, Judged, Reference, score_images
from sureclr.evaluation.tables import evidence_against, finite_or_none, labelled_split
from sureclr.maths.metrics import auroc, auroc_interval

if TYPE_CHECKING:
    from sureclr.evaluation.inputs import EvaluationInputs


def evaluate_heads(inputs: "EvaluationInputs") -> HeadsResult:
    """Compare what the heads put out with the features that go into them.

    Raises:
        UserError: there are no labelled training or test images, or only one class.
    """
    table, name = inputs.table, inputs.catalogue.name
    labelled_split(table, "heads", name)
    return measure_heads(table, inputs.reference, name, inputs.run.model.device)


def measure_heads(
    table: Embeddings,
    reference: Reference,
    source: str = "the table",
    device: torch.device | None = None,
    most: int = JUDGED,
) -> HeadsResult:
    """Do what `evaluate_heads` does for a table of embeddings.

    Args:
        table: the embeddings.
        reference: of the table.
        source: the name of the images, for error messages.
        device: which compares rows, as in `knn_accuracy`.
        most: test images whose scores are judged at most.

    Raises:
        UserError: as `evaluate_heads`.
    """
    if reference.probe is None:
        raise UserError(
            f"heads needs labelled training images of two classes, and those of {source} are of"
            " one; label images of another class."
        )
    features, directions = (
        vote_on_table(each, source, device=device)
        for each in (table, replace(table, features=table.direction))
    )
    judged = Judged.among(np.where(table.labels.numpy() >= 0, table.split, "unlabelled"), most)
    clean = score_images(table.select(judged.rows), reference)
    scores = {name: clean.scores[name] for name in clean.scores if name == "certainty"}
    none = torch.full((len(judged.rows),), -1)  # no test image is a training image
    if (evidence := evidence_against(clean.table, reference.train, none)) is not None:
        scores["evidence"] = evidence
    ranked = scores | clean.scores | scores  # evidence is that of all, and stands first
    return HeadsResult(
        n_train=features.n_train,
        n_test=len(features.predictions),
        k=features.k,
        knn_features=VoteAccuracy(features.accuracy, features.interval),
        knn_directions=VoteAccuracy(directions.accuracy, directions.interval),
        n_judged=len(judged.rows),
        recall_at_1=float(clean.correct.double().mean()),
        r_auroc={name: _ranking(score, clean.correct) for name, score in ranked.items()},
        sample=judged.sample,
    )


def _ranking(score: Tensor, correct: Tensor) -> ScoreArea:
    area, (low, high) = finite_or_none(auroc(score, correct)), auroc_interval(score, correct)
    return ScoreArea(area, None if math.isnan(low) else (low, high))
