"""Whether weights that are functions of parameters can take the values that a change of basis asks.

A weight may be computed while the model runs: masked, made positive, divided by a norm, made
orthogonal. Its group is what the *parameters* can absorb. So elements of the claimed group act on
the weight, and parameters are looked for that give the changed weight.
"""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from basis_probe.algebra.elements import MonomialElement
from basis_probe.algebra.groups import Group
from basis_probe.model.facts import Facts, bias_of, fixed_in, leaves_of
from basis_probe.model.graph import Kind, replay
from basis_probe.model.trace import Fixed, Node, Ref
from basis_probe.model.weights import entries_of, view_of

MOST_NUMBERS = 100_000
"""A computed weight of more numbers is not tried, and taken for one that cannot move."""

MOST_FEATURES = 4096
"""Nor is one of more features, for changes of basis are written out."""

_NEAR = 1e-4
"""Relative distance at which a weight counts as reached."""

_FAR, _LARGER = 100.0, 10.0
_STEPS = 400


@dataclasses.dataclass(frozen=True)
class Computed:
    """A weight or a bias of a linear map that the model computes from parameters.

    Attributes:
        vertex: the linear map.
        node: the node that holds the weight.
        outputs, inputs: its axes; those of a bias are one.
    """

    vertex: int
    node: int
    outputs: int
    inputs: int


def computed_weights(facts: Facts) -> dict[int, Computed]:
    """Vertex of a linear map -> its weight, where that is computed and no selection of entries."""
    trace = facts.graph.trace
    found: dict[int, Computed] = {}
    for index, vertex in facts.graph.vertices.items():
        if vertex.kind not in (Kind.LINEAR, Kind.CONVOLUTION, Kind.DEPTHWISE, Kind.EMBEDDING):
            continue
        node = trace.node(vertex.node)
        for value, outputs, inputs in _weights(node):
            if isinstance(value, Ref) and _is_computed(facts, value.node):
                found[index] = Computed(index, value.node, outputs, inputs)
    return found


def computed_biases(facts: Facts) -> dict[int, Computed]:
    """Vertex of a linear map -> its bias, where that is computed and no selection of entries."""
    trace = facts.graph.trace
    found: dict[int, Computed] = {}
    for index, vertex in facts.graph.vertices.items():
        if vertex.kind in (Kind.LINEAR, Kind.CONVOLUTION, Kind.DEPTHWISE):
            value = bias_of(trace.node(vertex.node))
            if isinstance(value, Ref) and _is_computed(facts, value.node, axes=1):
                found[index] = Computed(index, value.node, -1, -1)
    return found


def _weights(node: Node) -> Iterator[tuple[object, int, int]]:
    """The weight of a linear map, and its axes of outputs and inputs."""

    def argument(place: int, *names: str) -> object:
        for name in names:
            if name in node.kwargs:
                return node.kwargs[name]
        return node.args[place] if len(node.args) > place else None

    if node.op == "embedding":
        yield argument(1, "weight"), 1, 0
    elif node.op == "addmm":
        yield argument(2, "mat2"), 1, 0
    elif node.op in ("matmul", "mm"):
        yield argument(1, "other", "mat2"), -1, -2
        yield argument(0, "input"), -2, -1
    elif node.op == "linear":
        yield argument(1, "weight"), 0, 1
    elif "transpose" in node.op:
        yield argument(1, "weight"), 1, 0
    elif node.op.startswith("conv"):
        yield argument(1, "weight"), 0, 1


def _is_computed(facts: Facts, node: int, axes: int = 2) -> bool:
    """True for a weight made of parameters that is not entries of one, or those times a number."""
    trace = facts.graph.trace
    if trace.node(node).live or len(trace.node(node).shape) < axes:
        return False
    leaves = {id(leaf.tensor): leaf.tensor for leaf in leaves_of(trace, node)}
    learned = [tensor for tensor in leaves.values() if isinstance(tensor, nn.Parameter)]
    if not learned or any(tensor.is_meta for tensor in leaves.values()):
        return False
    if len(learned) > 1:
        return True
    view = view_of(trace, node, learned[0])
    if view is not None and _shows_each_once(view):
        return False
    try:
        found = entries_of(trace, node, learned[0], {})
    except (RuntimeError, ValueError, TypeError):
        return True
    if found is None:
        return True
    entries, factor = found
    if len(entries.unique()) < entries.numel():
        # One number stands in several places.
        return True
    # That another use is tied to this one is seen of numbers that lie in one place.
    return factor != 1.0 and _is_used_elsewhere(facts, learned[0])


def _is_used_elsewhere(facts: Facts, parameter: Tensor) -> bool:
    """True if what depends on the input reads a parameter otherwise than as one weight, once."""
    trace, uses = facts.graph.trace, 0

    def lies_there(fixed: Fixed) -> bool:
        tensor = fixed.tensor
        alike = tensor.layout is torch.strided and not tensor.is_meta
        return alike and tensor.untyped_storage().data_ptr() == place

    place = parameter.untyped_storage().data_ptr()
    for node in trace.nodes:
        if not node.live:
            continue
        uses += sum(map(lies_there, fixed_in((node.args, node.kwargs))))
        made = (index for index in node.inputs if not trace.node(index).live)
        uses += sum(any(map(lies_there, leaves_of(trace, index))) for index in made)
    return uses > 1


def _shows_each_once(view: Tensor) -> bool:
    """True if no number is seen to stand in two places of a view, by its strides."""
    reach = 0
    for stride, size in sorted(zip(view.stride(), view.shape, strict=True)):
        if size > 1 and stride <= reach:
            return False
        reach += stride * (size - 1)
    return True


def unreachable(facts: Facts, weight: Computed, group: Group, *, writes: bool) -> bool:
    """True if elements of a group ask of a computed weight what its parameters cannot give.

    Args:
        facts: what was seen of the model.
        weight: the weight.
        group: the group of the stream that its map writes or reads.
        writes: whether the map writes the stream; else it reads it.
    """
    trace = facts.graph.trace
    leaves = {id(leaf.tensor): leaf.tensor for leaf in leaves_of(trace, weight.node)}
    learned = [tensor for tensor in leaves.values() if isinstance(tensor, nn.Parameter)]
    if _is_free(facts, weight.node, learned):
        return False
    if sum(tensor.numel() for tensor in learned) > MOST_NUMBERS or group.dim > MOST_FEATURES:
        return True
    # As they are, and as they could be after more training.
    for size in (1.0, _LARGER):
        given = [size * tensor.detach().double() for tensor in learned]
        by = {id(tensor): value for tensor, value in zip(learned, given, strict=True)}
        try:
            now = replay(trace, weight.node, {}, by).detach().double()
        except (RuntimeError, ValueError, TypeError):
            return True
        axis = (weight.outputs if writes else weight.inputs) % now.ndim
        if now.shape[axis] != group.dim:
            return True
        for moved in _moved(now, axis, group, inverse=not writes):
            if not _reaches(facts, weight.node, learned, given, moved):
                return True
    return False


def _is_free(facts: Facts, node: int, learned: list[nn.Parameter]) -> bool:
    """True if a weight reaches every value for a reason that needs no search, at any size.

    That is so if it is a multiple of one parameter and a constant, whatever the others are (a
    factor, a low-rank update that is added), or torch's own product of directions and lengths.
    """
    trace = facts.graph.trace
    made = trace.node(node)
    if made.op == "_weight_norm":
        return len(learned) == 2
    generator = torch.Generator().manual_seed(0)
    for one in learned:
        if one.shape != made.shape:
            continue
        start = one.detach().double()
        size = max(float(start.abs().max()), 1e-3)
        steps = [
            factor * size * torch.randn(start.shape, generator=generator, dtype=torch.float64)
            for factor in (1.0, 100.0)
        ]
        try:
            before = replay(trace, node, {}, {id(one): start})
            moves = [
                (
                    replay(trace, node, {}, {id(one): start + step.to(start)}) - before,
                    step.to(start),
                )
                for step in steps
            ]
        except (RuntimeError, ValueError, TypeError):
            continue
        factors = [float((move * step).sum() / step.square().sum()) for move, step in moves]
        alike = all(
            float((move - factors[0] * step).abs().max()) <= 1e-9 * float(move.abs().max())
            for move, step in moves
        )
        if alike and abs(factors[0]) > 1e-12:
            return True
    return False


def _moved(now: Tensor, axis: int, group: Group, *, inverse: bool) -> Iterator[Tensor]:
    """The weight as elements of a group make it along an axis, small changes and large ones."""
    generator = torch.Generator().manual_seed(0)
    front = now.movedim(axis, 0)
    for factor in (1.0, _FAR, 1 / _LARGER):
        # Of few axes all signs of one that is drawn may be alike; mixtures have no such form.
        element = group.generic(torch.Generator().manual_seed(0))
        if not isinstance(element, MonomialElement):
            element = group.draw(generator)
        matrix = factor * element.matrix().to(now)
        # A bounded weight follows small changes, and not large ones.
        if factor != 1.0 and not group.contains(matrix.cpu().numpy()):
            continue
        if inverse:
            matrix = torch.linalg.inv(matrix).T
        yield (matrix @ front.reshape(len(front), -1)).view(front.shape).movedim(0, axis)


def _reaches(
    facts: Facts, node: int, learned: list[nn.Parameter], given: list[Tensor], target: Tensor
) -> bool:
    """True if parameters are found from which the node takes the target's values."""
    size = float(target.norm())
    for start in ("as they are", "the target"):
        free = [
            (target if start == "the target" and tensor.shape == target.shape else tensor)
            .clone()
            .requires_grad_()
            for tensor in given
        ]
        if start == "the target" and not any(t.shape == target.shape for t in learned):
            break
        by = {id(tensor): value for tensor, value in zip(learned, free, strict=True)}

        def distance(by: dict[int, Tensor] = by) -> Tensor:
            return (replay(facts.graph.trace, node, {}, by) - target).square().sum() / size**2

        if _descends(distance, free):
            return True
    return False


def _descends(distance: Callable[[], Tensor], free: list[Tensor]) -> bool:
    """True if the squared relative distance falls to nothing by descent."""
    optimiser = torch.optim.LBFGS(
        free,
        max_iter=_STEPS,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = distance()
        if loss.requires_grad:
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return loss

    try:
        left = 1.0
        with torch.enable_grad():
            # Started anew where the curvature that it remembers leads nowhere.
            for _ in range(3):
                optimiser.step(closure)
                left = float(distance().detach())
                if not left >= _NEAR**2:
                    break
                optimiser.state.clear()
    except (RuntimeError, ValueError, TypeError):
        return False
    return left < _NEAR**2
