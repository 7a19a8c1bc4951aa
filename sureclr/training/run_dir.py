"""The run folder: one writer at a time, whole files, and checkpoints that detect damage.

A checkpoint is a folder of safetensors and JSON files with a sha256 manifest. It is written under
another name, synced to the disk and renamed. A flipped bit in a safetensors file loads without an
error; the manifest detects it. No file of ours contains a pickle.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sureclr.config import ONNX, PretrainConfig, read_yaml
from sureclr.errors import UserError
from sureclr.files import (
    BLOCK,
    DRAFT,
    LARGEST_JSON,
    WriteError,
    folder_lock,
    free_bytes,
    json_bytes,
    make_folder,
    open_file,
    parsed_json,
    read_file,
    read_json,
    read_safetensors,
    refuse_if_lost,
    remove,
    remove_dead_drafts,
    restore_replaced,
    sealed,
    sync_folder,
    try_to_write,
    unsealed,
    unwritable,
    write_atomically,
    write_synced,
    writing_folder_atomically,
)

if TYPE_CHECKING:  # a page is made of a run's files without the code of models
    from sureclr.models.onnx_backbone import OnnxBackbone

KEPT_CHECKPOINTS = 2  # the newest; the best one stays beside them
MOST_CHECKPOINTS = KEPT_CHECKPOINTS + 2  # at one moment: with the best one, and a draft
CHECKPOINT = re.compile(r"step-(\d{9})")  # any other name is a folder of the user's
LARGEST_METRICS = 1 << 30  # bytes, of about three million steps
LONGEST_LINE = 1 << 16  # bytes of a line of metrics.jsonl; ours have about 300
LARGEST_MANIFEST = 1 << 20  # bytes of a checkpoint's manifest; ours have about 500
CHECKED_LINE = re.compile(rb'(\{.*), "crc32": (\d{1,10})\}')
OF_THE_WEIGHTS = (  # worthless once training continues
    "results.json",
    "embeddings.parquet",
    "map.parquet",
    "report.html",
    "finetuned",
    "classifiers",
    "familiarity.safetensors",
)
FEATURES = "features.npz"  # that were given in Python, see `heads`
OURS = (  # what overwriting a run removes; its config.yaml is replaced, so that it stays a run
    "images.json",
    "environment.json",
    "metrics.jsonl",
    "checkpoints",
    "snapshots",
    "encoder.safetensors",
    "initial.safetensors",
    FEATURES,
    "backbone.onnx",
    "training_images.parquet",
    "features",
    "baselines",
    *OF_THE_WEIGHTS,
    "lock",
    "track",
)
BEGUN_FILES = (
    *("lock", "initial.safetensors", "backbone.onnx", "training_images.parquet"),
    *("images.json", FEATURES),
)
BEGUN_FOLDERS = ("checkpoints", "snapshots")
BACKBONE = "encoder.backbone."  # begins the names of the encoder's weights in the model's state
ENCODER = "encoder."  # begins the names of the encoder's weights in initial.safetensors


Signature = tuple[tuple[str, int, int, int, int], ...]  # name, size, two times and inode of files


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
        self.onnx = path / "backbone.onnx"
        self.images = path / "training_images.parquet"
        self.features = path / "features"
        self._seen: dict[Path, tuple[Signature, dict[str, Any], str]] = {}  # whole checkpoints

    def is_run(self) -> bool:
        """Return whether the folder holds a run."""
        return os.path.lexists(self.config)  # a pipe of this name gets a sentence when it is read

    def was_begun(self) -> bool:
        """Return whether the folder holds only what a run writes before its config.yaml.

        A process that was killed there leaves such a folder, and a new run may use it.
        """
        if self.is_run() or not self.path.is_dir() or self.path.is_symlink():
            return False
        inside = [self.path / name for name in BEGUN_FOLDERS]
        entries = [path for path in self.path.iterdir() if path not in inside]
        entries += [path for folder in inside if folder.is_dir() for path in folder.iterdir()]
        ours = all(path.name in BEGUN_FILES or DRAFT.fullmatch(path.name) for path in entries)
        return ours and any(self.path.iterdir())

    def check(self, resume: bool, overwrite: bool, inputs: Mapping[str, str] | None = None) -> None:
        """Check that a run may be written here, before anything is written.

        Args:
            resume: whether the run there is continued.
            overwrite: whether it is replaced.
            inputs: the paths of what a new run is made of, each with its name.

        Raises:
            UserError: there is nothing to resume, there are files of something else, there is a run
                and neither `resume` nor `overwrite` is true, or it holds what the new one needs.
        """
        if resume:
            if self.was_begun():
                raise UserError(
                    f"the run in {self.path} was interrupted before its first step, so there is"
                    f" nothing to resume; start it again with out={str(self.path)!r}."
                )
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
        elif (
            self.path.exists()
            and not self.is_run()
            and not self.was_begun()
            and any(self.path.iterdir())
        ):
            raise UserError(
                f"{self.path} exists and holds files that are not a run; give another out=."
            )
        for name, path in (inputs or {}).items():
            if (
                not resume
                and self.is_run()
                and Path(path).resolve().is_relative_to(self.path.resolve())
            ):
                raise UserError(
                    f"the {name} {path} lies in {self.path}, which the new run would replace; give"
                    " another out=."
                )
        if reason := unwritable(self.path):
            raise UserError(
                f"the run folder {self.path} cannot be written ({reason});"
                f" {'make it writable, or copy the run' if resume else 'give another out='}."
            )

    def prepare(self, resume: bool, overwrite: bool, needed: int = 0) -> None:
        """Check again, make the folder, and remove an old run that is overwritten.

        Files that are not part of a run stay.

        Args:
            resume: whether the run there is continued.
            overwrite: whether it is replaced.
            needed: bytes of a checkpoint of the new run. Where they will not be free without the
                old run either, it stays.

        Raises:
            UserError: as in `check`, or the folder cannot be made.
        """
        self.check(resume, overwrite)
        if self.is_run() and not resume:
            with self.lock():
                self._check_room_without(needed)
                self.forget_results()
                for folder in self._other_results():
                    _remove_results(folder)
                for name in OURS:
                    if name != "lock":
                        remove(self.path / name)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            make_folder(self.checkpoints)
            make_folder(self.snapshots)
        except OSError as error:
            raise UserError(
                f"the folder {error.filename or self.path} of the run cannot be made"
                f" ({error.strerror}); give another out=."
            ) from error

    def _check_room_without(self, needed: int) -> None:
        """Raise a `UserError` if fewer bytes are free even when the run is removed."""
        ours = [path for name in OURS for path in (self.path / name, *_inside(self.path / name))]
        removed = sum(path.lstat().st_size for path in ours if path.is_file())
        free = free_bytes(self.path)
        if free is not None and free + removed < needed:
            raise UserError(
                f"a checkpoint of the new run needs about {needed:,} bytes, and {free:,} are free"
                f" in {self.path}, with {removed:,} more once the old run is removed; it stays."
                " Free some space there, or give another out=."
            )

    def lock(self) -> AbstractContextManager[None]:
        """Keep other writers out of the folder inside the block; see `files.folder_lock`."""
        return folder_lock(self.path)

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl.

        Raises:
            WriteError: the disk is full, or the file is a link or not writable.
        """
        data = _as_line(line)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            with open(os.open(self.metrics, flags, 0o666), "ab", buffering=0) as file:
                written = file.write(data)
                if written != len(data):
                    file.write(data[written:])
        except OSError as error:
            raise WriteError(self.metrics, error, len(data)) from error

    def save_image_report(self, report: dict[str, Any]) -> None:
        """Write images.json: what was understood of the training images."""
        write_atomically(self.path / "images.json", json_bytes(sealed(report, "images.json")))

    def image_paths(self) -> list[str]:
        """Return the paths of the images relative to the run, as images.json has them, or []."""
        try:
            content = read_json(self.path / "images.json")
            report = unsealed(content, "images.json", required=False)
            return [str(path) for path in report["from_run"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []

    def lines(self) -> list[dict[str, Any]]:
        """Return all whole lines of metrics.jsonl by their steps.

        Damaged ones, and second ones of a step, are counted on stderr and skipped. A crash can
        leave half a line at the end, which is not damage.

        Raises:
            UserError: the file is a pipe or a device, or cannot be read.
        """
        texts = [text for text in self._raw_lines() if text.endswith(b"\n") or _line(text)]
        found = [_line(text) for text in texts]
        lines = [line for line, checked in filter(None, found) if checked]
        if lines:  # then all have a checksum
            lines = list({line["step"]: line for line in reversed(lines)}.values())
            lines.sort(key=lambda line: line["step"])
        else:
            lines = [line for line, _ in filter(None, found)]
        damaged = len(found) - len(lines)
        if damaged:
            verbs = "is damaged and was" if damaged == 1 else "are damaged and were"
            print(
                f"{damaged} of {len(found)} lines of {self.metrics} {verbs} skipped",
                file=sys.stderr,
            )
        return lines

    def _raw_lines(self) -> Iterator[bytes]:
        """Yield the lines of metrics.jsonl with their ends; an endless one in pieces."""
        if not os.path.lexists(self.metrics):
            return
        try:
            with open_file(self.metrics, LARGEST_METRICS) as file:
                while text := file.readline(LONGEST_LINE):
                    yield text
        except OSError as error:
            refuse_if_lost(error, self.metrics)
            raise UserError(
                f"{self.metrics} cannot be read ({error.strerror}); move it away."
            ) from error

    def foreign_step(self, lines: list[dict[str, Any]]) -> int | None:
        """Return a step at which lines differ from its checkpoint, so that they are of another run.

        Args:
            lines: of metrics.jsonl.

        Returns:
            None if there is no such step; checkpoints of older versions do not record a loss.
        """
        losses = {line["step"]: line.get("loss") for line in lines}
        for path in self.saved():
            numbers = recorded_numbers(path) or {}
            step, loss = numbers.get("step"), numbers.get("loss")
            if type(loss) is float and losses.get(step, loss) != loss:
                return step
        return None

    def forget_after(self, step: int) -> None:
        """Remove the lines of later steps, which a resumed run will write again."""
        lines = [line for line in self.lines() if line.get("step", 0) <= step]
        write_atomically(self.metrics, b"".join(map(_as_line, lines)))

    def forget_results(self) -> list[str]:
        """Remove what was computed from weights that training is about to change.

        Results of another checkpoint than the last stay, also when that checkpoint is removed: a
        classifier there may have taken hours.

        Returns:
            The names of what was removed from the run folder itself.
        """
        removed = [path.name for path in _results_in(self.path) if os.path.lexists(path)]
        _remove_results(self.path)
        return removed

    def results_folder(self, which: str = "last") -> Path:
        """Return the folder of what is computed from a checkpoint; it need not exist.

        It is the run folder for the checkpoint that is the last, however it is chosen, and
        `step-` and nine digits in the run folder for another. Where a run is extended and has saved
        no checkpoint since, the last one is that of the part before, whose results may be in such a
        folder already.

        Args:
            which: as in `chosen`.

        Raises:
            UserError: there is no such checkpoint, or the folder is a link.
        """
        if which == "last" and not self._other_results():
            return self.path
        found, last = self._whole(which), self._whole()
        if found is None or last is None:
            return self.path
        folder = self.results_of_step(found[0]["step"])
        if found[1] == last[1] and not (folder.is_dir() and self.is_extended()):
            return self.path
        return folder

    def results_of_step(self, step: int) -> Path:
        """Return the folder of the results of a checkpoint that is not the last one.

        Raises:
            UserError: it is a link.
        """
        folder = self.path / f"step-{step:09d}"
        if folder.is_symlink():
            raise UserError(
                f"{folder} is a link, and the results of that checkpoint would be written outside"
                " of the run; delete the link."
            )
        return folder

    def is_extended(self) -> bool:
        """Return whether config.yaml has an extension that the newest checkpoint has not."""
        now, numbers = read_yaml(self.config), self.checkpoint_numbers() or {}
        lists = [one.get("extensions") for one in (now, numbers.get("configuration") or {})]
        now_, before = (len(one) if isinstance(one, list) else 0 for one in lists)
        return now_ > before

    def copy_results(self, step: int) -> None:
        """Copy what was computed from the last checkpoint to `results_of_step`, all or nothing.

        What lies there already stays, except for files of the same names.

        Raises:
            WriteError: the disk is full.
        """
        folder = self.results_of_step(step)
        if not (results := [path for path in _results_in(self.path) if os.path.lexists(path)]):
            return
        earlier = list(folder.iterdir()) if folder.is_dir() else []
        try:
            with writing_folder_atomically(folder) as draft:
                for path in (*earlier, *results):
                    _copy(path, draft / path.name)
        except OSError as error:
            raise WriteError(folder, error, 0) from error

    def _other_results(self) -> list[Path]:
        """Return the folders of results of other checkpoints than the last."""
        return _folders_of_steps(self.path)

    def remove_drafts(self) -> None:
        """Remove the drafts of processes that died while they wrote; take the lock before.

        A checkpoint that was moved aside to be replaced, and was not, comes back.
        """
        folders = [self.checkpoints, self.snapshots, self.path / "baselines"]
        for place in (self.path, *self._other_results()):
            folders += [place, place / "finetuned", place / "classifiers"]
        for folder in (self.path, *(path for path in folders if not path.is_symlink())):
            remove_dead_drafts(folder, alone=True)
        restore_replaced(self.path)
        if not self.checkpoints.is_symlink():
            restore_replaced(self.checkpoints)

    def check_space(self, size: int, coming: int = 1) -> None:
        """Check before hours of training that the folder can take its checkpoints.

        A trial of their size is written, renamed and deleted, which meets what a checkpoint would
        meet: a quota, a drive that is lost, or one that cannot rename folders.

        Args:
            size: of a checkpoint, in bytes.
            coming: number of checkpoints that will be written.

        Raises:
            UserError: there is not enough room, or the trial failed.
        """
        at_once = min(coming, MOST_CHECKPOINTS - len(self.saved()))
        needed, free = max(at_once, 1) * size, free_bytes(self.path)
        if free is not None and free < needed:
            what = "a checkpoint" if needed == size else f"checkpoints of {size:,} bytes"
            raise UserError(
                f"{what} in {self.path} {'needs' if needed == size else 'need'} about {needed:,}"
                f" bytes, and {free:,} are free; free some space there, or give another out=."
            )
        make_folder(self.checkpoints)
        try_to_write(self.checkpoints, size)

    def save_checkpoint(
        self, step: int, parts: dict[str, dict[str, Tensor]], numbers: dict[str, Any]
    ) -> Path:
        """Write a checkpoint whole or not at all, and remove all but the newest two and the best.

        Args:
            step: number of steps done, which names the checkpoint.
            parts: name -> tensors; each part is a safetensors file.
            numbers: JSON that belongs to it; state.json. The checkpoints of the steps in the list
                `ends`, where a part of the run was complete, are kept for good.

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
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            make_folder(self.checkpoints)
            with writing_folder_atomically(final) as draft:
                for name, data in files.items():
                    write_synced(draft / name, data)
        except OSError as error:
            needed = sum(len(data) + -len(data) % BLOCK for data in files.values())
            raise WriteError(final, error, needed) from error
        self._prune(final, numbers.get("ends", []))
        return final

    def _prune(self, written: Path, ends: Sequence[int]) -> None:
        """Remove all that are older than the newest two undamaged ones, but for the best.

        A folder without files of ours never was a checkpoint, and stays.

        Args:
            written: the checkpoint that was just written, which need not be verified.
            ends: steps whose checkpoints stay as well.
        """
        saved = self.saved()
        if len(saved) <= KEPT_CHECKPOINTS:
            return
        newest = (p for p in reversed(saved) if p == written or verified(p) is not None)
        kept = list(islice(newest, KEPT_CHECKPOINTS))
        old = saved[: saved.index(kept[-1])]
        best = self.best() if old else None
        for path in old:
            if path != best and _is_ours(path) and recorded_step(path) not in ends:
                remove(path)

    def saved(self) -> list[Path]:
        """Return the folders of the checkpoints, oldest first, by the steps that they record.

        A checkpoint is named `step-` and nine digits; folders of other names are the user's.
        """
        if self.checkpoints.is_symlink():  # the folder of someone else may be behind it
            return []
        folders = [(recorded_step(path), path) for path in _folders_of_steps(self.checkpoints)]

        def order(entry: tuple[int | None, Path]) -> tuple[int, bool, str]:
            step, path = entry
            named = int(path.name[5:])  # all that a damaged checkpoint tells
            return named if step is None else step, step == named, path.name

        return [path for _, path in sorted(folders, key=order)]

    def best(self) -> Path | None:
        """Return the undamaged checkpoint with the highest accuracy of the monitor at its step.

        Only those count that were measured on the same images and labels as the newest one with
        an accuracy. Of equal ones it is the earliest. None: no checkpoint records an accuracy, as
        in a run without labels.
        """
        return next((path for path in self._ranked() if verified(path) is not None), None)

    def _ranked(self) -> list[Path]:
        """Return the checkpoints that record an accuracy, the best at the front, also damaged."""
        found = [(recorded_monitor(path), path) for path in self.saved()]
        known = [(monitor, path) for monitor, path in found if monitor is not None]
        scores = [
            (monitor.knn, -(recorded_step(path) or 0), place, path)  # of copies the well-named one
            for place, (monitor, path) in enumerate(known)
            if monitor.data == known[-1][0].data
        ]
        return [entry[-1] for entry in sorted(scores, reverse=True)]

    def chosen(self, which: str = "last") -> list[Path]:
        """Return the checkpoints that a choice allows, the one to be tried first at the front.

        Args:
            which: "last", for which an older checkpoint may stand in where the newest is damaged;
                "best", see `best`; or a number of steps in digits.

        Raises:
            UserError: there is no such checkpoint, or it cannot be known which is the best.
        """
        saved = self.saved()
        if which == "last":
            return saved[::-1]
        if not saved:
            raise UserError(f"the run in {self.path} has no checkpoint; train it first.")
        if which == "best":
            ranked, unknown = self._ranked(), self._unknown()
            if ranked and not unknown:
                return ranked[:1]
            problem = (
                f"a damaged checkpoint ({unknown[0].name}), which may be the best one"
                if unknown
                else "no best checkpoint, because no accuracy was measured at a saved step (that"
                " needs labelled training images and monitor_every above 0)"
            )
        elif re.fullmatch(r"[0-9]{1,9}", which):
            step = int(which)
            if found := [path for path in saved if recorded_step(path) == step]:
                return found[-1:]
            if found := [path for path in self._unknown() if _step_in_name(path) == step]:
                return found  # it is damaged, which `load_checkpoint` says
            problem = f"no checkpoint of step {step}"
        else:
            problem = f"no checkpoint {which!r:.40}"
        raise UserError(f"the run in {self.path} has {problem}; {self._described()}.")

    def _unknown(self) -> list[Path]:
        """Return the checkpoints whose own record is damaged."""
        return [path for path in self.saved() if recorded_step(path) is None and _is_ours(path)]

    def _described(self) -> str:
        """Which checkpoints there are, in words, and how to choose one."""
        saved, best = self.saved(), [] if self._unknown() else self._ranked()[:1]
        whole = [path for path in saved if verified(path) is not None]
        words = []
        for path in saved:
            marks = {"damaged": path not in whole, "best": path in best, "last": path in whole[-1:]}
            names = " and ".join(name for name, is_it in marks.items() if is_it)
            step = recorded_step(path)
            word = f"step {_step_in_name(path) if step is None else step}"
            words.append(word + (f" ({names})" if names else ""))
        if not whole:
            return f"it has {', '.join(words)}"
        choice = "last, best or a step" if best and best[0] in whole else "last or a step"
        return f"it has {', '.join(words)}, so choose one of these with checkpoint={choice}"

    def load_checkpoint(self, which: str = "last") -> Checkpoint:
        """Load a checkpoint.

        Args:
            which: as in `chosen`. Of "last", a damaged one is reported on stderr and skipped; any
                other choice has nothing that could stand in.

        Raises:
            UserError: there is no such checkpoint, or none that is undamaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        choice = self.chosen(which)
        self._check_same_images()
        for path in choice:
            signature = _signature(path)
            files = verified(path)
            if files is None and which != "last":
                raise UserError(
                    f"checkpoint {path} of the run is damaged (it does not match its manifest);"
                    f" {self._described()}."
                )
            if files is None:
                print(
                    f"checkpoint {path} is damaged (it does not match its manifest); trying the one"
                    " before",
                    file=sys.stderr,
                )
                continue
            digest = hashlib.sha256(files.pop("manifest.json")).hexdigest()
            numbers = _state(path, files.pop("state.json"))
            try:
                parts = {n.removesuffix(".safetensors"): load(data) for n, data in files.items()}
            except SafetensorError as error:
                raise _strange(path, error) from error
            if name := _not_finite(parts):
                raise UserError(
                    f"the checkpoint {path} holds values that are not finite (in {name}), so"
                    f" training had diverged before it was saved; {self._described()}. To go on"
                    " from an older one with resume=True, delete its folder."
                )
            self._seen[path] = signature, deepcopy(numbers), digest
            return Checkpoint(parts, numbers, digest)
        raise UserError(
            f"{self.checkpoints} holds no undamaged checkpoint; start the run again with"
            " overwrite=True."
        )

    def _check_same_images(self) -> None:
        """Raise a `UserError` if a checkpoint was copied in that was trained on other images.

        Checkpoints of a run name the same images until changes are accepted, which they name, too.
        """
        found: dict[str, tuple[str, int]] = {}
        for path in self.saved():
            numbers = recorded_numbers(path) or {}
            if type(images := numbers.get("images")) is not str:
                continue
            changes = json.dumps(numbers.get("changes"))
            first, step = found.setdefault(changes, (images, numbers["step"]))
            if images != first:
                raise UserError(
                    f"the run in {self.path} has checkpoints that were trained on different images"
                    f" (steps {step} and {numbers['step']}), so one of them was copied from"
                    " another run; delete that one."
                )

    def checkpoint_numbers(self, which: str = "last") -> dict[str, Any] | None:
        """Return the numbers of the checkpoint that `load_checkpoint` would load, or None."""
        found = self._whole(which)
        return None if found is None else found[0]

    def accepted_after(self, numbers: dict[str, Any]) -> dict[str, Any] | None:
        """Return the configuration of the newest checkpoint if it has changes accepted since.

        Args:
            numbers: of an older checkpoint; None is returned where nothing was accepted after it.
        """
        newest = self.checkpoint_numbers() or {}
        before, now = numbers.get("changes", []), newest.get("changes", [])
        if not (isinstance(before, list) and isinstance(now, list)):
            return None
        later = len(now) > len(before) and now[: len(before)] == before
        return dict(newest["configuration"]) if later else None

    def checkpoint_digest(self, which: str = "last") -> str | None:
        """Return the digest of the checkpoint that `load_checkpoint` would load.

        It reads and checks the files, but makes no tensors of them. None: there is no checkpoint.
        """
        found = self._whole(which)
        return None if found is None else found[1]

    def _whole(self, which: str = "last") -> tuple[dict[str, Any], str] | None:
        """Return numbers and digest of the first undamaged checkpoint of a choice, or None.

        A checkpoint is read and hashed again only if one of its files has changed since.
        """
        for path in self.chosen(which):
            signature = _signature(path)
            known, numbers, digest = self._seen.get(path, ((), {}, ""))
            if known and known == signature:
                return deepcopy(numbers), digest
            if (files := verified(path)) is not None:
                digest = hashlib.sha256(files["manifest.json"]).hexdigest()
                numbers = _state(path, files["state.json"])
                self._seen[path] = signature, deepcopy(numbers), digest
                return numbers, digest
        return None

    def save_initial(self, tensors: dict[str, Tensor]) -> None:
        """Write initial.safetensors: the state of encoder and loss before training.

        The metadata of the file hold a digest of the tensors.
        """
        from safetensors.torch import save

        plain = plain_tensors(tensors)
        write_atomically(self.initial, save(plain, {"sha256": digest_of_weights(plain)}))

    def load_initial(self) -> dict[str, Tensor]:
        """Load initial.safetensors.

        Raises:
            UserError: the file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            data = read_safetensors(self.initial)
            tensors = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            intact = header["__metadata__"]["sha256"] == digest_of_weights(tensors)
        except OSError as error:
            refuse_if_lost(error, self.initial)
            intact = False
        except (SafetensorError, ValueError, KeyError):
            intact = False
        if not intact:
            raise UserError(
                f"{self.initial}, the weights before training, is missing or damaged; the run"
                " cannot be compared with its untrained encoder. Restore the file, or start the run"
                " again with overwrite=True."
            )
        return tensors

    def save_onnx(self, backbone: nn.Module) -> None:
        """Write backbone.onnx, if the encoder is the network of an ONNX file."""
        from sureclr.models.onnx_backbone import OnnxBackbone

        if isinstance(backbone, OnnxBackbone):
            write_atomically(self.onnx, backbone.data)

    def onnx_network(self, config: PretrainConfig) -> "OnnxBackbone | None":
        """Return the network of backbone.onnx; None if the run has another encoder.

        Raises:
            UserError: the file is missing or damaged, or onnxruntime cannot run it. That it is the
                network of this run is checked where its state is loaded.
        """
        if config.encoder != ONNX:
            return None
        from sureclr.models.onnx_backbone import OnnxBackbone, read_onnx

        data, name = read_onnx(self.onnx), str(self.onnx)
        size, channels = config.size, config.channels
        return OnnxBackbone(data, name, pool=config.pool, size=size, channels=channels)

    def load_backbone(self, numbers: dict[str, Any]) -> dict[str, Tensor]:
        """Load the weights of a frozen encoder, which the checkpoints do not hold.

        Args:
            numbers: of the checkpoint to which they belong.

        Returns:
            The weights under the names that they have in the encoder.

        Raises:
            UserError: initial.safetensors is missing, damaged, or that of another run.
        """
        from sureclr.models.weight_files import below

        found = below(ENCODER, self.load_initial())
        if digest_of_weights(found) != numbers.get("backbone"):
            raise UserError(
                f"{self.initial} holds other weights than the frozen encoder on which the heads of"
                f" this run were trained; restore the file of {self.path}."
            )
        return found


def _folders_of_steps(folder: Path) -> list[Path]:
    """Return the folders in a folder that have the name of a checkpoint; no links."""
    return [
        path
        for path in folder.glob("step-*")
        if CHECKPOINT.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]


def _results_in(folder: Path) -> list[Path]:
    """Return the paths of what may have been computed from a checkpoint."""
    return [*(folder / name for name in OF_THE_WEIGHTS), *folder.glob("comparison-*.html")]


def _copy(source: Path, target: Path) -> None:
    """Copy a file, a link or a folder; of files, by a second name where the drive has such."""
    if source.is_dir() and not source.is_symlink():
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            _copy(path, target / path.name)
        sync_folder(target)
        return
    remove(target)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
        with open(target, "r+b") as file:
            os.fsync(file.fileno())


def _remove_results(folder: Path) -> None:
    """Remove what was computed from a checkpoint, and its folder if nothing else is in it."""
    for path in _results_in(folder):
        remove(path)
    if CHECKPOINT.fullmatch(folder.name):
        with suppress(OSError):
            folder.rmdir()


def checked_safetensors(tensors: dict[str, Tensor], key: str, about: Mapping[str, Any]) -> bytes:
    """Return a safetensors file that holds a sha256 of its own content.

    Args:
        tensors: by name.
        key: of the metadata. There is one: safetensors writes several in random order, and equal
            runs would differ in their bytes.
        about: is written as JSON into the metadata.
    """
    from safetensors.torch import save

    plain = plain_tensors(tensors)
    total = digest_of_weights(plain, about)
    return save(plain, {key: json.dumps({**about, "sha256": total})})


def read_checked_safetensors(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `checked_safetensors`; files of older versions have no sha256.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = read_safetensors(path)
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = dict(json.loads(header["__metadata__"][key]))
    except (SafetensorError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    expected = about.pop("sha256", None)
    if expected is not None and expected != digest_of_weights(tensors, about):
        raise ValueError("it does not match its sha256")
    return tensors, about


def _inside(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder of ours; nothing for a link or a file."""
    if folder.is_dir() and not folder.is_symlink():
        yield from folder.rglob("*")


def plain_tensors(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: on the CPU, contiguous, none of them shared."""
    plain: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in part.items():
        value = tensor.detach().cpu().contiguous()
        plain[name] = value.clone() if value.data_ptr() in places else value  # tied weights
        places.add(plain[name].data_ptr())
    return plain


def digest_of_weights(tensors: dict[str, Tensor], about: Mapping[str, Any] | None = None) -> str:
    """Return a sha256 of names, types, shapes and values, and of what the file says of them."""
    total = hashlib.sha256(b"" if about is None else json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def verified(path: Path) -> dict[str, bytes] | None:
    """Return the files of a checkpoint, the manifest included.

    None if a file is missing or differs from the manifest.

    Raises:
        UserError: the drive cannot be read, so that the checkpoint may be whole.
    """
    try:
        manifest_data = read_file(path / "manifest.json", LARGEST_MANIFEST)
        manifest = dict(parsed_json(manifest_data))
        if any(Path(name).name != name for name in manifest):  # it must not lead elsewhere
            return None
        files = {name: _read_part(path / name) for name in manifest}
    except OSError as error:
        refuse_if_lost(error, path)
        return None
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    intact = all(
        hashlib.sha256(files[name]).hexdigest() == digest for name, digest in manifest.items()
    )
    return {**files, "manifest.json": manifest_data} if intact and "state.json" in files else None


def _signature(path: Path) -> Signature:
    """Return what the system says of a checkpoint's files; it changes when one is written."""
    try:
        found = [(entry.name, entry.stat()) for entry in os.scandir(path)]
    except OSError:
        return ()
    parts = [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in found]
    return tuple(sorted(parts))


def _state(path: Path, data: bytes) -> dict[str, Any]:
    """Return the numbers of a checkpoint; a `UserError` where they are no object."""
    try:
        return dict(parsed_json(data))
    except (ValueError, TypeError) as error:
        raise _strange(path, error) from error


def _strange(path: Path, error: Exception) -> UserError:
    """The error for a checkpoint that matches its manifest and makes no sense."""
    return UserError(
        f"the checkpoint {path} was not written by SureCLR ({' '.join(str(error).split())[:200]});"
        " delete it, or start the run again with overwrite=True."
    )


def check_numbers(path: Path, numbers: dict[str, Any]) -> None:
    """Raise a `UserError` unless a checkpoint describes itself as `Trainer.state` does."""
    kinds = {"step": int, "size": int, "channels": int, "source": str, "configuration": dict}
    for name, kind in kinds.items():
        value = numbers.get(name)
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise UserError(
                f"the checkpoint of the run in {path} was not written by SureCLR ({name} is"
                f" {value!r:.40}); start the run again with overwrite=True."
            )


def _read_part(path: Path) -> bytes:
    """Return a file of a checkpoint, whose size is looked at before it is read."""
    return (
        read_safetensors(path) if path.suffix == ".safetensors" else read_file(path, LARGEST_JSON)
    )


def recorded_numbers(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint's state.json; None if it does not fit the manifest, or has no step."""
    try:
        manifest = read_json(path / "manifest.json", LARGEST_MANIFEST)
        state = read_file(path / "state.json", LARGEST_JSON)
        numbers = dict(parsed_json(state))
        intact = manifest["state.json"] == hashlib.sha256(state).hexdigest()
    except OSError as error:
        refuse_if_lost(error, path)
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return numbers if intact and type(numbers.get("step")) is int else None


def recorded_step(path: Path) -> int | None:
    """Return the step in a checkpoint's state.json; None if it does not fit the manifest."""
    numbers = recorded_numbers(path)
    return None if numbers is None else int(numbers["step"])


def _is_ours(path: Path) -> bool:
    """Return whether a folder with the name of a checkpoint has files of one, damaged or not."""
    return any(os.path.lexists(path / name) for name in ("manifest.json", "state.json"))


def _step_in_name(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _not_finite(parts: dict[str, dict[str, Tensor]]) -> str | None:
    """The name of a tensor that holds a NaN or an infinite value, or None."""
    names = (
        f"{name} of the {part}"
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
        if not tensor.isfinite().all()
    )
    return next(names, None)


@dataclass(frozen=True)
class Monitored:
    """What the monitor measured at the step of a checkpoint.

    Attributes:
        knn: accuracy on held-out training images, from 0 to 1.
        queries: the number of these images.
        data: digest of the images and labels with which it was measured; "" if not recorded.
    """

    knn: float
    queries: int
    data: str = ""


def recorded_monitor(path: Path) -> Monitored | None:
    """Return what was measured at a checkpoint's step; None as in `as_monitored`."""
    return as_monitored((recorded_numbers(path) or {}).get("monitor"))


def as_monitored(value: Any) -> Monitored | None:
    """Return what a checkpoint records of the monitor.

    None: nothing was measured there, or the checkpoint does not say it in a form of ours.
    """
    try:
        found = Monitored(**value)
    except TypeError:
        return None
    if (type(found.knn), type(found.queries), type(found.data)) != (float, int, str):
        return None
    return found if 0 <= found.knn <= 1 and found.queries > 0 else None


def _as_line(line: dict[str, Any]) -> bytes:
    """A line of metrics.jsonl, which ends with a checksum of what stands before it."""
    text = json.dumps(line).encode()
    return text[:-1] + f', "crc32": {zlib.crc32(text)}}}\n'.encode()


def _line(text: bytes) -> tuple[dict[str, Any], bool] | None:
    """The numbers of a line of metrics.jsonl and whether it has a checksum; None: it is damaged.

    Lines of older versions have no checksum.
    """
    if checked := CHECKED_LINE.fullmatch(text.removesuffix(b"\n")):
        text = checked[1] + b"}"
        if zlib.crc32(text) != int(checked[2]):
            return None
    try:
        line = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return None
    numbers = all(type(value) in (int, float) for value in line.values())
    return (line, checked is not None) if numbers else None
