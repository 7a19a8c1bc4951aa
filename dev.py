#!/usr/bin/env python3
"""Everything a developer runs, from a fresh clone, with the standard library alone.

python3 dev.py setup       make .venv and install SureCLR with its development tools (about a minute; 1 s when nothing changed)
python3 dev.py demo        set-up, then `sureclr demo`: pretrain on digits, evaluate, say what it means (2 minutes on 2 cores)
python3 dev.py test        set-up, then lint, types and tests (under 5 minutes on 2 cores); further words go to pytest
python3 dev.py test-slow   the tests that need minutes
python3 dev.py lint        ruff and mypy alone
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "sureclr-setup.sha256"
OLDEST = (3, 11)


def run(*command, **environment):
    """Run a command in the repository; its failure is ours."""
    code = subprocess.call([str(part) for part in command], cwd=str(ROOT), env=dict(os.environ, **environment))
    if code:
        sys.exit(code)


def fingerprint():
    """Changes when what is to be installed changes, or where (a moved checkout breaks an editable install)."""
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"\0".join([*parts, str(ROOT).encode(), sys.version.encode()])).hexdigest()


def setup():
    """Make .venv and install into it, unless the stamp says that this was done."""
    if STAMP.exists() and STAMP.read_text() == fingerprint():
        return
    try:
        import ensurepip  # noqa: F401  (Debian splits it from Python)
        import venv
    except ImportError:
        sys.exit("This Python has no venv module; install it (Debian, Ubuntu: apt install python3-venv) and run this again.")
    print("setting up .venv (about a minute, once)", file=sys.stderr, flush=True)
    if not (BIN / "python").exists() and not (BIN / "python.exe").exists():
        venv.create(str(VENV), with_pip=True)
    run(BIN / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", "constraints.txt", "-e", ".[dev]")
    STAMP.write_text(fingerprint())


def lint():
    setup()
    run(BIN / "ruff", "check", ".")
    run(BIN / "mypy")


def pytest(*words):
    run(BIN / "python", "-m", "pytest", "-n", "2", *words, OMP_NUM_THREADS="1")


def test(*words):
    lint()
    pytest("-m", "not slow", *words)


def test_slow(*words):
    setup()
    pytest("-m", "slow", *words)


def demo(*words):
    setup()
    run(BIN / "sureclr", "demo", *words)


JOBS = {"setup": setup, "demo": demo, "test": test, "test-slow": test_slow, "lint": lint}


def main():
    if sys.version_info < OLDEST:
        found, needed = (".".join(map(str, version)) for version in (sys.version_info[:2], OLDEST))
        sys.exit("SureCLR needs Python " + needed + " or newer; this is " + found + ". Install one and run it with that.")
    if len(sys.argv) < 2 or sys.argv[1] not in JOBS:
        sys.exit((__doc__ or "").strip())
    JOBS[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
