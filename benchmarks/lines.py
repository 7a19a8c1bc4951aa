"""Save the results of experiments: a finished run is one line of a JSON-lines file.

Each line is written as soon as its run has finished, so stopping loses at most one run.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sureclr.errors import UserError
from sureclr.stopping import Stopped

Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a file, or an empty list if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_line(line: Line, path: Path) -> Line:
    """Append a line with rounded numbers to a file, and return the line as it was written."""
    line = rounded(line)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return line


def rounded(value: Any) -> Any:
    """Return the value with its floats at five significant digits, which halves the file."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def commit() -> str:
    """Return the short name of this checkout's commit; "" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def run_as_command(main: Callable[[], None]) -> None:
    """Run `main` as a command.

    After bad input or a stop, it prints one sentence on stderr and exits with the exit code.
    """
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
