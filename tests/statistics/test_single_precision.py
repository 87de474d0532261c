"""Sums in single precision agree with those in double, whatever the columns and rows are like."""

import itertools
import math
import os
import signal

import pytest
import torch
from torch import Tensor

import basis_probe as bp
from basis_probe.algebra.groups import Orthogonal
from basis_probe.statistics import single_precision as module
from basis_probe.statistics.moments import column_moments, row_shares
from basis_probe.statistics.nulls import Frame, Problem, Rotation
from basis_probe.statistics.nulls.frames import Alternatives
from basis_probe.statistics.p_values import Tail
from basis_probe.statistics.resampling import Grouping, LeftOut
from basis_probe.statistics.scores import ALL, Measured, Reads, Rows
from basis_probe.statistics.single_precision import Columns, full_products, shares
from basis_probe.statistics.sparsity import column_negentropy

SAMPLES, DIM = 1500, 7

UNEQUAL = {
    "equal": (60,) * 20,
    "nearly equal": tuple(range(50, 70)),
    "one has nearly all": (1, 3, 1000, 2, 2, 1, 5, 4, 3, 2),
    "two have half": (400, 1, 2, 3, 4, 5, 6, 390),
    "one row each": (1,) * 40,
    "one is empty": (70, 0, 60, 80, 900),
    "doubling": tuple(2**power for power in range(11)),
}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _drawn(samples: int = SAMPLES, dim: int = DIM) -> Tensor:
    return torch.randn(samples, dim, generator=_generator(), dtype=torch.float64)


def _drifting() -> Tensor:
    return _drawn() + torch.linspace(-40, 40, SAMPLES, dtype=torch.float64)[:, None]


def _one_far_row() -> Tensor:
    x = _drawn()
    x[0] = 1e6
    return x


def _with_constants() -> Tensor:
    x = _drawn()
    x[:, 1], x[:, 4] = 0.0, 0.1
    x[3, 5] = math.nan
    x[:, 5] = x[:, 5].nan_to_num(0.0)
    return x


def _hardly_varying() -> Tensor:
    x = torch.full((SAMPLES, DIM), 1 / 3, dtype=torch.float64)
    x[::7] *= 1 + 2e-7
    return x


KINDS = {
    "Gaussian": lambda: _drawn(),
    "cubes": lambda: _drawn() ** 3,
    "offset by a thousand deviations": lambda: _drawn() + 1000,
    "offset by a million deviations": lambda: _drawn() + 1e6,
    "drifting": _drifting,
    "one far row": _one_far_row,
    "constants": _with_constants,
    "hardly varying": _hardly_varying,
    "tiny": lambda: _drawn() * 1e-21,
    "huge": lambda: _drawn() * 1e19,
    "of many sizes": lambda: _drawn() * torch.logspace(-30, 30, DIM, dtype=torch.float64),
    "rows of many sizes": lambda: _drawn() * torch.logspace(-30, 15, SAMPLES).double()[:, None],
    "rectified": lambda: _drawn().clamp_min(0.0),
    "few rows": lambda: _drawn(3),
    "many columns": lambda: _drawn(40, 4000),
}


@pytest.fixture(params=KINDS)
def x(request: pytest.FixtureRequest) -> Tensor:
    return KINDS[request.param]().float()


def _agree(
    found: Tensor, wanted: Tensor, *, of: Tensor | float = 1.0, within: float = 3e-6
) -> None:
    assert torch.equal(found.isnan(), wanted.isnan())
    miss = ((found - wanted).abs() / (wanted.abs() + of)).nan_to_num(0.0)
    assert float(miss.max()) < within


def test_moments_and_negentropy_are_those_in_double(x: Tensor) -> None:
    found, wanted = Columns(x), column_moments(x)
    even, bumps = found.even, found.bumps
    assert torch.equal(even.varies, wanted.varies)
    _agree(even.kurtosis, wanted.kurtosis)
    _agree(even.variance, wanted.variance, of=0.0)
    _agree(even.mean, wanted.mean, of=wanted.variance.sqrt())
    assert all(one.dtype is torch.float64 for one in (even.kurtosis, even.mean, *bumps))
    again = Columns(x, bumps=True)
    assert torch.equal(again.even.kurtosis.nan_to_num(), even.kurtosis.nan_to_num())
    assert all(map(torch.equal, again.bumps, bumps))
    z = (x.double() - wanted.mean) / wanted.variance.sqrt()
    bump = (-z.square() / 2).exp()
    live = wanted.varies
    _agree(bumps[0][live], (z * bump).mean(0)[live])
    _agree(bumps[1][live], bump.mean(0)[live])


def test_shares_are_those_in_double(x: Tensor) -> None:
    _agree(shares(x), row_shares(x), of=0.0)
    units = torch.logspace(-2, 2, x.shape[1], dtype=torch.float64)
    _agree(shares(x, units=units), row_shares(x, units=units), of=0.0)


def test_rows_of_zeros_have_no_shares() -> None:
    assert shares(torch.zeros(5, 3)).isnan().all()
    x = _drawn(50, 4).float()
    _agree(shares(torch.cat([x, torch.zeros(9, 4)])), row_shares(x))


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("few rows", "hardly varying")])
@pytest.mark.parametrize("parted", [False, True])
def test_values_without_a_group_are_those_in_double(kind: str, parted: bool) -> None:
    x = KINDS[kind]().float()
    groups = torch.arange(len(x)) % 10
    parts = (torch.arange(len(x)) < len(x) // 2, torch.arange(len(x)) >= len(x) // 2)
    found = LeftOut(x, groups, parts if parted else None)
    wanted = LeftOut(x.double(), groups, parts if parted else None)
    live = ~wanted.kurtosis.isnan()
    _agree(found.kurtosis[live], wanted.kurtosis[live], within=2e-5)
    _agree(found.negentropy[live], wanted.negentropy[live], of=0.1, within=2e-5)


def test_kurtosis_without_a_group_is_that_of_the_rows_left() -> None:
    x, groups = (_drawn() ** 3 + 2).float(), torch.arange(SAMPLES) % 7
    found = LeftOut(x, groups)
    for group in range(7):
        left = x[groups != group]
        _agree(found.kurtosis[group], column_moments(left).kurtosis, within=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("parted", [False, True])
def test_frames_side_by_side_have_the_scores_of_each(
    dtype: torch.dtype, bent: bool, parted: bool
) -> None:
    generator = _generator(1)
    frames = [torch.randn(120, 6, generator=generator, dtype=dtype) ** 3 for _ in range(4)]
    parts = (torch.arange(120) % 2 == 0, torch.arange(120) % 2 == 1) if parted else None
    alone = [Frame(x.relu() if bent else x, x if bent else None, parts) for x in frames]
    together = Frame.side_by_side(alone)
    assert together.count == 4
    for score in ALL.values():
        found = Measured(together, unit_axes=True).each(score)
        wanted = [Measured(frame, unit_axes=True).of(score) for frame in alone]
        assert found.shape == (4, 6)
        assert torch.allclose(found, torch.stack(wanted), rtol=2e-6, atol=1e-7, equal_nan=True)
    few = Measured(together.first(2), unit_axes=True)
    for score in ALL.values():
        wanted = Measured(together, unit_axes=True).each(score)[:2]
        assert torch.allclose(few.each(score), wanted, rtol=2e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize(("samples", "count"), [(30, 5), (4096, 7), (60000, 3)])
def test_frames_drawn_together_are_those_drawn_one_by_one(samples: int, count: int) -> None:
    x = torch.randn(samples, 20, generator=_generator())
    problem = Problem(x, Orthogonal(20), torch.arange(samples) % 2)
    alternatives = Rotation().alternatives(problem)
    one, other = _generator(3), _generator(3)
    several = list(alternatives.drawn_together(one, count))
    assert sum(frame.count for frame in several) == count
    apart = [frame.one(n) for frame in several for n in range(frame.count)]
    for found in apart:
        assert torch.equal(found.post, alternatives.frame(other).post)
    assert torch.equal(one.get_state(), other.get_state())
    assert list(itertools.islice(alternatives.drawn_together(one, 0), 1)) == []


class _Halves(Alternatives):
    """Frames whose halves are drawn with them."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def frame(self, generator: torch.Generator | None) -> Frame:
        some = torch.arange(len(self.x)) % 2 == 0
        if generator is not None:
            some = torch.randint(2, (len(self.x),), generator=generator) == 1
        return Frame(self.x, None, (some, ~some))


def test_frames_with_halves_of_their_own_stay_apart() -> None:
    alternatives = _Halves(torch.randn(90, 5, generator=_generator()) ** 3)
    several = list(alternatives.drawn_together(_generator(3), 6))
    other = _generator(3)
    assert [frame.count for frame in several] == [1] * 6
    for found in several:
        wanted = alternatives.frame(other)
        assert found.parts is not None and wanted.parts is not None
        assert torch.equal(found.parts[0], wanted.parts[0])


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
def test_products_of_fewer_digits_are_not_allowed_while_axes_are_compared(allowed: str) -> None:
    seen: list[str] = []

    def per_direction(rows: Rows) -> Tensor:
        seen.append(_allowed())
        return rows.x.double().mean(0)

    score = bp.scores.Score("mine", per_direction, Reads.ACTIVATIONS, Tail.UPPER, "", "")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        after = _allowed()
        bp.probe_activations(_drawn().float(), group="orthogonal", scores=[score])
        assert set(seen) <= {"ieee", "highest"} and seen
        assert (_allowed(), torch.get_float32_matmul_precision()) == (after, allowed)
        with pytest.raises(ZeroDivisionError), full_products(), full_products():
            assert _allowed() in ("ieee", "highest")
            raise ZeroDivisionError
        assert (_allowed(), torch.get_float32_matmul_precision()) == (after, allowed)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_process_that_was_forked_while_products_were_set_goes_on() -> None:
    with module._all_digits.gate:
        child = os.fork()
        if not child:
            signal.alarm(10)
            with full_products():
                pass
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with full_products():
        assert _allowed() in ("ieee", "highest")


def _allowed() -> str:
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if hasattr(matmul, "fp32_precision"):
        return str(matmul.fp32_precision)
    return torch.get_float32_matmul_precision()


@pytest.mark.parametrize("offset", [0.0, 3.0, 1e4])
@pytest.mark.parametrize("firing", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_column_that_varies_in_one_group_has_no_scores_without_it(
    dtype: torch.dtype, firing: int, offset: float
) -> None:
    x = _drawn(400, 3).to(dtype) + offset
    x[:, 1] = offset
    x[20 : 20 + firing, 1] = offset + torch.arange(1.0, firing + 1).to(dtype)
    found = LeftOut(x, torch.arange(400) // 40)
    for values in (found.kurtosis, found.negentropy):
        assert bool(values[0, 1].isnan())
        assert bool(values[1:].isfinite().all())
        assert bool(values[:, [0, 2]].isfinite().all())
        assert float(values[1:].abs().max()) < 1e3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", UNEQUAL.values(), ids=UNEQUAL)
def test_groups_may_be_of_any_sizes(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    groups = groups[torch.randperm(len(groups), generator=_generator(1))]
    x = (_drawn(len(groups), 5) ** 3 + 2).to(dtype)
    grouping = Grouping(groups)
    found = LeftOut(x, grouping)
    for group in range(len(sizes)):
        left = x[groups != group].double()
        # Mean and variance without a group enter negentropy to first order: of few rows it is near.
        _agree(found.kurtosis[group], column_moments(left).kurtosis, within=1e-4)
        if sizes[group] < len(x) / 100:
            _agree(found.negentropy[group], column_negentropy(left), of=0.1, within=1e-2)
    (_, padded), *_ = grouping.parts
    assert padded.known.sum() == len(x)
    assert padded.known.numel() <= 1.5 * len(x) + len(sizes)
