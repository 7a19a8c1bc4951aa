"""A cache of pretrained weights as Hugging Face's client lays it out."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save

REVISION = "0123456789abcdef0123456789abcdef01234567"


def put_weights(cache: Path, name: str) -> Path:
    """Put weights of a timm model, drawn with seed 5, into a cache; return their repository."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = timm.create_model(name).state_dict()
    repository = cache / f"models--{timm.get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
    data = save({key: value.contiguous() for key, value in state.items()})
    blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
    snapshot = repository / "snapshots" / REVISION
    for folder in (blob.parent, snapshot, repository / "refs"):
        folder.mkdir(parents=True)
    blob.write_bytes(data)
    (repository / "refs" / "main").write_text(REVISION)
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs") / blob.name)
    return repository
