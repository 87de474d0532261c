"""Without the axes of outlying variance a site is what it would be if they were not there."""

from __future__ import annotations

import pathlib

import pytest
import torch
from draws import seeded
from torch import Tensor

import basis_probe as bp

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
    return bp.nulls.Rotation(frames=49)


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
