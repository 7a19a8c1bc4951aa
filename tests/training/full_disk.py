"""Every command on a disk with too little room; run inside a namespace that may mount a tmpfs.

A program: `full_disk.py IMAGES FOLDER COUNT` tries COUNT amounts of room for each command, from
none to nearly enough, and prints what happened as JSON.
"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from short_work import OPTIONS, outcome
from tiny import CONFIG

from sureclr.cli import main
from sureclr.config import to_yaml
from sureclr.data import folder_cache
from sureclr.files import DRAFT

SENTENCE = "sureclr: .*{disk}.* need.* free"


@dataclass(frozen=True)
class Case:
    """A command, and what lies on the disk before it.

    Attributes:
        words: of the command; DISK stands for the disk.
        prior: a folder whose content is on the disk.
        cache: where pictures are decoded to.
        check: called on the disk when there is room again and the command was repeated.
    """

    words: list[str]
    prior: Path | None
    cache: str
    check: Callable[[Path], None]


def command(words: list[str]) -> tuple[int, str]:
    """Run a command; return its exit code and what it said, 1 and a traceback where it failed."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(words)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            code = 1
            traceback.print_exc(file=said)
    return code, said.getvalue()


def set_room(disk: Path, room: int) -> None:
    """Fill the disk with one file, but for so many bytes."""
    (disk / "ballast").unlink(missing_ok=True)
    free = shutil.disk_usage(disk).free
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - room))


def fresh(disk: Path, prior: Path | None) -> None:
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if prior is not None:
        shutil.copytree(prior, disk, dirs_exist_ok=True)


def used(disk: Path) -> int:
    return shutil.disk_usage(disk).used


def trial(case: Case, disk: Path, room: int) -> tuple[bool, str]:
    """Run the command with so much room, and then with all of it.

    Returns:
        Whether it was refused, and what is wrong or "".
    """
    words = [word.replace("DISK", str(disk)) for word in case.words]
    os.environ["SURECLR_CACHE"] = case.cache.replace("DISK", str(disk))
    fresh(disk, case.prior)
    set_room(disk, room)
    code, said = command(words)
    first, wrong = code, []
    if code not in (0, 2):
        wrong.append(f"exit code {code}: {said[-1500:]}")
    elif code == 2:
        last = said.strip().splitlines()[-1]
        if not re.search(SENTENCE.format(disk=disk), last):
            wrong.append(f"sentence: {last}")
    if left := [path.name for path in disk.rglob("*") if DRAFT.fullmatch(path.name)]:
        wrong.append(f"drafts: {left}")
    (disk / "ballast").unlink()
    if "pretrain" in words and "--resume" not in words and (disk / "run/config.yaml").exists():
        words = [*words[:2], "--resume", str(disk / "run"), *words[4:]]
    code, said_again = command(words) if code == 2 else (0, "")
    if code:
        wrong.append(f"again: {said_again[-500:]} after {said[-500:]}")
    else:
        try:
            case.check(disk)
        except (Exception, AssertionError) as error:
            wrong.append(f"{error!r} after {said[-300:]}")
    return first == 2, "; ".join(wrong)


def cases(images: Path, base: Path) -> dict[str, Case]:
    cache, settings = str(base / "cache"), base / "settings.yaml"
    settings.parent.mkdir(exist_ok=True)

    settings.write_text(to_yaml(replace(CONFIG, source=f"folder:{images}", **OPTIONS)))
    whole, early = base / "whole", base / "early"
    os.environ["SURECLR_CACHE"] = cache
    train = ["pretrain", f"folder:{images}", "--out", "DISK/run", "-c", str(settings)]
    code, said = command([word.replace("DISK", str(whole)) for word in train])
    assert code == 0, said
    shutil.copytree(whole, early)
    for name in ("encoder.safetensors", "checkpoints/step-000000006"):
        path = early / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    expected = outcome(whole)

    def same(disk: Path) -> None:
        found = outcome(disk)
        assert found == expected, [key for key in expected if found.get(key) != expected[key]]

    def has(*names: str) -> Callable[[Path], None]:
        def check(disk: Path) -> None:
            same_weights = outcome(disk)
            assert same_weights["weights"] == expected["weights"]
            for name in names:
                assert (disk / name).stat().st_size > 100
            json.loads((disk / "run/results.json").read_text()) if "report" not in names else None

        return check

    def nothing(disk: Path) -> None:
        pass

    tune = ["--labels", "12", "--seeds", "1", "--epochs", "1", "--learning-rates", "0.1"]
    return {
        "pretrain": Case(train, None, cache, same),
        "cache": Case(
            [*train[:3], str(base / "other"), "--overwrite", "-c", str(settings)],
            None,
            "DISK/cache",
            nothing,
        ),
        "resume": Case(["pretrain", "--resume", "DISK/run"], early, cache, same),
        "knn": Case(["knn", "DISK/run"], whole, cache, has("run/results.json")),
        "linear": Case(["linear", "DISK/run"], whole, cache, has("run/results.json")),
        "finetune": Case(["finetune", "DISK/run", *tune], whole, cache, has("run/results.json")),
        "predict": Case(
            ["predict", "DISK/run", f"folder:{images}", "--out", "DISK/p.csv", "--overwrite"],
            whole,
            cache,
            nothing,
        ),
        "report": Case(["report", "DISK/run"], whole, cache, nothing),
    }


def all_sizes(images: Path, base: Path, count: int) -> None:
    """Print how often each command ended in which way, and what was wrong."""
    disk = base / "disk"
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)]
    subprocess.run(mount, check=True)
    commands = tried = refused = 0
    wrong = []
    for name, case in cases(images, base).items():
        words = [word.replace("DISK", str(disk)) for word in case.words]
        os.environ["SURECLR_CACHE"] = case.cache.replace("DISK", str(disk))
        fresh(disk, case.prior)
        before = used(disk)
        code, said = command(words)
        assert code == 0, said
        need = used(disk) - before
        for number in range(count):
            room = need * number // count // 4096 * 4096
            told, problem = trial(case, disk, room)
            if problem:
                wrong.append(f"{name} with {room:,} of {need:,} bytes: {problem}")
            refused += told
            tried += 1
        commands += 1
    found = {"commands": commands, "tried": tried, "refused": refused, "wrong": wrong}
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder_cache.SPARE_BYTES = 0  # so that the disk becomes full while pictures are decoded
    all_sizes(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
