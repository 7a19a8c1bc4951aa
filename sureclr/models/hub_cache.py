"""Which pretrained weights of timm's lie on this machine. Nothing here uses the network."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sureclr.models.encoders import timm_defaults

TIMM_REPOSITORY = "models--timm--"  # begins the folder of one of timm's own repositories
# The names of weights in a repository that timm tries, in its order
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def encoders_with_weights() -> list[str]:
    """Return the names of timm encoders whose weights lie in Hugging Face's cache, with their tags.

    They are read from the names of folders, without importing timm, which takes seconds. The few
    weights that timm has elsewhere than in its own repositories are not among them.
    """
    hub, _ = _folders()
    own = [name for name in _names(hub) if name.startswith(TIMM_REPOSITORY)]
    names = [name.removeprefix(TIMM_REPOSITORY) for name in own]
    return sorted(name for name in names if _has_file(hub, f"timm/{name}", WEIGHT_FILES))


def with_weights(names: Iterable[str]) -> list[str]:
    """Return those of some encoders whose pretrained weights lie on this machine.

    Args:
        names: of encoders; those that are not timm's have no such weights.

    Raises:
        UserError: timm has no weights of the tag in a name.
    """
    hub, torch_hub = _folders()
    repositories, files = _names(hub), _names(torch_hub)
    if not files and not any(name.startswith("models--") for name in repositories):
        return []  # without importing timm, which takes seconds
    described = [(name, timm_defaults(name)) for name in names]
    return [
        name
        for name, defaults in described
        if defaults is not None and _is_here(defaults, hub, repositories, files)
    ]


def _folders() -> tuple[Path, Path]:
    """Return the folder of Hugging Face's cache, and that of the files that torch downloaded."""
    import torch
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE), Path(torch.hub.get_dir()) / "checkpoints"


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _is_here(defaults: Any, hub: Path, repositories: set[str], files: set[str]) -> bool:
    """Return whether timm would find these weights without a download.

    Args:
        defaults: timm's description of the weights.
        hub: the folder of Hugging Face's cache.
        repositories: what it holds.
        files: that torch downloaded.
    """
    if not defaults.hf_hub_id:
        return bool(defaults.url) and os.path.basename(defaults.url) in files
    repository, _, revision = defaults.hf_hub_id.partition("@")
    if f"models--{repository.replace('/', '--')}" not in repositories:
        return False
    wanted = (defaults.hf_hub_filename,) if defaults.hf_hub_filename else WEIGHT_FILES
    return _has_file(hub, repository, wanted, revision or None)


def _has_file(
    hub: Path, repository: str, names: Sequence[str], revision: str | None = None
) -> bool:
    """Return whether a file of one of these names is in the cache, in this or the main revision."""
    from huggingface_hub import try_to_load_from_cache

    paths = (
        try_to_load_from_cache(repository, name, cache_dir=hub, revision=revision) for name in names
    )
    return any(isinstance(path, str) and os.path.exists(path) for path in paths)
