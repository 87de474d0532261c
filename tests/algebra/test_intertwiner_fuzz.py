"""Nonlinearities that no table knows: the right group from their values, or UNKNOWN, no larger one.

The functions are drawn at random, together with an answer that their construction gives. That no
group is too large is checked besides from the definition: members of the claimed group, and f at
values that the package did not look at.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from draws import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import basis_probe as bp

Function = Callable[[Tensor], Tensor]

GL, MONOMIAL, POSITIVE = "general-linear", "monomial", "positive-monomial"
SIGNED, PERMUTATION, UNKNOWN = "signed-permutation", "permutation", "unknown"


@dataclasses.dataclass(frozen=True)
class Case:
    """A function and the group that its construction says, at `reach`, where it shows itself."""

    text: str
    function: Function = dataclasses.field(repr=False)
    group: str
    reach: float = 1.0


def assert_not_too_large(found: bp.Intertwiner, case: Case, tolerance: float = 1e-6) -> None:
    """f(A x) = φ(A) f(x) for members A, in comparison with how much f varies."""
    f, dim = case.function, found.dim
    if isinstance(f, nn.Module):
        f = copy.deepcopy(f).double()
    generator = seeded(0)
    x = torch.randn(90, dim, generator=generator, dtype=torch.float64)
    x = x * case.reach * torch.logspace(-2, 1.5, 90, dtype=torch.float64)[:, None]
    elements = [found.sample(generator) for _ in range(3)]
    if found.group.rescales:
        far = torch.ones(dim, dtype=torch.float64)
        far[0], far[-1] = 1e-3, 1e3
        elements.append(far.diag())
    with torch.no_grad():
        y, rest = f(x.clone()).double(), f(torch.zeros_like(x[:1])).double()
        for a in elements:
            b = found.phi(a)
            moved = f(x @ a.T).double()
            constant = rest - rest @ b.T if "constant vector" in found.note else 0.0
            error = (moved - y @ b.T - constant).abs().amax(dim=1)
            varies = (moved - rest).abs().amax(dim=1)
            rounding = 1e-13 * (y.abs().amax(dim=1) * b.abs().max() + rest.abs().max())
            kept = error.isfinite()
            assert bool((error <= tolerance * varies + rounding)[kept].all()), (case, a)


def assert_right(case: Case, dim: int, tolerance: float = 1e-6) -> None:
    found = bp.intertwiner_group(case.function, dim)
    if found.name != UNKNOWN:
        assert_not_too_large(found, case, tolerance)
    assert found.name == case.group, found


# --- piecewise-linear functions, and their groups by arithmetic -----------------------------------


def hinges(offset: Fraction, slope: Fraction, kinks: dict[Fraction, Fraction]) -> Function:
    """offset + slope t, plus jump * (t - kink)_+ for the kinks, each counted away from zero."""

    def function(x: Tensor) -> Tensor:
        y = float(slope) * x
        for at, jump in kinks.items():
            side = 1.0 if at >= 0 else -1.0
            y = y + float(jump) * (side * (x - float(at))).relu()
        return y + float(offset)

    return function


def group_of_hinges(offset: Fraction, slope: Fraction, kinks: dict[Fraction, Fraction]) -> str:
    """The group by exact arithmetic on the two halves of the function."""
    at_zero = kinks.get(Fraction(0), Fraction(0))
    right = {at: jump for at, jump in kinks.items() if at > 0 and jump}
    left = {-at: jump for at, jump in kinks.items() if at < 0 and jump}
    right_slope, left_slope = slope + at_zero, -slope
    odd = offset == 0 and right_slope == -left_slope and right == {p: -j for p, j in left.items()}
    even = right_slope == left_slope and right == left
    if not right and not left:
        if at_zero == 0:
            return GL if slope else UNKNOWN
        if offset == 0:
            return MONOMIAL if even else POSITIVE
    return SIGNED if odd or even else PERMUTATION


EIGHTHS = st.integers(-40, 40).map(lambda n: Fraction(n, 8))
JUMPS = st.integers(-24, 24).filter(bool).map(lambda n: Fraction(n, 8))
PLACES = st.integers(-600, 600).map(lambda n: Fraction(n, 60))


@st.composite
def piecewise_linear(draw: st.DrawFn) -> Case:
    offset = draw(st.one_of(st.just(Fraction(0)), EIGHTHS))
    slope = draw(st.one_of(st.just(Fraction(0)), EIGHTHS))
    kinks = draw(
        st.one_of(
            st.just(dict[Fraction, Fraction]()),
            st.dictionaries(st.just(Fraction(0)), JUMPS, min_size=1),
            st.dictionaries(PLACES, JUMPS, min_size=1, max_size=4),
        )
    )
    parity = draw(st.sampled_from([0, 0, 1, -1]))
    if parity:
        kinks = {abs(at): jump for at, jump in kinks.items() if at}
        kinks |= {-at: parity * jump for at, jump in kinks.items()}
        if parity > 0:
            kinks[Fraction(0)] = -2 * slope
        elif draw(st.booleans()):
            offset = Fraction(0)
    hinged = ", ".join(f"{jump} at {at}" for at, jump in kinks.items())
    return Case(
        f"{offset} + {slope} t, bent by {hinged}",
        hinges(offset, slope, kinks),
        group_of_hinges(offset, slope, kinks),
        reach=2.0,
    )


# --- smooth functions of each kind ----------------------------------------------------------------

ODD: dict[str, Function] = {
    "tanh": torch.tanh,
    "sin": torch.sin,
    "atan": torch.atan,
    "asinh": torch.asinh,
    "softsign": lambda t: t / (1 + t.abs()),
    "clamp": lambda t: t.clamp(-1, 1),
    "shrink": lambda t: t - t.clamp(-0.3, 0.3),
    "ring": lambda t: t * torch.exp(-t * t),
    "log": lambda t: t.sign() * t.abs().log1p(),
    "cube and line": lambda t: t + t**3,
    "staircase": torch.round,
    "hat differences": lambda t: (t + 1).relu() - (t - 1).relu() - 1,
}
EVEN: dict[str, Function] = {
    "gaussian": lambda t: torch.exp(-t * t),
    "cos": torch.cos,
    "root": lambda t: (1 + t * t).sqrt(),
    "log": lambda t: t.abs().log1p(),
    "beyond": lambda t: (t.abs() - 0.7).relu(),
    "cauchy": lambda t: 1 / (1 + t * t),
    "well": lambda t: t**4 - t * t,
    "tent": lambda t: (1 - t.abs()).relu(),
    "t tanh t": lambda t: t * t.tanh(),
}
NEITHER: dict[str, Function] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "softplus": functional.softplus,
    "elu": functional.elu,
    "exp of the lower half": lambda t: t.clamp(max=0).exp(),
    "snake": lambda t: t + t.sin() ** 2,
    "cap": lambda t: t.clamp(0, 6),
    "shifted relu": lambda t: (t - 0.4).relu(),
    "gumbel": lambda t: torch.exp(-torch.exp(-t.clamp(min=-6))),
    "floor": torch.floor,
    "leaky tanh": lambda t: torch.where(t > 0, t, t.tanh()),
    "shifted sine": lambda t: (t + 0.3).sin(),
}
FACTORS = st.floats(0.2, 5).flatmap(lambda a: st.sampled_from([a, -a]))
PICKS = st.floats(0.3, 3)


def _sum(parts: list[tuple[float, Function, float]]) -> Function:
    return lambda x: sum((a * f(w * x) for a, f, w in parts), torch.zeros_like(x))


def _named(kind: dict[str, Function], parts: list[tuple[float, str, float]]) -> Function:
    return _sum([(a, kind[name], w) for a, name, w in parts])


def _mix(kind: dict[str, Function]) -> st.SearchStrategy[list[tuple[float, str, float]]]:
    return st.lists(st.tuples(FACTORS, st.sampled_from(list(kind)), PICKS), min_size=1, max_size=3)


@st.composite
def odd(draw: st.DrawFn) -> Case:
    parts = draw(_mix(ODD))
    return Case(f"odd {parts}", _named(ODD, parts), SIGNED)


@st.composite
def even(draw: st.DrawFn) -> Case:
    parts, constant = draw(_mix(EVEN)), draw(st.sampled_from([0.0, 1.0, -30.0]))
    f = _named(EVEN, parts)
    return Case(f"even {parts} + {constant}", lambda x: f(x) + constant, SIGNED)


@st.composite
def neither(draw: st.DrawFn) -> Case:
    a, name, w = draw(st.tuples(FACTORS, st.sampled_from(list(NEITHER)), FACTORS))
    parts, size = draw(_mix(ODD)), draw(st.sampled_from([0.0, 1e-3, 1.0]))
    f, g = NEITHER[name], _named(ODD, parts)
    return Case(
        f"{a} {name}({w} t) + {size} {parts}", lambda x: a * f(w * x) + size * g(x), PERMUTATION
    )


@st.composite
def homogeneous(draw: st.DrawFn) -> Case:
    """c |t|^p for positive t and e |t|^p for negative t."""
    p = draw(st.one_of(st.sampled_from([1.0, 2.0, 0.5, 3.0, 0.0]), st.floats(0.1, 5)))
    c, e = draw(st.one_of(st.just(0.0), FACTORS)), draw(st.one_of(st.just(0.0), FACTORS))
    relation = draw(st.sampled_from(["free", "free", "even", "odd"]))
    if relation != "free":
        e = c if relation == "even" else -c

    def function(x: Tensor) -> Tensor:
        size = x.abs() ** p * (x != 0)
        return torch.where(x > 0, c * size, e * size)

    if c == e == 0:
        group = UNKNOWN
    elif p == 1 and c == -e:
        group = GL
    else:
        group = MONOMIAL if abs(c) == abs(e) else POSITIVE
    return Case(f"{c}, {e} |t|^{p}", function, group)


# --- a little away from another group -------------------------------------------------------------


@st.composite
def nearly(draw: st.DrawFn) -> Case:
    """A function of one group plus a little of another kind."""
    little = 10.0 ** draw(st.floats(-7, -2))
    name = draw(st.sampled_from(["line", "relu", "abs", "square", "odd", "even"]))
    kind = draw(st.sampled_from(["odd", "even", "neither"]))
    if name in ("odd", "even"):
        pool = ODD if name == "odd" else EVEN
        base = pool[draw(st.sampled_from(sorted(set(pool) - {"staircase"})))]
        parity = name
    else:
        base, parity = {
            "line": (lambda x: 1.0 * x, "odd"),
            "relu": (torch.relu, "neither"),
            "abs": (torch.abs, "even"),
            "square": (torch.square, "even"),
        }[name]
    added = {
        "odd": {n: ODD[n] for n in ("tanh", "sin", "clamp", "ring")},
        "even": {n: EVEN[n] for n in ("gaussian", "cos", "tent", "beyond")},
        "neither": {n: NEITHER[n] for n in ("silu", "cap", "snake", "shifted relu")},
    }[kind]
    which = draw(st.sampled_from(list(added)))
    bump = added[which]
    group = SIGNED if kind == parity != "neither" else PERMUTATION
    return Case(f"{name} + {little} {which}", lambda x: base(x) + little * bump(x), group)


@st.composite
def leaning(draw: st.DrawFn) -> Case:
    """Homogeneous, and almost even or almost linear: scales pass, signs do not."""
    little, c = 10.0 ** draw(st.floats(-7, -1)), draw(FACTORS)
    base = draw(st.sampled_from(["abs", "line"]))
    sign = 1.0 if base == "line" else -1.0
    return Case(
        f"{c} {base}, leaning by {little}",
        lambda x: c * torch.where(x > 0, x, sign * (1 + little) * x),
        POSITIVE,
    )


@st.composite
def bumpy(draw: st.DrawFn) -> Case:
    """Homogeneous but for a bump somewhere, or for one on either side that keeps the parity."""
    name, base, parity = draw(
        st.sampled_from(
            [
                ("line", lambda x: 1.0 * x, -1),
                ("relu", torch.relu, 0),
                ("abs", torch.abs, 1),
                ("square", torch.square, 1),
            ]
        )
    )
    near = st.tuples(st.floats(0.5, 55), st.floats(0.2, 1))
    far = st.floats(2, 7).map(lambda p: (10.0**p, 0.3 * 10.0**p))
    at, width = draw(st.one_of(near, far))
    height, side = 10.0 ** draw(st.floats(-5, 0)), draw(st.sampled_from([1.0, -1.0]))
    mirrored = draw(st.booleans()) and parity != 0

    def bump(x: Tensor) -> Tensor:
        return base(x.new_tensor(at)) * height * (1 - (x - at).abs() / width).relu()

    def function(x: Tensor) -> Tensor:
        other = parity * bump(-side * x) if mirrored else 0.0
        return base(x) + bump(side * x) + other

    return Case(
        f"{name} with a bump {height} at {side * at}, {width} wide, mirrored: {mirrored}",
        function,
        SIGNED if mirrored else PERMUTATION,
        reach=at,
    )


# --- learned functions ----------------------------------------------------------------------------


class Learned(nn.Module):
    """t -> v tanh(w t + b), the same small network for every feature."""

    def __init__(self, units: int, seed: int, dtype: torch.dtype, biased: bool, relu: bool) -> None:
        super().__init__()
        generator = seeded(seed)

        def drawn() -> nn.Parameter:
            return nn.Parameter(torch.randn(units, generator=generator).to(dtype))

        self.v, self.w, self.b, self.relu = drawn(), drawn(), drawn(), relu
        if not biased:
            with torch.no_grad():
                self.b.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.w.dtype)
        z = x[..., None] * self.w + self.b
        return (z.relu() if self.relu else z.tanh()) @ self.v


@st.composite
def learned(draw: st.DrawFn) -> Case:
    units, seed = draw(st.integers(2, 12)), draw(st.integers(0, 10**6))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    biased, relu = draw(st.booleans()), draw(st.booleans())
    group = PERMUTATION if biased else POSITIVE if relu else SIGNED
    module = Learned(units, seed, dtype, biased, relu)
    return Case(f"Learned({units}, {seed}, {dtype}, {biased}, {relu})", module, group)


@st.composite
def spline(draw: st.DrawFn) -> Case:
    """Cubic between random values at random knots, a line outside."""
    count, seed = draw(st.integers(4, 9)), draw(st.integers(0, 10**6))
    parity = draw(st.sampled_from([0, 1, -1]))
    generator = seeded(seed)
    gaps = 0.2 + torch.rand(count, generator=generator, dtype=torch.float64)
    knots = gaps.cumsum(0) - gaps.sum() / 2
    values = torch.randn(count, generator=generator, dtype=torch.float64)
    slopes = torch.randn(count, generator=generator, dtype=torch.float64)

    def half(x: Tensor) -> Tensor:
        at = torch.searchsorted(knots, x.contiguous()).clamp(1, count - 1) - 1
        width = knots[at + 1] - knots[at]
        u = ((x - knots[at]) / width).clamp(0, 1)
        cubic = (
            (1 + 2 * u) * (1 - u) ** 2 * values[at]
            + u * (1 - u) ** 2 * width * slopes[at]
            + u * u * (3 - 2 * u) * values[at + 1]
            + u * u * (u - 1) * width * slopes[at + 1]
        )
        below, above = (x - knots[0]).clamp(max=0), (x - knots[-1]).clamp(min=0)
        return cubic + below * slopes[0] + above * slopes[-1]

    def function(x: Tensor) -> Tensor:
        return half(x) if parity == 0 else half(x) + parity * half(-x)

    return Case(f"spline({count}, {seed}) {parity}", function, SIGNED if parity else PERMUTATION)


ELEMENTWISE: dict[str, st.SearchStrategy[Case]] = {
    "piecewise linear": piecewise_linear(),
    "odd": odd(),
    "even": even(),
    "neither": neither(),
    "homogeneous": homogeneous(),
    "nearly": nearly(),
    "leaning": leaning(),
    "bumpy": bumpy(),
    "learned": learned(),
    "spline": spline(),
}
DIMS = st.sampled_from([1, 2, 3, 5, 8])


def held(examples: int, check: Callable[..., None], *drawn: st.SearchStrategy[object]) -> None:
    """Holds the property on as many examples, the same in every run."""

    @settings(deadline=None, derandomize=True, database=None, max_examples=examples)
    @given(st.tuples(*drawn))
    def holds(arguments: tuple[object, ...]) -> None:
        check(*arguments)

    holds()


SEVERAL = [
    pytest.param(16, id="some"),
    pytest.param(120, id="many", marks=pytest.mark.slow),
    pytest.param(600, id="most", marks=pytest.mark.battery),
]
EXAMPLES = {"argnames": "examples", "argvalues": SEVERAL}
KINDS = {"argnames": "kind", "argvalues": list(ELEMENTWISE)}


@pytest.mark.sample(default=1)
@pytest.mark.parametrize(**EXAMPLES)
@pytest.mark.parametrize(**KINDS)
def test_the_group_is_what_the_construction_says(kind: str, examples: int) -> None:
    held(examples, assert_right, ELEMENTWISE[kind], DIMS)


# --- the same function in other units -------------------------------------------------------------

POWERS_OF_TEN = st.floats(-6, 6).map(lambda p: 10.0**p)
SIZES = POWERS_OF_TEN.flatmap(lambda a: st.sampled_from([a, -a]))


@pytest.mark.slow
@pytest.mark.parametrize(**EXAMPLES)
def test_units_do_not_matter(examples: int) -> None:
    """a f(b t) has the group of f, for a and b from a millionth to a million."""

    def check(case: Case, a: float, b: float, dim: int) -> None:
        f = case.function
        x = torch.tensor([[-50.0 * b], [50.0 * b]], dtype=torch.float64)
        finite = bool((a * f(x)).isfinite().all())
        rescaled = Case(
            f"{a} f({b} t), f = {case.text}",
            lambda x: a * f(b * x),
            # What overflows within 50 is not finite, which is said.
            case.group if finite else UNKNOWN,
            case.reach / abs(b),
        )
        assert_right(rescaled, dim)

    # Modules have units of their own. Differences of much larger numbers lose their digits where
    # t is small, and with them the relation.
    kinds = [
        strategy.filter(lambda case: "hat differences" not in case.text)
        for kind, strategy in ELEMENTWISE.items()
        if kind not in ("nearly", "bumpy", "learned")
    ]
    held(2 * examples, check, st.one_of(kinds), SIZES, SIZES, DIMS)


@pytest.mark.parametrize(**EXAMPLES)
def test_a_large_constant_hides_nothing(examples: int) -> None:
    """c + f(t), where c is up to 1e11 times as large as f, which keeps four digits of its own."""

    def check(odd: Case, even: Case, c: float, dim: int) -> None:
        for case, group in ((odd, PERMUTATION), (even, SIGNED)):
            f = case.function
            assert_right(Case(f"{c} + {case.text}", lambda x, f=f: c + f(x), group), dim)

    def bounded(kind: dict[str, Function], names: str) -> st.SearchStrategy[Case]:
        return st.sampled_from(names.split()).map(lambda n: Case(n, kind[n], ""))

    held(
        examples,
        check,
        bounded(ODD, "tanh sin atan clamp ring"),
        bounded(EVEN, "gaussian cos tent cauchy"),
        st.floats(-2, 11).map(lambda p: 10.0**p).flatmap(lambda c: st.sampled_from([c, -c])),
        DIMS,
    )


@pytest.mark.parametrize("steepness", [1e3, 1e6, 1e9])
@pytest.mark.parametrize(
    ("name", "group"), [("silu", PERMUTATION), ("tanh", SIGNED), ("gaussian", PERMUTATION)]
)
def test_what_grows_fast_hides_nothing_of_small_values(
    name: str, group: str, steepness: float
) -> None:
    """The rounding of f(1), or of f at 1e8, is far larger than all that f is near 0."""
    f = (ODD | EVEN | NEITHER)[name]
    case = Case(f"steep {name}", lambda x: f(steepness * x) + (steepness * x) ** 3, group)
    assert_right(Case(case.text, case.function, group, 1 / steepness), 3)


# --- few digits, steps, chance, no value ----------------------------------------------------------

KNOWN: dict[str, tuple[Function, str]] = {
    "line": (lambda x: 1.5 * x, GL),
    "relu": (torch.relu, POSITIVE),
    "leaky relu": (lambda x: torch.where(x > 0, x, 0.1 * x), POSITIVE),
    "abs": (torch.abs, MONOMIAL),
    "square": (torch.square, MONOMIAL),
    "tanh": (torch.tanh, SIGNED),
    "gaussian": (lambda x: torch.exp(-x * x), SIGNED),
    "gelu": (functional.gelu, PERMUTATION),
    "softplus": (functional.softplus, PERMUTATION),
}


@pytest.mark.sample(default=38)
@pytest.mark.parametrize("where", ["inputs", "outputs", "outputs in their type", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [3, 300])
@pytest.mark.parametrize("name", list(KNOWN))
def test_rounded_functions(name: str, dim: int, dtype: torch.dtype, where: str) -> None:
    """In float32 the group is found; in half precision it is found or refused."""
    f, group = KNOWN[name]

    def function(x: Tensor) -> Tensor:
        if where in ("inputs", "both"):
            x = x.to(dtype).double()
        y = f(x)
        if where != "inputs":
            y = y.to(dtype)
        return y if where == "outputs in their type" else y.double()

    case = Case(f"{name} in {dtype}", function, group)
    if dtype == torch.float32:
        assert_right(case, dim, tolerance=1e-4)
        return
    try:
        found = bp.intertwiner_group(function, dim)
    except ValueError as error:
        assert "too coarse to tell" in str(error)
    else:
        # Few values are left of a function that is 1 for small t, and its parity is exact.
        assert found.name == group and name == "gaussian"


@st.composite
def steps(draw: st.DrawFn) -> Case:
    """Rounding to multiples of a step, of what is then cut off or not."""
    step = 10.0 ** draw(st.floats(-5, 1))
    if draw(st.booleans()):
        step = 2.0 ** round(math.log2(step))
    rounding = draw(st.sampled_from(["round", "floor", "trunc"]))
    how: Function = getattr(torch, rounding)
    low, high = draw(st.sampled_from([(-math.inf, math.inf), (-127, 127), (-128, 127)]))
    group = PERMUTATION if rounding == "floor" or -low != high else SIGNED
    return Case(
        f"{rounding} to multiples of {step} in [{low}, {high}]",
        lambda x: how(x / step).clamp(low, high) * step,
        group,
    )


@pytest.mark.parametrize(**EXAMPLES)
def test_steps_are_no_rounding(examples: int) -> None:
    held(examples, assert_right, steps(), DIMS)


NOT_FINITE: dict[str, Function] = {
    "log": torch.log,
    "sqrt": torch.sqrt,
    "log |t|": lambda x: x.abs().log(),
    "1 / t": torch.reciprocal,
    "t^-2": lambda x: x**-2,
    "t / |t|": lambda x: x / x.abs(),
    "t^0.3": lambda x: x**0.3,
    "arcsine": torch.asin,
    "log(1 + t)": torch.log1p,
    "lgamma": torch.lgamma,
    "sqrt(t + 30)": lambda x: (x + 30).sqrt(),
    "sqrt(40 - t)": lambda x: (40 - x).sqrt(),
    "relu, NaN below -20": lambda x: torch.where(x < -20, torch.nan, x.relu()),
    "line, infinite at 0": lambda x: torch.where(x == 0, torch.inf, x),
    "nothing": lambda x: x * torch.nan,
}


@pytest.mark.parametrize("dim", [1, 4, 300])
@pytest.mark.parametrize("name", list(NOT_FINITE))
def test_nothing_is_claimed_of_what_has_no_value_everywhere(name: str, dim: int) -> None:
    found = bp.intertwiner_group(NOT_FINITE[name], dim)
    assert found.name == UNKNOWN and "not finite for all real inputs" in found.because


@pytest.mark.parametrize(**EXAMPLES)
def test_no_scale_passes_what_has_no_value_far_out(examples: int) -> None:
    def check(name: str, power: float, value: float, side: float, dim: int) -> None:
        f, edge = KNOWN[name][0], 10.0**power

        def function(x: Tensor) -> Tensor:
            return torch.where(side * x > edge, value, f(x))

        assert_right(Case(f"{name}, {value} beyond {side * edge}", function, PERMUTATION), dim)

    values = st.sampled_from([math.nan, math.inf, -math.inf])
    sides = st.sampled_from([1.0, -1.0])
    held(examples, check, st.sampled_from(list(KNOWN)), st.floats(1.8, 7.5), values, sides, DIMS)


@pytest.mark.parametrize(**EXAMPLES)
def test_what_is_random_is_refused(examples: int) -> None:
    def check(name: str, power: float, where: str, dim: int) -> None:
        f = KNOWN[name][0]

        def function(x: Tensor) -> Tensor:
            noise = 10.0**power * torch.rand_like(x)
            return f(x) + torch.where(
                {"everywhere": x == x, "below 0": x < 0, "beyond 2": x.abs() > 2}[where],
                noise * (1 + f(x).abs()),
                0.0,
            )

        with pytest.raises(ValueError, match="it is random"):
            bp.intertwiner_group(function, dim)

    names, where = st.sampled_from(list(KNOWN)), ["everywhere", "below 0", "beyond 2"]
    held(examples, check, names, st.floats(-12, 0), st.sampled_from(where), DIMS)


def test_what_remembers_its_calls_is_refused() -> None:
    calls = itertools.count()
    with pytest.raises(ValueError, match="it is random"):
        bp.intertwiner_group(lambda x: x.relu() + next(calls), 4)


@pytest.mark.parametrize("error", [ValueError, KeyError, AssertionError, ZeroDivisionError])
@pytest.mark.parametrize("beyond", [0.0, 1e5])
def test_what_raises_an_error_is_refused(error: type[Exception], beyond: float) -> None:
    """Also one that raises for large values only, which come late."""

    def function(x: Tensor) -> Tensor:
        if bool((x.abs() > beyond).any()):
            raise error("no such value")
        return x.relu()

    with pytest.raises(ValueError, match=r"f failed on a float64 tensor .*no such value"):
        bp.intertwiner_group(function, 4)


# --- channels that differ -------------------------------------------------------------------------


@pytest.mark.parametrize(**EXAMPLES)
def test_channels_of_their_own(examples: int) -> None:
    """One channel among equal ones with other units, an offset or a bend: nothing is claimed."""

    def check(case: Case, change: str, power: float, dim: int, which: int) -> None:
        f, little = case.function, 10.0**power
        factors, bends = torch.ones(2, dim, dtype=torch.float64)
        inner, offset = torch.ones(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
        at = which % dim
        if change == "outer":
            factors[at] += little
        elif change == "inner":
            inner[at] += little
        elif change == "offset":
            offset[at] += little
        else:
            bends[at] += little

        def function(x: Tensor) -> Tensor:
            y = factors * f(inner * x) + offset
            return y + (bends - 1) * (x - 0.3).clamp(-1, 1)

        found = bp.intertwiner_group(function, dim)
        assert found.name == UNKNOWN and "on different channels" in found.because, case

    held(
        examples,
        check,
        st.one_of(odd(), even(), neither()),
        st.sampled_from(["outer", "inner", "offset", "bend"]),
        st.floats(-5, 0),
        st.sampled_from([2, 3, 5, 8, 64, 300]),
        st.integers(0, 300),
    )


@pytest.mark.parametrize(**EXAMPLES)
def test_steps_at_places_of_their_own(examples: int) -> None:
    """Channels that are alike but between two values near each other."""

    def check(places: list[float], slope: float) -> None:
        at = torch.tensor(places, dtype=torch.float64)
        found = bp.intertwiner_group(lambda x: slope * x.relu() + (x > at), len(places))
        if len(set(places)) > 1:
            assert found.name in (UNKNOWN, PERMUTATION)
            apart = float(at.max() - at.min())
            assert apart < 0.15 or found.name == UNKNOWN
        else:
            assert found.name == PERMUTATION

    places = st.lists(st.floats(0.25, 3), min_size=2, max_size=8)
    held(examples, check, places, st.sampled_from([0.0, 1.0]))


@pytest.mark.parametrize(**EXAMPLES)
def test_gains_and_offsets_of_their_own(examples: int) -> None:
    def check(gains: list[float], seed: int, size: float) -> None:
        gain, dim = torch.tensor(gains, dtype=torch.float64), len(gains)
        offset = size * torch.randn(dim, generator=seeded(seed), dtype=torch.float64)
        assert_right(Case(f"{gains} t + {offset}", lambda x: gain * x + offset, GL), dim)

    sizes = st.sampled_from([0.0, 1.0, 1e6])
    gains = st.lists(FACTORS, min_size=1, max_size=8)
    held(examples, check, gains, st.integers(0, 99), sizes)


@pytest.mark.parametrize(**EXAMPLES)
def test_slopes_of_their_own_change_places_with_their_channels(examples: int) -> None:
    def check(slopes: list[float], scale: float, seed: int) -> None:
        dim = len(slopes)
        slope = torch.tensor(slopes, dtype=torch.float64)

        def function(x: Tensor, slope: Tensor = slope) -> Tensor:
            return scale * torch.where(x > 0, x, slope * x)

        class Sloped(torch.nn.Module):
            """The slopes are weights, as those of a PReLU, and move with the channels."""

            def __init__(self) -> None:
                super().__init__()
                self.slope = torch.nn.Parameter(slope.clone())

            def forward(self, x: Tensor) -> Tensor:
                return function(x, self.slope)

        found = bp.intertwiner_group(Sloped(), dim)
        if len(set(slopes)) == 1:
            assert found.name == POSITIVE and found.note == ""
            return
        assert found.name == POSITIVE and "slopes of the channels are permuted" in found.note
        a = found.sample(seeded(seed))
        moved = (a != 0).double() @ slope
        x = torch.randn(50, dim, generator=seeded(seed), dtype=torch.float64)
        assert torch.allclose(function(x @ a.T, moved), function(x) @ found.phi(a).T, rtol=1e-9)

    slopes = st.lists(st.integers(-900, 900).map(lambda n: n / 1000), min_size=2, max_size=8)
    held(examples, check, slopes, SIZES, st.integers(0, 99))


# --- functions that mix features ------------------------------------------------------------------


def _kept(x: Tensor, count: int) -> Tensor:
    """Whether a feature is among the largest of its row."""
    return x >= x.topk(count, dim=-1).values[:, -1:]


def _groups(x: Tensor) -> Tensor:
    """The features in two groups, the last one aside where their number is odd."""
    return x[:, : x.shape[1] // 2 * 2].unflatten(1, (2, -1))


def _ungrouped(y: Tensor, x: Tensor) -> Tensor:
    return torch.cat([y.flatten(1), x[:, y.shape[1] * y.shape[2] :]], dim=1)


def _length(x: Tensor) -> Tensor:
    return x.norm(dim=-1, keepdim=True)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


# With a parameter c between 0.3 and 3.
ONLY_PERMUTATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "softmax": lambda x, c: (c * x).softmax(-1),
    "log softmax": lambda x, c: (c * x).log_softmax(-1),
    "solu": lambda x, c: x * (c * x).softmax(-1),
    "gelu of the centred": lambda x, c: functional.gelu(c * _centred(x)),
    "gelu less its mean": lambda x, c: functional.gelu(c * x) - 0.5 * x.mean(-1, keepdim=True),
    "gated by the largest": lambda x, c: x * (c * x.amax(-1, keepdim=True)).sigmoid(),
    "divided by the others": lambda x, c: (
        functional.silu(x) / (c + functional.silu(x).square().sum(-1, keepdim=True))
    ),
    "inhibited": lambda x, c: functional.silu(x - c * x.logsumexp(-1, keepdim=True)),
    "gate and common gate": lambda x, c: x.sigmoid() * (c * x.mean(-1, keepdim=True)).sigmoid(),
    "sparse softmax": lambda x, c: (
        (c * x).masked_fill(~_kept(x, min(2, x.shape[1])), -math.inf).softmax(-1)
    ),
}
# What lets more or less than permutations pass, or others than the groups that are known.
MORE_OR_OTHERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sorted": lambda x, c: c * x.sort(-1).values,
    "sorted and bent": lambda x, c: functional.gelu(c * x).sort(-1, descending=True).values,
    "ranks": lambda x, c: c * x.argsort(-1).argsort(-1).double(),
    "running sum": lambda x, c: (c * x).cumsum(-1).tanh(),
    "running maximum": lambda x, c: (c * x).cummax(-1).values,
    "unit length": lambda x, c: x / (c * _length(x)),
    "rms norm": lambda x, c: x / (c * 1e-5 + x.square().mean(-1, keepdim=True)).sqrt(),
    "layer norm": lambda x, c: functional.layer_norm(x, x.shape[1:], eps=c * 1e-5),
    "gated by the mean": lambda x, c: x * (c * x.mean(-1, keepdim=True)).sigmoid(),
    "gated by the length": lambda x, c: x * (c * _length(x) - 1).sigmoid(),
    "gated by the product": lambda x, c: x * (c * x.prod(-1, keepdim=True)).sigmoid(),
    "bent mean added": lambda x, c: x + functional.gelu(c * x.mean(-1, keepdim=True)),
    "relu less its mean": lambda x, c: x.relu() - c * x.relu().mean(-1, keepdim=True),
    "capped length": lambda x, c: x * (c / _length(x).clamp_min(c)),
    "soft threshold of the length": lambda x, c: x * (1 - c / _length(x).clamp_min(c)),
    "winners of pairs": lambda x, c: _ungrouped(
        c * _groups(x) * (_groups(x) == _groups(x).amax(1, keepdim=True)), x
    ),
    "pairs' maximum": lambda x, c: _ungrouped(
        c * _groups(x).amax(1, keepdim=True).expand_as(_groups(x)), x
    ),
    "softmax in groups": lambda x, c: _ungrouped((c * _groups(x)).softmax(1), x),
    "neighbours' response": lambda x, c: x / (1 + c * (x**2 + x.roll(1, -1) ** 2)) ** 0.75,
    "gated by the reverse": lambda x, c: x * (c * x.flip(-1) + 0.1 * x).sigmoid(),
    "reversed": lambda x, c: functional.gelu(c * x).flip(-1),
    "shifted": lambda x, c: x.relu().roll(1, -1) + c,
    "turned": lambda x, c: functional.gelu(
        x @ torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=seeded(1)).double()).Q
    ),
    "softmax over samples": lambda x, c: (c * x).softmax(0),
    "less the samples' mean": lambda x, c: (x - x.mean(0)).relu(),
}


@pytest.mark.sample(default=7)
@pytest.mark.parametrize("dim", [2, 3, 4, 9])
@pytest.mark.parametrize("name", list(ONLY_PERMUTATIONS))
def test_mixed_features_that_let_permutations_pass(name: str, dim: int) -> None:
    def check(c: float) -> None:
        f = ONLY_PERMUTATIONS[name]
        assert_right(Case(f"{name}, {c}", lambda x: f(x, c), PERMUTATION), dim)

    held(3, check, st.floats(0.3, 3))


# Permutations, with signs or without, and nothing that changes single axes besides; one number for
# all features may pass.
ON_AXES: dict[str, tuple[Callable[[Tensor, float], Tensor], str]] = {
    "largest kept": (lambda x, c: c * x * _kept(x, 1), PERMUTATION),
    "which is largest": (lambda x, c: c * (x == x.amax(-1, keepdim=True)).double(), PERMUTATION),
    "softmax of directions": (
        lambda x, c: (c * x / _length(x).clamp_min(1e-30)).softmax(-1), PERMUTATION,
    ),
    "relu of directions": (
        lambda x, c: (x / _length(x).clamp_min(1e-30)).relu() - c * x.mean(-1, keepdim=True).tanh(),
        PERMUTATION,
    ),
    "unit sum": (lambda x, c: x / (c + x.abs().sum(-1, keepdim=True)), SIGNED),
    "unit maximum": (lambda x, c: x / (c + x.abs().amax(-1, keepdim=True)), SIGNED),
    "shares of sizes": (
        lambda x, c: c * x.abs() / x.abs().sum(-1, keepdim=True).clamp_min(1e-30), SIGNED,
    ),
    "shares of fourth powers": (
        lambda x, c: x / (c * x.pow(4).sum(-1, keepdim=True)).pow(0.25).clamp_min(1e-30), SIGNED,
    ),
    "clipped directions": (
        lambda x, c: (x / _length(x).clamp_min(1e-30)).clamp(-0.2 * c, 0.2 * c), SIGNED,
    ),
}  # fmt: skip


@pytest.mark.sample(default=7)
@pytest.mark.parametrize("dim", [2, 3, 4, 9])
@pytest.mark.parametrize("name", list(ON_AXES))
def test_mixed_features_that_let_orders_and_signs_pass(name: str, dim: int) -> None:
    function, expected = ON_AXES[name]

    def check(c: float) -> None:
        found = bp.intertwiner_group(lambda x: function(x, c), dim)
        if dim == 2 and found.name == UNKNOWN:
            return
        assert found.name == expected, found
        x = torch.randn(200, dim, generator=seeded(1), dtype=torch.float64)
        for seed in range(4):
            a = found.sample(seeded(seed))
            made = function(x @ a.T, c)
            assert torch.allclose(made, function(x, c) @ found.phi(a).T, rtol=1e-9, atol=1e-12)

    held(3, check, st.floats(0.3, 3))


# Of two features there is one order but the given one, which all of these let pass.
ALIKE_FOR_TWO = (
    "winners of pairs",
    "pairs' maximum",
    "gated by the product",
    "layer norm",
    "softmax in groups",
    "neighbours' response",
    "gated by the reverse",
    "reversed",
    "shifted",
)


@pytest.mark.sample(default=13)
@pytest.mark.parametrize("dim", [2, 3, 4, 9])
@pytest.mark.parametrize("name", list(MORE_OR_OTHERS))
def test_mixed_features_of_which_nothing_is_claimed(name: str, dim: int) -> None:
    def check(c: float) -> None:
        f = MORE_OR_OTHERS[name]
        centred = name == "relu less its mean" and c == 1
        if centred or (dim == 2 and name in ALIKE_FOR_TWO):
            found = bp.intertwiner_group(lambda x: f(x, c), dim)
            assert found.name in (UNKNOWN, PERMUTATION)
            return
        assert_right(Case(f"{name}, {c}", lambda x: f(x, c), UNKNOWN), dim)

    held(3, check, st.floats(0.3, 3))


@pytest.mark.parametrize(**EXAMPLES)
def test_lengths_that_are_capped_anywhere(examples: int) -> None:
    """Small values see a line, and each feature by itself a cap; yet every rotation passes."""

    def check(power: float, dim: int) -> None:
        cap = 10.0**power
        f: Function = lambda x: x * (cap / _length(x).clamp_min(cap))  # noqa: E731
        assert_right(Case(f"length up to {cap}", f, UNKNOWN), dim)

    held(examples, check, st.floats(-2, 3.5), st.sampled_from([2, 3, 5, 8, 64]))


@pytest.mark.parametrize(**EXAMPLES)
def test_one_hidden_connection_is_seen(examples: int) -> None:
    def check(case: Case, power: float, sample: str, dim: int, places: tuple[int, int]) -> None:
        f = case.function
        source, target = (place % dim for place in places)

        def function(x: Tensor) -> Tensor:
            y = f(x)
            other = x[:, (source + 1) % dim if source == target else source]
            if sample == "large":
                other = (other.abs() - 3).relu()
            y[:, target] += 10.0**power * other.sin()
            return y

        assert_right(Case(f"{case.text}, with a connection", function, UNKNOWN), dim)

    held(
        examples,
        check,
        st.one_of(odd(), even(), neither(), homogeneous()),
        st.floats(-5, 0),
        st.sampled_from(["any", "large"]),
        st.sampled_from([3, 5, 8, 64]),
        st.tuples(st.integers(0, 63), st.integers(0, 63)),
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.cat([x.relu(), (-x).relu()], dim=-1), r"made \(72, 8\) from \(72, 4\)"),
        (lambda x: x.unflatten(-1, (2, -1)).amax(-1), r"made \(72, 2\) from \(72, 4\)"),
        (functional.glu, r"made \(72, 2\) from \(72, 4\)"),
        (lambda x: x.amax(-1), r"made \(72,\) from \(72, 4\)"),
        (nn.LocalResponseNorm(2), "LocalResponseNorm failed on a float64 tensor"),
    ],
)
def test_other_shapes_are_refused(function: Function, message: str) -> None:
    """Concatenated ReLU, maxout, a gated unit, a maximum; a norm that wants images."""
    with pytest.raises(ValueError, match=message):
        bp.intertwiner_group(function, 4)
