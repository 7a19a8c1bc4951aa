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


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS)
def test_a_python_block_runs_as_pasted(block: str, tmp_path: Path) -> None:
    """In a fresh process; an import of the test's own names is not in it."""
    assert len(block.splitlines()) <= 50
    command = [sys.executable, "-c", block]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_shells_one_liner_writes_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a run of a second in place of the tour's, in this process, which has loaded torch."""
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    line = re.search(r'^python -c "(import sureclr; sureclr\.report\(.*\))"$', readme, re.MULTILINE)
    assert line
    folder = tmp_path / "runs" / "tour"
    source = f"folder:{write_photos(tmp_path / 'photos')}"
    train(folder, None, source=source, size=8, batch_size=8, epochs=1)
    exec(line[1], {})
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
