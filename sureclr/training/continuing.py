"""Whether a run may be continued: what differs from what its newest checkpoint recorded."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sureclr.config import PretrainConfig, differing, from_dict, read_yaml
from sureclr.data.batches import steps_per_epoch
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.files import read_json, unsealed
from sureclr.training.image_record import ImageRecord, check_recorded_images
from sureclr.training.run_dir import RunDir, check_numbers

# Fields whose None means "choose what fits"; a run goes on with what was chosen when it began.
CHOSEN = (
    "size",
    "channels",
    "value_range",
    "micro_batch",
    "centre_share",
    "pixel_mean",
    "pixel_std",
    "presence",
    "null_fraction",
)
# What runs had before it was recorded
BEFORE_RECORDS: dict[str, Any] = {"presence": "off", "null_fraction": 0.0}
CHOSEN_FROM_AUTO = ("stem", "precision", "interpolation")  # and fields whose auto means that
# Fields that decide the shapes of a checkpoint's tensors: no other value can continue from it.
OF_THE_SHAPES = (
    *("channels", "encoder", "stem", "projection_dim", "projection_layers", "projection_hidden"),
    *("loss", "presence", "optimizer", "freeze", "pool", "layer_decay"),
)
OF_THE_MACHINE = ("threads", "gpu", "torch")  # keys of environment.json that may change last bits


def recorded_configuration(directory: RunDir) -> PretrainConfig:
    """Return the configuration of the newest undamaged checkpoint, else that of config.yaml.

    That of config.yaml is also returned where it only extends the checkpoint's: the run had begun
    with an extension, and saved no checkpoint of it.

    Raises:
        UserError: config.yaml cannot be read, or no checkpoint can be and there is one.
    """
    file = from_dict(read_yaml(directory.config))
    numbers = directory.checkpoint_numbers()
    if numbers is None:
        return file
    check_numbers(directory.path, numbers)
    saved = from_dict(numbers["configuration"])
    return file if file.extends(saved) else saved


def check_complete(directory: RunDir, recorded: PretrainConfig) -> None:
    """Check that a run can be extended, before its images are read.

    Args:
        directory: of the run.
        recorded: its configuration.

    Raises:
        UserError: it has steps to take, or no checkpoint to go on from.
    """
    numbers = directory.checkpoint_numbers()
    if numbers is None:
        raise UserError(
            f"the run in {directory.path} has no undamaged checkpoint, so it cannot be extended;"
            " put its checkpoints back."
        )
    if type(count := numbers.get("count")) is not int:
        raise UserError(
            f"the run in {directory.path} is of an older version, which did not record of how many"
            " images an epoch consists, so it cannot be extended; more epochs with"
            " accept_changes=True train it on."
        )
    steps = steps_per_epoch(count, recorded.batch_size) * recorded.all_epochs
    if numbers["step"] < steps:
        raise UserError(
            f"the run in {directory.path} has saved {numbers['step']:,} of its {steps:,} steps, and"
            f" only a complete run can be extended; finish it first: continue with resume=True,"
            f" out={str(directory.path)!r}"
        )


def extension_text(before: PretrainConfig, now: PretrainConfig) -> str:
    """Return a sentence about what is added to a run, and how it differs from a longer plan."""
    part, last = now.extensions[-1], before.parts[-1]
    rate = f"a learning rate of {part.learning_rate:g}"
    how = {
        "constant": rate,
        "cosine": f"a cosine from {rate} to zero, after a warm-up of {part.warmup_epochs:g} epochs",
        "restart": f"a cosine that begins anew at {rate}",
    }
    if len(now.parts) == len(before.parts):
        same = f"this is what a run planned with {now.all_epochs} epochs does"
    elif last.schedule == "constant":
        same = f"a run planned with {now.all_epochs} epochs would have kept its rate"
    else:
        same = (
            f"this is not what a run planned with {now.all_epochs} epochs does, because the rate"
            " had fallen to zero here"
        )
    count = f"{part.epochs:,} epoch{'s' * (part.epochs != 1)}"
    return f"The run is extended by {count} with {how[part.schedule]}; {same}."


def completed(config: PretrainConfig, recorded: PretrainConfig) -> PretrainConfig:
    """Return a configuration with what the run chose when it began, where it leaves that open."""
    values = {n: getattr(recorded, n) for n in CHOSEN if getattr(config, n) is None}
    values |= {n: getattr(recorded, n) for n in CHOSEN_FROM_AUTO if getattr(config, n) == "auto"}
    values |= {
        name: None
        for name, value in BEFORE_RECORDS.items()
        if getattr(recorded, name) is None and getattr(config, name) == value
    }
    if config.of_table:  # whose views decide it; another number is another table
        values["cached_views"] = recorded.cached_views
    return replace(config, **values, extensions=config.extensions or recorded.extensions)


def configuration_changes(
    directory: RunDir, recorded: PretrainConfig, config: PretrainConfig
) -> list[str]:
    """Return what differs, one part of a sentence for each field: in `config`, or in config.yaml.

    Raises:
        UserError: config.yaml cannot be read, or a field differs that cannot change within a run.
    """
    file = from_dict(read_yaml(directory.config))
    found = _changes(recorded, config, "now")
    for name, text in _changes(recorded, completed(file, recorded), "now in config.yaml").items():
        found.setdefault(name, text)
    if fixed := [found[name] for name in OF_THE_SHAPES if name in found]:
        raise UserError(
            f"the run in {directory.path} cannot go on, because {' and '.join(fixed)}, and the"
            " weights of its checkpoint do not fit another value; set the old one again, or start"
            " another run."
        )
    return list(found.values())


def _changes(before: PretrainConfig, now: PretrainConfig, when: str) -> dict[str, str]:
    """The differing fields by name, each with its two values in words.

    An extension is no change of what was planned before.
    """
    texts = {}
    if now.extensions[: len(before.extensions)] == before.extensions:
        now = replace(now, extensions=before.extensions)
    for name in differing(before, now):
        if name == "views":
            for part, old in vars(before.views).items():
                if (new := getattr(now.views, part)) != old:
                    texts[f"views.{part}"] = f"views.{part} was {old} and is {when} {new}"
        else:
            old, new = getattr(before, name), getattr(now, name)
            if name == "extensions":
                old, new = ("; ".join(map(str, parts)) or "none" for parts in (old, new))
            elif old is None:
                old = BEFORE_RECORDS.get(name)
            texts[name] = f"{name} was {old} and is {when} {new}"
    return texts


def image_changes(
    directory: RunDir, images: ImageSet, now: ImageRecord, numbers: dict[str, Any]
) -> list[str]:
    """Return how images differ from those of a checkpoint, one part of a sentence for each kind.

    Args:
        directory: of the run.
        images: the training images of today.
        now: their record.
        numbers: of the checkpoint; those of older versions record only name, size and channels.

    Raises:
        UserError: the number of channels differs, which cannot change within a run.
    """
    channels, _, size = images.images.shape[1:]
    name, side, colours = (numbers[key] for key in ("source", "size", "channels"))
    found = []
    if colours != channels or name != images.name or side != size:
        found = [
            f"it was trained on {name} ({side} pixels, {colours} channels), and would continue on"
            f" {images.name} ({size} pixels, {channels} channels)"
        ]
    if colours != channels:
        raise UserError(
            f"the run in {directory.path} cannot go on: {found[0]}; pass the same images again."
        )
    if recorded := numbers.get("images"):
        found += check_recorded_images(directory.images, recorded, numbers.get("count"), now)
    return found


def refuse_changes(directory: RunDir, changes: list[str]) -> None:
    """Raise a `UserError` that names the changes, if there are any."""
    if changes:
        more = ""
        if any(change.startswith("epochs was") for change in changes):
            more = " A complete run trains on with extend=EPOCHS (see PretrainConfig.extended)."
        raise UserError(
            f"resume=True continues a run as it began, and the run in {directory.path} has changed:"
            f" {'; '.join(changes)}. Restore that, or go on with accept_changes=True, which records"
            f" the change, or start another run.{more}"
        )


def accepted(changes: list[str], step: int) -> dict[str, Any]:
    """Return the record of accepted changes that goes into every later checkpoint."""
    return {"step": step, "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "changes": changes}


def machine_changes(directory: RunDir, environment: dict[str, Any]) -> str:
    """Return a sentence if the machine is another one than that on which the run began, or "".

    Args:
        directory: of the run.
        environment: as `records.environment` returns it now.
    """
    try:
        stored = read_json(directory.path / "environment.json")
        before = unsealed(stored, "environment.json", required=False)
        changes = [
            f"{name} was {before[name]} and is now {environment[name]}"
            for name in OF_THE_MACHINE
            if name in before and before[name] != environment[name]
        ]
    except (ValueError, TypeError, RecursionError):
        return (
            f"{directory.path / 'environment.json'} is damaged, so nobody knows whether the machine"
            " is that on which the run began."
        )
    except OSError:
        return ""
    if not changes:
        return ""
    return (
        f"The machine differs from that on which the run began ({'; '.join(changes)}): the last"
        " digits can differ from those of a run without a break."
    )
