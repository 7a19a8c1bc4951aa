"""A run on a folder of photos, for tests that copy it."""

from pathlib import Path

import pytest
from tiny import train, write_photos


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds `run` and `photos`."""
    place = tmp_path_factory.mktemp("photos")
    source = f"folder:{write_photos(place / 'photos')}"
    train(place / "run", None, source=source, size=8, batch_size=8, epochs=2, monitor_every=1)
    return place
