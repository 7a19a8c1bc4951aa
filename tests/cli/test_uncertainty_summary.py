"""uncertainty and ood in words: of how many test images the numbers are, where not of all."""

from sureclr.cli.evaluation_commands import summaries
from sureclr.evaluation import results as r

RANDOM = r.RandomStrengths(None, {}, {}, {})
CROP = r.CorruptionResult("area", (), RANDOM)
PARTNER = r.PartnerResult(2, 1.0, None, {})


def words(sample: r.Sample | None) -> list[str]:
    nothing = (None,) * 5
    uncertainty = r.UncertaintyResult(
        5000, 9, (), None, {"crop": CROP}, PARTNER, *nothing, {}, sample=sample
    )
    return summaries({"uncertainty": uncertainty, "ood": r.OodResult({}, None, sample)})


def test_a_sample_is_named_with_its_size_and_that_of_the_whole() -> None:
    for text in words(r.Sample(5000, 10_000)):
        assert "5,000 of the 10,000 test images" in text


def test_nothing_is_said_of_a_sample_where_all_images_are_judged() -> None:
    assert all("sample" not in text for text in words(None))


def test_the_observed_coverage_of_sets_is_printed() -> None:
    sets = r.PredictionSets(
        0.9, 400, 10, 10, 400, 3.25, 0.0, 0.1, 400, 0.905, (0.872, 0.930), 0, ""
    )
    nothing = (None,) * 5
    uncertainty = r.UncertaintyResult(
        400, 9, (), None, {"crop": CROP}, PARTNER, *nothing, {}, sets={"knn": sets}
    )
    (text,) = summaries({"uncertainty": uncertainty})
    assert "Sets of knn that should contain the right class in 0.9 of the images" in text
    assert "observed 0.905 (0.872 to 0.930) of 400, mean size 3.25 of 10 classes" in text


def test_each_score_has_a_column_for_each_answer() -> None:
    knn, linear = (
        r.SelectivePrediction(0.5, {}, (), {}, {"certainty": value}) for value in (0.61, 0.72)
    )
    nothing = (None,) * 3
    uncertainty = r.UncertaintyResult(
        *(400, 9, ("certainty",), None, {}, PARTNER, *nothing),
        selective={"knn": knn, "linear": linear},
        probe_calibration=None,
        skipped={},
    )
    (text,) = summaries({"uncertainty": uncertainty})
    (row,) = (line.split() for line in text.splitlines() if line.startswith("  certainty"))
    assert row == ["certainty", "-", "0.610", "0.720", "-", "-"]
