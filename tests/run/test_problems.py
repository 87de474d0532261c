"""Layers as numbers are what the model has, whatever its types and however its weights lie."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import basis_probe as bp
from basis_probe.model.linear_layer import Layer
from basis_probe.run import problems
from basis_probe.statistics.nulls import Geometry, LinearLayer
from tests.draws import seeded

OUTPUTS, WIDTH = 7, 5


def _weight(lies: str, positions: int, dtype: torch.dtype, seed: int) -> Tensor:
    inner = WIDTH * positions
    drawn = torch.randn(OUTPUTS, inner, generator=seeded(seed), dtype=torch.float64).to(dtype)
    if lies == "turned":
        return drawn.T.contiguous().T
    if lies == "window":
        # Rows overlap, as those of a weight that stands in for one that is not there.
        return drawn.flatten().as_strided((OUTPUTS, inner), (2, 1))
    return drawn


def _layer(weights: tuple[Tensor, ...], biases: tuple[Tensor | None, ...], **more: Any) -> Layer:
    empty: dict[str, Any] = {field.name: None for field in dataclasses.fields(Layer)}
    return Layer(**{**empty, "width": WIDTH, "weights": weights, "biases": biases, **more})


@pytest.mark.parametrize("cached", [1, 12, 2**17])
@pytest.mark.parametrize("lies", ["rows", "turned", "window"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("positions", [1, 3])
def test_what_a_norm_does_is_moved_into_the_layer_behind_it(
    dtype: torch.dtype, lies: str, positions: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problems, "_CACHED", cached)
    draw = seeded(3)
    weights = tuple(_weight(lies, positions, dtype, seed) for seed in (1, 2))
    biases = (torch.randn(OUTPUTS, generator=draw).to(dtype), None)
    inputs = torch.randn(4, WIDTH, positions, generator=draw, dtype=torch.float64)
    for entries in {1, positions}:
        gain = torch.rand(WIDTH * entries, generator=draw) + 0.5
        shift = torch.randn(WIDTH * entries, generator=draw)
        normed = inputs * gain.double().reshape(WIDTH, entries)
        for bias in (None, shift):
            behind = normed if bias is None else normed + bias.double().reshape(WIDTH, entries)
            kept = [weight.clone() for weight in weights]
            maps, added = problems.weights_of(_layer(weights, biases, gain=gain, bias=bias), dtype)
            working = torch.float64 if dtype is torch.float64 else torch.float32
            for place, (weight, own) in enumerate(zip(weights, biases, strict=True)):
                expected = behind.flatten(1) @ weight.double().T
                expected = expected if own is None else expected + own.double()
                found = inputs.flatten(1) @ maps[place].double().flatten(1).T
                more = added[place]
                assert maps[place].dtype is working
                assert (more is None) == (own is None and bias is None)
                found = found if more is None else found + more.double()
                within = 1e-12 if working is torch.float64 else 1e-5
                torch.testing.assert_close(found, expected, rtol=within, atol=within)
                # What the model holds is not written into.
                assert torch.equal(weight, kept[place])


def test_weights_that_no_norm_comes_before_are_those_of_the_model() -> None:
    weight = _weight("rows", 1, torch.float32, 1)
    (found,), (bias,) = problems.weights_of(_layer((weight,), (None,)), torch.float32)
    assert found.data_ptr() == weight.data_ptr() and bias is None


def _linear(kind: str, samples: int) -> tuple[LinearLayer, list[int]]:
    """A layer of 40 neurons, and the number of products that it makes, row by axis."""
    draw = seeded(5)
    weights = tuple(torch.randn(40, WIDTH, 1, generator=draw) for _ in range(2))
    biases = (torch.randn(40, generator=draw), None)
    scale = torch.rand(40, generator=draw) + 0.5
    held = torch.randn(samples, 40, generator=draw)
    made: list[int] = []

    def post(outputs: tuple[Tensor, ...]) -> Tensor:
        made.append(outputs[0].numel())
        first, second, carried = outputs
        bent = torch.nn.functional.silu(first) * second + carried
        if kind == "all axes":
            return bent / bent.norm(dim=1, keepdim=True)
        return bent * scale if kind == "a number for every axis" else bent

    return (
        LinearLayer(
            inputs=torch.randn(samples, WIDTH, 1, generator=draw),
            weights=weights,
            biases=biases,
            pre=None,
            post=post,
            geometry=Geometry.EUCLIDEAN,
            centred=False,
            held=(held,),
        ),
        made,
    )


@pytest.mark.parametrize("samples", [1, 63, 64, 300, 1000])
@pytest.mark.parametrize("kind", ["axis by axis", "a number for every axis", "all axes"])
def test_a_row_or_an_axis_that_cannot_be_computed_again_is_noticed(kind: str, samples: int) -> None:
    linear, made = _linear(kind, samples)
    x = linear.post(linear.outputs)
    made.clear()
    assert problems._is_within(1e-4, linear, x)
    if kind == "axis by axis" and samples >= 300:
        # Every axis is computed again of a part of the rows.
        assert sum(made) < 0.5 * x.numel()
    for row in {0, 1, samples // 2, samples - 1} & {*range(samples)}:
        wrong = x.clone()
        wrong[row] += 1e-3
        assert not problems._is_within(1e-4, linear, wrong)
    for axis in range(x.shape[1]):
        wrong = x.clone()
        wrong[:, axis] += 1e-3
        assert not problems._is_within(1e-4, linear, wrong)


SHORT = torch.backends.cpu.get_cpu_capability() == "AVX512"


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("gained", [False, True])
@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_outputs_are_rounded_as_the_model_rounds_them(
    dtype: torch.dtype, positions: int, gained: bool, biased: bool
) -> None:
    weights = tuple(_weight("rows", positions, dtype, seed) for seed in (1, 2))
    draw = seeded(4)
    biases = (torch.randn(OUTPUTS, generator=draw).to(dtype), None) if biased else (None, None)
    gain = torch.rand(WIDTH, generator=draw) + 0.5 if gained else None
    inputs = torch.randn(90, WIDTH, positions, generator=draw).to(dtype)
    found = _layer(
        weights,
        biases,
        gain=gain,
        held=(),
        centred=False,
        pre=lambda o: o[0],
        post=lambda o: o[0] * o[1],
    )
    linear = problems.linear_layer(found, {"inputs": inputs}, Geometry.EUCLIDEAN, dtype)
    assert (linear.computed is not None) == (dtype is torch.bfloat16 and SHORT)
    for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        exact = inputs.double().flatten(1) @ weight.double().T
        exact = exact if bias is None else exact + bias.double()
        made = linear.outputs[place]
        assert made.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
        assert torch.equal(made.to(dtype).to(made), made)
        rounding = torch.finfo(dtype).eps
        assert (made - exact).abs().max() <= 8 * rounding * exact.abs().max()
    # Some of the rows are those rows, whether all were computed before or not.
    some = torch.tensor([3, 1, 88])
    for rows in (slice(5, 40, 7), some):
        for whole in (linear, dataclasses.replace(linear)):
            for one, other in zip(linear.outputs, whole[rows].outputs, strict=True):
                torch.testing.assert_close(other, one[rows], rtol=1e-2, atol=1e-2)
        before = linear[rows].before
        assert before is not None
        torch.testing.assert_close(before, linear.outputs[0][rows], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("leaves", [False, True])
def test_functions_may_change_what_they_are_given(leaves: bool) -> None:
    linear, _ = _linear("axis by axis", 30)

    class Post:
        leaves_as_given = leaves

        def __call__(self, outputs: tuple[Tensor, ...]) -> Tensor:
            return outputs[0] + 1 if leaves else outputs[0].add_(1)

    linear = dataclasses.replace(linear, post=Post())
    first = linear.post(linear.outputs).clone()
    linear.prepare()
    for rows in (slice(None), slice(3, 9)):
        assert torch.equal(linear.post(linear.outputs_of(rows)), first[rows])
    assert problems.missed_by(linear, first) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bent", [torch.nn.Sigmoid, torch.nn.ReLU, torch.nn.GELU])
def test_neurons_score_what_the_model_has_of_them(
    bent: type[torch.nn.Module], dtype: torch.dtype
) -> None:
    """Saturated neurons, and those with a large mean, have few values in a short type."""
    layers = [torch.nn.Linear(16, 24), torch.nn.LayerNorm(24), torch.nn.Linear(24, 70), bent()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(70, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=seeded(parameter.numel())) / 4
    model[2].bias.data += torch.linspace(-12, 12, 70)
    model = model.to(dtype).eval()
    x = torch.randn(900, 16, generator=seeded(1)).to(dtype)
    with torch.no_grad():
        seen = model[:4](x).double()
    off = seen - seen.mean(0)
    expected = off.pow(4).mean(0) / off.square().mean(0).square()
    found = bp.probe(model, [x], progress=False)["3"]
    values = torch.as_tensor(found.scores["kurtosis"].per_direction)
    dead = (seen == seen[0]).all(0)
    assert found.n_dead == int(dead.sum())
    assert bool(values[dead].isnan().all())
    # Sums in another order now and then round a value the other way.
    close = (values / expected - 1).abs()[~dead] < (1e-6 if dtype is torch.float32 else 0.05)
    assert float(close.double().mean()) > 0.8
    assert found.scores["kurtosis"].observed == pytest.approx(
        float(expected[~dead].mean()), rel=0.05
    )
