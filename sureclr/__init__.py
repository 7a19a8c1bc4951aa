"""SureCLR: contrastive learning that knows how sure it is.

    run = sureclr.pretrain(sureclr.recipe("digits"))      # a Run; its folder holds everything
    table = sureclr.load(run.path).embed(images)          # features, direction, radius of each image
    loss = sureclr.SureLoss(temperature=0.2)              # the loss alone, for your own loop

Names are imported when first used, so that `sureclr --help` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sureclr.version import __version__

if TYPE_CHECKING:
    from sureclr.config import PretrainConfig as PretrainConfig
    from sureclr.config import ViewConfig as ViewConfig
    from sureclr.data.embeddings import Embeddings as Embeddings
    from sureclr.data.image_set import ImageSet as ImageSet
    from sureclr.data.sources import load_images as load_images
    from sureclr.data.sources import register_source as register_source
    from sureclr.data.views import two_views as two_views
    from sureclr.errors import UserError as UserError
    from sureclr.finetuning.config import FinetuneConfig as FinetuneConfig
    from sureclr.finetuning.service import finetune as finetune
    from sureclr.finetuning.store import load_finetuned as load_finetuned
    from sureclr.maths.objectives import NTXentLoss as NTXentLoss
    from sureclr.maths.objectives import Objective as Objective
    from sureclr.maths.objectives import SureLoss as SureLoss
    from sureclr.maths.objectives import objective as objective
    from sureclr.maths.objectives import register_loss as register_loss
    from sureclr.maths.sphere import Posterior as Posterior
    from sureclr.recipes import recipe as recipe
    from sureclr.training.pretraining import pretrain as pretrain
    from sureclr.training.run import Run as Run
    from sureclr.training.run import load as load


_HOMES = {
    "PretrainConfig": "config",
    "ViewConfig": "config",
    "ImageSet": "data.image_set",
    "load_images": "data.sources",
    "register_source": "data.sources",
    "two_views": "data.views",
    "UserError": "errors",
    "NTXentLoss": "maths.objectives",
    "SureLoss": "maths.objectives",
    "objective": "maths.objectives",
    "Objective": "maths.objectives",
    "register_loss": "maths.objectives",
    "Posterior": "maths.sphere",
    "Embeddings": "data.embeddings",
    "recipe": "recipes",
    "FinetuneConfig": "finetuning.config",
    "finetune": "finetuning.service",
    "load_finetuned": "finetuning.store",
    "pretrain": "training.pretraining",
    "Run": "training.run",
    "load": "training.run",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sureclr' has no attribute {name!r}")
    return getattr(import_module(f"sureclr.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
