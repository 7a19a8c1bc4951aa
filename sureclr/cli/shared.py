"""What the commands share: the app, its groups, the types of common arguments, and their answer."""

import csv
import errno
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args

from cyclopts import App, Group, Parameter

from sureclr.cli.flags import SHORT_FLAGS
from sureclr.config import Freeze, PretrainConfig, ViewConfig
from sureclr.data.label_request import LabelFile
from sureclr.errors import UserError
from sureclr.files import as_cell, why, write_atomically
from sureclr.finetuning.config import FinetuneConfig
from sureclr.progress import ConsoleProgress
from sureclr.version import __version__

app = App(
    name="sureclr",
    version=__version__,
    suppress_keyboard_interrupt=False,  # it gets a sentence
    help=(
        "Self-supervised image representations with a certainty for each image: SimCLR, and a"
        " probabilistic contrastive loss. New here? Run `sureclr demo`, then `sureclr list`."
    ),
)

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

START = Group("Start", sort_key=1)
TRAIN = Group("Train", sort_key=2)
EVALUATE = Group("Evaluate a run", sort_key=3)
LABEL = Group("Use few labels", sort_key=4)
USE = Group("Use a run", sort_key=5)

OUTPUT = Group("Output and machine", sort_key=90)

Json = Annotated[
    bool,
    Parameter(
        name="--json",
        negative="",
        group=OUTPUT,
        help="Print one JSON object on stdout; everything else goes to stderr.",
    ),
]
Device = Annotated[
    str,
    Parameter(group=OUTPUT, help="Where to compute: auto (the first of cuda, mps, cpu), or one."),
]
Root = Annotated[
    Path | None,
    Parameter(
        group=OUTPUT,
        help=(
            "Folder of the data sets, also for downloads. Default: $SURECLR_DATA, else"
            " ~/.cache/sureclr/data."
        ),
    ),
]
OverwriteFile = Annotated[
    bool, Parameter(negative="", group=OUTPUT, help="Replace the file --out if it exists.")
]
Verify = Annotated[
    bool,
    Parameter(
        negative="",
        group=OUTPUT,
        help=(
            "Check every byte of the cache of decoded pictures, which finds what a disk changed by"
            " itself. Default: times, lengths and 64 blocks of each file; a file that was written"
            " or copied is always checked as a whole."
        ),
    ),
]
DataSource = Annotated[
    str | None,
    Parameter(
        help=(
            "Use other images: digits, fashion-mnist, ..., or folder:PATH; they are brought to the"
            " size and channels of the run. Default: the images that the run was trained on."
        )
    ),
]
LabelPath = Annotated[
    Path | None,
    Parameter(
        help=(
            "File of labels (CSV, JSON, Parquet; one image a row) to use instead of the images'"
            " own. A part of them is held out for testing where no test image has one."
        )
    ),
]
ImageColumn = Annotated[
    str | None,
    Parameter(
        help=(
            "Column of the label file that names the images: its name, or its number from 1."
            " Default: found by its name and its content."
        )
    ),
]
LabelColumn = Annotated[
    str | None,
    Parameter(help="Column of the label file with the labels, likewise."),
]

CheckpointName = Annotated[
    str,
    Parameter(
        name="--checkpoint",
        help=(
            "Which weights to use: last, best (the highest accuracy that the monitor measured), or"
            " a number of steps. Results of another than the last have a folder of their own in the"
            " run folder."
        ),
    ),
]
OutFolder = Annotated[
    Path | None,
    Parameter(
        group=OUTPUT,
        help=(
            "Folder for new results in place of the run folder, which then stays as it is: a new"
            " one, or one of an earlier command on the same checkpoint."
        ),
    ),
]


@dataclass(frozen=True)
class EvaluationOptions:
    """The options of every command that evaluates a run."""

    data: DataSource = None
    labels: LabelPath = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    checkpoint: CheckpointName = "last"
    out: OutFolder = None
    device: Device = "auto"
    root: Root = None
    verify: Verify = False
    json: Json = False

    @property
    def label_file(self) -> LabelFile | None:
        """The file of labels with its columns, or None."""
        return file_of_labels(self.labels, self.image_column, self.label_column)

    @property
    def words(self) -> str:
        """The options that a next command needs as well: "" or " --labels F --checkpoint best"."""
        given = {
            "--data": self.data,
            "--labels": self.labels,
            "--image-column": self.image_column,
            "--label-column": self.label_column,
            "--checkpoint": None if self.checkpoint == "last" else self.checkpoint,
            "--out": self.out,
            "--root": self.root,
        }
        return "".join(
            f" {flag} {quoted(value)}" for flag, value in given.items() if value is not None
        )


Options = Annotated[EvaluationOptions, Parameter(name="*")]
NO_OPTIONS = EvaluationOptions()
RunFolder = Annotated[Path, Parameter(name="RUN", help="The folder that `pretrain` wrote.")]

FREEZE_WORDS = get_args(Freeze)
# Arguments of Python functions that a command has as flags, beside the fields of configurations.
ARGUMENTS = (
    "accept_changes again budget checkpoint classifier data device extend human image_column known"
    " label_column labels out overwrite resume root seed strategy track unfamiliar"
    " verify"
)
DOUBLE = '"'  # quotes that Python needs and a shell does not
NAMES = frozenset(
    [
        *ARGUMENTS.split(),
        *(field.name for field in fields(PretrainConfig)),
        *(f"views.{field.name}" for field in fields(ViewConfig)),
        *(field.name for field in fields(FinetuneConfig)),
    ]
)


def file_of_labels(
    path: Path | None, image_column: str | None, label_column: str | None
) -> LabelFile | None:
    """Return the file of labels that the flags name, or None.

    Raises:
        UserError: columns are chosen, and no file.
    """
    if path is None and (image_column is not None or label_column is not None):
        raise UserError(
            "--image-column and --label-column choose columns of a file of labels; name it with"
            " --labels."
        )
    return None if path is None else LabelFile(path, image_column, label_column)


def results_folder(run: Path, checkpoint: str, out: Path | None = None) -> Path:
    """Return the folder of the results of a command."""
    from sureclr.training.run import results_folder_of

    return results_folder_of(run, checkpoint) if out is None else out


def print_answer(as_json: bool, value: Any, text: str, next_command: str | None = None) -> None:
    """Print the result on stdout, as JSON or text, and the next useful command.

    The next command is the last line; with JSON it goes to stderr.
    """
    if as_json:
        sys.stdout.write(json_line(value))
    else:
        print(without_controls(text))
    if next_command:
        print(f"next: {next_command}", file=sys.stderr if as_json else sys.stdout)


def without_controls(text: str) -> str:
    """Return text for a terminal, which names of a stranger's run could otherwise command.

    Control characters and direction marks become escapes; line ends stay.
    """
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def quoted(value: object) -> str:
    """Return a path or a name as a word that can be pasted into a shell."""
    text = str(value)
    if isinstance(value, Path) and text.startswith("-"):  # or it would be read as a flag
        text = f"./{text}"
    return shlex.quote(text)


def write_new_csv(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write a table whose columns are the keys of its first row; the file must not exist.

    Raises:
        UserError: it exists, or cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({name: as_cell(value) for name, value in row.items()} for row in rows)
    try:
        if os.path.lexists(out):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(out))
        write_atomically(out, text.getvalue().encode())
    except OSError as error:
        raise UserError(f"{out} cannot be written ({why(error)}); give another --out.") from error


def json_line(value: Any) -> str:
    """Return one line of JSON; a dataclass becomes an object."""
    from sureclr.schema import to_json

    return json.dumps(to_json(value)) + "\n"


def with_flags(sentence: str) -> str:
    """Return a sentence of the library with flags in place of Python arguments.

    The library writes an argument as `name=value`, or as a name with an underscore. Keys of a
    configuration file stay as they are.

    >>> with_flags("batch_size 100 is not a multiple of micro_batch 64; try batch_size=128.")
    '--batch-size 100 is not a multiple of --micro-batch 64; try --batch-size 128.'
    >>> with_flags("runs/a holds a run; continue it with resume=True, or give another out=.")
    'runs/a holds a run; continue it with --resume RUN, or give another --out.'
    >>> with_flags("stopped by SIGTERM; continue with resume=True, out='runs/a b'")
    "stopped by SIGTERM; continue with --resume 'runs/a b'"
    """
    if "configuration key" in sentence:
        return sentence
    parts = re.split(r"(sureclr\.\w+\([^)]*\))", sentence)  # Python to be pasted stays as it is
    return "".join(part if i % 2 else _translated(part) for i, part in enumerate(parts))


def _translated(sentence: str) -> str:
    sentence = re.sub(r"\bresume=True, out=(?=['\"])", "--resume ", sentence)
    sentence = re.sub(r"\bresume=True\b", "--resume RUN", sentence)
    name = r"(?<![\w/.\-'\"])(?P<name>[a-z][a-z_.]*[a-z])"
    value = r"""(?P<assigned>=(?P<value>[\w%:-]+|'[^']*'|"[^"]*"|))?(?!\w)"""
    return re.sub(name + value, _flag, sentence)


def _flag(match: re.Match[str]) -> str:
    """Return the flag of an argument; words that are none stay as they are."""
    name, assigned, value = match["name"], match["assigned"], match["value"]
    if name not in NAMES or not (assigned or "_" in name):
        return match[0]
    flag = "--" + SHORT_FLAGS.get(name, name).replace("_", "-")
    return flag if not assigned or value in ("", "True") else f"{flag} {value.strip(DOUBLE)}"


class CommandProgress(ConsoleProgress):
    """The console of a command: what the library says of arguments is said of flags."""

    def message(self, text: str) -> None:
        """Print the sentence."""
        super().message(without_controls(with_flags(text)))


def mapping_json(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return results by name as JSON, without their provenance."""
    from sureclr.schema import to_json

    return {name: to_json(result) for name, result in results.items()}
