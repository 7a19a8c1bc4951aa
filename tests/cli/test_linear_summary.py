"""linear in a few words: the accuracy, then the posterior mean and the blocks, a line each."""

from dataclasses import replace

from sureclr.cli.evaluation_commands import summaries
from sureclr.config import FirstEncoder
from sureclr.evaluation.results import (
    BaselineIntervals,
    Baselines,
    BlockProbe,
    LinearResult,
    PosteriorProbe,
    ProbeScore,
)

SCORE = ProbeScore(0.9, (0.85, 0.95), 0.1, ((0.1, 0.9),), True, 1000, 797, 256)
LINEAR = LinearResult(
    **vars(SCORE),
    posterior_mean=PosteriorProbe(**vars(replace(SCORE, accuracy=0.5, features=128)), of="u"),
    blocks=tuple(
        BlockProbe(**vars(replace(SCORE, accuracy=accuracy)), name=name)
        for name, accuracy in (("layer1", 0.61), ("layer2", 0.72))
    ),
    baselines=Baselines(0.8, 0.7),
    baseline_intervals=BaselineIntervals((0.7, 0.9), (0.6, 0.8)),
)


def summary(result: LinearResult) -> list[str]:
    return summaries({"linear": result})[0].split("\n")


def test_the_first_encoder_has_its_name_and_a_frozen_one_is_no_rival() -> None:
    def first(kind: FirstEncoder) -> str:
        return summary(replace(LINEAR, first_encoder=kind))[0]

    assert first("untrained").endswith("raw pixels 0.8000  untrained encoder 0.7000")
    assert first("pretrained").endswith("raw pixels 0.8000  backbone as it came 0.7000")
    assert "0.7000" not in first("frozen") and "the backbone's own" in first("frozen")


def test_the_posterior_mean_and_the_blocks_are_a_line_each() -> None:
    first, mean, last = summary(LINEAR)
    assert first.startswith("linear ")
    numbers = ("0.9000", "0.8500 to 0.9500", "797 test images", "0.8000", "0.7000")
    assert all(number in first for number in numbers)
    assert "posterior mean, 128 numbers: 0.5000" in mean
    assert last.endswith("layer1 0.6100  layer2 0.7200")


def test_without_a_radius_the_direction_is_probed_and_an_encoder_may_have_no_blocks() -> None:
    probe = replace(LINEAR.posterior_mean, of="direction", features=8)
    lines = summary(replace(LINEAR, posterior_mean=probe, blocks=()))
    assert len(lines) == 2 and "direction (this loss has no radius), 8 numbers" in lines[1]
