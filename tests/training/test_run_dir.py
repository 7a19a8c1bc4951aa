"""The run folder under attack: flipped bits, half-written drafts, two writers, folders of something
else.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.files import write_atomically
from sureclr.training.run_dir import OURS, RunDir, default_name

PARTS = {"model": {"a": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}, "optimizer": {}}


def at(step: int) -> dict[str, dict[str, Tensor]]:
    return {
        "model": {"a": torch.full((2, 3), float(step)), "n": torch.tensor(step)},
        "optimizer": {},
    }


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    directory = RunDir(tmp_path / "run")
    directory.prepare(resume=False, overwrite=False)
    directory.config.write_text("source: digits\n")
    return directory


def test_a_checkpoint_comes_back(run: RunDir) -> None:
    strided = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    run.save_checkpoint(
        5, {**PARTS, "objective": {"m": torch.tensor(2.5), "w": strided}}, {"step": 5, "size": 8}
    )
    checkpoint = run.load_checkpoint()
    parts, numbers = checkpoint.parts, checkpoint.numbers
    assert numbers == {"step": 5, "size": 8} and set(parts) == {"model", "optimizer", "objective"}
    assert (
        torch.equal(parts["model"]["a"], PARTS["model"]["a"])
        and parts["model"]["n"].dtype == torch.int64
    )
    assert parts["optimizer"] == {} and torch.equal(parts["objective"]["w"], strided)


def test_the_newest_two_are_kept_in_order_of_steps(run: RunDir) -> None:
    for step in (9, 10, 100):
        run.save_checkpoint(step, at(step), {"step": step})
    assert [path.name for path in run.saved()] == ["step-000000010", "step-000000100"]
    assert run.load_checkpoint().numbers["step"] == 100


def test_the_same_step_again_replaces(run: RunDir) -> None:
    run.save_checkpoint(5, at(5), {"step": 5})
    run.save_checkpoint(5, at(7), {"step": 5})
    assert float(run.load_checkpoint().parts["model"]["a"][0, 0]) == 7


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_one_flipped_bit_anywhere_is_noticed(
    run: RunDir, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every byte of every file in turn, one bit of it: never a wrong tensor, always the checkpoint
    before, and said.
    """
    run.save_checkpoint(1, at(1), {"step": 1})
    path = run.save_checkpoint(2, at(2), {"step": 2}) / file
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]
        )
        checkpoint = run.load_checkpoint()
        assert checkpoint.numbers["step"] == 1, place
        assert float(checkpoint.parts["model"]["a"][0, 0]) == 1, place
        assert "step-000000002 is damaged" in capsys.readouterr().err
    path.write_bytes(whole)
    assert run.load_checkpoint().numbers["step"] == 2


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
def test_a_missing_or_cut_file_is_noticed(run: RunDir, file: str) -> None:
    run.save_checkpoint(1, at(1), {"step": 1})
    path = run.save_checkpoint(2, at(2), {"step": 2}) / file
    path.write_bytes(path.read_bytes()[:-1])
    assert run.load_checkpoint().numbers["step"] == 1
    path.unlink()
    assert run.load_checkpoint().numbers["step"] == 1


def test_no_undamaged_checkpoint_is_told(run: RunDir) -> None:
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        run.load_checkpoint()
    (run.save_checkpoint(1, at(1), {"step": 1}) / "state.json").write_text("{}")
    with pytest.raises(
        UserError, match="no undamaged checkpoint; start the run again with overwrite=True"
    ):
        run.load_checkpoint()


def test_a_killed_writer_does_no_harm(run: RunDir) -> None:
    """A draft that was never renamed: of another process (left alone), and of one with our own
    number (replaced).
    """
    run.save_checkpoint(1, at(1), {"step": 1})
    for number in (os.getpid(), 1):
        draft = run.checkpoints / f".draft-{number}"
        draft.mkdir()
        (draft / "model.safetensors").write_bytes(b"half")
    assert run.load_checkpoint().numbers["step"] == 1
    run.save_checkpoint(2, at(2), {"step": 2})
    run.save_checkpoint(3, at(3), {"step": 3})
    assert run.load_checkpoint().numbers["step"] == 3 and len(run.saved()) == 2


@pytest.mark.parametrize("dies_in", ["write_synced", "rename"])
def test_dying_while_saving_keeps_the_checkpoint_before(
    run: RunDir, dies_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sureclr.training import run_dir

    run.save_checkpoint(1, at(1), {"step": 1})

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            *(
                (run_dir, "write_synced", die)
                if dies_in == "write_synced"
                else (Path, "rename", die)
            )
        )
        run.save_checkpoint(2, at(2), {"step": 2})
    assert run.load_checkpoint().numbers["step"] == 1


def test_replacing_a_file_is_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        write_atomically(path, b"new")
    with path.open("rb") as reader:
        write_atomically(path, b"new")
        assert reader.read() == b"old"  # who reads meanwhile sees the whole old file
    assert path.read_bytes() == b"new"


HOLD = (
    "import sys,time; from pathlib import Path; from sureclr.training.run_dir import RunDir\n"
    "with RunDir(Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(60)"
)


def test_a_second_writer_is_refused_and_a_dead_one_is_no_writer(run: RunDir) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is writing"), run.lock():
            pass
        with pytest.raises(UserError, match="another process is writing"):
            run.prepare(resume=False, overwrite=True)
        assert run.is_run()  # and nothing was removed
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    time.sleep(0.05)
    with run.lock():
        pass


def test_the_lock_is_free_after_an_error(run: RunDir) -> None:
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    with run.lock():
        pass


def test_an_existing_run_names_the_three_exits(run: RunDir) -> None:
    with pytest.raises(UserError, match="already holds a run") as caught:
        run.check(resume=False, overwrite=False)
    assert all(
        exit_ in str(caught.value) for exit_ in ("resume=True", "overwrite=True", "another out")
    )
    run.check(resume=True, overwrite=False)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to resume"):
        RunDir(tmp_path / "none").check(resume=True, overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_and_a_file_are_never_touched(
    tmp_path: Path, overwrite: bool
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.png").write_bytes(b"x")
    with pytest.raises(UserError, match="files that are not a run"):
        RunDir(tmp_path / "photos").prepare(resume=False, overwrite=overwrite)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        RunDir(tmp_path / "file").prepare(resume=False, overwrite=overwrite)
    with pytest.raises(UserError, match="cannot be made"):
        RunDir(tmp_path / "file" / "run").prepare(resume=False, overwrite=overwrite)
    assert (tmp_path / "photos" / "holiday.png").exists() and (tmp_path / "file").read_text() == "x"


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    RunDir(tmp_path).prepare(resume=False, overwrite=False)


def test_overwrite_removes_our_files_alone(run: RunDir) -> None:
    for name in set(OURS) - {"checkpoints", "snapshots", "lock", "track"}:
        (run.path / name).write_text("old")
    (run.path / "track").mkdir()
    (run.path / "track" / "events").write_text("old")
    (run.snapshots / "epoch-00001.safetensors").write_text("old")
    run.save_checkpoint(1, at(1), {"step": 1})
    (run.path / "comparison-other.html").write_text("old")
    (run.path / "my notes.txt").write_text("mine")
    (run.path / "mine").mkdir()
    run.prepare(resume=False, overwrite=True)
    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoints",
        "config.yaml",  # until the new run replaces it, so that a kill leaves something to start
        "lock",
        "mine",
        "my notes.txt",
        "snapshots",
    ]
    assert run.saved() == [] and list(run.snapshots.iterdir()) == []


def test_overwrite_does_not_follow_a_link_out_of_the_folder(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    run.snapshots.rmdir()
    run.snapshots.symlink_to(tmp_path / "precious")
    run.prepare(resume=False, overwrite=True)
    assert (tmp_path / "precious" / "file").exists() and not run.snapshots.is_symlink()


def test_half_a_line_is_passed_over_and_dropped(run: RunDir) -> None:
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 0.1 * step})
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in run.lines()] == [1, 2, 3]
    run.forget_after(2)
    run.log({"step": 3, "loss": 1.0})
    written = [json.loads(text) for text in run.metrics.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in written] == [(1, 0.1), (2, 0.2), (3, 1.0)]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("digits", "digits"),
        ("folder:/data/my photos/", "my_photos"),
        ("folder:photos", "photos"),
        ("folder:/", "root"),
        ("custom data: mine", "custom_data_mine"),
    ],
)
def test_default_name(source: str, name: str) -> None:
    expected = Path(f"runs/{name}-sure-resnet18-20260504-030201")
    assert default_name(source, "sure", "resnet18", datetime(2026, 5, 4, 3, 2, 1)) == expected


def test_default_name_of_the_users_own_encoder_is_a_valid_folder() -> None:
    name = default_name("digits", "custom:Mine", "custom:Tiny", datetime(2026, 5, 4)).name
    assert name == "digits-custom_Mine-custom_Tiny-20260504-000000"


def test_default_name_of_the_folder_that_we_are_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path / "pictures")
    assert default_name("folder:.", "sure", "small", datetime(2026, 5, 4)).name.startswith(
        "pictures-sure"
    )


# --- Digests --------------------------------------------------------------------------


def test_the_digest_is_that_of_the_newest_undamaged_manifest(run: RunDir) -> None:
    assert run.newest_digest() is None
    first = run.save_checkpoint(1, at(1), {"step": 1})
    one = hashlib.sha256((first / "manifest.json").read_bytes()).hexdigest()
    assert run.newest_digest() == one == run.load_checkpoint().digest
    second = run.save_checkpoint(2, at(2), {"step": 2})
    assert run.newest_digest() == run.load_checkpoint().digest != one
    (second / "state.json").write_text("{}")
    assert run.newest_digest() == run.load_checkpoint().digest == one


def test_equal_weights_have_equal_digests_and_others_do_not(tmp_path: Path) -> None:
    digests = []
    for name, value in (("a", 1), ("b", 1), ("c", 2)):
        directory = RunDir(tmp_path / name)
        directory.save_checkpoint(1, at(value), {"step": 1})
        digests.append(directory.newest_digest())
    assert digests[0] == digests[1] != digests[2]


def test_the_initial_state_comes_back_or_is_refused(run: RunDir) -> None:
    """One flipped bit anywhere in the file, but in what only names things alike, is noticed."""
    tensors = {"encoder.a": torch.arange(6.0).view(2, 3), "encoder.n": torch.tensor(3)}
    with pytest.raises(UserError, match="missing or damaged"):
        run.load_initial()
    run.save_initial(tensors)
    back = run.load_initial()
    assert back.keys() == tensors.keys() and all(torch.equal(back[k], tensors[k]) for k in back)
    data = run.initial.read_bytes()
    for place in range(len(data)):
        flipped = data[place] ^ (1 << place % 8)
        run.initial.write_bytes(data[:place] + bytes([flipped]) + data[place + 1 :])
        try:
            again = run.load_initial()
        except UserError:
            continue
        assert again.keys() == tensors.keys(), place
        assert all(torch.equal(again[k], tensors[k]) for k in again), place
    run.initial.write_bytes(data[:-1])
    with pytest.raises(UserError, match="missing or damaged"):
        run.load_initial()


def test_tied_weights_can_be_saved(run: RunDir) -> None:
    """Two names of one tensor, as in a network with tied weights."""
    weight = torch.arange(6.0)
    run.save_checkpoint(1, {"model": {"a": weight, "b": weight, "c": weight[:0]}}, {})
    model = run.load_checkpoint().parts["model"]
    assert torch.equal(model["a"], weight) and torch.equal(model["b"], weight)
