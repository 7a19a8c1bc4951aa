"""demo: everything once, on scikit-learn's digits."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sureclr.cli.shared import START, CommandProgress, Device, Json, app, mapping_json, print_answer
from sureclr.recipes import recipe

if TYPE_CHECKING:
    from sureclr.evaluation.results import Results


@app.command(group=START)
def demo(
    *,
    out: Annotated[Path, Parameter(help="The run folder; an older demo there is replaced.")] = Path(
        "runs/demo"
    ),
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train on handwritten digits, evaluate, and write a report (3 minutes on 2 CPU cores)."""
    from sureclr.evaluation.session import evaluate
    from sureclr.reporting.page import report
    from sureclr.training.pretraining import pretrain

    print("Training on 1,000 images of digits, without their labels.", file=sys.stderr)
    replace = (out / "config.yaml").is_file()
    run = pretrain(
        recipe("digits"), out=out, overwrite=replace, device=device, progress=CommandProgress()
    )
    results = evaluate(run, progress=CommandProgress())
    page = report(results, device=device, progress=CommandProgress())
    value = {"run": str(run.path), **mapping_json(results), "report": str(page)}
    next_command = (
        f"open {page} in a browser, then run: sureclr pretrain fashion-mnist  (or"
        " folder:YOUR/IMAGES)"
    )
    print_answer(json, value, _demo_text(run.path, results), next_command)


def _demo_text(path: Path, results: "Results") -> str:
    """Return what the demo's numbers mean."""
    linear = results["linear"]
    assert linear.baselines is not None  # the images were read for the training
    low, high = linear.interval
    return f"""
The encoder was trained on 1,000 images of digits, without labels. A linear classifier was then
trained on its frozen features of the same images, with labels, and tested on {linear.n_test} digits
of other writers:

    SureCLR features    {linear.accuracy:.3f}   (95 % interval {low:.3f} to {high:.3f})
    raw pixels          {linear.baselines.raw_pixels:.3f}
    untrained encoder   {linear.baselines.untrained:.3f}

Everything is in {path}/:
    report.html          the page to open: what the encoder sees, ignores, and how certain it is
    config.yaml          the configuration; `sureclr pretrain -c` repeats the run
    metrics.jsonl        one line for each training step
    results.json         all numbers of the evaluations
    embeddings.parquet   one row for each image: features, direction, radius
    encoder.safetensors  the weights of the encoder
    snapshots/           the representation of some images during training"""
