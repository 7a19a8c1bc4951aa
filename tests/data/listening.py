"""A progress that tests can ask what it was told."""

from sureclr.progress import SilentProgress


class Listening(SilentProgress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)
