"""The run folder: one writer at a time, whole files, and checkpoints that detect damage.

A checkpoint is a folder of safetensors and JSON files with a sha256 manifest. It is written under
another name, synced to the disk and renamed. A flipped bit in a safetensors file loads without an
error; the manifest detects it. No file of ours contains a pickle.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.files import json_bytes, remove, sync_folder, write_atomically, write_synced

KEPT_CHECKPOINTS = 2
OF_THE_WEIGHTS = (  # worthless once training continues
    "results.json",
    "embeddings.parquet",
    "map.parquet",
    "report.html",
    "finetuned",
    "classifiers",
)
OURS = (  # what overwriting a run removes
    "config.yaml",
    "images.json",
    "environment.json",
    "metrics.jsonl",
    "checkpoints",
    "snapshots",
    "encoder.safetensors",
    "initial.safetensors",
    *OF_THE_WEIGHTS,
    "lock",
    "track",
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        parts: name of the part (model, objective, optimizer) -> its tensors.
        numbers: JSON that belongs to it, such as the step.
        digest: sha256 of its manifest, which identifies the weights.
    """

    parts: dict[str, dict[str, Tensor]]
    numbers: dict[str, Any]
    digest: str


def default_name(source: str, loss: str, encoder: str, now: datetime) -> Path:
    """Return runs/SOURCE-LOSS-ENCODER-DATE, without characters that a folder's name cannot have.

    Of a source `folder:PATH` the name is that of the folder, also where PATH is `.`.
    """
    if source.startswith("folder:"):
        source = Path(source.removeprefix("folder:")).resolve().name
    names = [re.sub(r"[^\w.-]+", "_", name) for name in (source, loss, encoder)]
    return Path("runs") / "-".join([names[0] or "root", *names[1:], f"{now:%Y%m%d-%H%M%S}"])


class RunDir:
    """The folder of a run.

    To write, take its `lock`, which the operating system releases if the process dies.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        """Name the files of the folder; nothing is read or written."""
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.json"
        self.checkpoints = path / "checkpoints"
        self.snapshots = path / "snapshots"
        self.initial = path / "initial.safetensors"

    def is_run(self) -> bool:
        """Return whether the folder holds a run."""
        return self.config.is_file()

    def check(self, resume: bool, overwrite: bool) -> None:
        """Check that a run may be written here, before anything is written.

        Raises:
            UserError: there is nothing to resume, there are files of something else, or there is a
                run and neither `resume` nor `overwrite` is true.
        """
        if resume:
            if not self.is_run():
                raise UserError(
                    f"there is no run to resume in {self.path} (no config.yaml); leave out"
                    " resume=True to start one."
                )
        elif self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file, and a run needs a folder; give another out=.")
        elif self.is_run() and not overwrite:
            raise UserError(
                f"{self.path} already holds a run; continue it with resume=True, replace it with"
                " overwrite=True, or give another out=."
            )
        elif self.path.exists() and not self.is_run() and any(self.path.iterdir()):
            raise UserError(
                f"{self.path} exists and holds files that are not a run; give another out=."
            )

    def prepare(self, resume: bool, overwrite: bool) -> None:
        """Check again, make the folder, and remove an old run that is overwritten.

        Files that are not part of a run stay.

        Raises:
            UserError: as in `check`, or the folder cannot be made.
        """
        self.check(resume, overwrite)
        if self.is_run() and not resume:
            with self.lock():
                for name in OURS:
                    if name != "lock":
                        remove(self.path / name)
                self.forget_results()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.snapshots.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be made ({error.strerror}); give another out=."
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other writers out of the folder inside the block.

        Raises:
            UserError: another process is writing, or the folder cannot be written.
        """
        try:
            import fcntl
        except ImportError:  # Windows has no flock: there, users must avoid a second writer
            yield
            return
        try:
            handle = open(self.path / "lock", "w")  # noqa: SIM115  (open for the whole block below)
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be written ({error.strerror}); choose another"
                " out."
            ) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"another process is writing to {self.path}; wait for it, or choose another"
                    " out."
                ) from error
            yield

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save_image_report(self, report: dict[str, Any]) -> None:
        """Write images.json: what was understood of the training images."""
        write_atomically(self.path / "images.json", json_bytes(report))

    def lines(self) -> list[dict[str, Any]]:
        """Return all whole lines of metrics.jsonl; a crash can leave half a line at the end."""
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
        """Remove the lines of later steps, which a resumed run will write again."""
        lines = [line for line in self.lines() if line.get("step", 0) <= step]
        write_atomically(self.metrics, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def forget_results(self) -> None:
        """Remove what was computed from weights that training is about to change."""
        comparisons = self.path.glob("comparison-*.html")
        for path in [*(self.path / name for name in OF_THE_WEIGHTS), *comparisons]:
            remove(path)

    def save_checkpoint(
        self, step: int, parts: dict[str, dict[str, Tensor]], numbers: dict[str, Any]
    ) -> Path:
        """Write a checkpoint whole or not at all, and remove all but the newest two.

        Args:
            step: number of steps done, which names the checkpoint.
            parts: name -> tensors; each part is a safetensors file.
            numbers: JSON that belongs to it; state.json.

        Returns:
            The folder of the checkpoint.
        """
        from safetensors.torch import save

        files = {f"{name}.safetensors": save(plain_tensors(part)) for name, part in parts.items()}
        files["state.json"] = json.dumps(numbers).encode()
        files["manifest.json"] = json.dumps(
            {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
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
        """Return the folders of the checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step-*"))

    def load_checkpoint(self) -> Checkpoint:
        """Load the newest undamaged checkpoint; a damaged one is reported on stderr and skipped.

        Raises:
            UserError: there is none.
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
            digest = hashlib.sha256(files.pop("manifest.json")).hexdigest()
            numbers = json.loads(files.pop("state.json"))
            parts = {name.removesuffix(".safetensors"): load(data) for name, data in files.items()}
            return Checkpoint(parts, numbers, digest)
        raise UserError(
            f"{self.checkpoints} holds no undamaged checkpoint; start the run again with"
            " overwrite=True."
        )

    def newest_digest(self) -> str | None:
        """Return the digest of the checkpoint that `load_checkpoint` would load.

        It reads and checks the files, but makes no tensors of them. None: there is no checkpoint.
        """
        for path in reversed(self.saved()):
            if (files := verified(path)) is not None:
                return hashlib.sha256(files["manifest.json"]).hexdigest()
        return None

    def save_initial(self, tensors: dict[str, Tensor]) -> None:
        """Write initial.safetensors: the state of the user's own encoder and loss before training.

        The metadata of the file hold a digest of the tensors.
        """
        from safetensors.torch import save

        plain = plain_tensors(tensors)
        write_atomically(self.initial, save(plain, {"sha256": _digest(plain)}))

    def load_initial(self) -> dict[str, Tensor]:
        """Load initial.safetensors.

        Raises:
            UserError: the file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            data = self.initial.read_bytes()
            tensors = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            intact = header["__metadata__"]["sha256"] == _digest(tensors)
        except (OSError, SafetensorError, ValueError, KeyError):
            intact = False
        if not intact:
            raise UserError(
                f"{self.initial}, the weights before training, is missing or damaged; the run"
                " cannot be compared with its untrained encoder. Restore the file, or start the run"
                " again with overwrite=True."
            )
        return tensors


def plain_tensors(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: on the CPU, contiguous, none of them shared."""
    plain: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in part.items():
        value = tensor.detach().cpu().contiguous()
        plain[name] = value.clone() if value.data_ptr() in places else value  # tied weights
        places.add(plain[name].data_ptr())
    return plain


def _digest(tensors: dict[str, Tensor]) -> str:
    """Return a sha256 of names, types, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def verified(path: Path) -> dict[str, bytes] | None:
    """Return the files of a checkpoint, the manifest included.

    None if a file is missing or differs from the manifest.
    """
    try:
        manifest_data = (path / "manifest.json").read_bytes()
        manifest = json.loads(manifest_data)
        files = {name: (path / name).read_bytes() for name in manifest}
    except (OSError, ValueError):
        return None
    intact = all(
        hashlib.sha256(files[name]).hexdigest() == digest for name, digest in manifest.items()
    )
    return {**files, "manifest.json": manifest_data} if intact and "state.json" in files else None
