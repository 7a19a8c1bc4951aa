"""The command line. No other package depends on it; torch is imported only when a command runs."""

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

    run_as_a_command(work, ends_process=words is None)
