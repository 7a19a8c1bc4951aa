"""The run folder under attack: flipped bits, half-written drafts, two writers, folders of something
else.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
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
from sureclr.training.run_dir import (
    OURS,
    RunDir,
    checked_safetensors,
    default_name,
    read_checked_safetensors,
)

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
        held = rf"another process is writing to .* \(process {holder.pid} on .*, since 20"
        held += r".*, doing 'a Python session'\)"
        with pytest.raises(UserError, match=held), run.lock():
            pass
        with pytest.raises(UserError, match="another process is writing.* another out=\\."):
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
        exit_ in str(caught.value) for exit_ in ("resume=True", "overwrite=True", "another out=")
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


@pytest.mark.parametrize("older", [False, True])
def test_a_changed_bit_in_a_line_skips_that_line_and_is_counted(
    run: RunDir, capsys: pytest.CaptureFixture[str], older: bool
) -> None:
    """R12: every bit of the middle line in turn: the numbers of the others, never other ones.

    Lines of older versions have no checksum; there, a digit may change, but nothing may fail.
    """
    whole = [{"step": step, "epoch": step / 3, "loss": 0.125 * step} for step in (1, 2, 3)]
    if older:
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in whole))
    else:
        for line in whole:
            run.log(line)
    data = run.metrics.read_bytes()
    first, second = (
        place for place in range(len(data)) if data[place] == 10 and place < len(data) - 1
    )
    for bit in range((first + 1) * 8, second * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        run.metrics.write_bytes(changed)
        found = run.lines()
        assert [found[0], found[-1]] == [whole[0], whole[2]], bit
        if not older:
            assert found == [whole[0], whole[2]] or found == whole, bit
        if len(found) == 2:
            assert "damaged" in capsys.readouterr().err, bit
    run.metrics.write_bytes(data.replace(b'"loss": 0.25', b'"loss": \xff.25'))
    run.forget_after(3)
    assert re.search(r"1 of 3 lines of .* is damaged and was skipped", capsys.readouterr().err)
    assert run.lines() == [whole[0], whole[2]] and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "text", ["5", "[]", '{"step": "1"}', '{"step": 1, "loss": "low"}', "[" * 50_000, "x" * 200_000]
)
def test_lines_that_are_no_numbers_are_skipped(run: RunDir, text: str) -> None:
    """R12: a line of another kind, or one that has no end."""
    run.metrics.write_text(f'{text}\n{{"step": 2, "loss": 1.0}}\n')
    assert run.lines() == [{"step": 2, "loss": 1.0}]


# --- Names of checkpoints -------------------------------------------------------------


def test_only_step_and_nine_digits_is_a_checkpoint(run: RunDir) -> None:
    """R1: copies of the user's are never used and never deleted, whatever they sort behind."""
    nine = run.save_checkpoint(9, at(9), {"step": 9})
    names = ["step-best", "step-zzz", "step-9", "step-000000009-copy", "step-0000000099"]
    for name in names:
        shutil.copytree(nine, run.checkpoints / name)
    (run.checkpoints / "step-999999999").symlink_to(nine)
    (run.checkpoints / "step-888888888").write_text("a file")
    for step in (10, 11, 12, 30):
        run.save_checkpoint(step, at(step), {"step": step})
    assert [path.name for path in run.saved()] == ["step-000000012", "step-000000030"]
    assert run.load_checkpoint().numbers["step"] == 30
    assert float(run.load_checkpoint().parts["model"]["a"][0, 0]) == 30
    assert all((run.checkpoints / name / "model.safetensors").exists() for name in names)
    assert (run.checkpoints / "step-999999999").is_symlink()


def test_the_order_is_that_of_the_recorded_steps(run: RunDir) -> None:
    """R1: two copies under later names displace no real checkpoint, and are not used."""
    nine = run.save_checkpoint(9, at(9), {"step": 9})
    for name in ("step-000000098", "step-000000099"):
        shutil.copytree(nine, run.checkpoints / name)
    for step in (20, 30):
        run.save_checkpoint(step, at(step), {"step": step})
        assert run.load_checkpoint().numbers["step"] == step
    assert [path.name for path in run.saved()] == ["step-000000020", "step-000000030"]


def test_damaged_checkpoints_displace_no_whole_one(run: RunDir) -> None:
    """Two later checkpoints whose state cannot be read: the new one is kept, and used."""
    for step in (98, 99):
        path = run.save_checkpoint(step, at(step), {"step": step})
        (path / "state.json").write_bytes(b"")
    run.save_checkpoint(20, at(20), {"step": 20})
    run.save_checkpoint(30, at(30), {"step": 30})
    assert run.load_checkpoint().numbers["step"] == 30 and run.checkpoint_numbers() == {"step": 30}


def test_a_manifest_cannot_name_files_elsewhere(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    path = run.save_checkpoint(1, at(1), {"step": 1})
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["../../../secret"] = hashlib.sha256(b"x").hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        run.load_checkpoint()


# --- Links and pipes ------------------------------------------------------------------


def test_a_link_in_place_of_the_lock_is_refused_and_not_followed(
    run: RunDir, tmp_path: Path
) -> None:
    """R6: whatever the link points to stays as it was, or is not made."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for target in (victim, tmp_path / "none", tmp_path):
        (run.path / "lock").symlink_to(target)
        with pytest.raises(UserError, match="lock is a link"), run.lock():
            pass
        (run.path / "lock").unlink()
    assert victim.read_bytes() == b"precious" and not (tmp_path / "none").exists()
    os.link(victim, run.path / "lock")  # a hard link cannot be told from a file by its name
    with run.lock():
        pass
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["checkpoints", "snapshots"])
def test_a_link_in_place_of_a_folder_is_refused(run: RunDir, tmp_path: Path, name: str) -> None:
    """R6: nothing is written into the folder behind the link, and nothing is pruned there."""
    victim = tmp_path / "victim"
    for step in (1, 2, 3):
        (victim / f"step-{step:09d}").mkdir(parents=True)
    (run.path / name).rmdir()
    (run.path / name).symlink_to(victim)
    before = sorted(victim.rglob("*"))
    with pytest.raises(UserError, match=f"{name} is a link"):
        run.prepare(resume=True, overwrite=False)
    if name == "checkpoints":
        with pytest.raises(UserError, match="checkpoints is a link"):
            run.save_checkpoint(9, at(9), {"step": 9})
    run.remove_drafts()
    assert sorted(victim.rglob("*")) == before


def test_a_link_in_place_of_the_numbers_is_not_followed(run: RunDir, tmp_path: Path) -> None:
    """R6: neither by a new line nor by the rewriting of a resumed run."""
    victim = tmp_path / "victim"
    victim.write_bytes(b'{"step": 1}\n')
    run.metrics.symlink_to(victim)
    with pytest.raises(UserError, match="metrics.jsonl could not be written"):
        run.log({"step": 2})
    run.forget_after(0)
    assert victim.read_bytes() == b'{"step": 1}\n' and not run.metrics.is_symlink()


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl"])
def test_a_pipe_is_refused_and_not_waited_for(run: RunDir, name: str) -> None:
    """R7: opening a pipe that nobody writes to would wait for ever."""
    os.mkfifo(run.path / name)
    if name == "lock":
        with pytest.raises(UserError, match="lock is a pipe"), run.lock():
            pass
    else:
        with pytest.raises(UserError, match="a pipe or a device and not a file"):
            run.lines()
        with pytest.raises(UserError, match="could not be written"):
            run.log({"step": 1})


def test_a_checkpoint_with_a_pipe_is_damaged(run: RunDir) -> None:
    """R7."""
    for name in ("model.safetensors", "state.json", "manifest.json"):
        file = run.save_checkpoint(2, at(2), {"step": 2}) / name
        run.save_checkpoint(1, at(1), {"step": 1})
        file.unlink()
        os.mkfifo(file)
        assert run.load_checkpoint().numbers["step"] == 1


# --- Begun and not yet a run, and drafts ----------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["checkpoints/"],
        ["checkpoints/", "snapshots/"],
        ["checkpoints/", "snapshots/", "lock", "initial.safetensors", ".config.yaml.12-34"],
        ["lock", "training_images.parquet", "checkpoints/.draft-12/"],
    ],
)
def test_a_folder_that_was_only_begun_can_be_started_again(
    tmp_path: Path, names: list[str]
) -> None:
    """R14: a process was killed before it wrote config.yaml."""
    for name in names:
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_bytes(b"")
    directory = RunDir(tmp_path / "run")
    with pytest.raises(UserError, match="interrupted before its first step"):
        directory.prepare(resume=True, overwrite=False)
    directory.prepare(resume=False, overwrite=False)


@pytest.mark.parametrize(
    "name", ["checkpoints/model.pt", "snapshots/photo.png", "lock.txt", "results.json", ".git/x"]
)
def test_a_folder_with_anything_else_was_not_begun_by_us(tmp_path: Path, name: str) -> None:
    """R14: the folder of another tool that happens to have such names stays as it is."""
    file = tmp_path / "run" / name
    for folder in ("checkpoints", "snapshots"):
        (tmp_path / "run" / folder).mkdir(parents=True)
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(UserError, match="files that are not a run"):
        RunDir(tmp_path / "run").prepare(resume=False, overwrite=True)
    assert file.read_text() == "mine"


def test_drafts_of_dead_processes_are_removed_and_nothing_else(run: RunDir) -> None:
    one = run.save_checkpoint(1, at(1), {"step": 1})
    (run.checkpoints / ".draft-12").mkdir()
    (run.checkpoints / ".draft-12" / "model.safetensors").write_bytes(b"half")
    (run.path / ".metrics.jsonl.12-34").write_bytes(b"half")
    (run.path / ".gitignore").write_bytes(b"mine")
    (run.snapshots / ".epoch-00001.safetensors.12-34").write_bytes(b"half")
    one.rename(run.checkpoints / ".replaced-step-000000001")  # killed while it was replaced
    run.remove_drafts()
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000000001"]
    assert list(run.snapshots.iterdir()) == [] and (run.path / ".gitignore").exists()
    assert not (run.path / ".metrics.jsonl.12-34").exists()


# --- A full disk ----------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_full_disk_leaves_no_draft_and_says_what_is_needed(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """R11: the sentence has the path, the bytes needed and the bytes free."""
    first = run.save_checkpoint(1, at(1), {"step": 1})
    needed = sum(math.ceil(file.stat().st_size / 4096) * 4096 for file in first.iterdir())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
        patch.setattr(*((os, "fsync", full) if call == "fsync" else (Path, call, full)))
        run.save_checkpoint(2, at(2), {"step": 2})
    said = str(caught.value)
    assert "step-000000002 could not be written (No space left on device" in said
    assert f"{needed:,} bytes are needed" in said and " are free" in said
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000000001"]


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
    assert run.checkpoint_digest() is None
    first = run.save_checkpoint(1, at(1), {"step": 1})
    one = hashlib.sha256((first / "manifest.json").read_bytes()).hexdigest()
    assert run.checkpoint_digest() == one == run.load_checkpoint().digest
    second = run.save_checkpoint(2, at(2), {"step": 2})
    assert run.checkpoint_digest() == run.load_checkpoint().digest != one
    (second / "state.json").write_text("{}")
    assert run.checkpoint_digest() == run.load_checkpoint().digest == one


def test_equal_weights_have_equal_digests_and_others_do_not(tmp_path: Path) -> None:
    digests = []
    for name, value in (("a", 1), ("b", 1), ("c", 2)):
        directory = RunDir(tmp_path / name)
        directory.save_checkpoint(1, at(value), {"step": 1})
        digests.append(directory.checkpoint_digest())
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


def test_a_changed_bit_in_weights_or_snapshot_is_noticed(tmp_path: Path) -> None:
    """R5: encoder.safetensors and the snapshots: refused, or the same content."""
    tensors = {"a": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}
    about, path = {"epoch": 2, "knn": 0.25}, tmp_path / "x.safetensors"
    data = checked_safetensors(tensors, "numbers", about)
    refused = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        try:
            found, numbers = read_checked_safetensors(path, "numbers")
        except ValueError:
            refused += 1
            continue
        assert numbers.items() >= about.items(), place
        assert all(torch.equal(found[k], tensors[k]) for k in tensors), place
    assert refused > 0.8 * len(data)
    path.write_bytes(data)
    assert read_checked_safetensors(path, "numbers")[1] == about


def test_tied_weights_can_be_saved(run: RunDir) -> None:
    """Two names of one tensor, as in a network with tied weights."""
    weight = torch.arange(6.0)
    run.save_checkpoint(1, {"model": {"a": weight, "b": weight, "c": weight[:0]}}, {})
    model = run.load_checkpoint().parts["model"]
    assert torch.equal(model["a"], weight) and torch.equal(model["b"], weight)
