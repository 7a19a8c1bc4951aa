"""What the commands share: the app, the types of their arguments, their answer, and a run opened
for evaluation.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from sureclr import __version__
from sureclr.errors import UserError
from sureclr.progress import ConsoleProgress
from sureclr.stopping import StopFlag, stop_on_signals

if TYPE_CHECKING:
    from sureclr.data.image_set import ImageSet
    from sureclr.evaluation.inputs import Material
    from sureclr.training.run import Run

app = App(
    name="sureclr",
    version=__version__,
    help="Contrastive learning that knows how sure it is: one command to train, one to evaluate.",
)

Json = Annotated[
    bool,
    Parameter(
        name="--json", negative="", help="Print one JSON object on stdout, all else on stderr."
    ),
]
Device = Annotated[str, Parameter(help="auto, cuda, mps or cpu.")]
Root = Annotated[
    Path | None,
    Parameter(
        help=(
            "Where data sets lie or are downloaded to; default: $SURECLR_DATA, else "
            "~/.cache/sureclr/data."
        )
    ),
]
Data = Annotated[
    str | None,
    Parameter(help="Other labelled data for transfer: digits, fashion-mnist, ..., folder:PATH."),
]
Run_ = Annotated[Path, Parameter(name="RUN", help="A run folder.")]


def dumped(value: dict[str, Any]) -> str:
    return json.dumps(value) + "\n"


def answer(as_json: bool, value: dict[str, Any], text: str, following: str | None = None) -> None:
    """The result on stdout (JSON or text); the next useful command on stderr with JSON, else as the
    last line.
    """
    if as_json:
        sys.stdout.write(dumped(value))
    else:
        print(text)
    if following:
        print(f"next: {following}", file=sys.stderr if as_json else sys.stdout)


class Opened:
    """A run opened for evaluation: its material is made when first asked for, its results are kept
    in results.json.
    """

    def __init__(
        self,
        path: Path,
        data: str | None,
        device: str,
        root: Path | None,
        human: Path | None = None,
    ) -> None:
        from sureclr.training.run import load

        self.run: Run = load(path, device)
        self.data, self.root, self.human = data, root, human
        self.made: Material | None = None

    def __enter__(self) -> "Opened":
        with ExitStack() as stack:
            self.stop: StopFlag = stack.enter_context(stop_on_signals())
            stack.enter_context(self.run.directory.lock())
            self._held = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._held.close()

    def images(self) -> "ImageSet":
        """Those of the run, or those of --data, at the run's size."""
        from sureclr.data.sources import is_source, load_images

        if self.data is None and not is_source(self.run.source):
            raise UserError(
                f"this run was trained on images given in Python ({self.run.source}); name labelled"
                " data with --data."
            )
        return load_images(
            self.data or self.run.source,
            root=self.root,
            size=self.run.size,
            channels=self.run.channels,
            seed=self.run.config.seed,
            progress=ConsoleProgress(),
        )

    def material(self) -> "Material":
        from sureclr.data.embeddings import Embeddings
        from sureclr.evaluation.inputs import material

        if self.made is None:
            kept, images, own = (
                self.run.path / "embeddings.parquet",
                self.images(),
                self.data is None,
            )
            table = Embeddings.read(kept) if own and kept.exists() else None
            self.made = material(
                self.run, images, table, root=self.root, human=self.human, each_batch=self.progress
            )
            if own and self.made.table is not table:
                self.made.table.save(kept)
        return self.made

    def progress(self, done: int, total: int) -> None:
        self.stop.check("what was evaluated before is kept; run the same command again")
        if sys.stderr.isatty():
            print(
                f"\r\033[Kembedding {done}/{total}" if done < total else "\r\033[K",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def result(self, name: str, again: bool) -> dict[str, Any]:
        from sureclr.evaluation.session import EVALUATIONS

        key = f"{name}:{self.data}" if self.data else name
        before = self.run.directory.results_so_far()
        if key in before and not again:
            return dict(before[key])
        self.progress(1, 1)
        result = EVALUATIONS[name](self.material())
        self.run.directory.add_result(key, result)
        return result

    def attempt(self, name: str) -> dict[str, Any] | str:
        """The result, kept or made now; or why it cannot be had (no labels, say), which is also
        told.
        """
        try:
            return self.result(name, again=False)
        except UserError as error:
            print(f"{name} left out: {error}", file=sys.stderr)
            return str(error)
