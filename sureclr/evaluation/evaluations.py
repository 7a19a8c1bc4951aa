"""All evaluations by name; another package can register more.

    @sureclr.register_evaluation("brightness")
    def brightness(inputs):
        return {"mean": float(inputs.images.images.float().mean())}

An evaluation is a function of `EvaluationInputs` that returns a frozen dataclass or a dict, which
becomes one key of `results.json`. It raises `UserError` where it cannot be made.
"""

from collections.abc import Callable
from typing import Any

from sureclr.errors import UserError
from sureclr.evaluation import (
    certainty_quality,
    explanations,
    feature_space,
    foreign_images,
    head_gain,
    invariances,
    neighbour_vote,
    probes,
    training_history,
)
from sureclr.evaluation.inputs import EvaluationInputs
from sureclr.registry import Registry

Evaluation = Callable[[EvaluationInputs], Any]

RESERVED = ("schema", "comparison", "finetune")  # other keys of results.json
EVALUATIONS: Registry[Evaluation] = Registry("evaluation", "sureclr.evaluations")


def register_evaluation(name: str) -> Callable[[Evaluation], Evaluation]:
    """Return a decorator that adds an evaluation under this name.

    Raises:
        UserError: the name is taken, or has a meaning of its own in `results.json`.
    """
    if ":" in name or name in RESERVED:
        raise UserError(
            f"an evaluation cannot be named {name!r}, because {', '.join(RESERVED)} and names with"
            " a colon have a meaning of their own in results.json."
        )
    return EVALUATIONS.register(name)


register_evaluation("knn")(neighbour_vote.evaluate_knn)
register_evaluation("linear")(probes.evaluate_linear)
register_evaluation("heads")(head_gain.evaluate_heads)
register_evaluation("uncertainty")(certainty_quality.evaluate_uncertainty)
register_evaluation("ood")(foreign_images.evaluate_ood)
register_evaluation("learning")(training_history.evaluate_learning)
register_evaluation("geometry")(feature_space.evaluate_geometry)
register_evaluation("sensitivity")(invariances.evaluate_sensitivity)
register_evaluation("explanation")(explanations.evaluate_explanation)
