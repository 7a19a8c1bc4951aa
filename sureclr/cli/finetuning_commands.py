"""finetune: few labels, beside training from scratch."""

from typing import Annotated, Any

from cyclopts import Parameter

from sureclr.cli.flags import flags, said
from sureclr.cli.shared import Data, Device, Json, Opened, Root, Run_, answer, app
from sureclr.finetuning.config import FinetuneConfig

FinetuneFlags: Any = flags(FinetuneConfig, skip=("lr",))
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
            help="Peak learning rates of the encoder to "
            "choose from, on held-out labels. [default: 0.01 0.03 0.1]",
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
    config = FinetuneConfig(**said(given) | ({} if lr is None else {"lr": lr}))
    from sureclr.finetuning.protocol import finetune as tune

    with Opened(run, data, device, root) as opened:

        def poll() -> None:
            opened.stop.check(
                "finished seeds are in results.json; run the same command again to go on"
            )

        result = tune(opened.run, opened.images(), config, data=data, again=again, poll=poll)
    answer(json, result, text(result), f"sureclr evaluate {run}")


def text(result: dict[str, Any]) -> str:
    """A row an arm, and the gain."""
    arms = {"fine-tuned": (result["accuracy"], result["interval"])} | {
        name: (result["baselines"][arm], result["baseline_intervals"][arm])
        for name, arm in (("from scratch", "scratch"), ("linear probe, frozen", "linear"))
    }
    rows = [
        f"{result['n_labels']:,} labels, {result['seeds']} seeds, {result['n_test']:,} test images"
        f" ({result['interval_of']})"
    ]
    rows += [
        f"  {name:22s}{accuracy:.4f}  ({low:.4f} to {high:.4f})"
        for name, (accuracy, (low, high)) in arms.items()
    ]
    gain = result["gain"]
    between = (
        " ({:+.4f} to {:+.4f}, same labels compared)".format(*gain["interval"])
        if gain["interval"]
        else ""
    )
    outside = "outside" if gain["outside_both_intervals"] else "NOT outside"
    rows.append(f"  fine-tuned - scratch  {gain['mean']:+.4f}{between}, {outside} both intervals")
    return "\n".join([*rows, f"classifier: {result['weights']['file']}"])
