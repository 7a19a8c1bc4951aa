"""pretrain, and the demo that shows everything once."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from sureclr.cli.flags import NO_CONFIG, NO_VIEWS, ConfigFlags, ViewFlags, resolve, said
from sureclr.cli.shared import Device, Json, Opened, Root, answer, app, dumped
from sureclr.config import to_yaml
from sureclr.recipes import recipe


@app.command
def pretrain(
    source: Annotated[
        str | None,
        Parameter(help="digits, fashion-mnist, cifar10, cifar100, stl10, or folder:PATH."),
    ] = None,
    /,
    *,
    config: Annotated[
        Path | None,
        Parameter(
            name=["--config", "-c"], help="YAML file with these keys, as a run's config.yaml."
        ),
    ] = None,
    recipe: Annotated[
        str | None, Parameter(help="Start from this recipe instead of the source's own.")
    ] = None,
    out: Annotated[
        Path | None, Parameter(help="Run folder. Default: runs/SOURCE-LOSS-ENCODER-DATE.")
    ] = None,
    resume: Annotated[
        bool, Parameter(negative="", help="Continue the run in --out exactly where it stopped.")
    ] = False,
    overwrite: Annotated[bool, Parameter(negative="", help="Replace the run in --out.")] = False,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Print the resolved configuration and stop.")
    ] = False,
    track: Annotated[
        str | None, Parameter(help="Also send the numbers to tensorboard or wandb.")
    ] = None,
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
        print(dumped(asdict(resolved)) if json else to_yaml(resolved), end="")
        return
    from sureclr.training.pretraining import pretrain as train

    run = train(
        resolved, out=out, resume=resume, overwrite=overwrite, device=device, track=track, root=root
    )
    last = run.directory.lines()[-1]
    answer(
        json,
        {"run": str(run.path), "last": last},
        f"trained: {run.path}",
        f"sureclr evaluate {run.path}",
    )


@app.command
def demo(*, out: Path = Path("runs/demo"), device: Device = "auto", json: Json = False) -> None:
    """Pretrain a small encoder on scikit-learn's digits, evaluate it, and draw its report (3
    minutes on 2 CPU cores).
    """
    from sureclr.cli.report_commands import page_of
    from sureclr.evaluation.session import EVALUATIONS
    from sureclr.reporting.run_files import read_numbers
    from sureclr.training.pretraining import pretrain as train

    print("pretraining on 1,000 digits without their labels", file=sys.stderr)
    run = train(recipe("digits"), out=out, overwrite=(out / "config.yaml").is_file(), device=device)
    with Opened(run.path, None, device, None) as opened:
        results = {name: opened.result(name, again=True) for name in EVALUATIONS}
        page_of(
            [read_numbers(run.path, images=opened.material().images)],
            page := run.path / "report.html",
        )
    answer(
        json,
        {"run": str(run.path), **results, "report": str(page)},
        demo_text(run.path, results),
        f"open {page} in a browser, then: sureclr pretrain fashion-mnist  (or folder:YOUR/IMAGES)",
    )


def demo_text(path: Path, results: dict[str, Any]) -> str:
    linear, baselines = results["linear"], results["linear"]["baselines"]
    low, high = linear["interval"]
    return f"""
The encoder saw 1,000 images of digits and no label. A linear classifier on its frozen features, trained on the same images with
their labels, reads {linear["n_test"]} digits by other writers:

    SureCLR features    {linear["accuracy"]:.3f}   (95 % interval {low:.3f} to {high:.3f})
    raw pixels          {baselines["raw_pixels"]:.3f}
    untrained encoder   {baselines["untrained"]:.3f}

Everything is in {path}/:  report.html (the page to open: what it sees, ignores, and how sure it is), config.yaml (repeat it with
`sureclr pretrain -c`), metrics.jsonl (a line a step), results.json (these numbers), embeddings.parquet (an image a row: features,
direction, radius), encoder.safetensors (the weights), snapshots/ (how it learned)."""
