"""linear in a few words: the old line, then u and the blocks where results.json has them (older
runs do not).
"""

from sureclr.cli.evaluation_commands import summary

OLD = {
    "accuracy": 0.9,
    "interval": [0.85, 0.95],
    "n_test": 797,
    "baselines": {"raw_pixels": 0.8, "untrained": 0.7},
}


def test_an_older_result_is_one_line() -> None:
    assert summary("linear", OLD).count("\n") == 0 and "0.9000" in summary("linear", OLD)


def test_the_posterior_mean_and_the_blocks_are_a_line_each() -> None:
    blocks = [{"name": "layer1", "accuracy": 0.61}, {"name": "layer2", "accuracy": 0.72}]
    mean = {"of": "u", "accuracy": 0.5, "features": 128}
    first, mean, last = summary("linear", OLD | {"posterior_mean": mean, "blocks": blocks}).split(
        "\n"
    )
    assert first == summary("linear", OLD)
    assert "posterior mean u, 128 numbers: 0.5000" in mean and last.endswith(
        "layer1 0.6100  layer2 0.7200"
    )
    direction = summary(
        "linear",
        OLD | {"posterior_mean": {"of": "direction", "accuracy": 0.5, "features": 8}, "blocks": []},
    )
    assert (
        "direction (this loss has no radius), 8 numbers" in direction and direction.count("\n") == 1
    )
