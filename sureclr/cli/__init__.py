"""The command line. No other package depends on it; torch is imported only when a command runs."""

from sureclr.stopping import Stopped, say_stopped, signal_that_came, signals_of_a_command


def main(words: list[str] | None = None) -> None:
    """Run a command and exit.

    Exit codes: 0 it is done; 2 the user can mend it; 130 or 143 a signal stopped it and its state
    is saved; 1 it is a bug of ours.

    Args:
        words: of the command; None: those that the process was started with, which then ends with
            the command.
    """
    with signals_of_a_command(ends_process=words is None):
        try:
            # Late: a signal while this is imported gets its sentence too
            from sureclr.cli.running import run_command

            run_command(words)
        except Stopped as stopped:
            say_stopped(str(stopped))
            raise SystemExit(stopped.exit_code) from None
        except (ImportError, SystemError):
            # What some modules in C make of `Stopped` while they are imported
            if (number := signal_that_came()) is None:
                raise
            say_stopped(str(Stopped(number)))
            raise SystemExit(128 + number) from None
