"""The command line: the only file that knows about it. It imports torch only when a command runs."""

import json
import sys
from contextlib import ExitStack
from dataclasses import MISSING, asdict, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_type_hints

from cyclopts import App, CycloptsError, Parameter
from docstring_parser import parse_from_object

from sureclr import __version__
from sureclr.config import PretrainConfig, from_dict, read_yaml, to_yaml, view_values
from sureclr.data.view_config import ViewConfig
from sureclr.errors import UserError
from sureclr.recipes import RECIPES, recipe, recipe_for
from sureclr.stopping import StopFlag, Stopped, stop_on_signals

if TYPE_CHECKING:
    from sureclr.evaluation.material import Material
    from sureclr.training.run import Run

app = App(name="sureclr", version=__version__,
          help="Contrastive learning that knows how sure it is: one command to train, one to evaluate.")

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object on stdout, all else on stderr.")]
Device = Annotated[str, Parameter(help="auto, cuda, mps or cpu.")]
Root = Annotated[Path | None, Parameter(help="Where data sets lie or are downloaded to; default: $SURECLR_DATA, else "
                                             "~/.cache/sureclr/data.")]
Data = Annotated[str | None, Parameter(help="Other labelled data for transfer: digits, fashion-mnist, ..., folder:PATH.")]


def flags(config: type, skip: tuple[str, ...] = ()) -> type:
    """A dataclass with the fields of `config` as optional flags: None means that the user did not say. One definition, one help text."""
    help_of = {p.arg_name: p.description or "" for p in parse_from_object(config).params}
    hints = get_type_hints(config)
    made = [(f.name, Annotated[hints[f.name] | None, Parameter(help=_with_default(help_of.get(f.name, ""), f.default), negative="")], None)
            for f in fields(config) if f.name not in skip]
    home = {"__module__": __name__}  # else it is `types`, which cyclopts takes for a builtin and does not open
    return make_dataclass(f"{config.__name__}Flags", made, namespace=home)


def _with_default(text: str, default: Any) -> str:
    shown = default is not MISSING and default is not None
    return f"{text} [default: {' '.join(map(str, default)) if isinstance(default, tuple) else default}]" if shown else text


ConfigFlags: Any = flags(PretrainConfig, skip=("source", "views"))
ViewFlags: Any = flags(ViewConfig)
NO_CONFIG, NO_VIEWS = ConfigFlags(), ViewFlags()


def said(given: Any) -> dict[str, Any]:
    """The flags that the user gave."""
    return {name: value for name, value in vars(given).items() if value is not None}


def resolve(source: str | None, recipe_name: str | None, file: Path | None, given: dict[str, Any],
            views: dict[str, Any]) -> PretrainConfig:
    """Command line over file over recipe over default. The recipe is the named one, else the source's own (unless a file is given)."""
    from_file = read_yaml(file) if file else {}
    source = source or from_file.get("source") or (recipe(recipe_name).source if recipe_name else None)
    if source is None:
        raise UserError("pretrain needs a data source; for example: sureclr pretrain digits (`sureclr list` names them all).")
    name = recipe_name or (None if file else recipe_for(source))
    base = recipe(name) if name and (name in RECIPES or recipe_name) else PretrainConfig(source)
    merged = {**vars(base.views), **view_values(from_file), **views}
    return from_dict({**vars(base), **from_file, **given, "source": source, "views": merged})


@app.command
def pretrain(
    source: Annotated[str | None, Parameter(help="digits, fashion-mnist, cifar10, cifar100, stl10, or folder:PATH.")] = None,
    /,
    *,
    config: Annotated[Path | None, Parameter(name=["--config", "-c"], help="YAML file with these keys, as a run's config.yaml.")] = None,
    recipe: Annotated[str | None, Parameter(help="Start from this recipe instead of the source's own.")] = None,
    out: Annotated[Path | None, Parameter(help="Run folder. Default: runs/SOURCE-LOSS-ENCODER-DATE.")] = None,
    resume: Annotated[bool, Parameter(negative="", help="Continue the run in --out exactly where it stopped.")] = False,
    overwrite: Annotated[bool, Parameter(negative="", help="Replace the run in --out.")] = False,
    dry_run: Annotated[bool, Parameter(negative="", help="Print the resolved configuration and stop.")] = False,
    track: Annotated[str | None, Parameter(help="Also send the numbers to tensorboard or wandb.")] = None,
    device: Device = "auto",
    root: Root = None,
    json: Json = False,
    given: Annotated[ConfigFlags, Parameter(name="*")] = NO_CONFIG,
    views: Annotated[ViewFlags, Parameter(name="views")] = NO_VIEWS,
) -> None:
    """Pretrain an encoder by contrasting augmented views; then `sureclr evaluate RUN`."""
    if resume and source is None and config is None and out is not None:
        config = out / "config.yaml" if (out / "config.yaml").is_file() else None
    resolved = resolve(source, recipe, config, said(given), said(views))
    if dry_run:
        print(_dump(asdict(resolved)) if json else to_yaml(resolved), end="")
        return
    from sureclr.training.pretrain import pretrain as train

    run = train(resolved, out=out, resume=resume, overwrite=overwrite, device=device, track=track, root=root)
    last = run.directory.lines()[-1]
    answer(json, {"run": str(run.path), "last": last}, f"trained: {run.path}", f"sureclr evaluate {run.path}")


def _dump(value: dict[str, Any]) -> str:
    return json.dumps(value) + "\n"


def answer(as_json: bool, value: dict[str, Any], text: str, following: str | None = None) -> None:
    """The result on stdout (JSON or text); the next useful command on stderr with JSON, else as the last line."""
    if as_json:
        sys.stdout.write(_dump(value))
    else:
        print(text)
    if following:
        print(f"next: {following}", file=sys.stderr if as_json else sys.stdout)


Run_ = Annotated[Path, Parameter(name="RUN", help="A run folder.")]


@app.command
def linear(run: Run_, /, *, data: Data = None, device: Device = "auto", root: Root = None, json: Json = False) -> None:
    """Linear evaluation: L-BFGS on frozen features, strength chosen on a split of the training set, the test set touched once."""
    evaluate_one("linear", run, data, device, root, json, f"sureclr evaluate {run}")


@app.command
def knn(run: Run_, /, *, data: Data = None, device: Device = "auto", root: Root = None, json: Json = False) -> None:
    """k-nearest-neighbour evaluation of the frozen features."""
    evaluate_one("knn", run, data, device, root, json, f"sureclr linear {run}")


@app.command
def uncertainty(
    run: Run_, /, *, data: Data = None, device: Device = "auto", root: Root = None, json: Json = False,
    human: Annotated[Path | None, Parameter(help="CIFAR-10H's probabilities (.npy, 10,000 x 10), for a CIFAR-10 run.")] = None,
) -> None:
    """How sure the model is of each image, and whether it is right: against crops, blur, noise, occlusion, other data, and plain rivals."""
    with Opened(run, data, device, root, human) as opened:
        found = {name: opened.result(name, again=True) for name in ("uncertainty", "ood")}
    text = "\n".join(summary(name, result) for name, result in found.items())
    answer(json, found, f"{text}\nmore in {run / 'results.json'}", f"sureclr evaluate {run}")


@app.command
def evaluate(run: Run_, /, *, data: Data = None, device: Device = "auto", root: Root = None, json: Json = False) -> None:
    """Run every evaluation that results.json lacks."""
    from sureclr.evaluation.evaluate import EVALUATIONS

    with Opened(run, data, device, root) as opened:
        results: dict[str, Any] = {}
        opened.material()  # data that cannot be read is told once
        for name in EVALUATIONS:
            try:
                results[name] = opened.result(name, again=False)
            except UserError as error:  # what an unlabelled set cannot have is said, the rest is done
                print(f"{name} left out: {error}", file=sys.stderr)
    if not results:
        raise UserError(f"nothing could be evaluated on {run}; the lines above say why.")
    text = "\n".join(summary(name, result) for name, result in results.items())
    answer(json, results, f"{text}\nin {run / 'results.json'}", f"sureclr linear {run} --data OTHER  (transfer)")


def evaluate_one(name: str, run: Path, data: str | None, device: str, root: Path | None, as_json: bool, following: str) -> None:
    with Opened(run, data, device, root) as opened:
        result = opened.result(name, again=True)
    answer(as_json, result, summary(name, result), following)


class Opened:
    """A run opened for evaluation: its material is made when first asked for, its results are kept in results.json."""

    def __init__(self, path: Path, data: str | None, device: str, root: Path | None, human: Path | None = None) -> None:
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

    def material(self) -> "Material":
        from sureclr.data.sources import is_source
        from sureclr.data.sources import load as load_source
        from sureclr.evaluation.material import material
        from sureclr.models.embed import Embeddings

        if self.made is None:
            config, kept = self.run.config, self.run.path / "embeddings.parquet"
            if self.data is None and not is_source(self.run.source):
                raise UserError(f"this run was trained on images given in Python ({self.run.source}); name labelled data with --data.")
            images = load_source(self.data or self.run.source, root=self.root, size=self.run.size, channels=self.run.channels,
                                 seed=config.seed)
            own = self.data is None
            table = Embeddings.read(kept) if own and kept.exists() else None
            self.made = material(self.run, images, table, root=self.root, human=self.human, each_batch=self.progress)
            if own and self.made.table is not table:
                self.made.table.save(kept)
        return self.made

    def progress(self, done: int, total: int) -> None:
        self.stop.check("what was evaluated before is kept; run the same command again")
        if sys.stderr.isatty():
            print(f"\r\033[Kembedding {done}/{total}" if done < total else "\r\033[K", end="", file=sys.stderr, flush=True)

    def result(self, name: str, again: bool) -> dict[str, Any]:
        from sureclr.evaluation.evaluate import EVALUATIONS

        key = f"{name}:{self.data}" if self.data else name
        before = self.run.directory.results_so_far()
        if key in before and not again:
            return dict(before[key])
        self.progress(1, 1)
        result = EVALUATIONS[name](self.material())
        self.run.directory.add_result(key, result)
        return result


def summary(name: str, result: dict[str, Any]) -> str:
    """A result in a few words for people."""
    return {"uncertainty": _uncertainty, "ood": _ood}.get(name, _accuracy)(name, result)


def _accuracy(name: str, result: dict[str, Any]) -> str:
    low, high = result["interval"]
    baselines = result["baselines"]
    return (f"{name:7s} accuracy {result['accuracy']:.4f}  (95 % interval {low:.4f} to {high:.4f}, {result['n_test']:,} test images)  "
            f"raw pixels {baselines['raw_pixels']:.4f}  untrained encoder {baselines['untrained']:.4f}")


def _uncertainty(name: str, result: dict[str, Any]) -> str:
    """A row a score, the learned certainty first: R-AUROC on whole and cropped images, and how often a crop looks less certain."""
    crop = result["corruptions"]["crop"]["random"]
    rows = ["uncertainty (1 ranks perfectly, 0.5 knows nothing)     nearest image has the class: whole / crops    crop less certain"]
    for score in result["scores"]:
        whole, cropped = (_number(part.get("r_auroc", {}).get(score)) for part in (result["clean"], crop))
        rows.append(f"  {score:24s}{whole:>42s} / {cropped}{_number(crop['less_certain'][score]):>21s}")
    if calibration := result.get("calibration"):
        rows.append(f"  radius against observed cosine of two views: off by {calibration['raw']['error']:.3f} on average")
    return "\n".join(rows + [f"  no {what}: {why}" for what, why in result["skipped"].items()])


def _ood(name: str, result: dict[str, Any]) -> str:
    """A row a kind of foreign images, a column a score."""
    told = {kind: found["auroc"] for kind, found in result.items() if "auroc" in found}
    scores = list(next(iter(told.values()), {}))
    rows = ["told from foreign images (AUROC)" + "".join(f"{score:>22s}" for score in scores)]
    rows += [f"  {kind:30s}" + "".join(f"{_number(found[score]):>22s}" for score in scores) for kind, found in told.items()]
    return "\n".join(rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@app.command
def views(
    source: Annotated[str, Parameter(help="digits, fashion-mnist, cifar10, ..., or folder:PATH.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="PNG to write.")] = Path("views.png"),
    count: Annotated[int, Parameter(help="Images to show.")] = 8,
    seed: int = 0,
    size: int | None = None,
    root: Root = None,
    json: Json = False,
    given: Annotated[ViewFlags, Parameter(name="*")] = NO_VIEWS,
) -> None:
    """Draw original images beside two augmented views of each."""
    from sureclr.data.sources import load as load_source
    from sureclr.reporting.figures import augmented_pairs

    if count < 1:
        raise UserError(f"--count must be at least 1; got {count}.")
    config = resolve(source, None, None, {}, said(given)).views
    images = load_source(source, root=root, size=size).pretraining
    chosen = _spread(images, count)
    import torch

    try:
        augmented_pairs(images.images[chosen], config, torch.arange(len(chosen)) + seed * count, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); give another --out.") from error
    answer(json, {"out": str(out), "images": len(chosen)}, f"drawn: {out}", f"sureclr pretrain {source}")


def _spread(images: Any, count: int) -> Any:
    """Rows of `count` images, one class after another where there are labels, else evenly spread."""
    import torch

    rows = torch.arange(len(images))
    if images.labelled:
        first = [rows[images.labels == label][:1] for label in range(len(images.classes))]
        rows = torch.cat([*first, rows])
        return rows[:count]
    return rows[:: max(1, len(images) // count)][:count]


@app.command(name="list")
def list_(*, json: Json = False) -> None:
    """Data sources, losses, encoders and recipes by name."""
    from sureclr.data.sources import SOURCES
    from sureclr.maths.objectives import OBJECTIVES
    from sureclr.models.encoders import COMMON

    found = {"sources": {name: source.about for name, source in SOURCES.items()},
             "losses": {name: _first_line(loss) for name, loss in OBJECTIVES.items()},
             "encoders": {name: "" for name in COMMON} | {"...": "any other timm model name"},
             "recipes": {name: _first_line(made) for name, made in RECIPES.items()}}
    lines = [line for kind, names in found.items()
             for line in (f"{kind}:", *(f"  {name:24s} {about}".rstrip() for name, about in names.items()))]
    answer(json, found, "\n".join(lines), "sureclr pretrain digits")


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]


@app.command
def demo(*, out: Path = Path("runs/demo"), device: Device = "auto", json: Json = False) -> None:
    """Pretrain a small encoder on scikit-learn's digits, evaluate it, and say what the numbers mean (2 minutes on 2 CPU cores)."""
    from sureclr.evaluation.evaluate import EVALUATIONS
    from sureclr.training.pretrain import pretrain as train

    print("pretraining on 1,000 digits without their labels", file=sys.stderr)
    run = train(recipe("digits"), out=out, overwrite=(out / "config.yaml").is_file(), device=device)
    with Opened(run.path, None, device, None) as opened:
        results = {name: opened.result(name, again=True) for name in EVALUATIONS}
    answer(json, {"run": str(run.path), **results}, demo_text(run.path, results), "sureclr pretrain fashion-mnist  (or folder:YOUR/IMAGES)")


def demo_text(path: Path, results: dict[str, Any]) -> str:
    linear, baselines = results["linear"], results["linear"]["baselines"]
    low, high = linear["interval"]
    return f"""
The encoder saw 1,000 images of digits and no label. A linear classifier on its frozen features, trained on the same images with
their labels, reads {linear['n_test']} digits by other writers:

    SureCLR features    {linear['accuracy']:.3f}   (95 % interval {low:.3f} to {high:.3f})
    raw pixels          {baselines['raw_pixels']:.3f}
    untrained encoder   {baselines['untrained']:.3f}

Everything is in {path}/:  config.yaml (repeat it with `sureclr pretrain -c`), metrics.jsonl (a line a step), results.json (these
numbers), embeddings.parquet (an image a row: features, direction, radius), encoder.safetensors (the weights), snapshots/ (how it
learned)."""


def fail(text: str, code: int) -> NoReturn:
    print(f"sureclr: {text}", file=sys.stderr)
    raise SystemExit(code)


def main(words: list[str] | None = None) -> None:
    """Run a command. Exit codes: 0 done, 2 the user can mend it, 130 or 143 stopped with the state saved, 1 a bug of ours."""
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
        fail("the batch does not fit into the device's memory; try --micro-batch 64 (the gradient stays that of the whole batch).", 2)


if __name__ == "__main__":
    main()
