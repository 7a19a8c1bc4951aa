"""SureCLR: contrastive learning that knows how sure it is.

    run = sureclr.pretrain(sureclr.recipe("digits"))      # a Run; its folder holds everything
    table = sureclr.load(run.path).embed(images)          # features, direction and radius by image
    loss = sureclr.SureLoss(temperature=0.2)              # the loss alone, for your own loop

Names are imported when first used, so that `sureclr --help` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sureclr import compat as compat  # before anything imports torchvision

if TYPE_CHECKING:
    from sureclr.config import PretrainConfig as PretrainConfig
    from sureclr.config import ViewConfig as ViewConfig
    from sureclr.data.embeddings import Embeddings as Embeddings
    from sureclr.data.image_set import ImageSet as ImageSet
    from sureclr.data.sources import load as load_images
    from sureclr.data.views import two_views as two_views
    from sureclr.errors import UserError as UserError
    from sureclr.finetuning.store import load_finetuned as load_finetuned
    from sureclr.maths.objectives import NTXentLoss as NTXentLoss
    from sureclr.maths.objectives import SureLoss as SureLoss
    from sureclr.maths.objectives import objective as objective
    from sureclr.maths.sphere import Posterior as Posterior
    from sureclr.models.encoders import register_encoder as register_encoder
    from sureclr.recipes import recipe as recipe
    from sureclr.training.pretraining import pretrain as pretrain
    from sureclr.training.run import Run as Run
    from sureclr.training.run import load as load

__version__ = "0.1.0"

_HOMES = {
    "PretrainConfig": "config",
    "ViewConfig": "config",
    "ImageSet": "data.image_set",
    "load_images": "data.sources:load",
    "two_views": "data.views",
    "UserError": "errors",
    "NTXentLoss": "maths.objectives",
    "SureLoss": "maths.objectives",
    "objective": "maths.objectives",
    "Posterior": "maths.sphere",
    "Embeddings": "data.embeddings",
    "recipe": "recipes",
    "register_encoder": "models.encoders",
    "load_finetuned": "finetuning.store",
    "pretrain": "training.pretraining",
    "Run": "training.run",
    "load": "training.run",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sureclr' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(f"sureclr.{module}"), attribute or name)


def __dir__() -> list[str]:
    return __all__
