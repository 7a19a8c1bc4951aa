"""Which pretrained weights of timm's lie on this machine. Nothing here uses the network."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# The names of weights in a repository that timm tries, in its order
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def encoders_with_weights() -> list[str]:
    """Return the names of all encoders whose pretrained weights lie on this machine.

    A name stands for the weights that timm loads for it; of other weights of the same network it
    has their tag (`resnet18.fb_swsl_ig1b_ft_in1k`). timm, whose import takes seconds, is asked only
    where there are weights of any kind.
    """
    hub, torch_hub = _folders()
    if not any(name.startswith("models--") for name in _names(hub)) and not _names(torch_hub):
        return []
    import timm

    tagged = with_weights(timm.list_models(pretrained=True))
    default = {name: name.partition(".")[0] for name in tagged}
    default = {n: short for n, short in default.items() if _tag(short) == n.partition(".")[2]}
    return sorted(default.get(name, name) for name in tagged)


def _tag(network: str) -> str:
    """Return the tag of the weights that timm loads for a name without one."""
    import timm

    return str(timm.get_pretrained_cfg(network).tag)


def with_weights(names: Iterable[str]) -> list[str]:
    """Return those of some encoders whose pretrained weights lie on this machine.

    Args:
        names: of encoders; those that are not timm's have no such weights.
    """
    import timm

    hub, torch_hub = _folders()
    repositories, files = _names(hub), _names(torch_hub)
    found = []
    for name in names:
        try:
            defaults = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        except RuntimeError:  # there is no such tag
            defaults = None
        if defaults is not None and _is_here(defaults, hub, repositories, files):
            found.append(name)
    return found


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
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = defaults.hf_hub_id.partition("@")
    if f"models--{repository.replace('/', '--')}" not in repositories:
        return False
    wanted = [defaults.hf_hub_filename] if defaults.hf_hub_filename else WEIGHT_FILES
    paths = [
        try_to_load_from_cache(repository, file, cache_dir=hub, revision=revision or None)
        for file in wanted
    ]
    return any(isinstance(path, str) and os.path.exists(path) for path in paths)
