"""The configuration: its file gives it back, YAML's traps are disarmed, and every bad key or value
is named.
"""

import math
import os
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sureclr.config import (
    LARGEST,
    LARGEST_NUMBER,
    PretrainConfig,
    ReadOptions,
    TrainingPart,
    ViewConfig,
    check_seed,
    differing,
    from_dict,
    read_yaml,
    to_yaml,
)
from sureclr.errors import UserError
from sureclr.finetuning.config import FinetuneConfig
from sureclr.recipes import RECIPES, recipe, recipe_for


def read(text: str, folder: Path) -> PretrainConfig:
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return from_dict(read_yaml(folder / "config.yaml"))


POSITIVE = st.floats(1e-9, 1e6, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    source=st.sampled_from(["digits", "folder:/a b/é: #1", "folder:off", "folder:1e5", "no"]),
    rate=POSITIVE,
    decay=st.floats(0, 1),
    temperature=st.none() | POSITIVE,
    gradient=st.sampled_from(["on", "off"]),
    batch=st.integers(2, 9999),
    hidden=st.none() | st.integers(1, 5000),
    area=st.floats(0.01, 1),
    flip=st.floats(0, 1),
    warmup=st.floats(0, 50) | st.integers(0, 50),
)
def test_the_file_gives_the_configuration_back(
    tmp_path_factory: pytest.TempPathFactory,
    source: str,
    rate: float,
    decay: float,
    temperature: float | None,
    gradient: Any,
    batch: int,
    hidden: int | None,
    area: float,
    flip: float,
    warmup: float,
) -> None:
    config = PretrainConfig(
        source,
        learning_rate=rate,
        weight_decay=decay,
        temperature=temperature,
        certainty_gradient=gradient,
        batch_size=batch,
        projection_hidden=hidden,
        warmup_epochs=warmup,
        views=ViewConfig(crop_area=(area, 1.0), flip=flip),
    )
    assert read(to_yaml(config), tmp_path_factory.mktemp("yaml")) == config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_goes_through_its_file(name: str, tmp_path: Path) -> None:
    assert read(to_yaml(recipe(name)), tmp_path) == recipe(name)


def test_the_file_is_complete_and_in_order(tmp_path: Path) -> None:
    """Every key is written, so that a later change of a default does not change an old run."""
    (tmp_path / "c.yaml").write_text(to_yaml(PretrainConfig("digits")))
    written = read_yaml(tmp_path / "c.yaml")
    assert list(written) == [f.name for f in fields(PretrainConfig)]
    assert list(written["views"]) == [f.name for f in fields(ViewConfig)]


@pytest.mark.parametrize("word", ["off", "'off'", '"off"'])
def test_off_is_a_word(word: str, tmp_path: Path) -> None:
    assert (
        read(f"source: digits\ncertainty_gradient: {word}\n", tmp_path).certainty_gradient == "off"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E3", 1e3), ("+.5e1", 5.0), ("1", 1.0), ("0.001", 1e-3), (".5", 0.5)],
)
def test_numbers_as_people_write_them(text: str, value: float, tmp_path: Path) -> None:
    """YAML 1.1, and so PyYAML, takes 1e-3 for a word."""
    config = read(
        f"source: digits\nlearning_rate: {text}\nviews:\n  crop_area: [1e-1, 1]\n", tmp_path
    )
    assert config.learning_rate == value and config.views.crop_area == (0.1, 1.0)


def test_missing_keys_take_their_defaults(tmp_path: Path) -> None:
    assert read("source: digits\n", tmp_path) == PretrainConfig("digits")
    assert read("source: digits\nviews:\n", tmp_path) == PretrainConfig("digits")
    assert read("source: digits\nviews: {flip: 0}\n", tmp_path).views == ViewConfig(flip=0.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source: digits\nepoch: 3", "unknown configuration key 'epoch': did you mean epochs"),
        (
            "source: digits\nviews: {flipp: 0}",
            r"unknown configuration key 'views.flipp': did you mean views.flip",
        ),
        ("source: digits\n3: 4", "unknown configuration key"),
        ("epochs: 3", "source"),
        ("source: 5", "source must be str; got 5"),
        ("source: digits\nepochs: ten", "epochs must be int; got 'ten'"),
        ("source: digits\nepochs: 2.5", "epochs must be int; got 2.5"),
        ("source: digits\nepochs: true", "epochs must be int; got True"),
        ("source: digits\nepochs:", "epochs must be int; got None"),
        ("source: digits\nlearning_rate: fast", "learning_rate must be float; got 'fast'"),
        ("source: digits\nlearning_rate: [1]", "learning_rate must be float"),
        ("source: digits\nlearning_rate: true", "learning_rate must be float; got True"),
        ("source: digits\nstem: cifra", "stem must be one of auto, imagenet, cifar; got 'cifra'"),
        (
            "source: digits\nkernel_dimension: wide",
            "kernel_dimension must be float or measured or nothing; got 'wide'",
        ),
        (
            "source: digits\ncertainty_gradient: true",
            "certainty_gradient must be one of on, off; got True",
        ),
        ("source: digits\nsize: big", "size must be int or nothing; got 'big'"),
        ("source: digits\nviews: 3", "views must be a mapping"),
        ("source: digits\nviews: [flip]", "views must be a mapping"),
        ("source: digits\nviews: {crop_area: 0.2}", "views.crop_area"),
        ("source: digits\nviews: {crop_area: [0.2, 0.3, 0.4]}", "views.crop_area"),
        ("source: digits\nviews: {crop_area: [0.2, x]}", "views.crop_area must be float; got 'x'"),
        ("source: digits\nviews: {flip: 2}", r"views.flip must lie in \[0, 1\], not 2"),
        ("- a\n- b", "must be a mapping"),
        ("just text", "must be a mapping"),
        ("", "must be a mapping"),
        ("source: [", "is not valid YAML"),
        ("source: !!python/object/apply:os.system ['echo']", "is not valid YAML"),
    ],
)
def test_what_a_file_may_not_hold_is_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read(text, tmp_path)
    assert "\n" not in str(caught.value) and "typing" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "bytes.yaml"):
        with pytest.raises(UserError, match="configuration") as caught:
            read_yaml(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 1}, "batch_size must be at least 2.*got 1"),
        ({"batch_size": 0}, "batch_size must be at least 2"),
        (
            {"batch_size": 100, "micro_batch": 64},
            "100 is not a multiple of micro_batch 64; try batch_size 128",
        ),
        (
            {"batch_size": 10, "micro_batch": 64},
            "10 is not a multiple of micro_batch 64; try batch_size 64",
        ),
        ({"micro_batch": 1}, "micro_batch must be at least 2"),
        ({"micro_batch": 0}, "micro_batch must be at least 2"),
        ({"micro_batch": -4}, "micro_batch must be at least 2"),
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"projection_layers": 0}, "projection_layers must be 1 to 4"),
        ({"projection_layers": 5}, "projection_layers must be 1 to 4; got 5"),
        ({"projection_dim": 1}, "projection_dim must be at least 2"),
        ({"projection_hidden": 0}, "projection_hidden must be positive"),
        ({"size": 3}, "size must be at least 4"),
        ({"size": 0}, "size must be at least 4"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number; got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number; got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be a positive number"),
        ({"weight_decay": -1e-6}, "weight_decay must not be negative"),
        ({"weight_decay": float("nan")}, "weight_decay must not be negative"),
        ({"warmup_epochs": -1.0}, "warmup_epochs must not be negative"),
        ({"warmup_epochs": float("inf")}, "warmup_epochs"),
        ({"projection_dim": 1}, "projection_dim"),
        ({"snapshot_every": -1}, "snapshot_every must not be negative; got -1"),
        ({"weight_decay": float("inf")}, "weight_decay"),
        ({"seed": 2**31}, "seed must not be negative, and below"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"seed": -1}, "seed must not be negative"),
        ({"seed": 2**64}, "seed"),
        ({"monitor_every": -1}, "monitor_every"),
        ({"checkpoint_every": -1}, "checkpoint_every"),
        ({"optimizer": "adamw"}, "optimizer must be one of adam, lars, sgd; got 'adamw'"),
        ({"epochs": "3"}, "epochs must be int"),
        ({"views": {"flip": 0}}, "views"),
    ],
)
def test_impossible_values_are_refused_at_birth(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        replace(PretrainConfig("digits"), **changes)
    assert "\n" not in str(caught.value)


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError):
        PretrainConfig("digits").epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 2},
        {"micro_batch": 2},
        {"micro_batch": 512},
        {"epochs": 1},
        {"projection_layers": 1},
        {"projection_layers": 4},
        {"projection_dim": 2},
        {"projection_hidden": 1},
        {"size": 4},
        {"weight_decay": 0.0},
        {"warmup_epochs": 0.0},
        {"seed": 0},
        {"seed": 2**31 - 1},
        {"monitor_every": 0, "snapshot_every": 0, "checkpoint_every": 0},
    ],
)
def test_values_at_the_edge_are_accepted(values: dict[str, Any]) -> None:
    config = replace(PretrainConfig("digits"), **values)
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize(
    ("values", "softening"),
    [
        ({"certainty_gradient": "off"}, "off"),
        ({"certainty_gradient": "off", "softening": "anchors"}, "anchors"),
        ({"certainty_gradient": "off", "loss": "mc-infonce"}, None),
        ({"certainty_gradient": "on"}, None),
    ],
)
def test_softening_is_off_by_default_where_the_features_are_simclrs(
    values: dict[str, Any], softening: str | None
) -> None:
    assert replace(PretrainConfig("digits"), **values).objective_options()["softening"] == softening


def test_the_losss_options_are_the_configurations() -> None:
    config = PretrainConfig(
        "digits",
        temperature=0.3,
        certainty_weight=0.4,
        kernel_dimension=5.0,
        empirical_prior=0.6,
        softening="means",
        presence="on",
        null_weight=0.8,
        samples=7,
    )
    assert config.objective_options() == {
        "temperature": 0.3,
        "weight": 0.4,
        "dimension": 5.0,
        "empirical_prior": 0.6,
        "softening": "means",
        "presence": "on",
        "null_weight": 0.8,
        "samples": 7,
    }


def test_differing_names_the_fields() -> None:
    config = PretrainConfig("digits")
    other = replace(config, epochs=3, views=ViewConfig(flip=0.0))
    assert differing(config, config) == [] and differing(config, other) == ["epochs", "views"]


@pytest.mark.parametrize("config", [PretrainConfig, ViewConfig])
def test_every_field_has_a_help_text_that_is_a_sentence(config: type) -> None:
    from docstring_parser import parse_from_object

    text = {p.arg_name: p.description or "" for p in parse_from_object(config).params}
    assert list(text) == [f.name for f in fields(config)]
    sentence = re.compile(r"\S.{9,}[.]", re.DOTALL)
    assert [name for name, words in text.items() if not sentence.fullmatch(words.strip())] == []


@pytest.mark.parametrize(
    ("source", "name"), [("digits", "digits"), ("folder:/a/b", "photos"), ("stl10", "stl10")]
)
def test_a_source_starts_from_its_own_recipe(source: str, name: str) -> None:
    assert recipe_for(source) == name


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown recipe 'cifar-10': did you mean cifar10"):
        recipe("cifar-10")


def test_defaults_are_those_of_the_mission() -> None:
    """Adam 1e-3, weight decay 1e-6, a head of two layers: a change must be meant."""
    config = PretrainConfig("digits")
    assert (config.optimizer, config.learning_rate, config.weight_decay) == ("adam", 1e-3, 1e-6)
    assert (config.projection_layers, config.projection_dim) == (2, 128)
    assert (config.epochs, config.batch_size, config.warmup_epochs) == (200, 512, 10)
    assert (config.loss, config.encoder, config.stem) == ("sure", "resnet18", "auto")
    assert (config.monitor_every, config.snapshot_every, config.checkpoint_every) == (5, 10, 10)


# --- Files of strangers ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("projection_dim", 30_000_000),
        ("projection_hidden", 30_000_000),
        ("size", 100_000),
        ("batch_size", 10**12),
        ("micro_batch", 10**12),
        ("samples", 10**9),
        ("epochs", 10**12),
        ("warmup_epochs", 1e300),
        ("checkpoint_every", 10**18),
    ],
)
def test_sizes_have_an_upper_bound(name: str, value: float) -> None:
    """R8: refused by name before anything of this size is made."""
    with pytest.raises(UserError, match=rf"^{name} must be at most [\d,]+, .*; got "):
        PretrainConfig("digits", **{name: value})


def test_networks_that_people_use_are_within_the_bounds() -> None:
    """VICReg's and Barlow Twins' heads of 8,192, batches of 65,536, images of 1,024 pixels."""
    PretrainConfig(
        "digits", projection_dim=8192, projection_hidden=8192, batch_size=65_536, size=1024
    )


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{ALIASES}source: *i\n", "more than 10,000 values"),
        ("source: &a [*a]\n", "more than 10,000 values"),
        ("source: " + "[" * 20_000, "not valid YAML"),
        ("#" * 70_000, "70,000 bytes, and more than 65,536 are not read"),
        ("source: digits\nlearning_rate: 1" + "0" * 400, "learning_rate must be"),
        ("source: digits\nepochs: " + "9" * 5000, "not valid YAML"),
        ('source: "a\\0b"', "source must be a name"),
        ("source: ''", "source must be a name"),
    ],
    ids=["aliases", "itself", "deep", "long", "float", "integer", "zero byte", "empty"],
)
def test_a_hostile_file_is_one_short_sentence(tmp_path: Path, text: str, words: str) -> None:
    """R8: its aliases, depth and length cannot take memory or time."""
    with pytest.raises(UserError, match=words) as caught:
        read(text, tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """R7: config.yaml is a pipe."""
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="a pipe or a device and not a file"):
        read_yaml(tmp_path / "config.yaml")


# --- Every number of every configuration ------------------------------------------------

NOT_FINITE = [math.nan, math.inf, -math.inf]
TRIED: list[Any] = [*NOT_FINITE, -1, 0, 1e300, 10**30, 10**400, 10**5000, True, "x"]
CONFIGURATIONS: list[tuple[type, dict[str, Any]]] = [
    (PretrainConfig, {"source": "digits"}),
    (ViewConfig, {}),
    (ReadOptions, {}),
    (FinetuneConfig, {}),
    (TrainingPart, {"epochs": 1, "schedule": "constant", "learning_rate": 1e-3}),
]
# Fields that hold words, truth values or another configuration
WORDS = (
    "source pages strict allow_unreadable encoder stem init loss softening certainty_gradient"
    " optimizer precision compile views unsplit verify labels image_column label_column tune"
    " schedule bn init_by_order freeze pool interpolation extensions presence null_kinds"
)
NO_NUMBERS = set(WORDS.split())
NUMBERS = [
    (config, base, field.name)
    for config, base in CONFIGURATIONS
    for field in fields(config)
    if field.name not in NO_NUMBERS
]
CAN_BE_OFF = (
    "certainty_weight empirical_prior null_fraction null_weight weight_decay warmup_epochs seed"
    " monitor_every snapshot_every checkpoint_every flip jitter_p grey_p blur_p blur_kernel"
    " strength brightness contrast saturation hue"
)
OFF = "0 switches it off, or is the smallest there is"
FOLDS = "data sets have any number of folds, and the sentence about them names the field"
HARMLESS = "a crop or a blur of any shape is an image (tests/maths/test_extremes.py)"
# (field, the values of TRIED that are allowed, why)
ALLOWED: dict[str, tuple[list[Any], str]] = {
    **dict.fromkeys(
        CAN_BE_OFF.split(),
        ([0], OFF),
    ),
    "learning_rate": ([10**30], "up to 1e38, near the end of float32: it diverges and says so"),
    "classifier_learning_rate": ([10**30], "likewise"),
    "learning_rates": ([10**30], "likewise"),
    "fold": ([0, 10**30, 10**400, 10**5000], FOLDS),
    "crop_aspect": ([1e300, 10**30], HARMLESS),
    "blur_sigma": ([1e300, 10**30], HARMLESS),
}
ALLOWED["weight_decay"] = ([0, 10**30], f"{OFF}; up to 1e38")
LISTS = ("learning_rates", "pixel_mean", "pixel_std")
PAIRS = ("crop_area", "crop_aspect", "blur_sigma", "value_range")


def given_value(name: str, value: Any) -> Any:
    """The value as the field takes it: twice where it is a pair, else alone."""
    return (value, value) if name in PAIRS else (value,) if name in LISTS else value


def test_the_table_of_numbers_is_complete() -> None:
    """A new field is a number, or its name is added to those that are none."""
    named = {field.name for config, _ in CONFIGURATIONS for field in fields(config)}
    assert named >= NO_NUMBERS and set(ALLOWED) <= {name for _, _, name in NUMBERS}
    for config, base, name in NUMBERS:
        value = getattr(config(**base), name)
        assert value is None or isinstance(value, int | float | tuple), name
        assert not isinstance(value, bool), name


@pytest.mark.parametrize(
    ("config", "base", "name"), NUMBERS, ids=[f"{c.__name__}.{n}" for c, _, n in NUMBERS]
)
def test_no_number_ends_in_a_traceback_or_in_nan(
    config: type, base: dict[str, Any], name: str
) -> None:
    allowed, _ = ALLOWED.get(name, ([], ""))
    for value in TRIED:
        given = given_value(name, value)
        if any(value is one or (value == one and type(value) is type(one)) for one in allowed):
            config(**{**base, name: given})
            continue
        with pytest.raises(UserError, match=rf"\b{name}\b") as caught:
            config(**{**base, name: given})
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


WRITTEN = [".nan", ".inf", "-.inf", "-1", "1e300", "1" + "0" * 30, "1" + "0" * 400, "true", "x"]


@pytest.mark.parametrize(
    "name", [name for config, _, name in NUMBERS if config in (PretrainConfig, ViewConfig)]
)
def test_no_number_of_a_file_ends_in_a_traceback_or_in_nan(name: str, tmp_path: Path) -> None:
    """As above, from config.yaml."""
    of_views = name in {field.name for field in fields(ViewConfig)}
    allowed, _ = ALLOWED.get(name, ([], ""))
    for words in WRITTEN:
        value = f"[{words}, {words}]" if name in PAIRS else words
        text = f"views: {{{name}: {value}}}" if of_views else f"{name}: {value}"
        if words[0].isdigit() and float(words) in [float(x) for x in allowed if x < 10**300]:
            read(f"source: digits\n{text}", tmp_path)
            continue
        if words == "1e300" and 1e300 in allowed:
            continue
        with pytest.raises(UserError, match=rf"\b{name}\b"):
            read(f"source: digits\n{text}", tmp_path)


FLAGS = [
    ("--temperature", "nan"),
    ("--kernel-dimension", "1e300"),
    ("--epochs", "1e3"),
    ("--seed", "9" * 30),
    ("--views.brightness", "1e300"),
]


@pytest.mark.parametrize(("flag", "value"), FLAGS)
def test_the_command_line_names_the_flag(
    flag: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sureclr.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "digits", "--out", str(tmp_path / "run"), f"{flag}={value}"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and not (tmp_path / "run").exists()
    assert flag.removeprefix("--") in said.replace("_", "-") and "Traceback" not in said


@pytest.mark.parametrize("seed", [-1, 2**31, 10**30, 1.5, math.nan, True, "x", None])
def test_seeds_are_checked_where_they_come_in(seed: Any) -> None:
    from sureclr.data.sources import load_images

    with pytest.raises(UserError, match="seed must not be negative, and below"):
        check_seed(seed)
    with pytest.raises(UserError, match="seed must not be negative, and below"):
        load_images("digits", seed=seed)


def test_lists_of_a_configuration_in_python_become_tuples() -> None:
    """So that a configuration equals what its file gives back."""
    assert ViewConfig(crop_area=[0.1, 1]) == ViewConfig(crop_area=(0.1, 1.0))  # type: ignore[arg-type]
    assert ReadOptions(value_range=[0, 9]).value_range == (0.0, 9.0)  # type: ignore[arg-type]
    assert PretrainConfig("digits", value_range=[0, 9]).value_range == (0.0, 9.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "base", "name"),
    [number for number in NUMBERS if number[2] in {**LARGEST, **LARGEST_NUMBER}],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_bound_itself_is_accepted_and_no_more(
    config: type, base: dict[str, Any], name: str
) -> None:
    bound = {**LARGEST, **LARGEST_NUMBER}[name]
    others = {"batch_size": bound} if name == "micro_batch" else {}
    config(**{**base, **others, name: given_value(name, bound)})
    with pytest.raises(UserError, match=rf"^{name} must"):
        config(**{**base, **others, name: given_value(name, 2 * bound)})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source: digits\nepochs: 1\nepochs: 2", "the key 'epochs' comes twice"),
        ("source: digits\nviews: {flip: 0, flip: 1}", "the key 'flip' comes twice"),
        ("source: digits\nepochs: 0x" + "f" * 9000, "more than 4,096 bits"),
        ("source: digits\nencoder: " + ":".join(["9"] * 5000), "more than 4,096 bits"),
    ],
)
def test_doubled_keys_and_endless_numbers_are_refused(
    text: str, words: str, tmp_path: Path
) -> None:
    """PyYAML keeps the last of two values; Python prints no number of 5,000 digits."""
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        from_dict(read_yaml(tmp_path / "a.yaml"))
