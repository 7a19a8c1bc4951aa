"""Flags made from a configuration's fields, and how flags, a file and a recipe become one."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from cyclopts import Group, Parameter
from docstring_parser import parse_from_object

from sureclr.config import (
    NAMED_WEIGHTS,
    OF_THE_NETWORK,
    TABLE,
    PretrainConfig,
    ReadOptions,
    ViewConfig,
    as_field_types,
    from_dict,
    read_yaml,
    view_values,
)
from sureclr.errors import UserError
from sureclr.progress import Progress
from sureclr.recipes import RECIPES, recipe, recipe_for

DATA = Group("Images", sort_key=10)
NETWORK = Group("Network", sort_key=20)
LOSS = Group("Loss", sort_key=30)
TRAINING = Group("Training", sort_key=40)
MONITORING = Group("Monitoring and checkpoints", sort_key=50)
VIEWS = Group("Views (SimCLR's augmentations)", sort_key=60)
CHOICE = Group("Labels, repetitions and tests", sort_key=10)

FIELDS_OF_GROUP: Mapping[Group, str] = {
    DATA: (
        "size channels value_range pages centre_share interpolation pixel_mean pixel_std"
        " cache_scale strict allow_unreadable"
    ),
    NETWORK: (
        "encoder stem init init_by_order freeze cached_views pool projection_dim projection_layers"
        " projection_hidden"
    ),
    LOSS: (
        "loss temperature certainty_weight kernel_dimension empirical_prior softening presence"
        " null_fraction null_kinds null_weight samples certainty_gradient"
    ),
    TRAINING: (
        "epochs batch_size micro_batch optimizer learning_rate learning_rates"
        " layer_decay classifier_learning_rate momentum weight_decay warmup_epochs schedule bn"
        " precision compile seed"
    ),
    MONITORING: "monitor_every snapshot_every checkpoint_every",
    VIEWS: " ".join(field.name for field in fields(ViewConfig)),
    CHOICE: "labels image_column label_column fold seeds tune validation",
}
OF_PICTURES = (  # options of pictures and of their network, which a table of features has not
    *FIELDS_OF_GROUP[DATA].split(),
    *("encoder", "stem", "init", "init_by_order", "freeze", "cached_views", "pool", "layer_decay"),
)
RANGE = "value_range"  # a flag of two numbers, LOW:HIGH
SHORT_FLAGS = {RANGE: "range"}  # where Python's own names forbid the word
GROUP_OF_FIELD = {name: group for group, names in FIELDS_OF_GROUP.items() for name in names.split()}


def optional_flags(config: type[Any], skip: tuple[str, ...] = ()) -> type[Any]:
    """Return a dataclass with the fields of a configuration as optional flags.

    A flag that is None was not given. Its help is the docstring of the field, so that every option
    is described once.
    """
    help_of = {
        entry.arg_name: entry.description or "" for entry in parse_from_object(config).params
    }
    hints = get_type_hints(config)
    optional = []
    for field in fields(config):
        if field.name not in skip:
            text = _with_default(help_of.get(field.name, ""), field.default)
            # Only these have a name of their own: with one, a flag loses the prefix of its class
            name = f"--{SHORT_FLAGS[field.name]}" if field.name in SHORT_FLAGS else None
            group = GROUP_OF_FIELD[field.name]
            kind = hints[field.name]
            if field.name == RANGE:
                kind, text = str, f"{text} Write LOW:HIGH, such as 0:4095."
            # --pixel-mean 0.5 0.5 0.5
            several = any(get_args(one)[-1:] == (Ellipsis,) for one in (kind, *get_args(kind)))
            shown = Parameter(
                help=text,
                negative="",
                consume_multiple=several or None,
                group=group,
                name=name,
                allow_leading_hyphen=field.name == RANGE,
            )
            optional.append((field.name, Annotated[kind | None, shown], None))
    # cyclopts does not open a class of the module `types`, where make_dataclass would put it
    return make_dataclass(f"{config.__name__}Flags", optional, namespace={"__module__": __name__})


def _with_default(text: str, default: Any) -> str:
    """Add the default to the help text, where it is a value."""
    if default is MISSING or default is None:
        return text
    words = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} [default: {words}]"


ConfigFlags: Any = optional_flags(PretrainConfig, skip=("source", "views", "extensions"))
ViewFlags: Any = optional_flags(ViewConfig)
ImageFlags: Any = optional_flags(
    PretrainConfig,
    skip=tuple(
        field.name
        for field in fields(PretrainConfig)
        if field.name not in {option.name for option in fields(ReadOptions)}
    ),
)
OF_NULLS = ("null_fraction", "null_kinds")
NullFlags: Any = optional_flags(
    PretrainConfig,
    skip=tuple(field.name for field in fields(PretrainConfig) if field.name not in OF_NULLS),
)
NO_CONFIG, NO_VIEWS, NO_IMAGES, NO_NULLS = ConfigFlags(), ViewFlags(), ImageFlags(), NullFlags()


def given_flags(values: Any) -> dict[str, Any]:
    """Return the flags that are on the command line.

    Raises:
        UserError: a range is not written as LOW:HIGH.
    """
    given = {name: value for name, value in vars(values).items() if value is not None}
    if RANGE in given:
        given[RANGE] = _low_high(given[RANGE])
    return given


def _low_high(words: str) -> tuple[float, float]:
    try:
        low, high = map(float, words.split(":"))
    except ValueError:
        raise UserError(
            f"--range must be two numbers with a colon between them, such as 0:4095; got {words}."
        ) from None
    return low, high


def as_words(given: Mapping[str, Any]) -> str:
    """Return flags as they are typed, each after a blank.

    >>> as_words({"size": 32, "value_range": (0.0, 5.5), "strict": True})
    ' --size 32 --range 0.0:5.5 --strict'
    """
    words = []
    for name, value in given.items():
        words.append("--" + SHORT_FLAGS.get(name, name).replace("_", "-"))
        if value is not True:
            if name == RANGE:
                value = ":".join(map(str, value))
            words += map(str, value if isinstance(value, tuple) else (value,))
    return "".join(f" {shlex.quote(word)}" for word in words)


def resolve(
    source: str | None,
    recipe_name: str | None,
    file: Path | None,
    given: dict[str, Any],
    views: dict[str, Any],
    progress: Progress | None = None,
) -> PretrainConfig:
    """Return one configuration: the command line over the file over the recipe over the defaults.

    The recipe is the named one, else the source's own, unless a file is given. The recipe `photos`
    is fitted to the pictures if there is a `progress`, which gets a line about it.

    Raises:
        UserError: no source, an unknown recipe, or values that do not fit.
    """
    from_file = read_yaml(file) if file else {}
    # Values of other types are refused here, before a recipe is fitted to them
    as_field_types(PretrainConfig, {k: v for k, v in from_file.items() if k != "views"})
    source = (
        source or from_file.get("source") or (recipe(recipe_name).source if recipe_name else None)
    )
    if source is None:
        raise UserError(
            "pretrain needs images to train on; for example `sureclr pretrain digits` or `sureclr"
            " pretrain folder:PATH` (`sureclr list` names all data sources)."
        )
    if source.startswith(f"{TABLE}:"):
        useless = [name for name in given if name in OF_PICTURES]
        useless += [f"views.{name}" for name in views]
        if useless:
            raise UserError(
                f"a table holds features that were made elsewhere, so {useless[0]} decides nothing;"
                f" leave out --{useless[0].replace('_', '-')}."
            )
    name = recipe_name or (None if file else recipe_for(source))
    base = recipe(name) if name and (name in RECIPES or recipe_name) else PretrainConfig(source)
    chosen = {**_network_of_run(from_file | given), **from_file, **given}
    if name == "photos" and progress is not None:
        from sureclr.training.photographs import recipe_for_pictures

        base = recipe_for_pictures(source, chosen, progress)
    merged = {**vars(base.views), **view_values(from_file), **views}
    values = {**vars(base), **chosen}
    if values["init"] != "random" and "stem" not in chosen:
        values["stem"] = "auto"  # that of a recipe is for random weights
    return from_dict({**values, "source": source, "views": merged})


def _network_of_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return encoder, stem and pool of the run from which a run starts; {} if it starts from none.

    A user who names that run need not name its encoder, which no recipe can know.
    """
    file = Path(str(given.get("init", ""))).expanduser() / "config.yaml"
    if given.get("init") in (None, *NAMED_WEIGHTS) or not os.path.lexists(file):
        return {}
    recorded = read_yaml(file)
    return {name: recorded[name] for name in OF_THE_NETWORK if name in recorded}
