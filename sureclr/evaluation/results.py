"""What the evaluations return, as frozen dataclasses, and `results.json`, which keeps them.

Units: accuracies, shares and areas under a curve lie in [0, 1]; intervals are 95 %; entropies,
losses and evidence are in nats; rows count from 0 in `embeddings.parquet`. A number is None where
it does not exist, for example an area under a curve without a positive image. "Scores" are the
names of what may say how certain an image is, which evaluation/scores.py lists; a higher score
means more certain.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sureclr.config import FirstEncoder
from sureclr.errors import UserError
from sureclr.files import (
    json_bytes,
    read_json,
    sealed,
    unsealed,
    why,
    write_atomically,
)
from sureclr.schema import from_json, to_json

if TYPE_CHECKING:
    from sureclr.training.run import Run

SCHEMA = 6  # of results.json: raise it whenever a field below changes
TAKEN = ("provenance", "sha256")  # keys of an entry that are ours
# Schemas that are read: keys that older ones lack have defaults below
READABLE = (1, 2, 3, 4, 5, 6)
UNSEALED = (1, 2)  # schemas whose entries need not have a sha256

Interval = tuple[float, float]
Number = float | None
ByScore = dict[str, Number]  # a number for each score
Heatmap = tuple[tuple[float, ...], ...]  # rows of numbers, one for each cell of an image


# --- linear, knn and fine-tuning, class by class --------------------------------------


@dataclass(frozen=True)
class ClassScore:
    """How well one class is recognised on the labelled test images.

    Attributes:
        name: of the class.
        n_train: its labelled training images.
        n_test: its labelled test images.
        accuracy: share of its test images that are given this class, also called recall; None
            where it has no test image.
        interval: Wilson's; None where it has no test image.
        precision: share of the test images that are given this class which are of it; None where
            no test image is given this class.
        f1: harmonic mean of accuracy and precision, 0 if one of them is 0 or missing; None where
            the class has no test image and no test image is given it.
        taken_for: the class that its test images are most often mistaken for; "" where none is.
        mistaken: number of its test images that are taken for that class.
    """

    name: str
    n_train: int
    n_test: int
    accuracy: Number
    interval: Interval | None
    precision: Number
    f1: Number
    taken_for: str
    mistaken: int


@dataclass(frozen=True)
class Confusion:
    """How many test images of the class `truth` are given the class `predicted`."""

    truth: str
    predicted: str
    count: int


@dataclass(frozen=True)
class ClassNumbers:
    """A classifier class by class, on all labelled test images.

    A class that only the test images have cannot be named, so its images count as mistakes in every
    number here and in the accuracy.

    Attributes:
        balanced_accuracy: mean accuracy of the classes that have test images.
        macro_f1: mean F1 of the classes that have test images or are given to one.
        majority_class: the commonest class of the training images (the first of equals).
        majority_baseline: accuracy on the test images of always naming it.
        classes: those with a labelled image, in the order of the images' classes.
        confusion: a row for each class of `classes`, a column for each class that is named, in the
            same order; entries count test images. None where there are more than 200 classes, or
            more than 50 for fine-tuning.
        top_confusions: the commonest mistakes, at most 20, the commonest first.
        only_test: classes that have test images and no training image.
        only_train: classes that have training images and no test image.
    """

    balanced_accuracy: float
    macro_f1: float
    majority_class: str
    majority_baseline: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    top_confusions: tuple[Confusion, ...]
    only_test: tuple[str, ...]
    only_train: tuple[str, ...]

    @property
    def worst(self) -> tuple[ClassScore, ...]:
        """The classes with test images, the lowest accuracy first, larger classes first of equals.

        A class whose accuracy is known of more images is the more certain problem.
        """
        tested = [each for each in self.classes if each.accuracy is not None]
        return tuple(sorted(tested, key=lambda each: (each.accuracy or 0.0, -each.n_test)))


# --- linear and knn -------------------------------------------------------------------


@dataclass(frozen=True)
class Baselines:
    """The same accuracy of the pixels themselves and of the network before its first step."""

    raw_pixels: float
    untrained: float


@dataclass(frozen=True)
class BaselineIntervals:
    """The intervals of `Baselines`."""

    raw_pixels: Interval
    untrained: Interval


@dataclass(frozen=True)
class ProbeScore:
    """A linear probe and its accuracy on the test images.

    Attributes:
        accuracy: share of the test images whose class the probe names.
        interval: Wilson's.
        strength: of the penalty, chosen on held-out training images.
        strengths: each strength that was tried, with its accuracy on the held-out images.
        not_tried: why weaker strengths are absent from these, or "", also in a file of schema 3.
        converged: whether L-BFGS reached its tolerance.
        n_train: number of training images.
        n_test: number of test images.
        features: numbers that describe an image.
    """

    accuracy: float
    interval: Interval
    strength: float
    strengths: tuple[tuple[float, Number], ...]
    converged: bool
    n_train: int
    n_test: int
    features: int
    not_tried: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class PosteriorProbe(ProbeScore):
    """A probe on what the head puts out: `of` is "u" (the posterior mean) or "direction"."""

    of: str


@dataclass(frozen=True)
class BlockProbe(ProbeScore):
    """A probe on one block of the encoder, its output averaged over positions."""

    name: str


@dataclass(frozen=True)
class LinearResult(ProbeScore):
    """Linear evaluation: a probe on the frozen features, on the head's output and on each block.

    Attributes:
        posterior_mean: the probe on the head's output.
        blocks: empty where the images could not be read.
        baselines: None where the images could not be read.
        baseline_intervals: of them, or None.
        by_class: the probe on the features, class by class; None in a file of schema 1.
        no_pixels: why there are no baselines and no blocks, or "".
        first_encoder: what the network of the baseline `untrained` was: untrained, pretrained, or
            frozen, which is pretrained and not changed by training, so that both accuracies are
            one.
    """

    posterior_mean: PosteriorProbe
    blocks: tuple[BlockProbe, ...]
    baselines: Baselines | None
    baseline_intervals: BaselineIntervals | None
    by_class: ClassNumbers | None = None
    no_pixels: str = ""
    first_encoder: FirstEncoder = "untrained"


@dataclass(frozen=True)
class WhitenedVote:
    """A vote of the nearest by the cosine of partially whitened features (theory 10).

    Attributes:
        accuracy: share of the labelled test images whose class wins the vote.
        interval: Wilson's.
        exponent: of the whitening, from 0 (the cosine of centred features) to 1/2 (the Mahalanobis
            cosine), chosen on labelled training images by leave-one-out.
        n_chosen_on: how many these were; 0: there were too few, and the exponent is 1/4.
    """

    accuracy: float
    interval: Interval
    exponent: float
    n_chosen_on: int


@dataclass(frozen=True)
class WhitenedBaselines:
    """The same of the pixels themselves and of the network before its first step."""

    raw_pixels: WhitenedVote
    untrained: WhitenedVote


@dataclass(frozen=True)
class KnnResult:
    """Accuracy of a weighted vote of the k nearest training images.

    Attributes:
        accuracy: share of the labelled test images whose class wins the vote, by the plain cosine.
        interval: Wilson's.
        k: number of voters.
        n_train: labelled training images.
        n_test: labelled test images.
        baselines: None where the images could not be read.
        baseline_intervals: of them, or None.
        by_class: the vote on the features, class by class; None in a file of schema 1.
        no_pixels: why there are no baselines, or "".
        first_encoder: as of a `LinearResult`.
        whitened: the vote by partially whitened features; None in a file of schema 5 or older.
        whitened_baselines: of it; None where there are no baselines.
    """

    accuracy: float
    interval: Interval
    k: int
    n_train: int
    n_test: int
    baselines: Baselines | None
    baseline_intervals: BaselineIntervals | None
    by_class: ClassNumbers | None = None
    no_pixels: str = ""
    first_encoder: FirstEncoder = "untrained"
    whitened: WhitenedVote | None = None
    whitened_baselines: WhitenedBaselines | None = None


# --- heads ----------------------------------------------------------------------------


@dataclass(frozen=True)
class VoteAccuracy:
    """Accuracy of a vote on the test images, with Wilson's interval."""

    accuracy: float
    interval: Interval


@dataclass(frozen=True)
class ScoreArea:
    """An AUROC with DeLong's interval; both None where all images are of one kind."""

    auroc: Number
    interval: Interval | None


@dataclass(frozen=True)
class HeadsResult:
    """What the heads add to the features, which a frozen backbone has without them.

    Attributes:
        n_train: labelled training images.
        n_test: labelled test images.
        k: number of voters.
        knn_features: the vote of the nearest by the cosine of the features, as in `knn`.
        knn_directions: the vote of the nearest by the cosine of the directions.
        n_judged: labelled test images whose scores are judged.
        recall_at_1: share of them whose nearest training image by the features has their class.
        r_auroc: how well each score predicts that. Besides the scores of `uncertainty` there is
            `evidence`, where the loss has a radius: the log of the mean of exp(evidence) over the
            training images.
        sample: n_judged of how many labelled test images; None if they are all.
    """

    n_train: int
    n_test: int
    k: int
    knn_features: VoteAccuracy
    knn_directions: VoteAccuracy
    n_judged: int
    recall_at_1: float
    r_auroc: dict[str, ScoreArea]
    sample: "Sample | None"


# --- uncertainty ----------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Does a score predict that the nearest training image has the right class (R-AUROC)?

    Attributes:
        n: images whose class is known.
        recall_at_1: share of them whose nearest training image has their class.
        r_auroc: AUROC of each score for that.
    """

    n: int
    recall_at_1: float
    r_auroc: ByScore


@dataclass(frozen=True)
class HarmedImages:
    """Test images after a corruption, compared with the same images before it.

    Attributes:
        ranking: None without labels.
        less_certain: share of the images whose score is strictly lower than before.
        mean: mean score.
    """

    ranking: Ranking | None
    less_certain: ByScore
    mean: ByScore


@dataclass(frozen=True)
class CorruptionLevel(HarmedImages):
    """One strength of a corruption, the same for all images."""

    strength: float


@dataclass(frozen=True)
class RandomStrengths(HarmedImages):
    """Strengths drawn for each image; `spearman` correlates each score with minus the severity."""

    spearman: ByScore


@dataclass(frozen=True)
class CorruptionResult:
    """A corruption at fixed strengths, from weak to strong, and at random ones."""

    unit: str
    levels: tuple[CorruptionLevel, ...]
    random: RandomStrengths


@dataclass(frozen=True)
class PartnerResult:
    """Does a view's nearest direction among the second views of all images show the same image?

    Attributes:
        n: number of images.
        instance_match: share of the images where it does, by cosine.
        instance_match_by_evidence: the same by evidence; None without a radius.
        auroc: how well each score predicts it; `match_similarity` and `match_evidence` are those
            of the nearest view itself.
    """

    n: int
    instance_match: float
    instance_match_by_evidence: Number
    auroc: ByScore


@dataclass(frozen=True)
class Diagram:
    """A reliability diagram: per bin the number of pairs, the mean prediction and observation.

    Attributes:
        error: mean absolute difference of prediction and observation, weighted by count.
    """

    error: Number
    count: tuple[int, ...]
    predicted: tuple[Number, ...]
    observed: tuple[Number, ...]


@dataclass(frozen=True)
class ProbabilityDiagram(Diagram):
    """A reliability diagram of probabilities; `log_loss` is their mean log loss in nats."""

    log_loss: float


@dataclass(frozen=True)
class RadiusCalibration:
    """Does the product of two certainties predict the cosine of two views (theory 2 and 9)?

    A certainty is a radius here, or with a presence pi times the radius.

    Attributes:
        n: test images whose views were compared.
        n_map: training images whose views the monotone map was fitted on.
        raw: the diagram of the certainties as they are.
        mapped: the diagram after the map.
        mean_r: mean product of two certainties.
        mean_cosine: mean cosine of two views of one image.
        mean_cosine_different: mean cosine of views of different images.
    """

    n: int
    n_map: int
    raw: Diagram
    mapped: Diagram
    mean_r: float
    mean_cosine: float
    mean_cosine_different: float


@dataclass(frozen=True)
class EvidenceCalibration:
    """Is the evidence that two views show one image really a log odds in nats (theory 5, 6)?

    Attributes:
        n: images; all pairs of their views were compared.
        kernel_dimension: m with which evidence was computed.
        kernel_dimension_from: "the run" or "these views".
        log_mean_exp: log of the mean of exp(evidence) over different images; 0 for a true model.
        log_mean_exp_standard_error: of it.
        log_loss_prior: mean log loss in nats of knowing only how many pairs show one image.
        raw: evidence as it is, turned into a probability.
        mapped: after a monotone map fitted on training images.
    """

    n: int
    kernel_dimension: float
    kernel_dimension_from: str
    log_mean_exp: Number
    log_mean_exp_standard_error: Number
    log_loss_prior: float
    raw: ProbabilityDiagram
    mapped: ProbabilityDiagram


@dataclass(frozen=True)
class SelectivePrediction:
    """A classifier that may decline to answer, by each score.

    Attributes:
        error: its error rate on all images.
        aurc: area under the risk-coverage curve; `random` and `best` bound what a score can reach.
        coverage: shares of images that are answered.
        risk: error rate among them, for each score.
        r_auroc: each score's AUROC for telling the images that the classifier gets right from the
            others; empty in files of schema 5.
    """

    error: float
    aurc: ByScore
    coverage: tuple[float, ...]
    risk: dict[str, tuple[float, ...]]
    r_auroc: ByScore = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeCalibration:
    """Accuracy and expected calibration error (15 bins) of a linear probe's probabilities."""

    accuracy: float
    ece: Number


@dataclass(frozen=True)
class PredictionSets:
    """Sets of classes that contain the right one with the asked probability (split conformal).

    Attributes:
        coverage: the probability that was asked for.
        n_calibration: labelled images that the thresholds rest on; nobody learned from them.
        own_thresholds: classes with enough of these images for a threshold of their own, so that
            the coverage holds for the images of each of them alone.
        classes: number of all classes.
        n: images that have a set.
        mean_size: number of classes in a set, mean over the n images.
        empty: share of the sets that have no class.
        full: share of the sets that have all classes.
        n_observed: those images whose right class is known, that nobody learned from, and that are
            judged by thresholds which do not rest on them.
        observed: share of these whose set has the right class; None if there are none.
        interval: Wilson's, of these images. The thresholds vary as well: by calibration, the
            coverage has a standard deviation of about sqrt(coverage (1 - coverage) / n_calibration)
            (Vovk 2012).
        n_unknown: labelled images of a class that the classifier does not know. No set can have it,
            and they are not counted in `n_observed`.
        note: what the thresholds rest on, in words.
    """

    coverage: float
    n_calibration: int
    own_thresholds: int
    classes: int
    n: int
    mean_size: float
    empty: float
    full: float
    n_observed: int
    observed: Number
    interval: Interval | None
    n_unknown: int
    note: str


@dataclass(frozen=True)
class InformationSummary:
    """What the posteriors of the test images say of their latents, in nats (theory 6).

    Attributes:
        dimension: the number of coordinates d.
        mean: over images.
        quantiles: at 0.05, 0.25, 0.5, 0.75 and 0.95.
    """

    dimension: int
    mean: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Sample:
    """Images that stand for all.

    Attributes:
        n: how many were measured.
        of: how many there are.
    """

    n: int
    of: int


@dataclass(frozen=True)
class UncertaintyResult:
    """How certain the model is of each image, and whether that is right.

    Attributes:
        n_test: number of test images that were judged.
        n_train: number of training images they were compared with.
        scores: their names, the learned certainty first.
        clean: the ranking of whole images; None without labels.
        corruptions: by name.
        partner: recognising the other view of an image.
        information: None without a radius.
        calibration: None without a radius.
        evidence: None without a radius.
        selective: by classifier ("knn", "linear"); None without labels.
        probe_calibration: by features ("features", "posterior_mean"), of all test images; None
            without labels.
        skipped: what could not be measured -> why.
        sample: how many test images were judged of how many; None if all were.
        sets: by classifier ("knn", "linear"), the sets at a coverage of .9; None without labels, or
            with fewer than 9 labelled test images in a half, or in a file of schema 5.
        follows: Spearman's correlation of the certainty of the whole images with properties of
            their pixels (evaluation/picture_properties.py); empty without pixels or a certainty.
    """

    n_test: int
    n_train: int
    scores: tuple[str, ...]
    clean: Ranking | None
    corruptions: dict[str, CorruptionResult]
    partner: PartnerResult
    information: InformationSummary | None
    calibration: RadiusCalibration | None
    evidence: EvidenceCalibration | None
    selective: dict[str, SelectivePrediction] | None
    probe_calibration: dict[str, ProbeCalibration] | None
    skipped: dict[str, str]
    sample: Sample | None = None
    sets: dict[str, PredictionSets] | None = None
    follows: dict[str, Number] = field(default_factory=dict)


# --- ood ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForeignImages:
    """How well each score tells the run's own test images from others.

    Attributes:
        n: foreign images; 0 where they were skipped.
        auroc: own test images are positive; empty where they were skipped.
        note: what else differs between the two sets of images.
        skipped: why these images could not be used, or "".
    """

    n: int
    auroc: ByScore
    note: str
    skipped: str


@dataclass(frozen=True)
class HumanAgreement:
    """Spearman correlation of each score with the agreement of people on n test images."""

    n: int
    spearman: ByScore


@dataclass(frozen=True)
class OodResult:
    """Is the model less certain of images from elsewhere?

    Attributes:
        kinds: by the kind of foreign images.
        human_agreement: None where no people labelled test images.
        sample: how many of its own test images were judged of how many; None if all were. The
            images of another data set are as many at most.
    """

    kinds: dict[str, ForeignImages]
    human_agreement: HumanAgreement | None
    sample: Sample | None = None


# --- learning -------------------------------------------------------------------------


@dataclass(frozen=True)
class NegativeExample:
    """An image and the images that weigh most against it, with their shares of the gradient."""

    anchor: int
    negatives: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class GradientHistory:
    """Which negatives carry the gradient, by epoch.

    Attributes:
        epochs: of the snapshots.
        temperature: of the softmax whose weights these are.
        effective_negatives: exp of the entropy of the weights.
        top_share: weight on the hardest 1 % of the negatives.
        same_class_share: weight on negatives of the anchor's own class; None without labels.
        remaining: 1 minus the softmax probability of the partner.
        examples: rows of some anchors and their heaviest negatives, at the last epoch.
        chance_same_class: `same_class_share` if all negatives weighed the same.
    """

    epochs: tuple[int, ...]
    temperature: float
    effective_negatives: tuple[float, ...]
    top_share: tuple[float, ...]
    same_class_share: tuple[Number, ...]
    remaining: tuple[float, ...]
    examples: tuple[NegativeExample, ...]
    chance_same_class: Number


@dataclass(frozen=True)
class ClassCertainty:
    """Mean certainty of the images of each class, by epoch: one tuple for each class."""

    classes: tuple[str, ...]
    certainty: tuple[tuple[Number, ...], ...]


@dataclass(frozen=True)
class LearningResult:
    """How the representation of some fixed training images changed from epoch to epoch.

    Each tuple has a number for each of `epochs`, and is None where no snapshot holds such a number.

    Attributes:
        epochs: of the snapshots.
        images: number of fixed images.
        temperature: at which `positives` and `negatives` are taken, the same for every run.
        alignment: mean squared distance of two views (Wang and Isola 2020).
        uniformity: log of the mean Gaussian kernel of different images (the same paper).
        effective_rank: of the features (RankMe, Garrido et al. 2023); of the directions where the
            encoder is frozen, whose features stay as they are.
        cosine_different: mean cosine of different images.
        knn: accuracy on held-out training images.
        radius: mean radius of whole images.
        positives: mean logit of the partner, nats.
        negatives: mean log of the mean exponential logit of the negatives, nats.
        per_class: None without labels or without a certainty.
        gradient: which negatives carry it.
        damaged: file name -> why that snapshot could not be read.
        knn_directions: accuracy by the directions, in place of `knn`, where the encoder is frozen.
    """

    epochs: tuple[int, ...]
    images: int
    temperature: float
    alignment: tuple[Number, ...] | None
    uniformity: tuple[Number, ...] | None
    effective_rank: tuple[Number, ...] | None
    cosine_different: tuple[Number, ...] | None
    knn: tuple[Number, ...] | None
    radius: tuple[Number, ...] | None
    positives: tuple[Number, ...]
    negatives: tuple[Number, ...]
    per_class: ClassCertainty | None
    gradient: GradientHistory
    damaged: dict[str, str]
    knn_directions: tuple[Number, ...] | None = None


# --- geometry -------------------------------------------------------------------------


@dataclass(frozen=True)
class MainDirection:
    """A principal axis of the features.

    Attributes:
        axis: 0 is the one with the largest variance.
        share: of the variance.
        low: rows of images at one end, the farthest first.
        high: rows of images at the other end.
        certainty_correlation: Spearman's with the certainty.
        class_eta2: share of the variance along the axis that lies between classes.
    """

    axis: int
    share: float
    low: tuple[int, ...]
    high: tuple[int, ...]
    certainty_correlation: Number
    class_eta2: Number


@dataclass(frozen=True)
class Clustering:
    """k-means clusters of the images on the map.

    Attributes:
        k: number of clusters.
        sizes: images in each.
        purity: share of the labelled images that have the commonest class of their cluster.
        purity_of_one_cluster: the same if all images were one cluster.
    """

    k: int
    sizes: tuple[int, ...]
    purity: Number
    purity_of_one_cluster: Number


@dataclass(frozen=True)
class GeometryResult:
    """The shape of the features; `map.parquet` holds the positions of the images on the map.

    Attributes:
        n: images whose features the axes describe.
        explained: shares of the variance of the main directions, the largest first.
        directions: the main ones.
        clusters: of the images on the map.
        umap_skipped: why the map has no UMAP layout, or "".
        map_rows: images on the map.
        seed: of the images on the map, of k-means and of UMAP.
    """

    n: int
    explained: tuple[float, ...]
    directions: tuple[MainDirection, ...]
    clusters: Clustering
    umap_skipped: str
    map_rows: int
    seed: int


# --- sensitivity ----------------------------------------------------------------------


@dataclass(frozen=True)
class Responses:
    """How images respond to a transformation: a number for each strength, mean over images.

    Attributes:
        direction: cosine between the direction of the changed and of the unchanged image.
        direction_sd: standard deviation of that cosine over images.
        feature: cosine of the features.
        certainty: change of the certainty in standard deviations over unchanged images, or None.
        radius: mean radius, or None.
    """

    direction: tuple[float, ...]
    direction_sd: tuple[float, ...]
    feature: tuple[float, ...]
    certainty: tuple[Number, ...] | None
    radius: tuple[float, ...] | None


@dataclass(frozen=True)
class TransformationResult:
    """A transformation at increasing strengths.

    Attributes:
        label: its name for people.
        unit: of a strength.
        none: the strength that changes nothing.
        strengths: that were measured.
        trained: the range that training drew from, True for a coin that training tossed, False
            where training did not use it.
        responses: None where the transformation was skipped.
        skipped: why, or "".
    """

    label: str
    unit: str
    none: float
    strengths: tuple[float, ...]
    trained: tuple[float, float] | bool
    responses: Responses | None
    skipped: str


@dataclass(frozen=True)
class SensitivityResult:
    """What the encoder ignores.

    Attributes:
        n: test images that were changed.
        transformations: by name.
        different_images: mean cosine of the directions of different images, for comparison.
        different_images_feature: the same of their features.
    """

    n: int
    transformations: dict[str, TransformationResult]
    different_images: float
    different_images_feature: float


# --- explanation ----------------------------------------------------------------------


@dataclass(frozen=True)
class DeletionCurve:
    """Mean score after covering a share of the cells, in the order of the map and at random.

    Attributes:
        shares: of the cells that are covered.
        by_map: the mean score over the images.
        at_random: the mean over the images and some random orders.
        area: by how much the score is lower by the map, a mean over shares and images; None in
            results of older versions.
        interval: its 95 % bootstrap interval over images; None with a single image.
    """

    shares: tuple[float, ...]
    by_map: tuple[float, ...]
    at_random: tuple[float, ...]
    area: Number = None
    interval: Interval | None = None


@dataclass(frozen=True)
class SanityCheck:
    """Do the maps depend on what was learned (Adebayo et al. 2018)? Means over the maps.

    Attributes:
        n: number of maps.
        rank_correlation_randomised: with the maps of a network with random weights.
        rank_correlation_repeat: with the maps made with another filling.
        rank_correlation_randomised_sd: standard deviation over maps.
        rank_correlation_repeat_sd: standard deviation over maps.
        deletion: whether covering the best cells first lowers the score faster.
        passed: the verdict.
    """

    n: int
    rank_correlation_randomised: Number
    rank_correlation_repeat: Number
    rank_correlation_randomised_sd: Number
    rank_correlation_repeat_sd: Number
    deletion: DeletionCurve
    passed: bool


@dataclass(frozen=True)
class CertaintyMap:
    """Which parts of the image in `row` raise its certainty `value`; positive cells raise it."""

    row: int
    value: float
    map: Heatmap


@dataclass(frozen=True)
class PairMaps:
    """Which parts of two images speak for their being the same; one map for each image."""

    rows: tuple[int, int]
    kind: str
    value: float
    maps: tuple[Heatmap, Heatmap]


@dataclass(frozen=True)
class ExplanationResult:
    """Occlusion maps of the certainty and of the evidence, with a sanity check of each.

    Attributes:
        method: in a few words.
        patch: side of the covered window in pixels.
        cell: side of a cell of the maps in pixels.
        grid: rows and columns of a map.
        score: "radius" or "certainty"; None where the loss has no certainty.
        certainty: maps of some images; empty where the loss has no certainty.
        sanity: of these maps, or None.
        certainty_skipped: why there are no maps of the certainty, or "".
        evidence_score: "evidence" in nats, or "cosine" where the loss has no radius.
        evidence: maps of some pairs.
        sanity_evidence: of these maps.
    """

    method: str
    patch: int
    cell: int
    grid: tuple[int, int]
    score: str | None
    certainty: tuple[CertaintyMap, ...]
    sanity: SanityCheck | None
    certainty_skipped: str
    evidence_score: str
    evidence: tuple[PairMaps, ...]
    sanity_evidence: SanityCheck


# --- comparison -----------------------------------------------------------------------


@dataclass(frozen=True)
class BlockSimilarity:
    """CKA of each block of one encoder (rows) with each block of another (columns)."""

    names_a: tuple[str, ...]
    names_b: tuple[str, ...]
    matrix: tuple[tuple[Number, ...], ...]


@dataclass(frozen=True)
class Comparison:
    """How similar two runs are on the same images.

    Attributes:
        runs: names of the two run folders.
        n: images compared.
        cka_features: linear CKA of the features (Kornblith et al. 2019).
        cka_directions: of the directions.
        cka_blocks: None where the images were not at hand.
        certainty_spearman: of the two certainties; None where one run has none.
        agreement_knn: share of images for which both name the same class; None without labels.
        neighbour_overlap: share of an image's nearest images that both name, mean over images.
        neighbour_overlap_chance: that of neighbours drawn at random.
    """

    runs: tuple[str, str]
    n: int
    cka_features: Number
    cka_directions: Number
    cka_blocks: BlockSimilarity | None
    certainty_spearman: Number
    agreement_knn: Number
    neighbour_overlap: float
    neighbour_overlap_chance: float


# --- results.json ---------------------------------------------------------------------

RESULT_TYPES: dict[str, type] = {
    "linear": LinearResult,
    "knn": KnnResult,
    "heads": HeadsResult,
    "uncertainty": UncertaintyResult,
    "ood": OodResult,
    "learning": LearningResult,
    "geometry": GeometryResult,
    "sensitivity": SensitivityResult,
    "explanation": ExplanationResult,
    "comparison": Comparison,
}  # by the part of a key before the first colon; results of other names stay plain JSON


@dataclass(frozen=True)
class Provenance:
    """What a result was made of.

    Attributes:
        checkpoint: digest of the checkpoint (sha256 of its manifest).
        images: digest of pixels, paths and splits.
        labels: digest of labels and class names.
        other_checkpoint: of the second run of a comparison, else "".
        version: of SureCLR.
        time: when it was finished, UTC, ISO 8601.
        seconds: wall-clock time that it took.
        options: arguments that were not left at their defaults.
        precision: in which the network embedded the images, float32 or bfloat16. It is no part of
            the origin: a result of one machine also holds where another one would embed otherwise.
    """

    checkpoint: str
    images: str
    labels: str
    other_checkpoint: str
    version: str
    time: str
    seconds: float
    options: dict[str, Any]
    precision: str = "float32"

    def same_origin(self, other: "Provenance") -> bool:
        """Whether both were made of the same checkpoints, images and labels, with equal options."""
        names = ("checkpoint", "images", "labels", "other_checkpoint", "options")
        return all(getattr(self, name) == getattr(other, name) for name in names)


@dataclass(frozen=True, eq=False)
class Results(Mapping[str, Any]):
    """The results of a run by name: `results["knn"].accuracy`.

    Attributes:
        run: the run folder.
        entries: name -> result. Names with a colon are of other data ("knn:fashion-mnist"), of
            another run ("comparison:NAME") or of a request ("finetune:10%").
        provenance: name -> what the result was made of.
        skipped: evaluation -> why it could not be made just now.
        damaged: name -> why the stored result was left out.
        checkpoint: of which they are: "last", or a number of steps.
        out: the folder that was chosen for them, or None.
        kept: whether they are in a file; not where the run folder cannot be written.
        data: name of the images that they are of, where these are not the run's own, else "".
    """

    run: Path
    entries: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Provenance] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    checkpoint: str = "last"
    out: Path | None = None
    kept: bool = True
    data: str = ""

    @property
    def file(self) -> Path | None:
        """The results.json with these results; None where they are not kept."""
        folder = self.run if self.checkpoint == "last" else self.run / f"step-{self.checkpoint:0>9}"
        return (self.out or folder) / "results.json" if self.kept else None

    def over(self, older: "Results", run: Path) -> "Results":
        """Return these results, and those of `older` that have no newer ones of their names.

        Args:
            older: other results.
            run: the folder that both are of.
        """
        entries, provenance = older.entries | self.entries, older.provenance | self.provenance
        both = older.damaged | self.damaged
        damaged = {name: why for name, why in both.items() if name not in entries}
        return Results(run, entries, provenance, damaged=damaged)

    def __getitem__(self, name: str) -> Any:
        """Return the result of this name."""
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.entries)

    def __len__(self) -> int:
        """Return the number of results."""
        return len(self.entries)

    def __repr__(self) -> str:
        """Return one line."""
        return f"<Results of {self.run}: {', '.join(self.entries) or 'none'}>"

    def _repr_html_(self) -> str:
        """Return a table of the accuracies, for a notebook."""
        head = "<tr><th>evaluation</th><th>accuracy</th><th>95 % interval</th></tr>"
        rows = [
            f"<tr><td>{escape(name)}</td><td>{result.accuracy:.4f}</td>"
            f"<td>{result.interval[0]:.4f} to {result.interval[1]:.4f}</td></tr>"
            for name, result in self.entries.items()
            if hasattr(result, "accuracy")
        ]
        others = [escape(name) for name, r in self.entries.items() if not hasattr(r, "accuracy")]
        more = f"<p>also: {', '.join(others)}</p>" if others else ""
        return (
            f"<p>Results of {escape(str(self.run))}</p><table>{head}{''.join(rows)}</table>{more}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return what `results.json` holds."""
        return {"schema": SCHEMA} | {
            name: entry_to_json(name, result, self.provenance[name])
            for name, result in self.entries.items()
        }


def run_path(run: "str | Path | Run | Results") -> Path:
    """Return the folder of a run, however it is given."""
    if isinstance(run, str | Path):
        return Path(run)
    return run.run if isinstance(run, Results) else run.path


def save_result(run: Path, name: str, result: Any, provenance: Provenance) -> None:
    """Set one result in the `results.json` of a run folder; the others stay, damaged ones too.

    The caller holds the run's lock.

    Raises:
        UserError: the file is damaged, was written with another schema, or cannot be written.
    """
    results, content = _read(run)  # never write over a file that this version does not understand
    for key in results:
        content[key] = sealed(content[key], key)
    content[name] = entry_to_json(name, result, provenance)
    path = run / "results.json"
    try:
        write_atomically(path, json_bytes({"schema": SCHEMA, **content}))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({why(error)}).") from error


def checked_result(key: str, result: Any) -> Any:
    """Return what an evaluation returned, or raise a UserError if it cannot be kept."""
    try:
        if is_dataclass(result) or isinstance(result, dict):
            content = to_json(result)
            json.dumps(content, allow_nan=False)
            if content.keys().isdisjoint(TAKEN):
                return result
    except (TypeError, ValueError):
        pass
    raise UserError(
        f"the evaluation {key} must return a dataclass, or a dict without the keys"
        f" {' and '.join(TAKEN)}, of plain numbers, strings, lists and dicts; it returned"
        f" {type(result).__name__}."
    )


def entry_to_json(name: str, result: Any, provenance: Provenance) -> dict[str, Any]:
    """Return one entry of `results.json`: the result's own keys, `provenance` and `sha256`.

    The sha256 is of all others and of the name.
    """
    return sealed({**to_json(result), "provenance": to_json(provenance)}, name)


def read_results(run: Path, *, quiet: bool = False) -> Results:
    """Read `results.json` of a run folder; no file means no results.

    A result that does not match its checksum is left out: `.damaged` names it.

    Args:
        run: the folder.
        quiet: whether damaged results are not named on stderr as well.

    Raises:
        UserError: the file is damaged as a whole, or was written with another schema.
    """
    results, _ = _read(run)
    if results.damaged and not quiet:
        print(damage_text(results), file=sys.stderr)
    return results


def precision_text(results: Results) -> str:
    """Return one sentence if these results were made in more than one precision, else "".

    Differences between them may then be those of the precisions.
    """
    made_in = {name: made.precision for name, made in results.provenance.items()}
    kinds = sorted(set(made_in.values()))
    if len(kinds) < 2:
        return ""
    parts = [f"{', '.join(n for n in made_in if made_in[n] == kind)} in {kind}" for kind in kinds]
    return (
        f"These results were not made in one precision ({'; '.join(parts)}), so small differences"
        " between them may come from that; to have all in one, move results.json away and evaluate"
        " again."
    )


def damage_text(results: Results) -> str:
    """Return one sentence that names the damaged results.

    >>> damage_text(Results(Path("a"), damaged={"knn": "a list"}))
    'a/results.json: knn is damaged (a list) and left out; evaluate it again, or delete it there.'
    """
    names = [f"{name!r:.60}"[1:-1] for name in results.damaged]
    reason = next(iter(results.damaged.values()))
    one = len(names) == 1
    return (
        f"{results.run / 'results.json'}: {', '.join(names)} {'is' if one else 'are'} damaged"
        f" ({reason}) and left out; evaluate {'it' if one else 'them'}"
        f" again, or delete {'it' if one else 'them'} there."
    )


def _read(run: Path) -> tuple[Results, dict[str, Any]]:
    """The results of a folder, and the JSON of each, of damaged ones too."""
    path = run / "results.json"
    if not os.path.lexists(path):
        return Results(run), {}
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}); move it away and evaluate the run again."
        ) from error
    schema = content.pop("schema", None)
    if type(schema) is not int or schema not in READABLE:
        raise UserError(
            f"{path} was written by another version of SureCLR (this one reads schemas up to"
            f" {SCHEMA}); move it away and evaluate the run again."
        )
    results = Results(run)
    for name, entry in content.items():
        try:
            values = unsealed(entry, name, required=schema not in UNSEALED)
            result, provenance = _parsed_entry(name, values)
        except (ValueError, OverflowError, RecursionError) as error:
            results.damaged[name] = f"{' '.join(str(error).split()):.200}"
            continue
        results.entries[name], results.provenance[name] = result, provenance
    return results, content


def _parsed_entry(name: str, entry: dict[str, Any]) -> tuple[Any, Provenance]:
    """The result and its provenance; a SchemaError where they have another form."""
    values = dict(entry)
    origin = values.pop("provenance", None)
    provenance = from_json(Provenance, origin, f"{name}.provenance")
    record = RESULT_TYPES.get(name.split(":")[0])
    return values if record is None else from_json(record, values, name), provenance
