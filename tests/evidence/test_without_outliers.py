"""Without the axes of outlying variance a site is what it would be if they were not there."""

from __future__ import annotations

import pathlib

import pytest
import torch
from draws import seeded
from torch import Tensor

import basis_probe as bp
from basis_probe.algebra.haar import haar

_DIM = 40
_LOUD = (5, 17, 30)


def _rows(samples: int = 1500, *, form: bool = False, offset: bool = False) -> Tensor:
    """Three axes have most of the variance, and what is asked for lies on quiet ones."""
    x = torch.randn(samples, _DIM, generator=seeded(4)).double()
    if form:
        heavy = torch.randn(samples, 6, generator=seeded(5)).double()
        x[:, 20:26] = heavy**3 / 15**0.5
    if offset:
        x[:, 8] += 4
    x[:, list(_LOUD)] *= torch.tensor([40.0, 25.0, 15.0], dtype=torch.float64)
    return x


def _quiet(x: Tensor) -> Tensor:
    return x[:, [axis for axis in range(_DIM) if axis not in _LOUD]]


def _null() -> bp.nulls.Rotation:
    return bp.nulls.Rotation(frames=24)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("group", ["orthogonal", "line-stabiliser"])
def test_what_is_left_is_measured_as_if_the_others_were_not_there(group: str) -> None:
    x = _rows(form=True, offset=True)
    whole = bp.probe_activations(x, group=group, null=_null())
    alone = bp.probe_activations(_quiet(x), group=group, null=_null())
    assert whole.outliers is not None and whole.outliers.axes == _LOUD
    left = {order.order: order for order in whole.outliers.orders}
    assert set(left) == {"offset", "scale", "form"}
    for order in alone.orders:
        found = left[order.order]
        assert found.observed == pytest.approx(order.observed, rel=1e-6)
        assert found.null_mean == pytest.approx(order.null_mean, rel=1e-6)
        assert found.effect == pytest.approx(order.effect, rel=1e-4)
        assert not found.claimed
    assert left["offset"].leading == (8,), "axes are numbered as those of the site"
    split, other = whole.outliers.per_sample, alone.per_sample
    assert split is not None and other is not None
    for name in ("total", "offset", "scale", "form", "rotations"):
        assert getattr(split, name) == pytest.approx(getattr(other, name), abs=1e-6)


def test_a_few_loud_axes_do_not_hide_what_the_quiet_ones_have() -> None:
    """Against all axes the quiet ones' offset is nothing; among themselves it is all."""
    for given in (True, False):
        found = bp.probe_activations(_rows(form=given), group="orthogonal", null=_null())
        assert found.outliers is not None
        form = next(order for order in found.outliers.orders if order.order == "form")
        assert (form.effect > 8) == given
        scale = next(order for order in found.outliers.orders if order.order == "scale")
        # Heavy tails have unequal variances in any few rows, which others do not repeat.
        assert scale.gate or scale.p_value > 0.01


def test_it_is_written_and_read_and_shown(tmp_path: pathlib.Path) -> None:
    made = bp.probe_activations({"a": _rows(form=True)}, group="orthogonal", null=_null())
    again = bp.Report.from_json(made.to_json())
    assert again == made
    outliers = made.site_reports[0].outliers
    assert outliers is not None and len(outliers.orders) == 3
    for ending in ("md", "html"):
        text = made.save(tmp_path / f"a.{ending}").read_text(encoding="utf-8")
        for order in outliers.orders:
            assert order.sentence.split(" (")[0] in text
        assert "of outlying variance (5, 17, 30)" in text.replace("\n", " ")


# --- axes that never vary, and one that has nearly all variance -----------------------------------


@pytest.mark.parametrize("group", ["orthogonal", "line-stabiliser"])
def test_a_constant_on_an_axis_that_never_varies_is_an_offset(group: str) -> None:
    x = torch.randn(800, 24, generator=seeded(2)).double()
    x[:, 5] = 7.0
    found = bp.probe_activations(x, group=group, null=_null())
    offset = next(order for order in found.orders if order.order == "offset")
    assert offset.claimed and offset.leading == (5,) and found.n_dead == 1


@pytest.mark.parametrize("group", ["orthogonal", "line-stabiliser"])
def test_axes_that_never_vary_stand_out_where_turned_ones_would_vary(group: str) -> None:
    x = torch.zeros(800, 24, dtype=torch.float64)
    x[:, :3] = torch.randn(800, 3, generator=seeded(3))
    found = bp.probe_activations(x, group=group, null=_null())
    assert found.verdict.outcome is bp.Outcome.EMERGENT and "scale" in found.verdict.orders
    turned = bp.probe_activations(x @ haar(24, seeded(5)), group="orthogonal", null=_null())
    assert turned.verdict.outcome is bp.Outcome.ARBITRARY
    if group == "orthogonal":
        assert "21 axes never vary" in found.verdict.sentence


@pytest.mark.slow
def test_errors_of_sampling_beside_one_loud_axis_are_no_form() -> None:
    """All turned directions read the loud axis and share its error; the others have their own."""
    called = 0
    for seed in range(8):
        x = torch.randn(1500, 32, generator=seeded(seed)).double()
        x[:, 3] *= 1e5
        found = bp.probe_activations(x, group="orthogonal", null=_null(), seed=seed)
        assert "scale" in found.verdict.orders
        called += "form" in found.verdict.orders
    assert called <= 2
    assert found.few is not None and not found.few.repeated
    x[:, 7] = x[:, 7] ** 3
    heavy = bp.probe_activations(x, group="orthogonal", seed=7)
    assert "form" in heavy.verdict.orders and "axis 7" in heavy.verdict.advice
