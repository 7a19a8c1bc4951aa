"""Flags made from a configuration's own fields, and how they, a file and a recipe resolve to one
configuration.
"""

from dataclasses import MISSING, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from cyclopts import Parameter
from docstring_parser import parse_from_object

from sureclr.config import PretrainConfig, ViewConfig, from_dict, read_yaml, view_values
from sureclr.errors import UserError
from sureclr.recipes import RECIPES, recipe, recipe_for


def flags(config: type, skip: tuple[str, ...] = ()) -> type:
    """A dataclass with the fields of `config` as optional flags: None means that the user did not
    say. One definition, one help text.
    """
    help_of = {p.arg_name: p.description or "" for p in parse_from_object(config).params}
    hints = get_type_hints(config)
    made = [
        (
            f.name,
            Annotated[
                hints[f.name] | None,
                Parameter(help=_with_default(help_of.get(f.name, ""), f.default), negative=""),
            ],
            None,
        )
        for f in fields(config)
        if f.name not in skip
    ]
    home = {
        "__module__": __name__
    }  # else it is `types`, which cyclopts takes for a builtin and does not open
    return make_dataclass(f"{config.__name__}Flags", made, namespace=home)


def _with_default(text: str, default: Any) -> str:
    shown = default is not MISSING and default is not None
    return (
        f"{text} [default:"
        f" {' '.join(map(str, default)) if isinstance(default, tuple) else default}]"
        if shown
        else text
    )


ConfigFlags: Any = flags(PretrainConfig, skip=("source", "views"))
ViewFlags: Any = flags(ViewConfig)
NO_CONFIG, NO_VIEWS = ConfigFlags(), ViewFlags()


def said(given: Any) -> dict[str, Any]:
    """The flags that the user gave."""
    return {name: value for name, value in vars(given).items() if value is not None}


def resolve(
    source: str | None,
    recipe_name: str | None,
    file: Path | None,
    given: dict[str, Any],
    views: dict[str, Any],
) -> PretrainConfig:
    """Command line over file over recipe over default. The recipe is the named one, else the
    source's own (unless a file is given).
    """
    from_file = read_yaml(file) if file else {}
    source = (
        source or from_file.get("source") or (recipe(recipe_name).source if recipe_name else None)
    )
    if source is None:
        raise UserError(
            "pretrain needs a data source; for example: sureclr pretrain digits (`sureclr list`"
            " names them all)."
        )
    name = recipe_name or (None if file else recipe_for(source))
    base = recipe(name) if name and (name in RECIPES or recipe_name) else PretrainConfig(source)
    merged = {**vars(base.views), **view_values(from_file), **views}
    return from_dict({**vars(base), **from_file, **given, "source": source, "views": merged})
