"""The run folder: one writer, files that are whole or absent, checkpoints that know when they are
damaged.

A checkpoint is a folder of safetensors and JSON with a sha256 manifest, written under another name,
fsynced and renamed. A flipped bit in a safetensors file loads silently; the manifest catches it.
There is no pickle in any file of ours.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from sureclr.errors import UserError
from sureclr.files import (
    digest_of_bytes,
    json_bytes,
    remove,
    sync_folder,
    write_atomically,
    write_synced,
)

KEPT_CHECKPOINTS = 2
OF_THE_WEIGHTS = (
    "results.json",
    "embeddings.parquet",
    "map.parquet",
    "report.html",
    "finetuned",
)  # worthless once training goes on
OURS = (
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "checkpoints",
    "snapshots",
    "encoder.safetensors",
    *OF_THE_WEIGHTS,
    "lock",
    "track",
)


def default_name(source: str, loss: str, encoder: str, now: datetime) -> Path:
    """runs/SOURCE-LOSS-ENCODER-DATE; of a folder source, its last name (`folder:.` has one too)."""
    name = (
        Path(source.removeprefix("folder:")).resolve().name
        if source.startswith("folder:")
        else source
    )
    plain = re.sub(r"[^\w.-]+", "_", name) or "root"
    return Path("runs") / f"{plain}-{loss}-{encoder}-{now:%Y%m%d-%H%M%S}"


class RunDir:
    """A run's folder. Opening it to write takes a lock that the operating system releases if the
    process dies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.json"
        self.checkpoints = path / "checkpoints"
        self.snapshots = path / "snapshots"

    def is_run(self) -> bool:
        return self.config.is_file()

    def check(self, resume: bool, overwrite: bool) -> None:
        """Whether a run may be written here, before anything is: never a silent second folder,
        nothing lost.

        Raises:
            UserError: nothing to resume, a file in the way, a folder of something else, or a run
                and no word what to do with it.
        """
        if resume:
            if not self.is_run():
                raise UserError(
                    f"there is no run to resume in {self.path} (no config.yaml); leave out --resume"
                    " to start one."
                )
        elif self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file, and a run needs a folder; give another --out.")
        elif self.is_run() and not overwrite:
            raise UserError(
                f"{self.path} already holds a run; continue it with --resume, replace it with"
                " --overwrite, or give another --out."
            )
        elif self.path.exists() and not self.is_run() and any(self.path.iterdir()):
            raise UserError(
                f"{self.path} exists and holds files that are not a run; give another --out."
            )

    def prepare(self, resume: bool, overwrite: bool) -> None:
        """Check again, remove the old run's own files where it is overwritten (anything else
        stays), and make the folder.
        """
        self.check(resume, overwrite)
        if self.is_run() and not resume:
            with self.lock():
                for name in OURS:
                    if name != "lock":
                        remove(self.path / name)
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.snapshots.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be made ({error.strerror}); give another --out."
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One writer per run folder."""
        try:
            import fcntl
        except ImportError:  # Windows has no flock; a second writer is then the user's to avoid
            yield
            return
        try:
            handle = open(self.path / "lock", "w")  # noqa: SIM115  (held for the whole block below)
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be written ({error.strerror}); give another"
                " --out."
            ) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"another process is writing to {self.path}; wait for it, or give another"
                    " --out."
                ) from error
            yield

    def log(self, line: dict[str, Any]) -> None:
        """One line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl (a crash can leave half a line at the end)."""
        if not self.metrics.exists():
            return []
        lines = []
        for text in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return lines

    def forget_after(self, step: int) -> None:
        """Drop the lines that a resumed run will write again."""
        kept = [line for line in self.lines() if line.get("step", 0) <= step]
        write_atomically(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def results_so_far(self) -> dict[str, Any]:
        if not self.results.exists():
            return {}
        try:
            return dict(json.loads(self.results.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:  # not JSON, not text, not a mapping
            raise UserError(
                f"{self.results} is damaged ({error}); move it away and evaluate again."
            ) from error

    def add_result(self, key: str, value: dict[str, Any]) -> None:
        """Set one evaluation's key of results.json; the others stay."""
        write_atomically(self.results, json_bytes({**self.results_so_far(), key: value}))

    def save_checkpoint(
        self, step: int, parts: dict[str, dict[str, Tensor]], numbers: dict[str, Any]
    ) -> Path:
        """Write a checkpoint whole or not at all: one safetensors file a part, state.json,
        manifest.json; keep the newest two.
        """
        from safetensors.torch import save

        files = {f"{name}.safetensors": save(_plain(part)) for name, part in parts.items()}
        files["state.json"] = json.dumps(numbers).encode()
        files["manifest.json"] = json.dumps(
            {name: digest_of_bytes(data) for name, data in files.items()}
        ).encode()
        final = self.checkpoints / f"step-{step:09d}"
        draft = self.checkpoints / f".draft-{os.getpid()}"
        remove(draft)
        draft.mkdir(parents=True)
        for name, data in files.items():
            write_synced(draft / name, data)
        remove(final)
        draft.rename(final)
        sync_folder(self.checkpoints)
        for old in self.saved()[:-KEPT_CHECKPOINTS]:
            remove(old)
        return final

    def saved(self) -> list[Path]:
        """Checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step-*"))

    def load_checkpoint(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """The newest undamaged checkpoint: its parts and numbers. A damaged one is said on stderr
        and passed over.
        """
        from safetensors.torch import load

        for path in reversed(self.saved()):
            files = verified(path)
            if files is None:
                print(
                    f"checkpoint {path} is damaged (it does not match its manifest); trying the one"
                    " before",
                    file=sys.stderr,
                )
                continue
            numbers = json.loads(files.pop("state.json"))
            return {
                name.removesuffix(".safetensors"): load(data) for name, data in files.items()
            }, numbers
        raise UserError(
            f"{self.checkpoints} holds no undamaged checkpoint; start the run again with"
            " --overwrite."
        )


def _plain(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors takes them: on the CPU, in the order of their axes."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in part.items()}


def verified(path: Path) -> dict[str, bytes] | None:
    """The files of a checkpoint, or None where one is missing or differs from the manifest."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        files = {name: (path / name).read_bytes() for name in manifest}
    except (OSError, ValueError):
        return None
    good = all(digest_of_bytes(files[name]) == digest for name, digest in manifest.items())
    return files if good and "state.json" in files else None
