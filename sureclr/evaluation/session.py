"""The evaluations by name: each is a function of `EvaluationInputs` that returns a dataclass."""

from collections.abc import Callable
from typing import Any

from sureclr.evaluation.certainty_quality import evaluate_uncertainty
from sureclr.evaluation.explanations import evaluate_explanation
from sureclr.evaluation.feature_space import evaluate_geometry
from sureclr.evaluation.foreign_images import evaluate_ood
from sureclr.evaluation.inputs import EvaluationInputs
from sureclr.evaluation.invariances import evaluate_sensitivity
from sureclr.evaluation.neighbour_vote import evaluate_knn
from sureclr.evaluation.probes import evaluate_linear
from sureclr.evaluation.training_history import evaluate_learning

EVALUATIONS: dict[str, Callable[[EvaluationInputs], Any]] = {
    "knn": evaluate_knn,
    "linear": evaluate_linear,
    "uncertainty": evaluate_uncertainty,
    "ood": evaluate_ood,
    "learning": evaluate_learning,
    "geometry": evaluate_geometry,
    "sensitivity": evaluate_sensitivity,
    "explanation": evaluate_explanation,
}
