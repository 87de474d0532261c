"""Axes that are followed through a model are those that its numbers show."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from basis_probe.model.axes import PADDING, Axes
from basis_probe.model.batches import batch_of
from basis_probe.model.network import recognise

MISSING = -7.0
Step = Callable[[Tensor], Tensor]


def _steps(draw: random.Random, x: Tensor) -> Step:
    """A random call that moves the entries of a tensor, or leaves them where they are."""
    axes = x.ndim

    def turn() -> Step:
        a, b = draw.sample(range(axes), 2)
        return lambda y: y.transpose(a, b)

    def order() -> Step:
        places = draw.sample(range(axes), axes)
        return lambda y: y.permute(places)

    def merge() -> Step:
        a = draw.randrange(axes - 1)
        return lambda y: y.flatten(a, a + 1)

    def split() -> Step:
        a = draw.randrange(axes)
        size = x.shape[a]
        parts = draw.choice([n for n in range(1, size + 1) if size % n == 0])
        return lambda y: y.unflatten(a, (parts, size // parts))

    def grow() -> Step:
        a = draw.randrange(axes + 1)
        return lambda y: y.unsqueeze(a)

    def repeat() -> Step:
        a = draw.randrange(axes)
        return draw.choice([lambda y: y.repeat_interleave(2, a), lambda y: torch.cat([y, y], a)])

    def pad() -> Step:
        a, before, after = draw.randrange(axes), draw.randrange(3), draw.randrange(3)
        places = [0, 0] * (axes - 1 - a) + [before, after]
        return lambda y: nn.functional.pad(y, places, value=MISSING)

    def put() -> Step:
        a = draw.randrange(axes)
        shape = [*x.shape]
        shape[a] = draw.randrange(1, 3)
        front = draw.random() < 0.5

        def made(y: Tensor) -> Tensor:
            more = torch.full(shape, MISSING)
            return torch.cat([more, y] if front else [y, more], a)

        return made

    def cut() -> Step:
        a = draw.randrange(axes)
        start = draw.randrange(x.shape[a])
        length = draw.randrange(1, x.shape[a] - start + 1)
        return draw.choice(
            [
                lambda y: y.narrow(a, start, length),
                lambda y: y.index_select(a, torch.arange(start, start + length)),
            ]
        )

    def flip() -> Step:
        a = draw.randrange(axes)
        return draw.choice([lambda y: y.flip(a), lambda y: y.roll(1, a)])

    def keep() -> Step:
        def buffered(y: Tensor) -> Tensor:
            whole = torch.full((*y.shape[:-1], y.shape[-1] + 1), MISSING)
            whole[..., :-1] = y
            return whole

        return draw.choice([lambda y: y * 1.0, lambda y: y + torch.zeros(1), buffered])

    kinds = [split, grow, repeat, pad, put, cut, flip, keep]
    if axes > 1:
        kinds += [turn, order, merge]
    return draw.choice(kinds)()


class Chain(nn.Module):
    """Calls that move entries, one after the other."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


def _chain(seed: int, shape: tuple[int, ...]) -> tuple[Chain, Tensor]:
    """A chain, and an input of which every entry says where it stands."""
    draw = random.Random(seed)
    places = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    weights = torch.tensor([10.0**power for power in range(len(shape))])
    x = (places * weights.view(-1, *[1] * len(shape))).sum(0)
    y, steps = x, list[Step]()
    while len(steps) < 6:
        step = _steps(draw, y)
        made = step(y)
        if made.ndim <= 5 and made.numel() <= 5000:
            y = made
            steps.append(step)
    return Chain(steps), x


@pytest.mark.parametrize("first", range(0, 25, 5))
@pytest.mark.parametrize("shape", [(2, 5), (3, 4), (2, 3, 4), (1, 6), (4, 1)])
def test_indices_are_those_that_the_entries_show(shape: tuple[int, ...], first: int) -> None:
    known = 0
    for seed in range(first, first + 5):
        model, x = _chain(seed, shape)
        subject = recognise(model)
        batch = batch_of(x, number=0, tokenizer=None, device=subject.device)
        trace = subject._record(batch)
        y = model(x)
        for axis, labels in enumerate(Axes(trace).of(trace.outputs[0])):
            for (_, source), vector in labels.items():
                known += 1
                shown = (y / 10**source).floor() % 10
                view = [1] * y.ndim
                view[axis] = -1
                told = vector.view(view).expand(y.shape)
                real = (y != MISSING) & (told >= 0)
                assert torch.equal(shown[real], told[real].to(shown.dtype)), (seed, axis, source)
                # Where nothing of the input is said to be, there is nothing of it.
                assert not bool(((y != MISSING) & (told == PADDING)).any())
    assert known > 5


def test_what_is_mixed_is_a_position() -> None:
    torch.manual_seed(0)
    for first in (True, False):
        models = (
            nn.LSTM(4, 6, batch_first=first),
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=first),
        )
        for model in models:
            subject = recognise(model.eval())
            x = torch.randn(3, 5, 4)
            batch = batch_of(x, number=0, tokenizer=None, device=subject.device)
            axes = Axes(subject._record(batch))
            position, example = (1, 0) if first else (0, 1)
            assert (axes.trace.main, position) in axes.mixed
            assert (axes.trace.main, example) not in axes.mixed
