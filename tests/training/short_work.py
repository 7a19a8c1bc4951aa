"""All that a user does with a small folder of pictures, in a few seconds, and what came of it.

Started as a program, it does the work again and again and is killed at random instants.
"""

import contextlib
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tiny import train, weights

from sureclr.errors import UserError
from sureclr.evaluation.prediction import predict
from sureclr.evaluation.session import evaluate
from sureclr.files import DRAFT
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.service import finetune
from sureclr.progress import SILENT

TUNING = FinetuneConfig(labels="12", seeds=1, epochs=1, batch_size=6, learning_rates=(0.1,))
OPTIONS: dict[str, Any] = {"size": 8, "epochs": 3, "batch_size": 8, "snapshot_every": 1}
LATE = ("pyarrow.parquet", "safetensors.torch", "sklearn.linear_model", "timm")  # imports of work
NEVER_BEGAN = "interrupted before its first step|there is no run to resume"


def pretraining(images: Path, top: Path, *, resume: bool = True, **options: Any) -> None:
    """Resume the run in top/run, or start it where the sentence says that it never began."""
    os.environ["SURECLR_CACHE"] = str(top / "cache")
    wanted = {**OPTIONS, "source": f"folder:{images}", **options}
    try:
        train(top / "run", None, resume=resume, **wanted)
    except UserError as error:
        if not re.search(NEVER_BEGAN, str(error)):
            raise
        train(top / "run", None, **wanted)


def evaluating(images: Path, top: Path) -> None:
    """Evaluate the run in top/run, fine-tune it and classify the pictures."""
    os.environ["SURECLR_CACHE"] = str(top / "cache")
    run = top / "run"
    evaluate(run, ["knn", "linear"], progress=SILENT)
    finetune(run, config=TUNING, progress=SILENT)
    table = predict(run, f"folder:{images}", progress=SILENT)
    table.save(top / "predictions.csv", overwrite=True)


def outcome(top: Path) -> dict[str, str]:
    """Digests of all that the work computes; times and provenance are left out.

    Raises:
        AssertionError: a draft is left.
    """
    left = [path for path in top.rglob("*") if DRAFT.fullmatch(path.name)]
    assert not left, left
    run, found = top / "run", dict[str, Any]()
    found["weights"] = [
        (n, hashlib.sha256(_bytes(t)).hexdigest()) for n, t in sorted(weights(run).items())
    ]
    files = [run / "encoder.safetensors", *sorted((run / "snapshots").iterdir())]
    files += [*run.glob("finetuned/*.safetensors"), *run.glob("classifiers/*.safetensors")]
    files += top.glob("predictions.csv")
    for path in files:
        found[path.name] = path.read_bytes().hex()
    found["lines"] = [
        {k: v for k, v in json.loads(text).items() if k not in ("images_per_second", "crc32")}
        for text in (run / "metrics.jsonl").read_text().splitlines()
    ]
    if (run / "results.json").exists():
        results = json.loads((run / "results.json").read_text())
        for name in {"knn", "linear", "finetune:12"} & results.keys():
            found[name] = [results[name].get(key) for key in ("accuracy", "interval", "seeds")]
    return {k: hashlib.sha256(json.dumps(v).encode()).hexdigest() for k, v in found.items()}


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def work(images: Path, top: Path) -> None:
    top.mkdir(exist_ok=True)
    pretraining(images, top)
    evaluating(images, top)


def in_a_child(images: Path, top: Path, seconds: float | None) -> bool:
    """Do the work in a new process; kill it after so many seconds. Return whether it ended."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            torch.set_num_threads(1)
            work(images, top)
            os._exit(0)
        import traceback

        traceback.print_exc()
        os._exit(1)
    began = time.monotonic()
    while seconds is None or time.monotonic() < began + seconds:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "the work failed"
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


def main(images: Path, top: Path, kills: int) -> None:
    """Kill the work at random instants until it was killed so often; count what was lost.

    Work that comes to its end is compared and begun anew.
    """
    for name in LATE:
        importlib.import_module(name)
    instants = random.Random(0)
    began = time.monotonic()
    assert in_a_child(images, top / "whole", None)
    longest, expected = time.monotonic() - began, outcome(top / "whole")
    done = lost = finished = 0
    while done < kills:
        if not in_a_child(images, top / "again", instants.uniform(0, longest)):
            done += 1
            continue
        finished += 1
        lost += outcome(top / "again") != expected
        shutil.rmtree(top / "again")
    print(json.dumps({"kills": done, "finished": finished, "lost": lost, "seconds": longest}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
