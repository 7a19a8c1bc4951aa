"""What a command reads, hashes and embeds once, and the baselines that are kept for the next one.

Witnesses: counts of the functions that do it, and the numbers of commands that had nothing kept.
"""

import errno
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Messages, train, write_photos

import sureclr
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.evaluation import inputs, run_images, session
from sureclr.evaluation.inputs import ProbeCache, fits_on
from sureclr.evaluation.probes import linear_probe
from sureclr.files import WriteError
from sureclr.models import embedding
from sureclr.progress import SILENT
from sureclr.reporting import run_files
from sureclr.training import run as run_module
from sureclr.training import run_dir

QUIET: dict[str, Any] = {"device": "cpu", "progress": SILENT}
BASELINE = Path("baselines/untrained.parquet")
N = 24


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SURECLR_CACHE", str(trained / "cache"))
    return shutil.copytree(trained / "run", tmp_path / "run")


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each function was called; `trained` and `untrained` count images."""
    seen: Counter[str] = Counter()

    def count(module: Any, name: str, of: Any = lambda *given, **named: 1, key: str = "") -> None:
        function = getattr(module, name)

        def counted(*given: Any, **named: Any) -> Any:
            seen[key or name] += of(*given, **named)
            return function(*given, **named)

        monkeypatch.setattr(module, name, counted)

    def embedded(model: Any, images: ImageSet, **named: Any) -> int:
        seen["untrained"] += len(images) * (model is not models[-1])
        return len(images) * (model is models[-1])

    models: list[Any] = []
    load = run_module.load

    def loaded(*given: Any, **named: Any) -> Any:
        opened = load(*given, **named)
        models.append(opened.model)
        return opened

    monkeypatch.setattr("sureclr.evaluation.opening.load", loaded)
    count(run_images, "load_images")
    count(session, "digest_of_pixels")
    count(run_dir, "verified")
    count(run_module, "embed", embedded, "trained")
    count(inputs, "embed_blocks", lambda m, i, rows, **named: len(rows), "blocks")
    count(inputs, "convert", lambda images, size, *c: len(images))
    read = Embeddings.read

    def reading(path: Path) -> Embeddings:
        seen[path.name] += 1
        return read(path)

    monkeypatch.setattr(Embeddings, "read", staticmethod(reading))
    yield seen


def numbers(results: Any) -> dict[str, Any]:
    return {name: asdict(result) for name, result in results.items()}


def test_everything_is_read_hashed_and_embedded_once_a_command(
    run: Path, counts: Counter[str]
) -> None:
    sureclr.evaluate(run, ["knn", "linear"], **QUIET)
    first = {"load_images": 1, "digest_of_pixels": 1, "verified": 1, "trained": N, "untrained": N}
    # One image shows how wide the blocks are; those of all come with the table
    assert counts == {**first, "blocks": 1, "convert": N}
    counts.clear()
    sureclr.evaluate(run, ["knn", "linear"], again=True, **QUIET)
    second = {"load_images": 1, "digest_of_pixels": 1, "verified": 1, "convert": N}
    tables = {"embeddings.parquet": 1, "untrained.parquet": 1}
    assert counts == {**second, **tables, "blocks": N + 1}
    counts.clear()
    sureclr.evaluate(run, ["knn", "linear"], **QUIET)  # the results are there
    assert counts == {"load_images": 1, "digest_of_pixels": 1, "verified": 1}


def test_knn_and_then_linear_embed_by_the_untrained_network_once(
    run: Path, counts: Counter[str], tmp_path: Path
) -> None:
    twin = shutil.copytree(run, tmp_path / "twin")
    apart = {}
    for name in ("knn", "linear"):
        apart |= numbers(sureclr.evaluate(run, name, **QUIET))
    assert counts["untrained"] == N and (run / BASELINE).is_file()
    assert apart == numbers(sureclr.evaluate(twin, ["linear", "knn"], **QUIET))
    counts.clear()
    sureclr.evaluate(run, "knn", checkpoint="best", **QUIET)
    assert counts["untrained"] == 0  # the same network before its first step


def test_a_baseline_of_other_weights_or_images_is_not_used(
    run: Path, trained: Path, tmp_path: Path, counts: Counter[str]
) -> None:
    fresh = numbers(sureclr.evaluate(run, "knn", **QUIET))
    source = f"folder:{trained / 'photos'}"
    options: dict[str, Any] = {"source": source, "size": 8, "batch_size": 8, "epochs": 1}
    train(tmp_path / "other", None, seed=5, **options)
    sureclr.evaluate(tmp_path / "other", "knn", **QUIET)
    whole = (run / BASELINE).read_bytes()
    shutil.copy(tmp_path / "other" / BASELINE, run / BASELINE)
    counts.clear()
    assert numbers(sureclr.evaluate(run, "knn", again=True, **QUIET)) == fresh
    assert counts["untrained"] == N and (run / BASELINE).read_bytes() == whole
    write_photos(trained / "photos", seed=1)
    try:
        counts.clear()
        sureclr.evaluate(run, "knn", **QUIET)
        assert counts["untrained"] == N and (run / BASELINE).read_bytes() != whole
    finally:
        write_photos(trained / "photos")


def test_a_damaged_baseline_or_a_full_disk_costs_only_time(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = numbers(sureclr.evaluate(run, "knn", **QUIET))
    whole = (run / BASELINE).read_bytes()
    (run / BASELINE).write_bytes(whole[:-50])
    log = Messages()
    again = sureclr.evaluate(run, "knn", again=True, device="cpu", progress=log)
    assert numbers(again) == fresh and (run / BASELINE).read_bytes() == whole
    told = [text for text in log.messages if "the untrained encoder embeds" in text]
    assert len(told) == 1 and "untrained.parquet is damaged" in told[0]
    shutil.rmtree(run / "baselines")
    save = Embeddings.save

    def full(table: Embeddings, path: Path) -> None:
        if path.name == BASELINE.name:
            raise WriteError(path, OSError(errno.ENOSPC, "No space left on device"), 9)
        save(table, path)

    monkeypatch.setattr(Embeddings, "save", full)
    log = Messages()
    again = sureclr.evaluate(run, "knn", again=True, device="cpu", progress=log)
    assert numbers(again) == fresh and not (run / "baselines").exists()
    (told,) = [text for text in log.messages if "is not kept" in text]
    assert "No space left" in told and str(BASELINE) in told


def test_with_out_the_baseline_goes_there_and_that_of_the_run_is_used(
    run: Path, tmp_path: Path, counts: Counter[str]
) -> None:
    before = [path for path in sorted(run.rglob("*")) if path.name != "lock"]
    sureclr.evaluate(run, "knn", out=tmp_path / "out", **QUIET)
    assert [path for path in sorted(run.rglob("*")) if path.name != "lock"] == before
    assert (tmp_path / "out" / BASELINE).is_file()
    sureclr.evaluate(run, "knn", **QUIET)
    counts.clear()
    sureclr.evaluate(run, "linear", out=tmp_path / "second", **QUIET)  # knn is in the run
    assert counts["untrained"] == 0 and not (tmp_path / "second" / "baselines").exists()


def test_baselines_stay_when_a_run_goes_on_and_go_when_it_is_overwritten(
    run: Path, trained: Path
) -> None:
    sureclr.evaluate(run, "knn", **QUIET)
    assert run_dir.RunDir(run).forget_results() and (run / BASELINE).is_file()
    (run / "baselines" / "mine.txt").write_text("x")
    run_dir.RunDir(run).prepare(resume=False, overwrite=True)
    assert not (run / "baselines").exists()


def test_blocks_of_the_same_pass_are_those_of_a_pass_of_their_own(run: Path) -> None:
    opened = sureclr.load(run, "cpu")
    images = run_images.load_run_images(opened)
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(0)).numpy()
    with inputs.blocks_beside(opened, images) as parts:
        table = opened.embed(images)
    beside = inputs.EvaluationInputs(opened, images, table, blocks=parts).embed_blocks(rows)
    alone = embedding.embed_blocks(opened.model, images, rows)
    assert beside.keys() == alone.keys()
    for name, output in alone.items():
        torch.testing.assert_close(beside[name], output)


def test_a_checkpoint_that_changes_is_hashed_again(run: Path) -> None:
    directory = run_dir.RunDir(run)
    digest = directory.checkpoint_digest()
    assert directory.checkpoint_digest() == digest
    file = max((run / "checkpoints").iterdir()) / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert directory.checkpoint_digest() != digest
    file.write_bytes(whole)
    assert directory.checkpoint_digest() == digest


def test_a_report_reads_the_images_once_and_finds_them_where_they_were_moved(
    run: Path, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"folder:{shutil.copytree(trained / 'photos', tmp_path / 'a' / 'photos')}"
    options: dict[str, Any] = {"source": source, "size": 8, "batch_size": 8, "epochs": 1}
    train(tmp_path / "a" / "run", None, **options)
    sureclr.evaluate(tmp_path / "a" / "run", "knn", **QUIET)
    (tmp_path / "a").rename(tmp_path / "b")
    loaded: list[str] = []
    load = sureclr.data.sources.load_images

    def counted(source: str, **options: Any) -> ImageSet:
        loaded.append(source)
        return load(source, **options)

    monkeypatch.setattr("sureclr.data.sources.load_images", counted)
    files = run_files.read_run_files(tmp_path / "b" / "run")
    assert files.images is not None and len(files.images) == N and not files.no_images
    assert files.images.name == source
    assert loaded == [f"folder:{tmp_path / 'b' / 'photos'}"]


def test_probes_go_to_a_gpu_only_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    cuda = torch.device("cuda")
    assert fits_on(cuda, 999) and not fits_on(cuda, 1000)
    assert not fits_on(torch.device("cpu"), 1) and not fits_on(None, 1)
    x, y = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2
    monkeypatch.setattr(inputs, "fits_on", lambda device, size: size == 4 * 2 * x.nbytes)
    moved = ProbeCache(device=torch.device("cpu"))(x, y, x, y)
    assert torch.equal(moved.weight, linear_probe(x, y, x, y).weight)
