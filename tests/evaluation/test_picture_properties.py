"""Properties of pixels, by loops over single ones."""

import math
from collections import Counter

import pytest
import torch
from scipy import stats

from sureclr.evaluation.picture_properties import followed_properties, measure_properties


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_properties_are_their_loops(channels: int) -> None:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, channels, 6, 7), generator=g, dtype=torch.uint8)
    images[0] = 200  # one colour
    found = measure_properties(images)
    for k, image in enumerate(images.tolist()):
        pixel = [[[band[i][j] / 255 for band in image] for j in range(7)] for i in range(6)]
        grey = [[sum(p) / channels for p in row] for row in pixel]
        flat = [v for row in grey for v in row]
        mean = sum(flat) / len(flat)
        squares = [
            (grey[i - 1][j] + grey[i + 1][j] + grey[i][j - 1] + grey[i][j + 1] - 4 * grey[i][j])
            ** 2
            for i in range(1, 5)
            for j in range(1, 6)
        ]
        spans = [max(p[:3]) - min(p[:3]) for row in pixel for p in row]
        counted = Counter(
            tuple(band[i][j] // 64 for band in image[:3]) for i in range(6) for j in range(7)
        )
        truth = {
            "sharpness": sum(squares) / len(squares),
            "contrast": math.sqrt(sum((v - mean) ** 2 for v in flat) / len(flat)),
            "saturation": sum(spans) / len(spans),
            "colours": -sum(n / 42 * math.log(n / 42) for n in counted.values()),
            "brightness": mean,
        }
        assert {name: float(values[k]) for name, values in found.items()} == pytest.approx(truth)


def test_a_score_follows_what_it_was_made_of() -> None:
    g = torch.Generator().manual_seed(1)
    scale = torch.rand(700, 1, 1, 1, generator=g)
    images = (255 * scale * torch.rand(700, 3, 8, 8, generator=g)).byte()
    score = measure_properties(images)["contrast"] ** 3  # any increasing function
    found = followed_properties(score, images)
    assert found["contrast"] == pytest.approx(1) and max(found, key=found.__getitem__) == "contrast"
    truth = stats.spearmanr(score, measure_properties(images)["brightness"]).statistic
    assert found["brightness"] == pytest.approx(truth)
    grey = images[:, :1]
    assert "saturation" not in followed_properties(score, grey)  # the same in all: no order
    assert followed_properties(torch.ones(700), images) == {}
