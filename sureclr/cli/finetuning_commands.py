"""finetune: few labels, beside training from scratch."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sureclr.cli.flags import flags, said
from sureclr.cli.shared import Data, Device, Json, Root, Run_, answer, app
from sureclr.finetuning.config import FinetuneConfig

if TYPE_CHECKING:
    from sureclr.finetuning.results import FinetuningResult

FinetuneFlags: Any = flags(FinetuneConfig, skip=("learning_rates",))
NO_FLAGS = FinetuneFlags()


@app.command
def finetune(
    run: Run_,
    /,
    *,
    lr: Annotated[
        tuple[float, ...] | None,
        Parameter(
            consume_multiple=True,
            negative="",
            help="Highest learning rates of the encoder to try; the one that is best on held-out "
            "labels is used. [default: 0.01 0.03 0.1]",
        ),
    ] = None,
    again: Annotated[
        bool, Parameter(negative="", help="Forget the seeds that results.json holds.")
    ] = False,
    data: Data = None,
    device: Device = "auto",
    root: Root = None,
    json: Json = False,
    given: Annotated[FinetuneFlags, Parameter(name="*")] = NO_FLAGS,
) -> None:
    """Fine-tune with few labels, beside the same network from scratch with the same labels, search
    and budget.
    """
    config = FinetuneConfig(**said(given) | ({} if lr is None else {"learning_rates": lr}))
    from sureclr.finetuning.service import finetune as service
    from sureclr.schema import to_json

    result = service(run, config=config, data=data, again=again, device=device, root=root)
    answer(json, to_json(result), text(result), f"sureclr evaluate {run}")


def text(result: "FinetuningResult") -> str:
    """Return the accuracies, one row each, and the verdict."""
    means, intervals = result.baselines, result.baseline_intervals
    arms = {
        "fine-tuned": (result.accuracy, result.interval),
        "from scratch": (means.scratch, intervals.scratch),
        "linear probe, frozen": (means.linear, intervals.linear),
    }
    rows = [
        f"{result.n_labels:,} labels, {result.seeds} seeds, {result.n_test:,} test images"
        f" ({result.interval_of})"
    ]
    rows += [
        f"  {name:22s}{accuracy:.4f}  ({low:.4f} to {high:.4f})"
        for name, (accuracy, (low, high)) in arms.items()
    ]
    gain = result.gain
    between = (
        " ({:+.4f} to {:+.4f}, same labels compared)".format(*gain.interval)
        if gain.interval
        else ""
    )
    verdict = (
        f"{gain.verdict} than from scratch, outside both intervals"
        if gain.outside_both_intervals
        else "no difference found, the intervals overlap"
    )
    rows.append(f"  fine-tuned - scratch  {gain.mean:+.4f}{between}: {verdict}")
    return "\n".join([*rows, f"classifier: {result.weights.file}"])
