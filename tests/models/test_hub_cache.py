"""Weights in Hugging Face's cache, laid out as its client does it; nothing is downloaded."""

from pathlib import Path

import pytest
from weight_cache import put_weights

from sureclr.errors import UserError
from sureclr.models.hub_cache import encoders_with_weights, with_weights


def test_weights_in_the_cache_are_found(empty_cache: Path) -> None:
    assert encoders_with_weights() == [] == with_weights(["test_resnet", "small"])
    put_weights(empty_cache, "test_resnet")
    assert encoders_with_weights() == ["test_resnet.r160_in1k"]
    names = ["test_vit", "test_resnet", "small", "custom:Mine", "test_resnet.r160_in1k"]
    assert with_weights(names) == ["test_resnet", "test_resnet.r160_in1k"]
    with pytest.raises(UserError, match="unknown weights of resnet18 'x'"):
        with_weights(["resnet18.x"])


@pytest.mark.parametrize("missing", ["refs/main", "blobs", "snapshots"])
def test_a_cache_without_a_part_of_its_files_has_no_weights(
    empty_cache: Path, missing: str
) -> None:
    import shutil

    repository = put_weights(empty_cache, "test_resnet")
    path = repository / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert encoders_with_weights() == [] == with_weights(["test_resnet"])


def test_the_older_name_of_weights_counts_too(empty_cache: Path) -> None:
    repository = put_weights(empty_cache, "test_resnet")
    (link,) = repository.glob("snapshots/*/model.safetensors")
    link.rename(link.with_name("pytorch_model.bin"))
    assert encoders_with_weights() == ["test_resnet.r160_in1k"]


def test_files_of_torch_count_where_timm_has_no_repository(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    name = next(
        name
        for name in timm.list_models(pretrained=True)
        if not (cfg := timm.get_pretrained_cfg(name)).hf_hub_id and cfg.url
    )
    folder = empty_cache.parent / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(folder.parent))
    assert with_weights([name, "resnet18"]) == []
    (folder / timm.get_pretrained_cfg(name).url.split("/")[-1]).touch()
    (folder / timm.get_pretrained_cfg("resnet18").url.split("/")[-1]).touch()
    assert with_weights([name, "resnet18"]) == [name]  # timm would ask the hub for the other
