"""`sureclr.finetune`: what it loads, what it locks, and how a signal stops it."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from few_labels import IMAGES, ONE_TRAINING, Recorder, timeless, tune
from PIL import Image

import sureclr
from sureclr.data.sources import load_images
from sureclr.errors import UserError
from sureclr.evaluation.results import read_results
from sureclr.progress import SILENT
from sureclr.stopping import Stopped
from sureclr.training.run import Run


def test_it_takes_a_folder_or_a_run_and_gives_the_protocols_result(run: Run) -> None:
    expected = timeless(tune(run, ONE_TRAINING, data="made"))
    for place in (run, run.path, str(run.path)):
        recorder = Recorder()
        options = {"again": True, "device": "cpu", "progress": recorder}
        assert timeless(sureclr.finetune(place, IMAGES, ONE_TRAINING, **options)) == expected
        assert recorder.tasks, "the finished seed was not trained again"


@pytest.mark.parametrize("labels", ["6", 6])
def test_labels_replace_those_of_the_settings(run: Run, labels: str | int) -> None:
    result = sureclr.finetune(run, IMAGES, ONE_TRAINING, labels=labels, progress=SILENT)
    assert result.n_labels == 6 and result.configuration == replace(ONE_TRAINING, labels="6")
    assert "finetune:6:made" in read_results(run.path)


def test_a_source_is_loaded_at_the_size_of_the_run(run: Run) -> None:
    result = sureclr.finetune(run, "digits", ONE_TRAINING, progress=SILENT)
    assert (result.n_labels, result.n_test) == (18, 797)
    assert "finetune:18:digits" in read_results(run.path)


def test_a_folder_is_read_and_split_as_the_run_did(run: Run, tmp_path: Path) -> None:
    """At the size and channels of the run, with test images drawn by its seed."""
    generator = np.random.default_rng(0)
    for kind in ("ant", "bee"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 256, (12, 15, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{number}.png")
    source = f"folder:{tmp_path / 'photos'}"
    run = replace(run, source=source, config=replace(run.config, seed=3))
    images = load_images(source, size=8, channels=1, seed=3)
    expected = sureclr.finetune(run, images, ONE_TRAINING, labels=6, progress=SILENT)
    origin = read_results(run.path).provenance[f"finetune:6:{images.name}"]
    result = sureclr.finetune(run, None, ONE_TRAINING, labels=6, again=True, progress=SILENT)
    assert timeless(list(result.per_seed)) == timeless(list(expected.per_seed))
    assert result.weights.sha256 == expected.weights.sha256
    assert read_results(run.path).provenance["finetune:6"].same_origin(origin)


def test_images_of_python_must_be_passed_again(run: Run) -> None:
    with pytest.raises(UserError, match="pass labelled images as data="):
        sureclr.finetune(run, config=ONE_TRAINING, progress=SILENT)


def test_the_lock_of_the_run_is_held(run: Run) -> None:
    class Locking(Recorder):
        def begin(self, task: str, total: int, done: int = 0) -> None:
            super().begin(task, total, done)
            with pytest.raises(UserError, match="another process is writing"), run.directory.lock():
                pass

    recorder = Locking()
    sureclr.finetune(run, IMAGES, ONE_TRAINING, progress=recorder)
    assert recorder.tasks
    with run.directory.lock(), pytest.raises(UserError, match="another process is writing"):
        sureclr.finetune(run, IMAGES, ONE_TRAINING, progress=SILENT)


def test_a_signal_stops_it_and_the_same_call_continues(run: Run) -> None:
    class Signalling(Recorder):
        def message(self, text: str) -> None:
            super().message(text)
            if text.startswith("Seed 1, fine-tuned"):
                os.kill(os.getpid(), signal.SIGTERM)

    config = replace(ONE_TRAINING, seeds=2)
    with pytest.raises(Stopped, match="run the same command again to go on") as stopped:
        sureclr.finetune(run, IMAGES, config, progress=Signalling())
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert read_results(run.path)["finetune:18:made"].seeds == 1
    recorder = Recorder()
    assert sureclr.finetune(run, IMAGES, config, progress=recorder).complete
    assert not any(task.startswith("Seed 0") for task, _ in recorder.tasks)


def test_without_a_progress_it_reports_on_stderr(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sureclr.finetune(run, IMAGES, ONE_TRAINING)
    out, err = capsys.readouterr()
    assert out == "" and "Seed 0, from scratch: learning rate 0.1, epoch 1; accuracy" in err
