"""Partially whitened rows and Mahalanobis distances: laws, and formulas written out with numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths.metrics import auroc
from sureclr.maths.neighbours import top_k
from sureclr.maths.whitening import LEAST_SHARE, PrincipalAxes, principal_axes


def unit_principal_axes(train: Tensor) -> PrincipalAxes:
    """Those of rows of length 1."""
    return principal_axes(train, of_unit_rows=True)


def clusters(n: int, f: int, seed: int, spread: float = 3.0) -> Tensor:
    """Rows near a few centres; the coordinates have very different variances."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -spread, f)
    centre = torch.randn(5, f, generator=torch.Generator().manual_seed(99))
    rows = centre[torch.arange(n) % 5] + 0.3 * torch.randn(n, f, generator=generator)
    return rows * scale + 0.5


SIZES = [(300, 12), (20, 64)]  # more images than dimensions, and fewer


@pytest.mark.parametrize(("n", "f"), SIZES)
@pytest.mark.parametrize("scale", [1e-3, 1e3, 1e-30, 1e30])
def test_the_scale_of_features_changes_nothing(n: int, f: int, scale: float) -> None:
    train, new = clusters(n, f, 0), clusters(30, f, 1)
    plain, scaled = principal_axes(train), principal_axes(train * scale)
    for exponent in (0.0, 0.25, 0.5):
        a, b = plain.whitened(new, exponent), scaled.whitened(new * scale, exponent)
        assert torch.allclose(a, b, atol=2e-5)
    plain, scaled = unit_principal_axes(train), unit_principal_axes(train * scale)
    near, far = plain.distances(new), scaled.distances(new * scale)
    assert torch.allclose(near, far, rtol=1e-3)
    each = torch.rand(30, 1, generator=torch.Generator().manual_seed(2)) + 0.1  # row by row
    assert torch.allclose(plain.distances(new * each), near, rtol=1e-3)


@pytest.mark.parametrize(("n", "f"), SIZES)
def test_strange_rows_are_far_whatever_scale_and_number_of_images(n: int, f: int) -> None:
    """The failure of a peer's release: an AUROC of .50 after a scaling, or with few images."""
    train, new = clusters(n, f, 0), clusters(40, f, 1)
    strange = torch.randn(40, f, generator=torch.Generator().manual_seed(3))
    target = torch.arange(80) >= 40
    for scale in (1.0, 1e-3, 1e3):
        axes = unit_principal_axes(train * scale)
        distance = axes.distances(torch.cat([new, strange]) * scale)
        assert auroc(distance, target) > 0.99


@pytest.mark.parametrize(("n", "f"), SIZES)
def test_turning_features_or_adding_empty_columns_changes_nothing(n: int, f: int) -> None:
    """Empty columns make more dimensions than images, and no image says anything of them."""
    train, new = clusters(n, f, 0).double(), clusters(30, f, 1).double()
    turn = torch.linalg.qr(torch.randn(f, f, dtype=torch.float64))[0]
    wide = torch.nn.functional.pad(turn, (0, 50))
    plain, turned = principal_axes(train), principal_axes(train @ wide)
    for exponent in (0.0, 0.3, 0.5):
        a, b = plain.whitened(new, exponent), turned.whitened(new @ wide, exponent)
        assert torch.allclose(a @ a.T, b @ b.T, atol=2e-5)
    plain, turned = unit_principal_axes(train), unit_principal_axes(train @ wide)
    assert torch.allclose(plain.distances(new), turned.distances(new @ wide), rtol=1e-6)


@pytest.mark.parametrize(("n", "f"), SIZES)
def test_both_are_the_formulas_written_out(n: int, f: int) -> None:
    train, new = clusters(n, f, 0), clusters(30, f, 1)
    x = train.double().numpy()
    mean, covariance = x.mean(0), np.cov(x.T, bias=True)
    variance, axes = np.linalg.eigh(covariance)
    raised = np.maximum(variance, LEAST_SHARE * variance.max())
    for exponent in (0.0, 0.25, 0.5):
        rows = (new.double().numpy() - mean) @ axes * raised**-exponent
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        found = principal_axes(train).whitened(new, exponent).double().numpy()
        assert np.allclose(found @ found.T, rows @ rows.T, atol=1e-5)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    covariance = np.cov(x.T, bias=True)
    variance, axes = np.linalg.eigh(covariance)
    raised = np.maximum(variance, LEAST_SHARE * variance.max())
    inverse = (axes / raised) @ axes.T
    y = new.double().numpy()
    y = y / np.linalg.norm(y, axis=1, keepdims=True) - x.mean(0)
    wanted = np.sqrt(np.einsum("ij,jk,ik->i", y, inverse, y))
    assert np.allclose(unit_principal_axes(train).distances(new), wanted, rtol=1e-6)


def test_blocks_change_nothing_and_a_far_mean_loses_no_digits() -> None:
    train = clusters(300, 12, 0).double()
    whole, parts = principal_axes(train), principal_axes(train, block=7)
    assert torch.allclose(whole.variance, parts.variance, rtol=1e-10)
    far = principal_axes(train + 1e5)
    assert torch.allclose(far.variance, whole.variance, rtol=1e-5)
    assert torch.allclose(far.mean - 1e5, whole.mean, atol=1e-8)
    assert torch.allclose(whole.distances(train), whole.distances(train, block=7), rtol=1e-12)


def test_whitened_axes_have_equal_variance() -> None:
    """At 1/2, before the rows get the length 1, every principal coordinate has the same variance.

    So the whitened rows of a normal law are uniform on the sphere: their second moment is 1 / f.
    """
    f = 6
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, f, generator=generator) * torch.logspace(0, -1, f) + 3
    rows = principal_axes(x).whitened(x, 0.5).double()
    assert torch.allclose(rows.T @ rows / len(x), torch.eye(f).double() / f, atol=6e-3)


def test_exponent_0_is_the_cosine_of_centred_features() -> None:
    train, new = clusters(100, 8, 0), clusters(9, 8, 1)
    rows = principal_axes(train).whitened(new, 0.0)
    wanted = torch.nn.functional.normalize(new - train.mean(0), dim=1)
    assert torch.allclose(rows @ rows.T, wanted @ wanted.T, atol=1e-5)


def test_neighbours_can_be_searched_in_whitened_features() -> None:
    train, new = clusters(100, 8, 0), clusters(9, 8, 1)
    axes = principal_axes(train)
    similarity, index = top_k(new, train, 3, key_block=11, unit=axes.whitening(0.3))
    cosine = axes.whitened(new, 0.3) @ axes.whitened(train, 0.3).T
    wanted = cosine.sort(dim=1, descending=True)
    assert torch.equal(index, wanted.indices[:, :3])
    assert torch.allclose(similarity, wanted.values[:, :3], atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.0])
def test_constant_features_are_all_alike_and_another_row_is_far(value: float) -> None:
    train = torch.full((50, 8), value)
    axes = unit_principal_axes(train)
    near = axes.distances(train[:3])
    assert float(near.max()) < 1e-6 and torch.equal(near, near[:1].expand(3))
    other = train[:1].clone()
    other[0, 0] += 1
    assert axes.distances(other).isfinite().all() and float(axes.distances(other)) > 1e3
    rows = principal_axes(train).whitened(train, 0.3)
    assert torch.equal(rows, torch.zeros(50, 8))


def test_one_image_and_rows_of_zeros_are_numbers() -> None:
    one = clusters(1, 8, 0)
    axes = unit_principal_axes(one)
    assert float(axes.distances(one)) == 0 and float(axes.distances(-one)) > 1e3
    new = torch.cat([torch.zeros(2, 8), clusters(2, 8, 1)])
    few = unit_principal_axes(torch.cat([torch.zeros(5, 8), clusters(20, 8, 0)]))
    assert few.distances(new).isfinite().all() and few.distances(new)[0] == few.distances(new)[1]
    assert principal_axes(one).whitened(new, 0.5).isfinite().all()


def test_half_precision_is_computed_in_full() -> None:
    """Squares of 300 overflow in float16, and sums of 5,000 rows lose their digits there."""
    train, new = 300 * clusters(5000, 8, 0, 1.0), 300 * clusters(9, 8, 1, 1.0)
    half, full = principal_axes(train.half()), principal_axes(train.half().float())
    assert torch.equal(half.variance, full.variance)
    rows = half.whitened(new.half(), 0.25)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, full.whitened(new.half().float(), 0.25))
    near = unit_principal_axes(train.half()).distances(new.half())
    assert near.dtype == torch.float64
    assert torch.equal(near, unit_principal_axes(train.half().float()).distances(new.half()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    train = clusters(20, 4, 0)
    broken = train.clone()
    broken[3, 1] = bad
    with pytest.raises(UserError, match="1 of 20 rows"):
        principal_axes(broken)
    with pytest.raises(UserError, match="1 of 20 rows"):
        unit_principal_axes(broken)
    axes = principal_axes(train)
    with pytest.raises(UserError, match="1 of 20 rows"):
        axes.distances(broken)
    with pytest.raises(UserError, match="1 of 20 rows"):
        axes.whitened(broken, 0.25)


def test_other_bad_input_is_one_sentence() -> None:
    axes = principal_axes(clusters(20, 4, 0))
    with pytest.raises(UserError, match="have 5 columns"):
        axes.distances(torch.ones(2, 5))
    with pytest.raises(UserError, match="have 5 columns"):
        axes.whitened(torch.ones(2, 5), 0.25)
    with pytest.raises(UserError, match="exponent"):
        axes.whitened(torch.ones(2, 4), -0.1)
    with pytest.raises(UserError, match="1 row"):
        principal_axes(torch.ones(0, 4))
