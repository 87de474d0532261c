"""Streaming moments against a two-pass oracle in extended precision, on unkind streams."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from draws import seeded

from basis_probe.statistics import moments as moments_module
from basis_probe.statistics.moments import (
    Moments,
    SampleKurtosis,
    even_moments,
    root_mean_square,
    row_shares,
)

ROWS, DIM = 3000, 5


def _normal(seed: int = 0) -> torch.Tensor:
    return torch.randn(ROWS, DIM, dtype=torch.float64, generator=seeded(seed))


STREAMS = {
    "gaussian": lambda: _normal(),
    "drifting": lambda: _normal() + torch.linspace(-50, 50, ROWS, dtype=torch.float64)[:, None],
    "offset": lambda: _normal() + 1e6,
    "heavy-tailed": lambda: _normal() / _normal(1).abs().clamp_min(1e-3),
    "sorted": lambda: _normal().sort(0).values,
    "sorted and heavy": lambda: (_normal() ** 5).sort(0).values,
    "growing": lambda: _normal() * torch.logspace(-6, 6, ROWS, dtype=torch.float64)[:, None],
    "one outlier": lambda: torch.cat([_normal()[:-1], torch.full((1, DIM), 1e8).double()]),
    "small integers": lambda: _normal().round(),
}


def _oracle(x: torch.Tensor) -> dict[str, np.ndarray]:
    """Two passes in extended precision, and the absolute sums that set the scale of each error."""
    values = x.double().numpy().astype(np.longdouble)
    d = values - values.mean(0)
    return {
        "mean": values.mean(0),
        "m2": (d**2).sum(0),
        "m3": (d**3).sum(0),
        "m4": (d**4).sum(0),
        "minimum": values.min(0),
        "maximum": values.max(0),
        "scale of mean": np.abs(values).mean(0),
        "scale of m2": (d**2).sum(0),
        "scale of m3": (np.abs(d) ** 3).sum(0),
        "scale of m4": (d**4).sum(0),
        "scale of minimum": np.abs(values.min(0)),
        "scale of maximum": np.abs(values.max(0)),
    }


def _error(found: Moments, x: torch.Tensor) -> float:
    truth = _oracle(x)
    return max(
        float(
            np.max(np.abs(getattr(found, name).numpy() - truth[name]) / truth[f"scale of {name}"])
        )
        for name in ("mean", "m2", "m3", "m4", "minimum", "maximum")
    )


def _split(x: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """The stream cut in random places, empty pieces and single rows among them."""
    cuts = torch.randint(0, len(x) + 1, (12,), generator=seeded(seed)).sort().values
    return list(x.tensor_split([0, *cuts.tolist(), len(x) - 1]))


def _sum(parts: list[torch.Tensor]) -> Moments:
    total = Moments.empty(DIM)
    for part in parts:
        total = total + Moments.of(part)
    return total


def _units_of_rounding(a: Moments, b: Moments) -> float:
    """How far apart two sums of one stream are, in roundings of what they are made of.

    An offset of c standard deviations is rounded to c eps of one: no order of adding undoes that.
    """
    offset = (b.mean.abs() / b.std).nan_to_num(0.0, posinf=0.0)
    scales = {
        "mean": torch.maximum(b.mean.abs(), b.std),
        "m2": b.m2,
        "m3": b.count * b.std**3,
        "m4": b.m4,
    }
    return (
        max(
            ((getattr(a, name) - getattr(b, name)).abs() / scale / (1 + offset)).max().item()
            for name, scale in scales.items()
        )
        / torch.finfo(torch.float64).eps
    )


@pytest.mark.sample(default=5)
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("seed", range(3))
def test_any_split_agrees_with_two_passes_in_extended_precision(name: str, seed: int) -> None:
    x = STREAMS[name]()
    found = _sum(_split(x, seed))
    assert found.count == ROWS
    assert _error(found, x) < 1e-10
    assert _error(Moments.of(x), x) < 1e-10


def test_the_check_rejects_a_merge_that_averages_variances() -> None:
    def wrong(a: Moments, b: Moments) -> Moments:
        right = a + b
        return dataclasses.replace(right, m2=a.m2 + b.m2)

    x = STREAMS["sorted"]()
    total = Moments.of(x[:1000])
    for part in x[1000:].split(500):
        total = wrong(total, Moments.of(part))
    assert _error(total, x) > 0.1
    # The same merge goes unnoticed on exchangeable data, which is why the streams above are not.
    y = STREAMS["gaussian"]()
    assert _error(wrong(Moments.of(y[:1500]), Moments.of(y[1500:])), y) < 0.01


@pytest.mark.parametrize("order", ["m3", "m4"])
def test_the_check_rejects_a_merge_without_its_cross_terms(order: str) -> None:
    x = STREAMS["drifting"]()
    a, b = Moments.of(x[:1000]), Moments.of(x[1000:])
    wrong = dataclasses.replace(a + b, **{order: getattr(a, order) + getattr(b, order)})
    assert _error(wrong, x) > 1e-3


@pytest.mark.parametrize("name", STREAMS)
def test_addition_is_associative_and_commutative(name: str) -> None:
    x = STREAMS[name]()
    a, b, c = (Moments.of(part) for part in x.tensor_split([700, 1900]))
    assert _units_of_rounding((a + b) + c, a + (b + c)) < 100
    assert _units_of_rounding(a + b, b + a) < 100


def test_empty_is_neutral() -> None:
    a = Moments.of(_normal())
    for total in (a + Moments.empty(DIM), Moments.empty(DIM) + a):
        assert total.count == a.count
        assert torch.equal(total.m4, a.m4)
    none = Moments.empty(DIM) + Moments.of(torch.zeros(0, DIM))
    assert none.count == 0
    assert none.kurtosis.isnan().all()
    assert none.variance.isnan().all()
    assert none.constant.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("elements", [64, 2**17])
def test_every_floating_type_is_measured_in_float64(
    dtype: torch.dtype, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments_module, "_CHUNK_ELEMENTS_CPU", elements)
    x = (STREAMS["gaussian"]() * 100 + 300).to(dtype)
    found = Moments.of(x)
    assert _error(found, x) < 1e-10
    assert found.m4.dtype == torch.float64


def test_strided_input_is_read_right() -> None:
    x = _normal()
    assert _error(Moments.of(x.T.contiguous().T), x) < 1e-10
    assert _error(Moments.of(torch.cat([x, x], 1)[::2, DIM:]), x[::2]) < 1e-10


def test_standardised_moments_of_known_laws() -> None:
    # A fair coin: skewness 0, kurtosis 1. A coin of probability p: 1/(pq) - 3 of kurtosis.
    fair = torch.tensor([0.0, 1.0]).repeat(50)
    rare = torch.cat([torch.ones(10), torch.zeros(90)])
    found = Moments.of(torch.stack([fair, rare], 1))
    p, q = 0.1, 0.9
    expected_skewness = torch.tensor([0.0, (q - p) / math.sqrt(p * q)]).double()
    expected_kurtosis = torch.tensor([1.0, 1 / (p * q) - 3]).double()
    torch.testing.assert_close(found.skewness, expected_skewness, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(found.kurtosis, expected_kurtosis, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(found.excess_kurtosis, found.kurtosis - 3)
    torch.testing.assert_close(found.std, torch.tensor([0.5, 0.3]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e30, 1e-30, 7.3])
def test_a_constant_is_called_constant_however_it_is_split(value: float) -> None:
    x = torch.full((ROWS, 1), value, dtype=torch.float64)
    total = Moments.empty(1)
    for part in _split(x, 0):
        total = total + Moments.of(part)
    assert total.constant.all()
    assert total.kurtosis.isnan().all()
    assert total.skewness.isnan().all()


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e6])
def test_small_variation_on_an_offset_is_not_called_constant(offset: float) -> None:
    x = offset + 1e-6 * _normal()
    assert not Moments.of(x).constant.any()


def test_a_nan_poisons_its_own_direction_only() -> None:
    x = _normal()
    clean = Moments.of(x)
    x[5, 2] = math.nan
    found = Moments.of(x[:100]) + Moments.of(x[100:])
    assert found.kurtosis.isnan().tolist() == [False, False, True, False, False]
    assert not found.constant.any()
    torch.testing.assert_close(found.kurtosis[:2], clean.kurtosis[:2])


def test_input_is_neither_kept_nor_changed() -> None:
    x = _normal().requires_grad_()
    before = x.detach().clone()
    found = Moments.of(x)
    mean = found.mean.clone()
    assert torch.equal(x.detach(), before)
    assert not found.mean.requires_grad
    with torch.no_grad():
        x.fill_(0.0)
    assert torch.equal(found.mean, mean)
    single = torch.ones(1, DIM, dtype=torch.float64)
    found = Moments.of(single)
    single.fill_(9.0)
    assert found.maximum.eq(1.0).all() and found.mean.eq(1.0).all()


@pytest.mark.usefixtures("as_shipped")
def test_errors_say_what_was_given() -> None:
    with pytest.raises(ValueError, match=r"\[samples, dim\], got \[2, 3, 4\]"):
        Moments.of(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="3 and of 4 directions"):
        _ = Moments.empty(3) + Moments.empty(4)
    with pytest.raises(ValueError, match="across 3 and across 4 axes"):
        _ = SampleKurtosis.empty(3) + SampleKurtosis.empty(4)
    with pytest.raises(ValueError, match="at least one axis"):
        SampleKurtosis.of(torch.zeros(2, 0))


def _kappa(x: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x.shape[1] * (x**4).sum(1) / (x**2).sum(1) ** 2


@pytest.mark.parametrize("name", STREAMS)
def test_sample_kurtosis_agrees_with_its_formula_in_any_split(name: str) -> None:
    x = STREAMS[name]()
    x[::7] = 0.0
    kappa = _kappa(x[x.abs().sum(1) > 0])
    total = SampleKurtosis.empty(DIM)
    for part in _split(x, 1):
        total = SampleKurtosis.of(part) + total
    assert (total.count, total.zeros) == (len(kappa), ROWS - len(kappa))
    torch.testing.assert_close(total.mean, kappa.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(total.variance, kappa.var(correction=0), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(total.share.mean(), total.mean, rtol=1e-12, atol=0)
    shares = DIM**2 * x.double() ** 4 / (x.double() ** 2).sum(1, keepdim=True) ** 2
    torch.testing.assert_close(total.share, shares.nanmean(0), rtol=1e-10, atol=0)


def test_sample_kurtosis_does_not_depend_on_the_scale_of_a_row() -> None:
    x = _normal()
    scaled = x * torch.logspace(-60, 60, ROWS, dtype=torch.float64)[:, None]
    one, other = SampleKurtosis.of(x), SampleKurtosis.of(scaled)
    torch.testing.assert_close(one.share, other.share)


def test_sample_kurtosis_of_nothing_is_nan() -> None:
    none = SampleKurtosis.of(torch.zeros(4, DIM)) + SampleKurtosis.empty(DIM)
    assert (none.count, none.zeros) == (0, 4)
    assert none.mean.isnan() and none.std.isnan() and none.share.isnan().all()


def test_a_rogue_axis_holds_the_share() -> None:
    x = _normal()
    x[:, 3] *= 100
    found = SampleKurtosis.of(x)
    assert found.share.argmax() == 3
    assert 4.5 < found.mean <= DIM


# --- what is computed of every frame --------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMS)
def test_kurtosis_of_columns_agrees_with_the_moments(name: str) -> None:
    x = STREAMS[name]()
    torch.testing.assert_close(even_moments(x).kurtosis, Moments.of(x).kurtosis, rtol=1e-9, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 7.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_column_has_no_kurtosis(value: float, dtype: torch.dtype) -> None:
    x = torch.cat([torch.full((ROWS, 1), value).double(), _normal()], dim=1).to(dtype)
    found = even_moments(x).kurtosis
    assert found[0].isnan() and found[1:].isfinite().all()


@pytest.mark.parametrize("name", STREAMS)
def test_shares_of_rows_agree_with_the_streamed_ones(name: str) -> None:
    x = STREAMS[name]()
    x[5] = 0.0
    torch.testing.assert_close(row_shares(x), SampleKurtosis.of(x).share, rtol=1e-9, atol=0)
    units = root_mean_square(x)
    torch.testing.assert_close(units, x.square().mean(0).sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(
        row_shares(x, units=units), SampleKurtosis.of(x / units).share, rtol=1e-9, atol=0
    )


def test_rows_of_zeros_alone_have_no_shares() -> None:
    x = torch.zeros(4, 3)
    assert row_shares(x).isnan().all()
    assert torch.equal(root_mean_square(x), torch.ones(3).double())


def test_what_is_computed_of_frames_leaves_them_alone() -> None:
    x = _normal()
    before = x.clone()
    even_moments(x), row_shares(x), root_mean_square(x)
    assert torch.equal(x, before)
