"""Frames of neurons are what the layer makes of its inputs with the weights that were drawn."""

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from basis_probe.algebra.groups import Permutation
from basis_probe.algebra.haar import Turned
from basis_probe.statistics.nulls import (
    Counterfactual,
    Frame,
    Geometry,
    LinearLayer,
    Null,
    Problem,
)
from basis_probe.statistics.nulls.neurons import ReadElsewhere
from basis_probe.statistics.nulls.wiring import SparseWiring

SAMPLES, WIDTH, DIM = 48, 40, 9
Function = Callable[[tuple[Tensor, ...]], Tensor]


def _normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _of_some_numbers(made: Tensor) -> Tensor:
    if len(made) not in (32, SAMPLES):
        raise ValueError("such rows do not fit")
    return made.tanh()


FUNCTIONS: dict[str, Function] = {
    "of each value": lambda made: torch.nn.functional.gelu(sum(made, start=torch.zeros(()))),
    "of the axes of a row": lambda made: sum(made, start=torch.zeros(())).softmax(1),
    "of an axis of its own": lambda made: made[0] * torch.linspace(1.0, 2.0, DIM).to(made[0]),
    "of all rows": lambda made: made[-1] - made[-1].mean(0),
    "of no other number of rows": lambda made: _of_some_numbers(made[0]),
}
AXES = {"all axes": None, "some axes": torch.tensor([1, 4, 7]), "one axis": torch.tensor([3])}
NULLS = {
    "turned": Counterfactual(),
    "turned in bands": Counterfactual(bands=3.0),
    "rewired": SparseWiring(),
}


def _layer(
    function: Function,
    geometry: Geometry,
    *,
    maps: int,
    positions: int,
    held: bool,
    dtype: torch.dtype,
) -> LinearLayer:
    inputs = _normal(SAMPLES, WIDTH, positions, seed=1) + 3 * _normal(WIDTH, 1, seed=2)
    return LinearLayer(
        inputs=inputs.to(dtype),
        weights=tuple(_normal(DIM, WIDTH, positions, seed=9 + m).to(dtype) for m in range(maps)),
        biases=tuple(_normal(DIM, seed=5).to(dtype) if not m else None for m in range(maps)),
        pre=lambda made: made[0] * 1.0,
        post=function,
        geometry=geometry,
        centred=False,
        held=(_normal(SAMPLES, DIM, seed=7).to(dtype),) if held else (),
    )


def _alternatives(layer: LinearLayer, null: Null, axes: Tensor | None) -> ReadElsewhere:
    x = torch.zeros(SAMPLES, DIM, dtype=layer.inputs.dtype)
    problem = Problem(x, Permutation(DIM), torch.arange(SAMPLES) % 2, layer=layer)
    made = null.alternatives(problem, axes)
    assert isinstance(made, ReadElsewhere)
    return made


def _by_hand(
    alternatives: ReadElsewhere, layer: LinearLayer, axes: Tensor | None, drawn: Tensor
) -> tuple[Tensor, Tensor]:
    """The activations and what is before them, with `drawn` as the weights of the axes."""
    weights = [weight.double().clone() for weight in layer.weights]
    read = torch.arange(DIM) if axes is None or alternatives.shapes[0][0] == DIM else axes
    places = layer.weights[0].shape[2]
    rows = drawn.double().unflatten(0, (len(weights), len(read), places)).mT
    for weight, own in zip(weights, rows, strict=True):
        weight[read] = own
    made = [torch.einsum("scp,ocp->so", layer.inputs.double(), weight) for weight in weights]
    made = [
        one if bias is None else one + bias for one, bias in zip(made, layer.biases, strict=True)
    ]
    given = tuple(one.to(layer.inputs) for one in made) + layer.held
    some = slice(None) if axes is None else axes
    assert layer.pre is not None
    return layer.post(given)[:, some], layer.pre(given)[:, some]


def _places(frames: list[Frame]) -> list[tuple[int, int]]:
    return [(place, n) for place, frame in enumerate(frames) for n in range(frame.count)]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("null", NULLS)
def test_frames_are_what_the_layer_makes_with_the_weights_that_were_drawn(
    function: str, axes: str, null: str
) -> None:
    some = AXES[axes]
    geometries = (Geometry.EUCLIDEAN, Geometry.BALANCED, Geometry.POLAR)
    kinds = itertools.product(geometries, (1, 2), (1, 3), (False, True))
    for geometry, maps, positions, held in kinds:
        layer = _layer(
            FUNCTIONS[function],
            geometry,
            maps=maps,
            positions=positions,
            held=held,
            dtype=torch.float64,
        )
        found = _alternatives(layer, NULLS[null], some)
        one, other = (torch.Generator().manual_seed(4) for _ in range(2))
        several = list(found.drawn_together(one, 4))
        for frame in (several[place].one(n) for place, n in _places(several)):
            post, pre = _by_hand(found, layer, some, found.drawn(other))
            torch.testing.assert_close(frame.post, post)
            torch.testing.assert_close(frame.pre, pre)
        assert torch.equal(one.get_state(), other.get_state())


def test_the_function_is_asked_once_for_the_rows_of_several_frames_where_it_may_be() -> None:
    for name, function in FUNCTIONS.items():
        asked: list[int] = []

        def counted(
            made: tuple[Tensor, ...], function: Function = function, asked: list[int] = asked
        ) -> Tensor:
            asked.append(len(made[0]))
            return function(made)

        kind = dict(maps=1, positions=1, held=False, dtype=torch.float32)
        layer = _layer(counted, Geometry.EUCLIDEAN, **kind)
        found = _alternatives(layer, Counterfactual(), None)
        found.several(torch.Generator().manual_seed(0), 6)
        together = name not in ("of all rows", "of no other number of rows")
        assert (6 * SAMPLES in asked) == together, name
        assert found.by_rows == together


@pytest.mark.parametrize("geometry", [Geometry.EUCLIDEAN, Geometry.BALANCED, Geometry.POLAR])
def test_single_precision_is_as_exact_far_from_zero(geometry: Geometry) -> None:
    kind = dict(maps=2, positions=1, held=False)
    function = FUNCTIONS["of each value"]
    exact = _layer(function, geometry, dtype=torch.float64, **kind)
    exact = dataclasses.replace(exact, inputs=exact.inputs + 300)
    single = dataclasses.replace(
        exact,
        inputs=exact.inputs.float(),
        weights=tuple(weight.float() for weight in exact.weights),
        biases=tuple(None if bias is None else bias.float() for bias in exact.biases),
    )
    made = [
        _alternatives(layer, Counterfactual(), None).made(torch.Generator().manual_seed(2), 5)
        for layer in (exact, single)
    ]
    assert made[1].dtype is torch.float32
    size = float(made[0].abs().max())
    assert float((made[0] - made[1]).abs().max()) < 3e-6 * size


@pytest.mark.parametrize("fixed", [0, 1, 3])
@pytest.mark.parametrize("count", [1, 5])
def test_turned_vectors_are_products_of_what_is_shared(fixed: int, count: int) -> None:
    vectors = _normal(count, 60, seed=3)
    turning = Turned(vectors, _normal(fixed, 60, seed=4) if fixed else None)
    assert turning.has_factors
    one, other = (torch.Generator().manual_seed(8) for _ in range(2))
    columns, weights = turning.factors(one, 7, dtype=torch.float64)
    span = turning.span
    torch.testing.assert_close(turning.along, vectors @ span)
    for column, weight in zip(columns, weights, strict=True):
        made = weight @ column.T
        made = made - made @ span @ span.T + turning.along @ span.T
        torch.testing.assert_close(made, turning.draw(other))
    assert torch.equal(one.get_state(), other.get_state())


def test_vectors_that_are_not_few_or_do_not_turn_have_no_factors() -> None:
    assert not Turned(_normal(20, 60, seed=1), None).has_factors
    assert not Turned(_normal(2, 8, seed=1), torch.eye(8).double()).has_factors
