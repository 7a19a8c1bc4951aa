#!/usr/bin/env python3
"""Everything a developer runs, from a fresh clone, with the standard library alone.

python3 dev.py setup       make .venv and install SureCLR with its development tools (about a
                           minute; a second when nothing changed)
python3 dev.py demo        setup, then `sureclr demo` (3 minutes on 2 cores)
python3 dev.py test        setup, lint, then all tests but the slow and the browser ones (5 to 8
                           minutes on 2 cores); further words go to pytest
python3 dev.py coverage    the same tests with their coverage, which takes half as long again
python3 dev.py test-slow   the tests that need minutes
python3 dev.py lint        ruff (rules and format) and mypy alone
python3 dev.py browser     the tests of the report's page in headless Chromium, which is installed
                           where apt can do it (as root or with sudo)
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
PIP = ("-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", "constraints.txt")


def run(*command: object, **environment: str) -> None:
    """Run a command in the repository, and exit with its code if it fails."""
    words = [str(part) for part in command]
    code = subprocess.call(words, cwd=str(ROOT), env=dict(os.environ, **environment))
    if code:
        sys.exit(code)


def fingerprint() -> str:
    """Return a hash of what is to be installed and where: a moved checkout needs a new .venv."""
    files = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(
        b"\0".join([*files, str(ROOT).encode(), sys.version.encode()])
    ).hexdigest()


def setup() -> None:
    """Make .venv and install into it, unless the stamp says that this was done."""
    if STAMP.exists() and STAMP.read_text() == fingerprint():
        return
    try:
        import ensurepip  # noqa: F401  (Debian splits it from Python)
        import venv
    except ImportError:
        sys.exit(
            "This Python has no venv module; install it (Debian, Ubuntu: apt install python3-venv)"
            " and run this again."
        )
    print("Setting up .venv (about a minute, once).", file=sys.stderr, flush=True)
    if not (BIN / "python").exists() and not (BIN / "python.exe").exists():
        venv.create(str(VENV), with_pip=True)
    run(BIN / "python", *PIP, "-e", ".[dev]")
    STAMP.write_text(fingerprint())


def lint() -> None:
    """Check rules, format and types."""
    setup()
    run(BIN / "ruff", "check", ".")
    run(BIN / "ruff", "format", "--check", ".")
    run(BIN / "mypy")


def pytest(*words: str) -> None:
    """Run tests in two processes of one thread each."""
    run(BIN / "python", "-m", "pytest", "-n", "2", *words, OMP_NUM_THREADS="1")


def test(*words: str) -> None:
    """Lint and test, without coverage: that took half as long again (process CPU time)."""
    lint()
    pytest("-m", "not slow and not browser", *words)


def coverage(*words: str) -> None:
    """Run the same tests and report their coverage."""
    setup()
    report = ("--cov", "--cov-report", "term:skip-covered")
    pytest("-m", "not slow and not browser", *report, *words)


def test_slow(*words: str) -> None:
    """Run the tests that need minutes."""
    setup()
    pytest("-m", "slow", *words)


def install_browser() -> None:
    """Install Chromium with its driver, and selenium; the tests are skipped without them."""
    setup()
    present = shutil.which("chromium") and shutil.which("chromedriver")
    if not present and not apt_install("chromium", "chromium-driver"):
        warn("Chromium could not be installed (packages chromium and chromium-driver).")
    import_selenium = [str(BIN / "python"), "-c", "import selenium"]
    if subprocess.call(import_selenium, stderr=subprocess.DEVNULL) and subprocess.call(
        [str(BIN / "python"), *PIP, "selenium"], cwd=str(ROOT)
    ):
        warn("selenium could not be installed.")


def warn(sentence: str) -> None:
    """Say on stderr what is missing."""
    print(sentence, "The browser tests will be skipped.", file=sys.stderr, flush=True)


def apt_install(*packages: str) -> bool:
    """Install Debian packages without asking; return whether that worked."""
    if not shutil.which("apt-get"):
        return False
    root = [] if getattr(os, "geteuid", int)() == 0 else ["sudo", "-n"]
    if root and not shutil.which("sudo"):
        return False
    quiet = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    for command in (["apt-get", "update", "-qq"], install):
        if subprocess.call([*root, *command], env=quiet, stdout=subprocess.DEVNULL):
            return False
    return True


def browser(*words: str) -> None:
    """Drive the report's page in headless Chromium."""
    install_browser()
    tests = "tests/reporting/test_browser.py"
    run(BIN / "python", "-m", "pytest", "-rs", tests, *words, OMP_NUM_THREADS="1")


def demo(*words: str) -> None:
    """Run `sureclr demo`."""
    setup()
    run(BIN / "sureclr", "demo", *words)


JOBS = {
    "setup": setup,
    "demo": demo,
    "test": test,
    "coverage": coverage,
    "test-slow": test_slow,
    "lint": lint,
    "browser": browser,
}


def main() -> None:
    """Run the job that the first word names."""
    if sys.version_info < OLDEST:
        found, needed = (".".join(map(str, v)) for v in (sys.version_info[:2], OLDEST))
        sys.exit(
            "SureCLR needs Python " + needed + " or newer; this is " + found + ". Install one and"
            " run this script with it."
        )
    if len(sys.argv) < 2 or sys.argv[1] not in JOBS:
        sys.exit((__doc__ or "").strip())
    JOBS[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
