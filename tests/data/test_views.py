"""Views against torchvision at the same parameters, the parameters against their laws, SplitMix64
against plain integers.
"""

import dataclasses
import math
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import functional as F

from sureclr.config import ViewConfig
from sureclr.data import colour
from sureclr.data.counter_rng import hashed, mix, sample_rows, shuffled, uniform_numbers
from sureclr.data.crops import crop_and_flip
from sureclr.data.pictures import Pictures
from sureclr.data.view_parameters import draw_parameters, plan_views
from sureclr.data.views import (
    augment,
    blur,
    one_view,
    two_views,
    views_of,
)
from sureclr.errors import UserError
from sureclr.reporting.figures import augmented_pairs

N = 40_000  # draws for the laws
SEEDS = torch.arange(N)
P_MIN = 1e-3  # the seeds are fixed: a test that passes once passes always
OFF = ViewConfig(crop_area=(1, 1), crop_aspect=(1, 1), flip=0, jitter_p=0, grey_p=0, blur_p=0)


def pictures(n: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Noise, the hardest input for a resampler, with a black, a white and a grey image for the
    corners of HSV.
    """
    images = torch.randint(
        0,
        256,
        (n, channels, height, width),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    images[0], images[1], images[2] = 0, 255, images[2, :1]
    return images


def each(function: Callable[..., Tensor], x: Tensor, *parameters: list) -> Tensor:
    """The witness: one image at a time."""
    return torch.stack(
        [function(image, *values) for image, *values in zip(x, *parameters, strict=True)]
    )


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=0, atol=tolerance)


# ---- each operation is torchvision's


@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (1, 28, 28), (3, 96, 96), (3, 40, 56), (1, 8, 8), (3, 224, 224)]
)
@pytest.mark.parametrize("antialias", [True, False])
def test_crop_and_flip_is_torchvisions(shape: tuple[int, int, int], antialias: bool) -> None:
    """In float64: torchvision's own float32 is 8e-6 off at 96 px, 2e-5 at 224. Antialias changes
    nothing, as no crop shrinks.
    """
    images, size = pictures(24, *shape), list(shape[1:])
    drawn = draw_parameters(torch.arange(24), 0, *shape[1:], ViewConfig())
    assert drawn.flip.unique().numel() == 2

    def witness(image: Tensor, box: list[int], flip: bool) -> Tensor:
        cut = F.resized_crop(image, *box, size, antialias=antialias)
        return F.hflip(cut) if flip else cut

    theirs = each(witness, images.double() / 255, drawn.box.tolist(), drawn.flip.tolist())
    close(crop_and_flip(images, drawn.box, drawn.flip), theirs, 1e-6)


@pytest.mark.parametrize(
    "box", [[0, 0, 1, 1], [31, 31, 1, 1], [0, 0, 32, 32], [5, 9, 1, 20], [0, 31, 32, 1]]
)
def test_extreme_boxes(box: list[int]) -> None:
    images = pictures(3)
    theirs = each(lambda image: F.resized_crop(image, *box, [32, 32]), images.double() / 255)
    close(
        crop_and_flip(images, torch.tensor([box] * 3), torch.zeros(3, dtype=torch.bool)),
        theirs,
        1e-6,
    )


FACTORS = {
    colour.brightness: (F.adjust_brightness, 0.0, 1.8),
    colour.contrast: (F.adjust_contrast, 0.0, 1.8),
    colour.saturation: (F.adjust_saturation, 0.0, 1.8),
    colour.hue: (F.adjust_hue, -0.5, 0.5),
}


@pytest.mark.parametrize("ours", FACTORS, ids=lambda operation: operation.__name__)
def test_colour_operations_are_torchvisions(ours: Callable[[Tensor, Tensor], Tensor]) -> None:
    theirs, low, high = FACTORS[ours]
    x, factors = pictures(41).float() / 255, torch.linspace(low, high, 41)
    close(ours(x, factors), each(theirs, x, factors.tolist()))


def test_every_colour_of_the_cube_keeps_its_hue_law() -> None:
    """All 18^3 colours on a grid with every tie of channels, as one picture, at several turns."""
    level = torch.linspace(0, 1, 18)
    cube = (
        torch.cartesian_prod(level, level, level)
        .T.reshape(1, 3, 72, 81)
        .expand(9, -1, -1, -1)
        .contiguous()
    )
    turns = torch.linspace(-0.5, 0.5, 9)
    close(colour.hue(cube, turns), each(F.adjust_hue, cube, turns.tolist()))


def test_grey_is_torchvisions() -> None:
    x = pictures(5).float() / 255
    close(colour.grey(x), F.rgb_to_grayscale(x))


@pytest.mark.parametrize(("size", "radius"), [(32, 1), (40, 2), (96, 4)])
def test_blur_is_torchvisions(size: int, radius: int) -> None:
    x, sigma = pictures(20, 3, size, size + 7).float() / 255, torch.linspace(0.1, 2, 20)
    close(
        blur(x, sigma, radius),
        each(lambda image, s: F.gaussian_blur(image, 2 * radius + 1, s), x, sigma.tolist()),
    )


Row = list


def witness_view(
    image: Tensor,
    box: Row,
    flip: bool,
    factors: Row,
    order: Row,
    grey: bool,
    sigma: float,
    radius: int,
) -> Tensor:
    """SimCLR's augmentation of one image with torchvision's functions."""
    channels, *size = image.shape
    x = F.resized_crop(image.double() / 255, *box, size).float()
    x = F.hflip(x) if flip else x
    for step in order:
        x = (
            x
            if step < 0
            else (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)[step](
                x, factors[step]
            )
        )
    x = F.rgb_to_grayscale(x, channels) if grey else x
    return F.gaussian_blur(x, 2 * radius + 1, sigma) if radius and sigma else x


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 24, 40), (1, 8, 8), (3, 96, 96)])
def test_a_view_is_torchvisions_chain(shape: tuple[int, int, int]) -> None:
    images, config = pictures(64, *shape), ViewConfig()
    drawn, radius = (
        draw_parameters(torch.arange(64), 1, *shape[1:], config),
        config.blur_radius(*shape[1:]),
    )
    values = [getattr(drawn, field.name).tolist() for field in dataclasses.fields(drawn)]
    theirs = each(lambda *one: witness_view(*one, radius), images, *values)
    close(augment(images, drawn, radius), theirs)
    close(one_view(images, torch.arange(64), 1, config), theirs)
    plan = plan_views(Pictures.of_array(images), torch.arange(64), (1,), *shape[1:], config)
    close(views_of(images.view(-1), plan.packed(), plan.form), theirs)


def test_greyscale_images_have_neither_hue_nor_saturation() -> None:
    images, seeds = pictures(64, 1), torch.arange(64)
    config = ViewConfig(brightness=0, contrast=0, blur_p=0)
    close(
        one_view(images, seeds, 0, config),
        one_view(images, seeds, 0, dataclasses.replace(config, jitter_p=0, grey_p=0)),
        0,
    )


def test_grey_views_have_equal_channels() -> None:
    views_ = one_view(pictures(20), torch.arange(20), 0, ViewConfig(grey_p=1, blur_p=1))
    close(views_, views_[:, :1].expand(-1, 3, -1, -1), 1e-7)


# ---- off, range, seeds


def test_everything_off_is_the_image_itself() -> None:
    images = pictures(30)
    close(two_views(images, torch.arange(30), OFF), torch.cat([images, images]).float() / 255, 0)


@pytest.mark.parametrize(
    "change",
    [{"flip": 1}, {"jitter_p": 1}, {"grey_p": 1}, {"blur_p": 1}, {"crop_area": (0.3, 0.5)}],
)
def test_each_probability_switches_its_own_operation(change: dict) -> None:
    images = pictures(30)[3:]
    changed = (
        one_view(images, torch.arange(27), 0, dataclasses.replace(OFF, **change))
        - images.float() / 255
    )
    assert (
        changed.abs().amax(dim=(1, 2, 3)) > 0.01
    ).float().mean() > 0.75  # some sigmas and factors do nearly nothing


def test_strength_zero_jitters_nothing() -> None:
    images = pictures(30)
    close(
        one_view(images, torch.arange(30), 0, dataclasses.replace(OFF, jitter_p=1, strength=0)),
        images.float() / 255,
        1e-6,
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_views_lie_in_the_unit_interval(channels: int) -> None:
    images = torch.where(pictures(300, channels) > 127, 255, 0).to(torch.uint8)
    seeds, config = torch.arange(300), ViewConfig()
    plan = plan_views(Pictures.of_array(images), seeds, (0, 1), 32, 32, config)
    together = views_of(images.view(-1), plan.packed(), plan.form)
    for v in (two_views(images, seeds, config), together):
        assert v.shape == (600, channels, 32, 32) and v.dtype == torch.float32
        assert v.min() >= 0 and v.max() <= 1 and v.max() > 0.99


def test_a_view_depends_on_its_own_seed_alone() -> None:
    images, seeds, config = pictures(50), torch.arange(50) * 7 - 20, ViewConfig()
    whole = two_views(images, seeds, config)
    some = torch.tensor([41, 3, 17])
    close(two_views(images[some], seeds[some], config), whole[torch.cat([some, some + 50])], 1e-6)


@pytest.mark.parametrize("images_at_once", [1, 7, 49, 50, 51])
def test_how_many_images_a_core_takes_changes_nothing(images_at_once: int) -> None:
    images, seeds, config = pictures(50), torch.arange(50), ViewConfig()
    numbers = images_at_once * images[0].numel()
    close(
        one_view(images, seeds, 1, config, numbers_at_once=numbers),
        two_views(images, seeds, config)[50:],
        1e-6,
    )


def test_two_views_are_view_0_and_view_1_and_differ() -> None:
    images, seeds, config = pictures(50)[3:], torch.arange(47), ViewConfig()
    both = two_views(images, seeds, config)
    close(both[:47], one_view(images, seeds, 0, config), 0)
    close(both[47:], one_view(images, seeds, 1, config), 0)
    assert (both[:47] - both[47:]).abs().amax(dim=(1, 2, 3)).min() > 0.1
    assert (both - two_views(images, seeds + 1000, config)).abs().amax(dim=(1, 2, 3)).min() > 0.1


def test_images_that_are_not_contiguous() -> None:
    images, seeds = pictures(20), torch.arange(20)
    flipped_twice = images.to(memory_format=torch.channels_last)
    close(two_views(flipped_twice, seeds, ViewConfig()), two_views(images, seeds, ViewConfig()), 0)


def test_the_sheet_shows_images_and_views_pixel_by_pixel(tmp_path: Path) -> None:
    images, seeds, config = pictures(6)[3:], torch.arange(3), ViewConfig()
    augmented_pairs(images, config, seeds, tmp_path / "new" / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png").convert("RGB"))
    views_ = two_views(images, seeds, config).mul(255).round().byte()
    for place, picture in enumerate(
        (*images, *views_)
    ):  # image, view 0 and view 1 from left to right
        cell = (
            picture.permute(1, 2, 0).numpy().repeat(3, axis=0).repeat(3, axis=1)
        )  # 96 pixels a side
        corners = np.argwhere((sheet[:-95, :-95] == cell[0, 0]).all(axis=2))
        lefts = {x for y, x in corners if (sheet[y : y + 96, x : x + 96] == cell).all()}
        assert len(lefts) == 1 and lefts.pop() // 100 == place // 3


def test_the_sheet_ends_with_a_row_of_null_views(tmp_path: Path) -> None:
    """Six pictures are two columns of three, so six null views are asked for, and all are there."""
    images, seeds = pictures(6), torch.arange(6)
    plain, path = tmp_path / "plain.png", tmp_path / "sheet.png"
    empty = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    augmented_pairs(images, ViewConfig(), seeds, plain)
    augmented_pairs(images, ViewConfig(), seeds, path, nulls=lambda n: empty[:n], kinds=("a",))
    sheet, before = (np.asarray(Image.open(file).convert("RGB")) for file in (path, plain))
    assert sheet.shape[1] == before.shape[1] and sheet.shape[0] > before.shape[0] + 98
    corners = []
    for picture in empty.mul(255).round().byte():
        cell = picture.permute(1, 2, 0).numpy().repeat(3, axis=0).repeat(3, axis=1)
        found = np.argwhere((sheet[:-95, :-95] == cell[0, 0]).all(axis=2))
        (corner,) = {(y, x) for y, x in found if (sheet[y : y + 96, x : x + 96] == cell).all()}
        corners.append(corner)
    assert len({y for y, _ in corners}) == 1 and corners == sorted(corners)
    assert corners[0][0] > before.shape[0] - 16


def test_a_sheet_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        augmented_pairs(pictures(3), ViewConfig(), torch.arange(3), tmp_path / "file" / "sheet.png")


# ---- the laws of the parameters


def uniformly(sample: Tensor, low: float, high: float) -> float:
    """p-value of Kolmogorov and Smirnov's test against U(low, high)."""
    return float(stats.kstest(sample.double().numpy(), stats.uniform(low, high - low).cdf).pvalue)


def share(mask: Tensor, probability: float) -> float:
    """p-value of a share of `mask`."""
    return float(stats.binomtest(int(mask.sum()), len(mask), probability).pvalue)


def boxes(config: ViewConfig, height: int = 1000, width: int = 1000) -> tuple[Tensor, Tensor]:
    """Area (a fraction) and log aspect of the crops of a large image, where rounding to pixels does
    not show.
    """
    h, w = draw_parameters(SEEDS, 0, height, width, config).box[:, 2:].double().unbind(1)
    return h * w / (height * width), (w / h).log()


@pytest.mark.parametrize("aspect", [(3 / 4, 4 / 3), (0.75, 0.9), (1.0, 1.3)])
def test_area_is_uniform_and_aspect_log_uniform(aspect: tuple[float, float]) -> None:
    """Up to area 0.7 every candidate fits a square image, so the accepted ones follow the law
    itself.
    """
    area, log_aspect = boxes(ViewConfig(crop_area=(0.08, 0.7), crop_aspect=aspect))
    assert uniformly(area, 0.08, 0.7) > P_MIN
    assert uniformly(log_aspect, *map(math.log, aspect)) > P_MIN
    assert abs(np.corrcoef(area, log_aspect)[0, 1]) < 0.02


def test_crops_are_distributed_as_torchvisions() -> None:
    """At the default area candidates are rejected: against torchvision's own sampler, on an oblong
    image.
    """
    from torchvision.transforms import RandomResizedCrop

    image = torch.empty(1, 60, 90)
    torch.manual_seed(0)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4_000)]
    )
    ours = draw_parameters(SEEDS, 0, 60, 90, ViewConfig()).box
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > P_MIN
    assert (
        (ours[:, :2] >= 0)
        & (ours[:, 2:] > 0)
        & (ours[:, :2] + ours[:, 2:] <= torch.tensor([60, 90]))
    ).all()


def test_corners_are_uniform_over_the_places_that_fit() -> None:
    box = draw_parameters(
        SEEDS, 0, 8, 8, ViewConfig(crop_area=(0.25, 0.25), crop_aspect=(1, 1))
    ).box  # five places each way
    assert box[:, 2:].unique().tolist() == [4]
    counts = torch.bincount(box[:, 0] * 5 + box[:, 1], minlength=25)
    assert stats.chisquare(counts.numpy()).pvalue > P_MIN


@pytest.mark.parametrize("shape", [(100, 10), (10, 100), (30, 30)])
def test_where_no_candidate_fits_the_crop_is_torchvisions_central_one(
    shape: tuple[int, int],
) -> None:
    from torchvision.transforms import RandomResizedCrop

    aspect = (3 / 4, 4 / 3) if shape != (30, 30) else (1.2, 1.3)
    theirs = RandomResizedCrop.get_params(torch.empty(1, *shape), [1.0, 1.0], list(aspect))
    box = draw_parameters(
        torch.arange(5), 0, *shape, ViewConfig(crop_area=(1, 1), crop_aspect=aspect)
    ).box
    assert box.tolist() == [list(theirs)] * 5


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_probabilities_factors_and_sigma(strength: float) -> None:
    drawn = draw_parameters(SEEDS, 0, 32, 32, ViewConfig(strength=strength))
    assert share(drawn.flip, 0.5) > P_MIN
    assert share(drawn.grey, 0.2) > P_MIN
    assert share(drawn.order[:, 0] >= 0, 0.8) > P_MIN
    assert share(drawn.sigma > 0, 0.5) > P_MIN
    assert uniformly(drawn.sigma[drawn.sigma > 0], 0.1, 2.0) > P_MIN
    for column in range(3):
        assert uniformly(drawn.factors[:, column], 1 - 0.8 * strength, 1 + 0.8 * strength) > P_MIN
    assert uniformly(drawn.factors[:, 3], -0.2 * strength, 0.2 * strength) > P_MIN


def test_factors_never_go_below_zero() -> None:
    drawn = draw_parameters(SEEDS, 0, 32, 32, ViewConfig(strength=2.0))
    assert uniformly(drawn.factors[:, 0], 0, 2.6) > P_MIN  # torchvision: [max(0, 1 - b), 1 + b]


def test_the_24_orders_are_equally_likely_and_independent_of_the_factors() -> None:
    drawn = draw_parameters(SEEDS, 0, 32, 32, ViewConfig(jitter_p=1))
    orders = [tuple(order) for order in drawn.order.tolist()]
    counts = [orders.count(order) for order in permutations(range(4))]
    assert sum(counts) == N and stats.chisquare(counts).pvalue > P_MIN
    first = drawn.order.argsort(dim=1)[:, 0].double()  # when brightness comes
    assert abs(np.corrcoef(first, drawn.factors[:, 0])[0, 1]) < 0.02


def test_no_two_parameters_go_together() -> None:
    """Independence of all numbers of one view and of the two views of an image: the largest of all
    correlations.
    """
    columns = []
    for view in (0, 1):
        p = draw_parameters(
            SEEDS, view, 500, 500, ViewConfig(crop_area=(0.1, 0.3), jitter_p=1, blur_p=1)
        )
        place = p.box[:, :2] / (500 - p.box[:, 2:])
        columns += [
            p.box[:, 2:].prod(1),
            p.box[:, 2] / p.box[:, 3],
            *place.T,
            *p.factors.T,
            p.order[:, 0],
            p.sigma,
        ]
        p = draw_parameters(SEEDS, view, 500, 500, ViewConfig(crop_area=(0.1, 0.3)))
        columns += [p.flip, p.grey, p.order[:, 0] >= 0, p.sigma > 0]  # the coins
    correlation = np.corrcoef(torch.stack([column.double() for column in columns]).numpy())
    assert np.abs(correlation - np.eye(len(columns))).max() < 5 / math.sqrt(N)


@pytest.mark.parametrize(
    ("size", "kernel"), [(8, 1), (19, 1), (20, 3), (28, 3), (32, 3), (40, 5), (96, 9), (224, 23)]
)
def test_blur_kernels(size: int, kernel: int) -> None:
    assert 2 * ViewConfig().blur_radius(size, size) + 1 == kernel
    assert 2 * ViewConfig().blur_radius(size, size + 100) + 1 == kernel


# ---- the generator


def splitmix(state: int) -> int:
    """Steele, Lea and Flood's mixer in Python's unbounded integers."""
    mask = (1 << 64) - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_mix_is_splitmix64() -> None:
    """The published first outputs for the seed 1234567, and the plain integers for many words,
    negative ones included.
    """
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + (k + 1) * golden) % 2**64 for k in range(3)]
    assert [splitmix(state) for state in states] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    words = [*states, 0, 1, 2**63, 2**64 - 1]
    signed = torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64))
    assert mix(signed).numpy().view(np.uint64).tolist() == [splitmix(word) for word in words]


@pytest.mark.parametrize("stream", [0, 1, 2**40])
def test_hashed_is_a_splitmix64_sequence_for_each_seed_and_stream(stream: int) -> None:
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    seeds = [0, 5, -3]
    bases = [
        splitmix((splitmix((seed + golden) & mask) + stream * golden) & mask) for seed in seeds
    ]
    words = [[splitmix((base + (k + 1) * golden) & mask) for k in range(4)] for base in bases]
    assert hashed(torch.tensor(seeds), stream, 4).numpy().view(np.uint64).tolist() == words


@pytest.mark.parametrize(("stream", "seed"), [(0, 0), (7, 0), (7, 2)])
def test_an_order_by_hashes_is_each_rows_own(stream: int, seed: int) -> None:
    """By splitmix in Python; and rows that are left out leave the others in their order, which a
    permutation would not.
    """
    rows, mask = [3, 8, 11, 20, 31, 47], (1 << 64) - 1
    golden = 0x9E3779B97F4A7C15

    def word(row: int, stream: int, seed: int) -> int:
        state = splitmix(
            (splitmix(((row + (seed << 32)) + golden) & mask) + stream * golden) & mask
        )
        value = splitmix((state + golden) & mask)
        return value - (1 << 64) if value >> 63 else value

    order = sorted(rows, key=lambda row: word(row, stream, seed))
    assert shuffled(torch.tensor(rows), stream, seed).tolist() == order
    assert sample_rows(torch.tensor(rows), 4, stream, seed).tolist() == sorted(order[:4])
    assert sample_rows(torch.tensor(rows), 6, stream, seed).tolist() == rows
    assert sample_rows(torch.tensor(rows), 7, stream, seed).tolist() == rows  # fewer than wanted
    assert shuffled(torch.tensor(rows[::2]), stream, seed).tolist() == [
        row for row in order if row in rows[::2]
    ]


def test_uniform_numbers() -> None:
    u = uniform_numbers(SEEDS, 3, 8)
    assert u.dtype == torch.float64 and u.min() >= 0 and u.max() < 1
    assert all(uniformly(column, 0, 1) > P_MIN for column in u.T)
    assert np.abs(np.corrcoef(u.T.numpy()) - np.eye(8)).max() < 5 / math.sqrt(N)
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 5 / math.sqrt(N)  # neighbouring seeds
    assert hashed(SEEDS, 0, 4).unique().numel() == 4 * N


# ---- bad input


@pytest.mark.parametrize(
    "change",
    [
        {"flip": 1.1},
        {"flip": -0.001},
        {"crop_area": (0.5, 1.001)},
        {"strength": 2.51},  # hue 0.502
        {"strength": math.inf},
        {"jitter_p": -0.1},
        {"grey_p": float("nan")},
        {"crop_area": (0, 1)},
        {"crop_area": (0.5, 1.5)},
        {"crop_area": (0.9, 0.5)},
        {"crop_aspect": (0.75, math.inf)},
        {"strength": -1},
        {"strength": 3},  # hue 0.6
        {"hue": 0.6},
        {"blur_sigma": (0, 2)},
        {"blur_kernel": 2},
    ],
)
def test_impossible_settings_are_named(change: dict) -> None:
    key, value = next(iter(change.items()))
    with pytest.raises(UserError, match=r"views\.") as error:
        ViewConfig(**change)
    assert str(value) in str(error.value) and (key in str(error.value))


@pytest.mark.parametrize(
    "config",
    [
        {"flip": 0, "jitter_p": 1, "grey_p": 0, "blur_p": 1, "blur_kernel": 1},
        {"strength": 2.5},  # hue 0.5
        {"hue": 0.5},
        {"crop_area": (1e-6, 1.0)},
        {"blur_sigma": (2.0, 2.0)},
        {"strength": 0},
    ],
)
def test_settings_at_the_edge_are_accepted(config: dict) -> None:
    views = two_views(pictures(4), torch.arange(4), ViewConfig(**config))
    assert views.shape == (8, 3, 32, 32) and views.isfinite().all()


def test_light_views_are_large_crops_and_flips_alone() -> None:
    assert ViewConfig.light(0.25) == dataclasses.replace(
        OFF, crop_area=(0.5, 1), flip=0.25, crop_aspect=ViewConfig().crop_aspect
    )
    assert ViewConfig.light().flip == 0.5


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8), pictures(3, 33, 8, 8), pictures(3)[0], pictures(3)[:0]]
)
def test_other_images_are_refused(images: Tensor) -> None:
    with pytest.raises(UserError, match="uint8 images"):
        one_view(images, torch.arange(len(images)), 0, ViewConfig())


@pytest.mark.parametrize("seeds", [torch.arange(4), torch.arange(3.0)])
def test_seeds_that_do_not_fit_are_refused(seeds: Tensor) -> None:
    with pytest.raises(UserError, match="need 3 int64 seeds, one an image"):
        two_views(pictures(3), seeds, ViewConfig())
