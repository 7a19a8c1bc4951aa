"""SureCLR: image encoders trained without labels, with a certainty for each image.

    run = sureclr.pretrain(sureclr.recipe("digits"))      # a Run; its folder holds everything
    results = sureclr.evaluate(run)                       # typed results, also in results.json
    sureclr.report(results)                               # one page about them
    table = run.embed(images)                             # features, direction, radius
    loss = sureclr.SureLoss()                             # the loss alone, for your own loop

Names are imported when first used, so that `sureclr --help` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sureclr import compat as compat  # before anything imports torchvision
from sureclr.version import __version__

if TYPE_CHECKING:
    from sureclr.config import PretrainConfig as PretrainConfig
    from sureclr.config import ViewConfig as ViewConfig
    from sureclr.data.embeddings import Embeddings as Embeddings
    from sureclr.data.image_set import ImageSet as ImageSet
    from sureclr.data.sources import load_images as load_images
    from sureclr.data.sources import register_source as register_source
    from sureclr.data.user_images import as_image_set as as_image_set
    from sureclr.data.views import two_views as two_views
    from sureclr.errors import UserError as UserError
    from sureclr.evaluation.evaluations import register_evaluation as register_evaluation
    from sureclr.evaluation.prediction import predict as predict
    from sureclr.evaluation.prediction_table import Predictions as Predictions
    from sureclr.evaluation.results import Results as Results
    from sureclr.evaluation.results import read_results as read_results
    from sureclr.evaluation.session import compare as compare
    from sureclr.evaluation.session import evaluate as evaluate
    from sureclr.finetuning.config import FinetuneConfig as FinetuneConfig
    from sureclr.finetuning.service import finetune as finetune
    from sureclr.finetuning.store import load_finetuned as load_finetuned
    from sureclr.maths.objectives import NTXentLoss as NTXentLoss
    from sureclr.maths.objectives import Objective as Objective
    from sureclr.maths.objectives import SureLoss as SureLoss
    from sureclr.maths.objectives import objective as objective
    from sureclr.maths.objectives import register_loss as register_loss
    from sureclr.maths.sphere import Posterior as Posterior
    from sureclr.models.encoders import register_encoder as register_encoder
    from sureclr.recipes import recipe as recipe
    from sureclr.reporting.page import report as report
    from sureclr.training.feature_heads import heads as heads
    from sureclr.training.photographs import recipe_for_pictures as recipe_for_pictures
    from sureclr.training.pretraining import pretrain as pretrain
    from sureclr.training.run import Run as Run
    from sureclr.training.run import load as load

_HOMES = {
    "PretrainConfig": "config",
    "ViewConfig": "config",
    "Embeddings": "data.embeddings",
    "ImageSet": "data.image_set",
    "load_images": "data.sources",
    "register_source": "data.sources",
    "as_image_set": "data.user_images",
    "two_views": "data.views",
    "UserError": "errors",
    "register_evaluation": "evaluation.evaluations",
    "Predictions": "evaluation.prediction_table",
    "predict": "evaluation.prediction",
    "Results": "evaluation.results",
    "read_results": "evaluation.results",
    "compare": "evaluation.session",
    "evaluate": "evaluation.session",
    "FinetuneConfig": "finetuning.config",
    "finetune": "finetuning.service",
    "load_finetuned": "finetuning.store",
    "NTXentLoss": "maths.objectives",
    "Objective": "maths.objectives",
    "SureLoss": "maths.objectives",
    "objective": "maths.objectives",
    "register_loss": "maths.objectives",
    "Posterior": "maths.sphere",
    "register_encoder": "models.encoders",
    "recipe": "recipes",
    "recipe_for_pictures": "training.photographs",
    "report": "reporting.page",
    "heads": "training.feature_heads",
    "pretrain": "training.pretraining",
    "Run": "training.run",
    "load": "training.run",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sureclr' has no attribute {name!r}")
    return getattr(import_module(f"sureclr.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
