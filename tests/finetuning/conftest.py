"""One trained run for all tests of fine-tuning, and a copy of it for each."""

from pathlib import Path
from shutil import copytree

import pytest
from tiny import train

from sureclr.training.run import Run, load


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("finetuning") / "run")


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """The same run in a folder of its own."""
    copytree(trained.path, tmp_path / "run")
    return load(tmp_path / "run", "cpu")
