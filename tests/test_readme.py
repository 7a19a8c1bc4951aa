"""The README and CONTRIBUTING run as pasted: every Python block, and the one-liner of the shell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import train, write_photos

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^(?:  )?```python\n(.*?)^(?:  )?```", re.DOTALL | re.MULTILINE)
BLOCKS = {
    f"{name} {number}": block
    for name in ("README.md", "CONTRIBUTING.md")
    for number, block in enumerate(FENCE.findall((ROOT / name).read_text(encoding="utf-8")), 1)
}
# Each block in a process that has loaded torch alone, which takes 3 CPU seconds
RUN_ALL = """
import os, sys, torch, torch._dynamo
codes = []
for name, block in zip(sys.argv[1::2], sys.argv[2::2]):
    child = os.fork()
    if child == 0:
        os.mkdir(name)
        os.chdir(name)
        exec(compile(block, name, "exec"), {"__name__": "__main__"})
        sys.exit()
    codes.append(os.waitpid(child, 0)[1])
sys.exit(any(codes))
"""


@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_python_blocks_run_as_pasted(tmp_path: Path) -> None:
    """Without an import of the test's own names, or of another block's."""
    assert len(BLOCKS) >= 3 and all(len(block.splitlines()) <= 50 for block in BLOCKS.values())
    words = [word for pair in BLOCKS.items() for word in pair]
    command = [sys.executable, "-c", RUN_ALL, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == set(BLOCKS)


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
