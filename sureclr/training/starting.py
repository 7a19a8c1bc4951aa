"""What an encoder starts from: its first weights, and how it takes its images."""

import os
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path
from typing import Any

from torch import nn

from sureclr.config import (
    NAMED_WEIGHTS,
    OF_THE_NETWORK,
    ONNX,
    TABLE,
    Interpolation,
    PretrainConfig,
    from_dict,
    read_yaml,
)
from sureclr.errors import UserError
from sureclr.files import open_file, why
from sureclr.models.devices import seeded
from sureclr.models.encoders import CUSTOM, encoder, timm_defaults
from sureclr.models.onnx_backbone import USUAL_SIZE, OnnxBackbone, is_onnx, read_onnx
from sureclr.models.weight_files import FileOfWeights, below, fitted, read_weights
from sureclr.training.run_dir import (
    BACKBONE,
    ENCODER,
    RunDir,
    check_numbers,
    read_checked_safetensors,
)

ENCODER_FILE = "encoder.safetensors"  # of a finished run
# of colour pixels in [0, 1] of ImageNet, with which most networks are trained
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageForm:
    """How a pretrained encoder takes its images.

    Attributes:
        size: side of the images in pixels.
        mean: of each channel's pixels in [0, 1], which was subtracted; () if not known.
        std: standard deviation of each channel's pixels, by which they were divided; () if not
            known.
        centre_share: side of the centre square, as a share of the picture's shorter side; None: the
            largest square.
        interpolation: filter that resized this square.
    """

    size: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    centre_share: float | None = None
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True)
class EarlierRun:
    """The encoder of another run, from which a run starts.

    Attributes:
        config: of that run.
        form: how its encoder takes images.
        weights: of the backbone, by its own names.
    """

    config: PretrainConfig
    form: ImageForm
    weights: FileOfWeights


def is_path(init: str) -> bool:
    """Return whether first weights are named by a path."""
    return init not in NAMED_WEIGHTS


def absolute_init(init: str) -> str:
    """Return the name of first weights under which they are found from any folder."""
    return os.path.abspath(Path(init).expanduser()) if is_path(init) else init


def checked_path(init: str) -> Path:
    """Return the path of a run folder or a file of weights.

    Raises:
        UserError: there is neither.
    """
    path = Path(init).expanduser()
    if path.is_dir() and not RunDir(path).is_run():
        raise UserError(
            f"init {init} is a folder without a run (it has no config.yaml); give the folder of a"
            " run, or a file of weights."
        )
    if not os.path.lexists(path):
        raise UserError(
            f"init {init} does not exist; give `random`, `timm` (the pretrained weights of a timm"
            " encoder), or the path of a run folder or a file of weights (.safetensors, .pth, .pt,"
            " .bin or .onnx)."
        )
    return path


def earlier_run(path: Path) -> EarlierRun:
    """Return what a run starts from that begins with the encoder of another run.

    A finished run has `encoder.safetensors`; of another one the newest checkpoint is read.

    Raises:
        UserError: the encoder's code is not stored in that run, or its files are damaged.
    """
    directory = RunDir(path)
    config = from_dict(read_yaml(directory.config))
    if config.encoder.startswith(CUSTOM):
        raise UserError(
            f"the run {path} has an encoder of your own ({config.encoder}), whose code is not"
            " stored in it; load the run with it, and pass its network: sureclr.pretrain(config,"
            f" encoder=sureclr.load({str(path)!r}, encoder=...).encoder.backbone)."
        )
    if config.of_table:
        raise UserError(
            f"the run {path} has heads and no encoder, because it was trained on a table; start"
            " from a run of images."
        )
    if config.encoder == ONNX:
        raise UserError(
            f"the encoder of the run {path} is an ONNX network; start from its file,"
            f" {directory.onnx}."
        )
    file = path / ENCODER_FILE
    if os.path.lexists(file):
        try:
            tensors, about = read_checked_safetensors(file, "sureclr")
            size, mean, std = about["size"], about["mean"], about["std"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{file} is damaged ({' '.join(str(error).split())[:200]}); restore it, or delete"
                " it to start from the run's newest checkpoint."
            ) from error
    else:
        checkpoint = directory.load_checkpoint()
        check_numbers(path, checkpoint.numbers)
        model, file = checkpoint.parts["model"], directory.checkpoints
        tensors = below(BACKBONE, model) or below(ENCODER, directory.load_initial())
        size = checkpoint.numbers["size"]
        mean, std = model["encoder.mean"].tolist(), model["encoder.std"].tolist()
    options = config.read_options
    form = ImageForm(size, tuple(mean), tuple(std), options.centre_share, options.interpolation)
    return EarlierRun(config, form, FileOfWeights(file, tensors))


def run_of_start(config: PretrainConfig) -> EarlierRun | None:
    """Return the run that a configuration starts from; None: it starts from something else.

    Raises:
        UserError: there is no such run or file; or as `earlier_run`.
    """
    if not is_path(config.init) or not (path := checked_path(config.init)).is_dir():
        return None
    return earlier_run(path)


def with_network_of_run(config: PretrainConfig, run: EarlierRun) -> PretrainConfig:
    """Return a configuration with the stem, the pool and the channels of the run it starts from.

    Raises:
        UserError: the configuration says otherwise.
    """
    values: dict[str, Any] = {name: getattr(run.config, name) for name in OF_THE_NETWORK}
    values["channels"] = len(run.form.mean)
    for name, value in values.items():
        given = getattr(config, name)
        if given not in (value, None, "auto"):
            raise UserError(
                f"{name} is {given}, and the run {config.init}, from which this one starts, has"
                f" {name} {value}; leave {name} out, or set it to {value}."
            )
    return replace(config, **values)


def image_form(config: PretrainConfig) -> ImageForm | None:
    """Return how the encoder that a configuration starts from takes its images.

    None: it starts from random weights, or nothing is known. For a file of weights of a timm
    encoder it is what timm says of its own weights for this encoder. An `EarlierRun` has its own.

    Raises:
        UserError: the ONNX file cannot be used.
    """
    if not config.pretrained:
        return None
    if is_onnx(config.init):
        return _form_of_onnx(_onnx(config, config.channels))
    found = timm_defaults(config.encoder)
    if found is None:
        return None
    return ImageForm(
        found.input_size[-1],
        tuple(found.mean),
        tuple(found.std),
        found.crop_pct,
        "bicubic" if found.interpolation == "bicubic" else "bilinear",
    )


def _onnx(config: PretrainConfig, channels: int | None) -> OnnxBackbone:
    """Return the network of an ONNX file, tried on images of a run if their form is known."""
    path = checked_path(config.init)
    return OnnxBackbone(
        read_onnx(path), str(path), pool=config.pool, size=config.size, channels=channels
    )


def _form_of_onnx(network: OnnxBackbone) -> ImageForm:
    """Return how an ONNX network takes its images, which its file says only in part."""
    colour = network.channels in (None, 3)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if colour else ((), ())
    return ImageForm(network.size or USUAL_SIZE, mean, std)


def _said_of_onnx(network: OnnxBackbone, config: PretrainConfig) -> list[str]:
    mean, std = config.pixel_mean, config.pixel_std
    pixels = "those of the training images" if mean is None else f"{mean} and {std}"
    return [
        f"The network of {config.init} takes the place of the encoder and is not trained"
        f" (freeze=backbone); it gives {network.num_features:,} features (output"
        f" {network.output}). Its file does not say how pixels are standardised: mean and standard"
        f" deviation are {pixels}; pixel_mean and pixel_std change them."
    ]


def with_form(config: PretrainConfig, form: ImageForm | None) -> PretrainConfig:
    """Return a configuration with what an `ImageForm` says, where it leaves that open.

    Images get the channels of the encoder, so that grey ones become colour ones. Where the user
    chose other channels, each gets the average of the means, and of the deviations.
    """
    if form is None:
        return config
    channels = config.channels or len(config.pixel_mean or form.mean) or None
    mean, std = form.mean, form.std
    if channels not in (None, len(mean)) and mean:
        mean, std = ((sum(part) / len(part),) * channels for part in (mean, std))
    return replace(
        config,
        channels=channels,
        size=form.size if config.size is None else config.size,
        centre_share=form.centre_share if config.centre_share is None else config.centre_share,
        interpolation=(
            form.interpolation if config.interpolation == "auto" else config.interpolation
        ),
        pixel_mean=config.pixel_mean or mean or None,
        pixel_std=config.pixel_std or std or None,
    )


def starting_network(config: PretrainConfig, channels: int) -> nn.Module:
    """Return the encoder of a configuration with its first weights.

    Random ones are drawn by torch's global generator.

    Args:
        config: names the encoder, its stem and its first weights.
        channels: 1 for grey images, 3 for colour, or any other number of bands.

    Raises:
        UserError: the encoder is unknown, or its weights cannot be read or do not fit.
    """
    if config.encoder == TABLE:  # the features were made elsewhere
        given = nn.Flatten()
        given.num_features = channels  # type: ignore[assignment]  # a number, not a module
        return given
    return _started(config, channels, run_of_start(config))[0]


def check_start(config: PretrainConfig, run: EarlierRun | None) -> list[str]:
    """Return sentences about the first weights of an encoder, before any image is read.

    Args:
        config: as `images.as_begun` returns it.
        run: as `run_of_start` returns it.

    Raises:
        UserError: as `starting_network`.
    """
    if not config.pretrained:
        return []
    decided = replace(config, stem="imagenet") if config.stem == "auto" else config
    with seeded(config.seed):
        return _started(decided, config.channels or 3, run)[1]


def origin_of_start(config: PretrainConfig) -> dict[str, Any]:
    """Return what environment.json says of the first weights under `init`; {} if they are random.

    It is their path and the sha256 of the file (of an unfinished run, that of the checkpoint's
    manifest), or timm's name of them.

    Raises:
        UserError: the file or the run is gone, or cannot be read.
    """
    if not config.pretrained:
        return {}
    if not is_path(config.init):
        import timm

        found = timm.get_pretrained_cfg(config.encoder)
        return {"timm": None if found is None else found.hf_hub_id or found.url}
    path = checked_path(config.init)
    file = path / ENCODER_FILE if path.is_dir() else path
    try:
        if os.path.lexists(file):
            with open_file(file) as opened:
                digest = file_digest(opened, "sha256").hexdigest()
        else:
            digest = RunDir(path).load_checkpoint().digest
    except OSError as error:
        raise UserError(
            f"the weights {path} cannot be read any more ({why(error)}); start the run again."
        ) from error
    return {"path": str(path), "sha256": digest}


def _started(
    config: PretrainConfig, channels: int, run: EarlierRun | None
) -> tuple[nn.Module, list[str]]:
    """Return the encoder with its first weights, and sentences about these."""
    if not is_path(config.init):
        timm_weights = config.init == "timm"
        return encoder(config.encoder, config.stem, channels, timm_weights, config.pool), []
    path = checked_path(config.init)
    if is_onnx(config.init):
        frozen = _onnx(config, channels)
        return frozen, _said_of_onnx(frozen, config)
    network = encoder(config.encoder, config.stem, channels, pool=config.pool)
    weights = read_weights(path) if run is None else run.weights
    by_order = config.init_by_order and run is None
    state, notes = fitted(network, weights, by_order=by_order)
    network.load_state_dict(state)
    return network, notes
