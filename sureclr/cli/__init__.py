"""The command line. No other package depends on it; torch is imported only when a command runs."""

import os

from sureclr.stopping import run_as_a_command


def main(words: list[str] | None = None) -> None:
    """Run a command and exit.

    Exit codes: 0 it is done; 2 the user can mend it; 129, 130 or 143 a signal stopped it and its
    state is saved; 1 it is a bug of ours.

    Args:
        words: of the command; None: those that the process was started with, which then ends with
            the command.
    """

    def work() -> None:
        # Late: a signal while this is imported gets its sentence too
        from sureclr.cli.running import run_command

        run_command(words)

    if words is None:
        _open_streams()
    run_as_a_command(work, ends_process=words is None)


def _open_streams() -> None:
    """Give a stream that was closed (`2>&-`) the null device, so that no file takes its number.

    What libraries in C print on stderr would be written into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
