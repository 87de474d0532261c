"""What is known of all rotations agrees with what many of them give."""

import math

import pytest
import torch
from draws import seeded
from torch import Tensor

from basis_probe.statistics import closed_forms as closed_forms_module
from basis_probe.statistics.closed_forms import (
    ClosedForm,
    centred_sample_kurtosis_under_rotation,
    pooled_kurtosis_under_rotation,
    sample_hoyer_under_rotation,
    sample_kurtosis_under_rotation,
)

TURNS = 20_000


def _laplace(samples: int, dim: int, seed: int = 0) -> Tensor:
    uniform = torch.rand(samples, dim, generator=seeded(seed), dtype=torch.float64) - 0.5
    return -uniform.sign() * (1 - 2 * uniform.abs()).log()


def _correlated(samples: int, dim: int) -> Tensor:
    """Rows that share a direction, of unequal length, off the origin: nothing that helps."""
    x = _laplace(samples, dim) * torch.logspace(-1, 1, dim, dtype=torch.float64)
    shared = torch.randn(dim, generator=seeded(9), dtype=torch.float64)
    return x + 2 * shared + 0.5


DATA = {
    "one row": lambda dim: torch.eye(dim, dtype=torch.float64)[:1] * 3,
    "two rows at an angle": lambda dim: _correlated(2, dim),
    "parallel rows": lambda dim: _correlated(1, dim).repeat(5, 1) * torch.arange(1, 6)[:, None],
    "correlated rows": lambda dim: _correlated(40, dim),
    "heavy tails": lambda dim: _laplace(40, dim) ** 3,
}


def _turns(dim: int, seed: int) -> Tensor:
    """Uniform rotations, [TURNS, dim, dim]: Gaussian columns made orthonormal in their order."""
    gaussian = torch.randn(TURNS, dim, dim, generator=seeded(seed), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    return q * r.diagonal(dim1=1, dim2=2).sign()[:, None, :]


def _turns_fixing_the_line(dim: int, seed: int) -> Tensor:
    """Uniform among the rotations that leave the all-ones direction alone, [TURNS, dim, dim]."""
    corner = torch.eye(dim, dtype=torch.float64)
    corner[:, 0] = 1.0
    frame = torch.linalg.qr(corner).Q
    across = frame[:, 1:]
    return frame[:, :1] @ frame[:, :1].T + across @ _turns(dim - 1, seed) @ across.T


def _kappa(x: Tensor) -> Tensor:
    """Kurtosis of each row across the axes, averaged over rows, for every turn."""
    return (x.shape[-1] * x.pow(4).sum(-1) / x.square().sum(-1).square()).mean(-1)


def _centred_kappa(x: Tensor) -> Tensor:
    return _kappa(x - x.mean(-1, keepdim=True))


def _agrees(null: ClosedForm, values: Tensor) -> None:
    """Mean and standard deviation within four standard errors of those of the draws."""
    error = values.std() / math.sqrt(len(values))
    assert abs(null.mean - values.mean()) < 4 * error + 1e-12
    if null.std is not None:
        deviation = (values - values.mean()).square()
        variance_error = deviation.std() / math.sqrt(len(values))
        assert abs(null.std**2 - deviation.mean()) < 4 * variance_error + 1e-12


@pytest.mark.sample(default=4)
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("dim", [4, 7])
def test_sample_kurtosis_over_rotations(name: str, dim: int) -> None:
    x = DATA[name](dim)
    turned = _kappa(x @ _turns(dim, seed=1))
    null = sample_kurtosis_under_rotation(x)
    assert null.exact
    assert null.std is not None
    _agrees(null, turned)


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("dim", [4, 7])
def test_centred_sample_kurtosis_over_rotations_that_fix_the_line(name: str, dim: int) -> None:
    x = DATA[name](dim)
    turned = _centred_kappa(x @ _turns_fixing_the_line(dim, seed=2))
    null = centred_sample_kurtosis_under_rotation(x)
    assert null.exact
    assert null.std is not None
    _agrees(null, turned)


def test_pooled_kurtosis_is_a_ratio_of_expectations() -> None:
    dim = 6
    x = _correlated(60, dim)
    centred = x - x.mean(0)
    turned = centred @ _turns(dim, seed=4)
    top = turned.pow(4).mean((1, 2))
    bottom = turned.square().mean(1).square().mean(1)
    null = pooled_kurtosis_under_rotation(x)
    # The error of a ratio of means, by the delta method.
    residual = top - null.mean * bottom
    assert abs(residual.mean()) < 4 * residual.std() / math.sqrt(TURNS)
    assert (null.std, null.exact) == (None, False)


@pytest.mark.parametrize("shape", [(50, 6), (6, 50)])
def test_the_trace_is_the_same_by_rows_and_by_columns(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = _correlated(*shape)
    centred = x - x.mean(0)
    covariance = centred.T @ centred / len(x)
    squares = centred.square().sum(1)
    expected = (
        3
        * squares.square().mean()
        / (2 * (covariance @ covariance).trace() + covariance.trace() ** 2)
    )
    monkeypatch.setattr(closed_forms_module, "_COLUMNS_AT_ONCE", 4)
    assert pooled_kurtosis_under_rotation(x).mean == pytest.approx(expected.item(), rel=1e-12)


# --- every dimension ------------------------------------------------------------------------------

DIMS = [4, 8, 16, 64, 768]


def _turned(x: Tensor, draws: int, seed: int) -> Tensor:
    """Rows in uniformly turned bases, [draws, samples, dim], by as many columns as x has ranks."""
    dim, rank = x.shape[1], min(x.shape)
    left, sizes, _ = torch.linalg.svd(x, full_matrices=False)
    parts = []
    for block in range(0, draws, 200):
        gaussian = torch.randn(
            min(200, draws - block), dim, rank, generator=seeded(1000 * seed + block)
        ).double()
        q, r = torch.linalg.qr(gaussian)
        frame = q * r.diagonal(dim1=1, dim2=2).sign()[:, None, :]
        parts.append((left * sizes) @ frame.mT)
    return torch.cat(parts)


def _hoyer(x: Tensor) -> Tensor:
    root = math.sqrt(x.shape[-1])
    return ((root - x.abs().sum(-1) / x.norm(dim=-1)) / (root - 1)).mean(-1)


@pytest.mark.parametrize("dim", DIMS)
def test_closed_forms_hold_in_every_dimension(dim: int) -> None:
    x = _correlated(5, dim)
    x[1] = 2 * x[0]
    turned = _turned(x, 2000, seed=dim)
    _agrees(sample_kurtosis_under_rotation(x), _kappa(turned))
    _agrees(sample_hoyer_under_rotation(x), _hoyer(turned))
    centred = turned - turned.mean(1, keepdim=True)
    top, bottom = centred.pow(4).mean((1, 2)), centred.square().mean(1).square().mean(1)
    residual = top - pooled_kurtosis_under_rotation(x).mean * bottom
    assert abs(residual.mean()) < 4 * residual.std() / math.sqrt(len(residual))


@pytest.mark.parametrize("dim", DIMS)
def test_the_centred_form_holds_in_every_dimension(dim: int) -> None:
    x = _correlated(4, dim)
    # Coordinates across the ones line, where turns that fix it are all turns.
    basis = torch.linalg.qr(
        torch.cat([torch.ones(dim, 1).double(), torch.eye(dim)[:, 1:].double()], 1)
    ).Q
    across = basis[:, 1:]
    turned = _turned(x @ across, 1000, seed=dim) @ across.T
    _agrees(centred_sample_kurtosis_under_rotation(x), _kappa(turned))


def test_the_known_values_of_the_sphere() -> None:
    one = torch.eye(768)[:1]
    assert sample_hoyer_under_rotation(one).mean == pytest.approx(0.2094, abs=5e-5)
    large = torch.eye(100_000, 1).T
    assert sample_hoyer_under_rotation(large).mean == pytest.approx(0.2021, abs=3e-3)
    assert sample_kurtosis_under_rotation(torch.eye(1280)[:1]).mean == pytest.approx(
        2.9953, abs=1e-3
    )


@pytest.mark.parametrize("dim", [5, 64])
def test_hoyer_of_unrelated_parallel_and_many_samples(dim: int) -> None:
    one = torch.eye(dim)[:1]
    alone = sample_hoyer_under_rotation(one).std
    parallel = sample_hoyer_under_rotation(one.repeat(7, 1) * torch.arange(1, 8)[:, None]).std
    assert parallel == pytest.approx(alone)
    many = _correlated(600, dim)
    exact = sample_hoyer_under_rotation(many, pairs=600).std
    assert exact is not None
    assert sample_hoyer_under_rotation(many, pairs=200).std is None
    estimate = sample_hoyer_under_rotation(many, pairs=300, generator=seeded(1))
    assert estimate.std == pytest.approx(exact, rel=0.25)
    assert "300 of 600 samples" in estimate.source


@pytest.mark.parametrize(
    "dim",
    [
        64,
        pytest.param(192, marks=pytest.mark.slow),
        pytest.param(768, marks=pytest.mark.battery),
    ],
)
def test_the_z_of_a_token_average_needs_no_rotations(dim: int) -> None:
    """Two hundred tokens at mean cosine 0.9, one outlier dimension among them."""
    samples = 200
    shared = torch.randn(dim, generator=seeded(9), dtype=torch.float64)
    shared[3] = 6.0
    own = torch.randn(samples, dim, generator=seeded(8), dtype=torch.float64)
    x = shared * math.sqrt(dim) / shared.norm() + own / 3
    unit = x / x.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    assert float(cosines.mean()) == pytest.approx(0.9, abs=0.01)
    for null, statistic in (
        (sample_kurtosis_under_rotation(x), _kappa),
        (sample_hoyer_under_rotation(x), _hoyer),
    ):
        draws = torch.cat([statistic(_turned(x, 200, seed=s)) for s in range(10)])
        observed = statistic(x[None])
        sampled = (observed - draws.mean()) / draws.std()
        assert null.std is not None
        assert (observed - null.mean) / null.std == pytest.approx(sampled.item(), rel=0.05)


def test_gaussian_data_have_the_gaussian_null() -> None:
    x = torch.randn(200_000, 5, generator=seeded(), dtype=torch.float64)
    assert pooled_kurtosis_under_rotation(x).mean == pytest.approx(3, abs=0.05)


def test_many_samples_are_estimated_from_some_of_them() -> None:
    x = _correlated(600, 6)
    exact = sample_kurtosis_under_rotation(x, pairs=600).std
    assert exact is not None
    assert sample_kurtosis_under_rotation(x, pairs=100).std is None
    estimates = [
        sample_kurtosis_under_rotation(x, pairs=100, generator=seeded(seed)) for seed in range(40)
    ]
    variances = torch.tensor(
        [estimate.std**2 for estimate in estimates if estimate.std is not None]
    )
    assert len(variances) == 40
    error = variances.std() / math.sqrt(40)
    assert abs(variances.mean() - exact**2) < 4 * error
    assert "100 of 600 samples" in estimates[0].source
    again = sample_kurtosis_under_rotation(x, pairs=100, generator=seeded(0))
    assert again.std == estimates[0].std


def test_rows_without_a_kurtosis_are_left_out() -> None:
    x = _correlated(10, 5)
    padded = torch.cat([x, torch.zeros(4, 5, dtype=torch.float64)])
    assert sample_kurtosis_under_rotation(padded) == sample_kurtosis_under_rotation(x)
    # A row that is constant to rounding has none across the line either.
    level = torch.full((3, 5), 0.1, dtype=torch.float64)
    padded = torch.cat([x, level, 1e6 * level])
    assert centred_sample_kurtosis_under_rotation(padded) == centred_sample_kurtosis_under_rotation(
        x
    )


def test_a_space_without_freedom_has_no_spread() -> None:
    assert sample_kurtosis_under_rotation(torch.ones(1, 1)).std == 0
    assert sample_kurtosis_under_rotation(torch.ones(1, 1)).mean == 1
    for dim in (2, 3):
        # Across the line, two or three values have the same kurtosis however they are turned.
        null = centred_sample_kurtosis_under_rotation(torch.eye(dim)[:1])
        assert null.std == 0
        assert null.mean == pytest.approx(_centred_kappa(torch.eye(dim)[:1]).item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_floating_type_is_computed_in_float64(dtype: torch.dtype) -> None:
    x = _correlated(20, 6).to(dtype)
    for null in (
        sample_kurtosis_under_rotation,
        centred_sample_kurtosis_under_rotation,
        pooled_kurtosis_under_rotation,
        sample_hoyer_under_rotation,
    ):
        assert null(x) == null(x.double())


@pytest.mark.usefixtures("as_shipped")
def test_errors_say_what_was_given_and_what_to_do() -> None:
    for null in (
        sample_kurtosis_under_rotation,
        centred_sample_kurtosis_under_rotation,
        pooled_kurtosis_under_rotation,
    ):
        with pytest.raises(ValueError, match=r"\[samples, dim\] with dim > 0, got \[2, 3, 4\]"):
            null(torch.ones(2, 3, 4))
        with pytest.raises(ValueError, match=r"dim > 0, got \[2, 0\]"):
            null(torch.ones(2, 0))
    with pytest.raises(ValueError, match="none among 3: leave this site out"):
        sample_kurtosis_under_rotation(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="none among 3"):
        centred_sample_kurtosis_under_rotation(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"got 3 samples of total variance 0\.0"):
        pooled_kurtosis_under_rotation(torch.ones(3, 4))
    with pytest.raises(
        ValueError, match="pairs must be at least 2 samples to form pairs of, got 1"
    ):
        sample_kurtosis_under_rotation(torch.eye(4), pairs=1)
    with pytest.raises(ValueError, match="at least two of them, got 1"):
        sample_hoyer_under_rotation(torch.ones(3, 1))
    with pytest.raises(ValueError, match="pairs must be at least 2"):
        sample_hoyer_under_rotation(torch.eye(4), pairs=1)
