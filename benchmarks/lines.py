"""What the experiments keep: a finished run is one line of a JSON-lines file, so that stopping
loses one run at most.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sureclr.errors import UserError
from sureclr.stopping import Stopped

Line = dict[str, Any]


def kept(path: Path) -> list[Line]:
    """The lines so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(line: Line, path: Path) -> Line:
    """Append it, numbers rounded; the line as it was written."""
    line = rounded(line)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return line


def rounded(value: Any) -> Any:
    """Five significant digits: half the bytes."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def command(main: Callable[[], None]) -> None:
    """`main` as a command: bad input and a stop end in one sentence on stderr and their exit code."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
