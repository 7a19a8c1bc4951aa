"""The network and the loss of a configuration, by name or as the user's own objects."""

import inspect
import math
import os
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from sureclr.config import NULL_FRACTION, ONNX, PRESENCE, TABLE, PretrainConfig
from sureclr.data.cached_pixels import images_at_once
from sureclr.data.image_set import ImageSet
from sureclr.data.sources import findable
from sureclr.errors import UserError
from sureclr.maths.objectives import OBJECTIVES, Objective, objective
from sureclr.models.devices import seeded
from sureclr.models.embedding import evaluating
from sureclr.models.encoders import CUSTOM, ENCODERS, stem_for
from sureclr.models.onnx_backbone import is_onnx
from sureclr.models.simclr import CertaintyHead, ProjectionHead, SimCLR, StandardisedEncoder
from sureclr.training.starting import absolute_init, starting_network

WEIGHT_BYTES = 8  # a weight and its gradient, each in float32
STATISTICS_IMAGES = 10_000  # about so many images give the mean and the standard deviation,
IMAGES_AT_ONCE = 1000  # in blocks of at most so many
OPTION_FIELDS = {  # an argument of a loss: the field of the configuration that records it
    "temperature": "temperature",
    "weight": "certainty_weight",
    "dimension": "kernel_dimension",
    "empirical_prior": "empirical_prior",
    "softening": "softening",
    "presence": "presence",
    "null_weight": "null_weight",
    "samples": "samples",
}


def is_own(name: str) -> bool:
    """Return whether a recorded name is that of the user's own encoder or loss."""
    return name.startswith(CUSTOM)


def build(
    config: PretrainConfig,
    channels: int,
    mean: Tensor,
    std: Tensor,
    *,
    network: nn.Module | None = None,
    loss: Objective | None = None,
    weights: dict[str, Tensor] | None = None,
) -> tuple[SimCLR, Objective]:
    """Build the model and the loss of a configuration.

    Their initial weights depend on `config.seed` alone, but for those of a network of the user's.

    Args:
        config: names encoder and loss, with a stem that is not auto (see `with_stem`).
        channels: 1 for grey images, 3 for colour, or any other number of bands.
        mean: (channels,) of the pixels in [0, 1].
        std: (channels,) of the same.
        network: the user's own encoder where the configuration names one; becomes part of the
            model without being copied.
        loss: the user's own loss where the configuration names one; returned as it is.
        weights: the state that will be loaded into the model; its shapes are compared before
            memory is taken.

    Raises:
        UserError: a name or an option is wrong, an object of the user's is missing, or the model
            does not fit into memory.
        RuntimeError: the model cannot load `weights`.
    """
    criterion = _loss(config, loss)
    if network is None and is_onnx(config.init):
        network = starting_network(config, channels)
    if config.certainty_gradient == "off" and not criterion.uses_certainty:
        raise UserError(
            f"certainty_gradient off needs a loss with a certainty, and {config.loss} has none;"
            " leave it out."
        )
    _check_size(config, channels, criterion, network, weights)
    with seeded(config.seed):
        model = _model(config, channels, mean, std, criterion, network)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it; 1.3x on a CPU
    return model, criterion


def _model(
    config: PretrainConfig,
    channels: int,
    mean: Tensor,
    std: Tensor,
    criterion: Objective,
    network: nn.Module | None,
) -> SimCLR:
    """Return the network with weights drawn by torch's global generator."""
    if network is None:
        network = starting_network(config, channels)
    if config.pretrained:  # heads that do not depend on how the network was made
        torch.manual_seed(config.seed)
    features = cast(int, network.num_features)
    projection = ProjectionHead(
        features, config.projection_dim, config.projection_hidden, config.projection_layers
    )
    certainty = (
        CertaintyHead(
            features, gradient=config.certainty_gradient == "on", outputs=criterion.numbers
        )
        if criterion.uses_certainty
        else None
    )
    standardised = StandardisedEncoder(network, mean.cpu(), std.cpu())
    return SimCLR(standardised, projection, certainty, criterion.read)


def _check_size(
    config: PretrainConfig,
    channels: int,
    criterion: Objective,
    network: nn.Module | None,
    weights: dict[str, Tensor] | None,
) -> None:
    """Raise what `build` raises about sizes, without taking memory for the weights."""
    if network is None and config.encoder in ENCODERS and config.encoder != "small":
        return  # code of a package, which need not work without memory
    one = torch.ones(1)
    named = replace(config, init="random", freeze="off")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that loading copies no values
        model = _model(named, channels, one, one, criterion, network)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        needed, memory = WEIGHT_BYTES * parameters, _memory()
        if needed > memory:
            raise UserError(
                f"the encoder {config.encoder} and its heads have {parameters:,} parameters, which"
                f" take at least {needed / 2**30:,.1f} GiB, and this machine has"
                f" {memory / 2**30:,.1f}; choose a smaller encoder, projection_dim or"
                " projection_hidden."
            )
        if weights is not None and network is None:
            model.load_state_dict({**weights, "encoder.mean": one, "encoder.std": one})


def _memory() -> float:
    """The bytes of main memory of this machine; infinite if the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _loss(config: PretrainConfig, loss: Objective | None) -> Objective:
    if not is_own(config.loss):
        return objective(config.loss, **config.objective_options())
    if loss is None:
        raise UserError(
            f"the loss {config.loss} is an object of your own, and a run stores its state but not"
            " its code; pass the loss again, as the argument `loss`."
        )
    return loss


def recorded(config: PretrainConfig, encoder: nn.Module | None, loss: Any) -> PretrainConfig:
    """Return the configuration that records the source, and the user's own encoder and loss.

    The source and the first weights are recorded with absolute paths, so that they are found from
    any folder. A registered loss is recorded by its name and options, so that it can be built
    again. An encoder, and any other loss, is recorded as "custom:" and the name of its class, and
    the encoder of an ONNX file as "onnx", which is frozen.

    Raises:
        UserError: an argument has the wrong type, or the loss does not take an option or has no use
            for null views.
    """
    if config.of_table:
        if config.pretrained:
            raise UserError(
                f"a table has features that were made elsewhere, and init {config.init} begins a"
                " network; leave out init."
            )
        config = replace(config, encoder=TABLE, freeze="backbone")
    if findable(config.source) != config.source:
        config = replace(config, source=findable(config.source))
    if absolute_init(config.init) != config.init:
        config = replace(config, init=absolute_init(config.init))
    if encoder is not None:
        if not isinstance(encoder, nn.Module):
            raise UserError(
                f"encoder must be a torch.nn.Module, not {type(encoder).__name__}; name an encoder"
                " in the configuration instead: PretrainConfig(encoder='resnet18')."
            )
        config = replace(config, encoder=f"{CUSTOM}{type(encoder).__name__}", init="random")
    if loss is not None:
        if not isinstance(loss, Objective):
            raise UserError(
                f"loss must be a loss object such as sureclr.SureLoss(), not {type(loss).__name__};"
                " name a loss in the configuration instead: PretrainConfig(loss='sure')."
            )
        options = _options(loss)
        name = f"{CUSTOM}{type(loss).__name__}" if options is None else _registered_name(loss)
        fields: dict[str, Any] = dict.fromkeys(OPTION_FIELDS.values()) | (options or {})
        config = replace(config, **{"loss": name, **fields})
    if is_onnx(config.init):
        config = _with_onnx(config)
    begun = config.pretrained or encoder is not None or is_own(config.encoder)
    if config.freeze != "off" and not (begun or config.of_table):
        raise UserError(
            f"freeze {config.freeze} keeps the first weights of the encoder, and those of init"
            " random are worth nothing; add init timm, a run folder or a file of weights."
        )
    if loss is not None or not is_own(config.loss):
        _check_nulls(config, _loss(config, loss))
    return config


def _check_nulls(config: PretrainConfig, loss: Objective) -> None:
    """Raise a `UserError` if null views are wanted, and the loss or a table has no use for them."""
    if not config.null_fraction:
        return
    if config.of_table:
        raise UserError(
            f"null_fraction is {config.null_fraction}, and a table of features has no images of"
            " which null views are made; leave it out."
        )
    if type(loss).null_loss is Objective.null_loss:
        raise UserError(
            f"null_fraction is {config.null_fraction}, and the loss {config.loss} learns nothing"
            " from null views; leave it out, or use the loss sure."
        )


def _with_onnx(config: PretrainConfig) -> PretrainConfig:
    """Return the configuration of a run whose encoder is the network of an ONNX file."""
    if config.freeze == "stages":
        raise UserError(
            f"an ONNX network cannot be trained, not even its last stage ({config.init}); leave out"
            " freeze, or set it to backbone."
        )
    return replace(config, encoder=ONNX, freeze="backbone")


def _registered_name(loss: Objective) -> str | None:
    """Return the name under which the class of a loss is registered; None if it is not."""
    return next((name for name, entry in OBJECTIVES.items() if entry is type(loss)), None)


def _options(loss: Objective) -> dict[str, Any] | None:
    """Return the fields of the configuration that build this loss again; None if none do."""
    if _registered_name(loss) is None:
        return None
    options = {}
    for name, parameter in inspect.signature(type(loss)).parameters.items():
        value = getattr(loss, name, inspect.Parameter.empty)
        if name in OPTION_FIELDS:
            options[OPTION_FIELDS[name]] = value
        elif value != parameter.default:
            return None
    return None if inspect.Parameter.empty in options.values() else options


def with_stem(config: PretrainConfig, size: int) -> PretrainConfig:
    """Return the configuration with the stem that suits the images, where it leaves it open.

    Pretrained weights keep the stem with which they were trained.

    Args:
        config: of a run.
        size: side of the images in pixels.
    """
    if config.stem != "auto":
        return config
    return replace(config, stem="imagenet" if config.pretrained else stem_for(config.encoder, size))


def with_presence(config: PretrainConfig) -> PretrainConfig:
    """Return a configuration that says whether there is a presence, and how many null views.

    Null views have a part in the statistics of BN, so there are none by default where the features
    must be exactly SimCLR's.
    """
    if config.presence is None and config.loss == "sure":
        config = replace(config, presence=PRESENCE)
    if config.null_fraction is None:
        of_both = config.presence == "on" and config.certainty_gradient == "on"
        fraction = NULL_FRACTION if of_both and not config.of_table else 0.0
        config = replace(config, null_fraction=fraction)
    return config


def own_network(module: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Return a copy of the user's encoder on the CPU, with the attribute `num_features`.

    Args:
        module: stays as it is.
        shape: (c, h, w) of the images.

    Raises:
        UserError: it does not return (n, f) for images (n, c, h, w).
    """
    network = deepcopy(module).cpu()
    with seeded(0):  # in case it draws random numbers, or makes its weights when first called
        features = feature_count(network, type(module).__name__, shape)
    if not hasattr(network, "num_features"):
        network.num_features = features  # type: ignore[assignment]  # a number, not a module
    return network


def feature_count(network: nn.Module, name: str, shape: Sequence[int]) -> int:
    """Return the number of features that an encoder returns, from two grey images.

    Args:
        network: an encoder of standardised images; neither its weights nor its mode change.
        name: for the error message.
        shape: (c, h, w) of the images.

    Raises:
        UserError: it cannot take images of this shape, does not return one vector an image, or has
            an attribute `num_features` that is another number.
    """
    try:
        with evaluating(network):
            features = network(torch.zeros(2, *shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"encoder {name} cannot take images of {shape[-1]} pixels"
            f" ({' '.join(str(error).split())[:120]}); choose another size or encoder."
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        form = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(
            f"encoder {name} must return features (n, f) for images (n, c, h, w), but for"
            f" {(2, *shape)} it returned {form}; pool or flatten its output."
        )
    count = features.shape[1]
    if getattr(network, "num_features", count) != count:
        raise UserError(
            f"encoder {name} returns {count} features, but its attribute num_features is"
            f" {network.num_features}; correct the attribute."
        )
    return count


def pixel_statistics(images: ImageSet, config: PretrainConfig) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (c,) of the pixels in [0, 1].

    They are those of the configuration, or else those of the training images. Pixels have 256
    values, so their counts give both exactly; only a block of images is in memory.

    Raises:
        UserError: the configuration has not one of each for each channel.
    """
    if config.of_table:  # features are taken as they are
        count = images.images.shape[1]
        return torch.zeros(count), torch.ones(count)
    if config.pixel_mean is not None and config.pixel_std is not None:
        channels = images.images.shape[1]
        if len(config.pixel_mean) != channels:
            raise UserError(
                f"pixel_mean and pixel_std need a number for each of the {channels}"
                f" channel{'s' if channels > 1 else ''} of the images, not"
                f" {len(config.pixel_mean)}; give as many, or leave both out."
            )
        return torch.tensor(config.pixel_mean), torch.tensor(config.pixel_std)
    counts = torch.zeros(images.images.shape[1], 256, dtype=torch.int64)
    step = max(1, len(images) // STATISTICS_IMAGES)
    block = step * min(IMAGES_AT_ONCE, images_at_once(images.images))
    for start in range(0, len(images), block):
        pixels = images.images[start : start + block : step].cpu()
        for band, values in zip(counts, pixels.transpose(0, 1), strict=True):
            band += torch.bincount(values.flatten(), minlength=256)
    values, counts = torch.arange(256, dtype=torch.float64) / 255, counts.double()
    total = counts.sum(1)
    mean = counts @ values / total
    squares = (counts * (values - mean[:, None]).square()).sum(1)
    return mean.float(), (squares / (total - 1)).sqrt().float().clamp(min=1e-3)
