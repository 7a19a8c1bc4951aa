"""linear, knn, uncertainty, evaluate: numbers of a trained run, and how they are told in a few
words.
"""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from sureclr.cli.shared import Data, Device, Json, Opened, Root, Run_, answer, app
from sureclr.errors import UserError


@app.command
def linear(
    run: Run_,
    /,
    *,
    data: Data = None,
    device: Device = "auto",
    root: Root = None,
    json: Json = False,
) -> None:
    """Linear evaluation: L-BFGS on frozen features, strength chosen on a split of the training set,
    the test set touched once.
    """
    evaluate_one("linear", run, data, device, root, json, f"sureclr evaluate {run}")


@app.command
def knn(
    run: Run_,
    /,
    *,
    data: Data = None,
    device: Device = "auto",
    root: Root = None,
    json: Json = False,
) -> None:
    """k-nearest-neighbour evaluation of the frozen features."""
    evaluate_one("knn", run, data, device, root, json, f"sureclr linear {run}")


@app.command
def uncertainty(
    run: Run_,
    /,
    *,
    data: Data = None,
    device: Device = "auto",
    root: Root = None,
    json: Json = False,
    human: Annotated[
        Path | None,
        Parameter(help="CIFAR-10H's probabilities (.npy, 10,000 x 10), for a CIFAR-10 run."),
    ] = None,
) -> None:
    """How sure the model is of each image, and whether it is right: against crops, blur, noise,
    occlusion, other data, and plain rivals.
    """
    with Opened(run, data, device, root, human) as opened:
        found = {name: opened.result(name, again=True) for name in ("uncertainty", "ood")}
    text = "\n".join(summary(name, result) for name, result in found.items())
    answer(json, found, f"{text}\nmore in {run / 'results.json'}", f"sureclr evaluate {run}")


@app.command
def evaluate(
    run: Run_,
    /,
    *,
    data: Data = None,
    device: Device = "auto",
    root: Root = None,
    json: Json = False,
) -> None:
    """Run every evaluation that results.json lacks."""
    from sureclr.evaluation.session import EVALUATIONS

    with Opened(run, data, device, root) as opened:
        opened.material()  # data that cannot be read is told once
        attempts = {name: opened.attempt(name) for name in EVALUATIONS}
        results = {name: result for name, result in attempts.items() if not isinstance(result, str)}
    if not results:
        raise UserError(f"nothing could be evaluated on {run}; the lines above say why.")
    text = "\n".join(summary(name, result) for name, result in results.items())
    answer(json, results, f"{text}\nin {run / 'results.json'}", f"sureclr report {run}")


def evaluate_one(
    name: str,
    run: Path,
    data: str | None,
    device: str,
    root: Path | None,
    as_json: bool,
    following: str,
) -> None:
    with Opened(run, data, device, root) as opened:
        result = opened.result(name, again=True)
    answer(as_json, result, summary(name, result), following)


def summary(name: str, result: dict[str, Any]) -> str:
    """A result in a few words for people."""
    if "skipped" in result and isinstance(result["skipped"], str):
        return f"{name} left out: {result['skipped']}"
    tell = {
        "uncertainty": _uncertainty,
        "ood": _ood,
        "learning": _learning,
        "geometry": _geometry,
        "sensitivity": _sensitivity,
        "explanation": _explanation,
    }
    return tell.get(name, _accuracy)(name, result)


def _accuracy(name: str, result: dict[str, Any]) -> str:
    low, high = result["interval"]
    baselines = result["baselines"]
    rows = [
        f"{name:7s} accuracy {result['accuracy']:.4f}  (95 % interval {low:.4f} to {high:.4f},"
        f" {result['n_test']:,} test images)  raw pixels {baselines['raw_pixels']:.4f}  untrained"
        f" encoder {baselines['untrained']:.4f}"
    ]
    if mean := result.get("posterior_mean"):
        what = "posterior mean u" if mean["of"] == "u" else "direction (this loss has no radius)"
        rows.append(f"  of the {what}, {mean['features']} numbers: {mean['accuracy']:.4f}")
    if blocks := result.get("blocks"):
        told = "  ".join(f"{block['name']} {block['accuracy']:.4f}" for block in blocks)
        rows.append(f"  where it becomes linear, block by block (averaged over positions): {told}")
    return "\n".join(rows)


def _uncertainty(name: str, result: dict[str, Any]) -> str:
    """A row a score, the learned certainty first: R-AUROC on whole and cropped images, and how
    often a crop looks less certain.
    """
    crop = result["corruptions"]["crop"]["random"]
    rows = [
        "uncertainty (1 ranks perfectly, 0.5 knows nothing)     nearest image has the class: whole"
        " / crops    crop less certain"
    ]
    for score in result["scores"]:
        whole, cropped = (
            _number(part.get("r_auroc", {}).get(score)) for part in (result["clean"], crop)
        )
        rows.append(
            f"  {score:24s}{whole:>42s} / {cropped}{_number(crop['less_certain'][score]):>21s}"
        )
    if calibration := result.get("calibration"):
        rows.append(
            "  radius against observed cosine of two views: off by"
            f" {calibration['raw']['error']:.3f} on average"
        )
    return "\n".join(rows + [f"  no {what}: {why}" for what, why in result["skipped"].items()])


def _ood(name: str, result: dict[str, Any]) -> str:
    """A row a kind of foreign images, a column a score."""
    told = {kind: found["auroc"] for kind, found in result.items() if "auroc" in found}
    scores = list(next(iter(told.values()), {}))
    rows = ["told from foreign images (AUROC)" + "".join(f"{score:>22s}" for score in scores)]
    rows += [
        f"  {kind:30s}" + "".join(f"{_number(found[score]):>22s}" for score in scores)
        for kind, found in told.items()
    ]
    return "\n".join(rows)


def _learning(name: str, result: dict[str, Any]) -> str:
    rank, spread = result["effective_rank"], result["gradient"]["effective_negatives"]
    return (
        f"learning, {len(result['epochs'])} snapshots, first to last: effective rank"
        f" {_number(rank[0])} to {_number(rank[-1])}, negatives that carry the gradient"
        f" {spread[0]:.0f} to {spread[-1]:.0f} of {2 * result['images'] - 2}"
    )


def _geometry(name: str, result: dict[str, Any]) -> str:
    purity = result["clusters"]["purity"]
    told = (
        ""
        if purity is None
        else (
            f", purity {purity:.3f} (one cluster of all:"
            f" {result['clusters']['purity_of_one_cluster']:.3f})"
        )
    )
    return (
        f"geometry: the first {len(result['explained'])} directions hold"
        f" {sum(result['explained']):.0%} of the variance; {result['clusters']['k']}"
        f" clusters{told}; map of {result['map_rows']:,} images"
    )


def _sensitivity(name: str, result: dict[str, Any]) -> str:
    """A row a transformation, at the strength that moves the direction most."""
    rows = [
        "sensitivity (cosine to the image unchanged; different images"
        f" {result['reference']['different_images']:.3f})   direction   change of certainty"
        " (deviations)"
    ]
    for found in result["transformations"].values():
        if "skipped" in found:
            rows.append(f"  {found['label']:20s} left out: {found['skipped']}")
            continue
        at = min(range(len(found["direction"])), key=found["direction"].__getitem__)
        change = _number(found["certainty"] and found["certainty"][at])
        what = f"{found['label']:20s} at {found['strengths'][at]:<6g} {found['unit']:32s}"
        rows.append(f"  {what}{found['direction'][at]:8.3f}   {change:>9s}")
    return "\n".join(rows)


def _explanation(name: str, result: dict[str, Any]) -> str:
    """A row for the certainty, where there is one, and a row for the pairs."""
    rows = [
        "explanation by occlusion         rank correlation of the maps with randomised weights /"
        " with another fill"
    ]
    checked = {
        result["score"]: result["sanity"],
        f"{result['evidence_score']} of pairs": result["sanity_evidence"],
    }
    for what, check in checked.items():
        verdict = (
            "they tell of what was learned"
            if check["passed"]
            else "they do not pass the check, do not trust them"
        )
        randomised, repeat = (
            _number(check[f"rank_correlation_{of}"]) for of in ("randomised", "repeat")
        )
        rows.append(
            f"  {what:18s}{check['n']:3d} maps    {randomised:>10s} / {repeat}    {verdict}"
        )
    return "\n".join(
        rows if result["certainty"] else [rows[0], rows[-1], f"  {result['certainty_skipped']}"]
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
