"""The README and CONTRIBUTING run as pasted: every Python block, and the one-liner of the shell."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import train, write_photos

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^(?:  )?```python\n(.*?)^(?:  )?```", re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(block, id=f"{name} {number}")
    for name in ("README.md", "CONTRIBUTING.md")
    for number, block in enumerate(FENCE.findall((ROOT / name).read_text(encoding="utf-8")), 1)
]


def run_python(code: str, folder: Path) -> str:
    """The output of a fresh process; an import of the test's own names is not in it."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS)
def test_a_python_block_runs_as_pasted(block: str, tmp_path: Path) -> None:
    assert len(block.splitlines()) <= 50
    run_python(block, tmp_path)


def test_the_shells_one_liner_writes_a_report(tmp_path: Path) -> None:
    """On a run of a second in place of the tour's."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    line = re.search(r'^python -c "(import sureclr; sureclr\.report\(.*\))"$', readme, re.MULTILINE)
    assert line
    folder = tmp_path / "runs" / "tour"
    source = f"folder:{write_photos(tmp_path / 'photos')}"
    train(folder, None, source=source, size=8, batch_size=8, epochs=1)
    run_python(line[1], tmp_path)
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
