#!/usr/bin/env python3
"""Everything a developer runs, from a fresh clone, with the standard library alone.

python3 dev.py setup       make .venv and install SureCLR with its development tools (about a minute; 1 s when nothing changed)
python3 dev.py demo        set-up, then `sureclr demo`: pretrain on digits, evaluate, say what it means (2 minutes on 2 cores)
python3 dev.py test        set-up, then lint, types and tests but slow and browser ones (5 minutes on 2 cores); further words: to pytest
python3 dev.py test-slow   the tests that need minutes
python3 dev.py lint        ruff and mypy alone
python3 dev.py browser     the tests of the report's page in headless Chromium; installs it where apt can (root or sudo)
"""

import hashlib
import os
import shutil
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
    code = subprocess.call(
        [str(part) for part in command], cwd=str(ROOT), env=dict(os.environ, **environment)
    )
    if code:
        sys.exit(code)


def fingerprint():
    """Changes when what is to be installed changes, or where (a moved checkout breaks an editable install)."""
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(
        b"\0".join([*parts, str(ROOT).encode(), sys.version.encode()])
    ).hexdigest()


def setup():
    """Make .venv and install into it, unless the stamp says that this was done."""
    if STAMP.exists() and STAMP.read_text() == fingerprint():
        return
    try:
        import ensurepip  # noqa: F401  (Debian splits it from Python)
        import venv
    except ImportError:
        sys.exit(
            "This Python has no venv module; install it (Debian, Ubuntu: apt install python3-venv) and run this again."
        )
    print("setting up .venv (about a minute, once)", file=sys.stderr, flush=True)
    if not (BIN / "python").exists() and not (BIN / "python.exe").exists():
        venv.create(str(VENV), with_pip=True)
    run(
        BIN / "python",
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "-c",
        "constraints.txt",
        "-e",
        ".[dev]",
    )
    STAMP.write_text(fingerprint())


def lint():
    setup()
    run(BIN / "ruff", "check", ".")
    run(BIN / "mypy")


def pytest(*words):
    run(BIN / "python", "-m", "pytest", "-n", "2", *words, OMP_NUM_THREADS="1")


def test(*words):
    lint()
    pytest("-m", "not slow and not browser", *words)


def test_slow(*words):
    setup()
    pytest("-m", "slow", *words)


def install_browser():
    """Chromium with its driver, and selenium in .venv. What could not be had is said; the browser tests then skip."""
    setup()
    if not (shutil.which("chromium") and shutil.which("chromedriver")) and not apt_install(
        "chromium", "chromium-driver"
    ):
        print(
            "no Chromium here: the browser tests will be skipped (install chromium and chromium-driver)",
            file=sys.stderr,
            flush=True,
        )
    if subprocess.call([str(BIN / "python"), "-c", "import selenium"], stderr=subprocess.DEVNULL):
        pip = [
            str(BIN / "python"),
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "-c",
            "constraints.txt",
            "selenium",
        ]
        if subprocess.call(pip, cwd=str(ROOT)):
            print(
                "selenium could not be installed: the browser tests will be skipped",
                file=sys.stderr,
                flush=True,
            )


def apt_install(*packages):
    """Whether Debian's packages could be installed; nothing is asked for."""
    if not shutil.which("apt-get"):
        return False
    root = [] if getattr(os, "geteuid", int)() == 0 else ["sudo", "-n"]
    if root and not shutil.which("sudo"):
        return False
    quiet = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    commands = (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
    )
    return not any(
        subprocess.call([*root, *command], env=quiet, stdout=subprocess.DEVNULL)
        for command in commands
    )


def browser(*words):
    install_browser()
    run(
        BIN / "python",
        "-m",
        "pytest",
        "-rs",
        "tests/reporting/test_browser.py",
        *words,
        OMP_NUM_THREADS="1",
    )


def demo(*words):
    setup()
    run(BIN / "sureclr", "demo", *words)


JOBS = {
    "setup": setup,
    "demo": demo,
    "test": test,
    "test-slow": test_slow,
    "lint": lint,
    "browser": browser,
}


def main():
    if sys.version_info < OLDEST:
        found, needed = (".".join(map(str, version)) for version in (sys.version_info[:2], OLDEST))
        sys.exit(
            "SureCLR needs Python "
            + needed
            + " or newer; this is "
            + found
            + ". Install one and run it with that."
        )
    if len(sys.argv) < 2 or sys.argv[1] not in JOBS:
        sys.exit((__doc__ or "").strip())
    JOBS[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
