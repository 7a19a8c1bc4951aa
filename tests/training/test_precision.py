"""A run in bfloat16: on a machine that is fast in it, on one that is not, and between the two.

The machine is told by torch's two functions, which are replaced here; bfloat16 itself runs on any.
Witnesses: tables that `embed` makes in a precision that is named, and runs without a break.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_monitor import images
from tiny import CONFIG, IMAGES, Interrupting, Messages, equal, train, write_photos

import sureclr
from sureclr.config import from_dict, read_yaml
from sureclr.data.embeddings import Embeddings
from sureclr.data.user_images import as_image_set
from sureclr.evaluation.inputs import EvaluationInputs, embed_blocks_by
from sureclr.evaluation.results import read_results
from sureclr.evaluation.session import Session
from sureclr.models.devices import choose_precision
from sureclr.models.embedding import embed, embed_blocks
from sureclr.progress import SILENT
from sureclr.reporting.run_files import read_run_files
from sureclr.stopping import Stopped
from sureclr.training.building import build
from sureclr.training.continuing import completed
from sureclr.training.monitor import Monitor
from sureclr.training.run import load

SHORT = {"epochs": 1, "monitor_every": 0, "snapshot_every": 0}


@pytest.fixture
def has_amx(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with AMX; `setattr` of the fixture takes it away again."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    return monkeypatch


def without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


def features(run: sureclr.Run, precision: torch.dtype) -> torch.Tensor:
    return embed(run.model, as_image_set(IMAGES), precision=precision).features


def test_auto_trains_and_embeds_in_bfloat16_and_the_run_keeps_it(
    tmp_path: Path, has_amx: pytest.MonkeyPatch
) -> None:
    """Stopped, and continued on a machine without AMX: the end is that without a break."""
    whole = train(tmp_path / "whole", precision="auto", progress=(said := Messages()), **SHORT)
    sentence = "The network runs in bfloat16, since this CPU has AMX; precision=float32 changes it."
    assert sentence in said.messages
    config = from_dict(read_yaml(tmp_path / "whole" / "config.yaml"))
    assert config.precision == whole.config.precision == "bfloat16"
    half, full = features(whole, torch.bfloat16), features(whole, torch.float32)
    assert torch.equal(whole.embed(IMAGES).features, half) and not torch.equal(half, full)
    assert torch.allclose(half, full, atol=0.05) and half.dtype == torch.float32
    fitting = as_image_set(IMAGES)
    inputs = EvaluationInputs(whole, fitting, whole.embed(fitting))
    blocks = embed_blocks(whole.model, fitting, precision=torch.bfloat16)
    for found in (embed_blocks_by(whole, fitting), inputs.embed_blocks(np.arange(len(IMAGES)))):
        assert all(torch.equal(found[name], block) for name, block in blocks.items())

    def stop() -> None:
        raise Stopped(15)

    with pytest.raises(Stopped):
        train(tmp_path / "run", precision="auto", progress=Interrupting(2, stop), **SHORT)
    without_amx(has_amx)
    train(tmp_path / "run", precision="auto", resume=True, progress=(said := Messages()), **SHORT)
    assert equal(tmp_path / "whole", tmp_path / "run")
    assert any("this CPU has no instructions for it" in text for text in said.messages)
    opened = load(tmp_path / "whole", "cpu")
    assert opened.precision_name == "float32" and torch.equal(opened.embed(IMAGES).features, full)


def test_a_run_of_an_older_version_goes_on_as_it_began(has_amx: pytest.MonkeyPatch) -> None:
    """Its checkpoint records auto, which was float32 on every CPU."""
    del has_amx
    auto = replace(CONFIG, precision="auto")
    assert completed(auto, auto).precision == "auto"
    assert choose_precision("auto", torch.device("cpu")) == torch.float32


def test_results_and_tables_say_their_precision_and_are_not_mixed(
    tmp_path: Path, has_amx: pytest.MonkeyPatch
) -> None:
    """The stored result stays; the table is made anew where more images may be compared with it."""
    source = f"folder:{write_photos(tmp_path / 'photos')}"
    run = train(
        tmp_path / "run", None, source=source, precision="auto", size=8, batch_size=8, **SHORT
    )
    results = sureclr.evaluate(run.path, "knn", device="cpu", progress=SILENT)
    file = run.path / "embeddings.parquet"
    half = Embeddings.read(file)
    assert results.provenance["knn"].precision == "bfloat16" and "in bfloat16" in half.origin
    without_amx(has_amx)
    with Session(run.path, device="cpu", progress=(said := Messages())) as session:
        assert session.evaluate("knn") == results["knn"]
        assert not any("anew" in text for text in said.messages)
        full = session.inputs.table
    assert any("made in bfloat16, and this machine embeds in float32" in t for t in said.messages)
    assert torch.equal(Embeddings.read(file).features, full.features)
    assert not torch.equal(full.features, half.features) and "bfloat16" not in full.origin
    assert read_results(run.path).provenance["knn"].precision == "bfloat16"
    mixed = "not made in one precision (knn in bfloat16; geometry in float32)"
    for names, says in ((("knn",), False), (("knn", "geometry"), True)):
        sureclr.evaluate(run.path, names, device="cpu", progress=(said := Messages()))
        assert any(mixed in text for text in said.messages) == says
    assert any(mixed in text for text in read_run_files(run.path).problems)
    half.save(file)
    (tmp_path / "photos").rename(tmp_path / "gone")
    with Session(run.path, device="cpu", progress=SILENT) as session:  # no pixels: as it was made
        assert torch.equal(session.inputs.table.features, half.features)
        assert session.provenance(0).precision == "bfloat16"


def test_the_monitor_measures_in_its_precision() -> None:
    model = build(CONFIG, 1, torch.tensor([0.5]), torch.tensor([0.3]))[0]
    some = images(torch.arange(48) % 2)
    (_, full), (numbers, half) = (
        Monitor.of(some, 0, precision).measure(model, CONFIG.views)
        for precision in (torch.float32, torch.bfloat16)
    )
    expected = embed(model, some.select(half["index"]), precision=torch.bfloat16)
    assert torch.equal(half["features"], expected.features) and 0 <= numbers["knn"] <= 1
    for name in ("features", "first_direction", "second_direction"):
        assert half[name].dtype == torch.float32 and not torch.equal(half[name], full[name])
        assert torch.allclose(half[name], full[name], atol=0.05)
