"""What a worker process runs that dies, or takes long; this module imports nothing slow."""

import os
import time
from typing import Any


def die(*_: Any) -> None:
    os._exit(3)


def sleep(file: Any, _: Any) -> None:
    """Say that it begins, in a file beside the picture, and take a minute."""
    with open(f"{file.path}.begun", "w"):
        time.sleep(60)
