"""Which weights are those of experts' neurons, where all experts of a block are in one tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from basis_probe.model.neurons import Matrix, Neurons, norm_of
from basis_probe.model.stored import Stored

_FAMILIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("gate_up_proj",), "down_proj"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("up_proj",), "down_proj"),
    (("input_linear",), "output_linear"),
    (("w1", "w3"), "w2"),
    (("w1", "v1"), "w2"),
    (("w1",), "w2"),
    (("wi_0", "wi_1"), "wo"),
    (("wi",), "wo"),
    (("W_gate", "W_in"), "W_out"),
    (("W_in",), "W_out"),
    (("fc1",), "fc2"),
)
"""What gates, what multiplies or is bent, what writes; the first may hold gate and product."""
_ALTERNATING = ("gpt_oss",)
"""Models whose gates and products take turns in one matrix."""


def stacked_neurons(stored: Stored) -> tuple[Neurons, ...]:
    """The experts' layers of neurons among some weights, each expert a layer of its own.

    A stack is a tensor [expert, outputs, inputs], or [expert, inputs, outputs], known by its name;
    which of both it is follows from the shapes of what is read and written. Where they fit both
    ways nothing is claimed.
    """
    stacks = {
        name.removesuffix(".weight"): name
        for name, shape in stored.shapes.items()
        if len(shape) == 3 and shape[0] > 1
    }
    found: dict[str, tuple[Neurons, ...]] = {}
    for reads, writes in _FAMILIES:
        for path in stacks:
            head, dot, leaf = path.rpartition(".")
            names = [f"{head}{dot}{part}" for part in (*reads, writes)]
            if leaf != writes or path in found or any(name not in stacks for name in names):
                continue
            found[path] = tuple(_experts(stored, head + dot, [stacks[name] for name in names]))
    return tuple(layer for layers in found.values() for layer in layers)


def _experts(stored: Stored, prefix: str, names: Sequence[str]) -> Iterator[Neurons]:
    """The layers of the experts of stacks, the last of which writes."""
    *reads, writes = names
    first, last = stored.shapes[reads[-1]], stored.shapes[writes]
    if any(stored.shapes[name] != first for name in reads) or first[0] != last[0]:
        return
    # [outputs, inputs] of one expert, either way that it may be stored.
    ways = [(first[1:], last[1:], False), (first[:0:-1], last[:0:-1], True)]
    fitting = [
        (given[0] // taken[1], transposed)
        for given, taken, transposed in ways
        if given[1] == taken[0] and given[0] in (taken[1], 2 * taken[1] * (len(reads) == 1))
    ]
    if len(fitting) != 1:
        return
    ((parts, transposed),) = fitting
    count, width = (last[1], last[2]) if transposed else (last[2], last[1])
    alternate = stored.config.get("model_type") in _ALTERNATING
    for expert in range(first[0]):
        sources = [name for name in reads for _ in range(parts)]
        yield Neurons(
            site=_site(writes, expert),
            reading=tuple(
                Matrix(
                    name,
                    transposed,
                    start=(part if alternate else part * count) if parts == 2 else 0,
                    count=count,
                    step=2 if alternate and parts == 2 else 1,
                    expert=expert,
                )
                for part, name in enumerate(sources)
            ),
            writing=Matrix(writes, transposed, 0, width, expert=expert),
            norm=norm_of(stored, prefix, width),
            inputs=width,
            outputs=width,
        )


def _site(name: str, expert: int) -> str:
    """What an expert's second matrix reads, called as if experts were modules."""
    owner, _, leaf = name.rpartition(".")
    found = f"{owner}.{expert}" if leaf == "weight" else f"{owner}.{expert}.{leaf}"
    return f"{found.removeprefix('.')}:in"


_ONE_OF_MANY = re.compile(r"^(.*)\.(\d+)\.[^.]+:in$")


def of_few_experts(
    layers: Sequence[Neurons], most: int
) -> tuple[tuple[Neurons, ...], tuple[str, ...]]:
    """The layers with at most so many experts of each block, at equal distances; what to know."""
    blocks: dict[str, list[Neurons]] = {}
    for layer in layers:
        found = _ONE_OF_MANY.match(layer.site)
        if layer.writing.expert is not None:
            blocks.setdefault(layer.writing.name, []).append(layer)
        elif found is not None and "expert" in found[1].rpartition(".")[2]:
            blocks.setdefault(found[1], []).append(layer)
    left = {
        layer.site
        for experts in blocks.values()
        if len(experts) > most
        for index, layer in enumerate(experts)
        if index not in {place * len(experts) // most for place in range(most)}
    }
    if not left:
        return tuple(layers), ()
    several = sum(map(len, blocks.values()))
    said = f"{several - len(left)} of {several} experts were compared, at equal distances"
    return tuple(layer for layer in layers if layer.site not in left), (f"{said} in every block.",)
