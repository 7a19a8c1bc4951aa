"""Progress that remembers what it was told, and progress that stops the work."""

from sureclr.progress import Numbers, SilentProgress


class RecordingProgress(SilentProgress):
    """Remembers the tasks that began, and each (done, total)."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.updates: list[tuple[int, int]] = []
        self.total = 0

    def begin(self, task: str, total: int, done: int = 0) -> None:
        self.tasks.append(task)
        self.total = total

    def update(self, done: int, numbers: Numbers | None = None) -> None:
        self.updates.append((done, self.total))


class StoppingProgress(SilentProgress):
    """Raises at the first report, as after Ctrl-C."""

    def update(self, done: int, numbers: Numbers | None = None) -> None:
        raise KeyboardInterrupt
