"""The command line: the only package that knows about it. It imports torch only when a command
runs.
"""

import sys
from typing import NoReturn

from cyclopts import CycloptsError

from sureclr.cli import (  # noqa: F401  (each module adds its commands to the app)
    evaluation_commands,
    finetuning_commands,
    labelling_commands,
    report_commands,
    start_commands,
    training_commands,
)
from sureclr.cli.shared import app
from sureclr.errors import UserError
from sureclr.stopping import Stopped


def fail(text: str, code: int) -> NoReturn:
    print(f"sureclr: {text}", file=sys.stderr)
    raise SystemExit(code)


def main(words: list[str] | None = None) -> None:
    """Run a command. Exit codes: 0 done, 2 the user can mend it, 130 or 143 stopped with the state
    saved, 1 a bug of ours.
    """
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except (UserError, CycloptsError) as error:
        fail(str(error), 2)
    except Stopped as stopped:
        fail(str(stopped), stopped.exit_code)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        fail(
            "the batch does not fit into the device's memory; try --micro-batch 64 (the gradient"
            " stays that of the whole batch).",
            2,
        )
