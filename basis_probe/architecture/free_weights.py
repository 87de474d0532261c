"""Whether weights that are functions of parameters can take the values that a change of basis asks.

A weight may be computed while the model runs: masked, made positive, divided by a norm, made
orthogonal. Its group is what the *parameters* can absorb. So elements of the claimed group act on
the weight, and parameters are looked for that give the changed weight.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from basis_probe.algebra.elements import Element, MonomialElement
from basis_probe.algebra.groups import Group, Permutation
from basis_probe.model.facts import (
    Facts,
    bias_of,
    constants_of,
    inside_of,
    leaves_of,
    nodes_behind,
)
from basis_probe.model.graph import Kind, is_one_number, norm_argument, replay
from basis_probe.model.rows import is_blank
from basis_probe.model.trace import Fixed, Node, Ref, Trace, fixed_in
from basis_probe.model.weights import entries_of, view_of

MOST_NUMBERS = 100_000
"""A computed weight of more numbers is not tried, and taken for one that cannot move."""

MOST_FOLLOWED = 2**24
"""Nor is it asked of one of more numbers whether it changes as its parameters do."""

MOST_FEATURES = 4096
"""Nor is one of more features, for changes of basis are written out."""

_NEAR = 1e-4
"""Relative distance at which a weight counts as reached."""

_EXACT = 1e-9
"""Relative distance at which a weight that needs no search counts as what was asked."""

_FAR, _LARGER = 100.0, 10.0

_SIZES = (1e-3, 1.0, 1.0)
"""Other values of the parameters are tried, of no smaller sizes."""

_FARTHEST = (1e6, 1e4, 1e2, 10.0)
"""Of these sizes they are tried where no search is needed: what is bounded is so there."""

_HALVINGS = 80
"""So often the stretch in which a function takes a value is halved."""

_MOST_WAYS = 16
"""So many choices of axes along which parameters may change are tried at most."""

_STEPS = 400


@dataclasses.dataclass(frozen=True)
class Computed:
    """A weight or a bias of a linear map that the model computes from parameters.

    Attributes:
        vertex: the linear map, or what adds a vector to features, or multiplies them by one.
        node: the node that holds the weight.
        outputs, inputs: its axes; those of a vector are one.
        inner: the calls that may use what it is computed from.
    """

    vertex: int
    node: int
    outputs: int
    inputs: int
    inner: frozenset[int]


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
                found[index] = Computed(index, value.node, outputs, inputs, frozenset({index}))
    return found


def computed_biases(facts: Facts) -> dict[int, Computed]:
    """Vertex of a linear map -> its bias, where that is computed and no selection of entries."""
    trace = facts.graph.trace
    found: dict[int, Computed] = {}
    for index, vertex in facts.graph.vertices.items():
        if vertex.kind in (Kind.LINEAR, Kind.CONVOLUTION, Kind.DEPTHWISE):
            value = bias_of(trace.node(vertex.node))
            if isinstance(value, Ref) and _is_computed(facts, value.node, (-1,)):
                found[index] = Computed(index, value.node, -1, -1, frozenset({index}))
    return found


def computed_vectors(facts: Facts) -> dict[int, tuple[Computed, ...]]:
    """Vertex -> what it adds to features, or multiplies them by, where that is computed.

    Left out is what takes every value, such as one plus a parameter.
    """
    trace = facts.graph.trace
    found: dict[int, tuple[Computed, ...]] = {}
    for index, vertex in facts.graph.vertices.items():
        node, layout = trace.node(vertex.node), facts.graph.layouts.get(index)
        if layout is None:
            continue
        features = tuple(place - len(node.shape) for place in layout.axes)
        inner = frozenset({index})
        if vertex.kind is Kind.SUM or (vertex.kind is Kind.CARRIER and node.op == "cat"):
            values = [value.node for value in constants_of(trace, node) if isinstance(value, Ref)]
        elif vertex.kind in (Kind.BATCH_NORM, Kind.GROUP_NORM):
            given = (norm_argument(node, name) for name in ("weight", "bias"))
            values = [value.node for value in given if isinstance(value, Ref)]
            features = (-1,)
        elif vertex.kind is Kind.REGION:
            inner = inside_of(facts.graph, vertex)
            values = [i for own in inner for i in trace.node(own).inputs if not trace.node(i).live]
        else:
            continue
        several = tuple(
            Computed(index, value, features[-1], features[-1], inner)
            for value in dict.fromkeys(values)
            if _is_by_features(trace, value, features[-1])
            and _is_computed(facts, value, features)
            and not _is_free(facts, value, learned_behind(trace, value))
        )
        if several:
            found[index] = several
    return found


def _is_by_features(trace: Trace, value: int, axis: int) -> bool:
    """True for a constant that is not the same for all features."""
    made = trace.node(value)
    shape = made.shape
    if is_blank(trace, Ref(value)) or any(trace.node(index).live for index in made.inputs):
        return False  # Nothing but the shape is taken of what depends on the input.
    return len(shape) >= -axis and shape[axis] > 1 and not is_one_number(trace, Ref(value))


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


def _is_computed(facts: Facts, node: int, features: tuple[int, ...] = ()) -> bool:
    """True for a weight made of parameters that is not entries of one, or those times a number.

    Args:
        facts: what was seen of the model.
        node: what holds the weight.
        features: the axes of a vector along which it differs from feature to feature, from the
            last one on; empty for a matrix.
    """
    trace = facts.graph.trace
    if trace.node(node).live or len(trace.node(node).shape) < (1 if features else 2):
        return False
    leaves = {id(leaf.tensor): leaf.tensor for leaf in leaves_of(trace, node)}
    learned = [tensor for tensor in leaves.values() if isinstance(tensor, nn.Parameter)]
    if not learned or any(tensor.is_meta for tensor in leaves.values()):
        return False
    if len(learned) > 1:
        return True
    view = view_of(trace, node, learned[0])
    if view is not None and _shows_each_once(view, features):
        return False
    try:
        found = entries_of(trace, node, learned[0], {})
    except (RuntimeError, ValueError, TypeError):
        return True
    if found is None:
        return True
    entries, factor = found
    if features:
        entries = _not_spread(entries, features)
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


def _not_spread(entries: Tensor, features: tuple[int, ...]) -> Tensor:
    """The entries without axes, other than those of features, along which all are the same."""
    for axis in range(-entries.ndim, 0):
        first = entries.narrow(axis, 0, 1)
        if axis not in features and torch.equal(first.expand_as(entries), entries):
            entries = first
    return entries


def _shows_each_once(view: Tensor, features: tuple[int, ...] = ()) -> bool:
    """True if no number is seen to stand in two places of a view, by its strides.

    Args:
        view: the view.
        features: the axes of features of a vector, which may be the same along all others.
    """
    reach = 0
    places = sorted(zip(view.stride(), view.shape, range(-view.ndim, 0), strict=True))
    for stride, size, axis in places:
        if features and stride == 0 and axis not in features:
            continue
        if size > 1 and stride <= reach:
            return False
        reach += stride * (size - 1)
    return True


def unreachable(
    facts: Facts, weight: Computed, group: Group, *, writes: bool, search: bool = True
) -> bool:
    """True if elements of a group ask of a computed weight what its parameters cannot give.

    Args:
        facts: what was seen of the model.
        weight: the weight.
        group: the group of the stream that its map writes or reads.
        writes: whether the map writes the stream; else it reads it.
        search: whether to look for parameters that give the changed weight; else they must change
            as it does.
    """
    trace = facts.graph.trace
    learned = learned_behind(trace, weight.node)
    if _is_free(facts, weight.node, learned):
        return False
    axis = weight.outputs if writes else weight.inputs
    numbers = sum(tensor.numel() for tensor in learned)
    if max(numbers, math.prod(trace.node(weight.node).shape)) <= MOST_FOLLOWED and _follow(
        trace, weight.node, learned, axis, group, writes
    ):
        return False
    if not search or numbers > MOST_NUMBERS or group.dim > MOST_FEATURES:
        return True
    each = _is_entry_by_entry(trace, weight.node, learned)
    for given in _given(trace, learned):
        by = {id(tensor): value for tensor, value in zip(learned, given, strict=True)}
        try:
            now = _made(trace, weight.node, by).detach().double()
        except (RuntimeError, ValueError, TypeError):
            return True
        if now.shape[axis] != group.dim:
            return True
        for moved in _moved(now, axis % now.ndim, group, inverse=not writes):
            if each:
                reached = _reaches_each(trace, weight.node, learned[0], moved)
            else:
                reached = _reaches(facts, weight.node, learned, given, moved)
            if not reached:
                return True
    return False


def _made(trace: Trace, node: int, by: dict[int, Tensor]) -> Tensor:
    """The value of a node, with other numbers in place of parameters."""
    blank = {
        made.index: torch.zeros(made.shape, dtype=torch.float64)
        for made in nodes_behind(trace, node)
        if made.floating and is_blank(trace, Ref(made.index))
    }
    return replay(trace, node, blank, by)


def learned_behind(trace: Trace, node: int) -> list[nn.Parameter]:
    """The parameters that a node is computed from."""
    leaves = {id(leaf.tensor): leaf.tensor for leaf in leaves_of(trace, node)}
    return [tensor for tensor in leaves.values() if isinstance(tensor, nn.Parameter)]


def _given(trace: Trace, learned: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters as they are, as they could be after more training, and other ones."""
    now = [trace.instead.get(id(tensor), tensor).detach().double() for tensor in learned]
    for size in (1.0, _LARGER):
        yield [size * values for values in now]
    generator = torch.Generator().manual_seed(0)
    for least in _SIZES:
        yield [
            max(float(tensor.detach().double().square().mean().sqrt()), least)
            * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
            for tensor in learned
        ]


def _follow(
    trace: Trace, node: int, learned: Sequence[Tensor], axis: int, group: Group, writes: bool
) -> bool:
    """True if a weight changes by elements of a group where its parameters do."""
    generator = torch.Generator().manual_seed(0)
    several = [*_given(trace, learned)]
    several += [_far(trace, node, learned, [sign * v for v in several[-1]]) for sign in (1, -1)]
    for given in several:
        element = group.generic(generator)
        if not writes:
            element = element.inverse().transpose()
        if following(trace, node, axis, element, [*zip(learned, given, strict=True)]) is None:
            return False
    return True


def follow_together(
    trace: Trace, one: tuple[Fixed | Ref, int], other: tuple[Fixed | Ref, int]
) -> bool:
    """True if two vectors change places as the parameters that both are made of do.

    Args:
        trace: the record.
        one: a vector, and its axis of features.
        other: another.
    """
    first, second = (_axes_that_follow(trace, *vector) for vector in (one, other))
    if first is None or second is None:
        return False
    return all(second.get(key, way) == way for key, way in first.items())


def _axes_that_follow(trace: Trace, value: Fixed | Ref, axis: int) -> dict[int, int | None] | None:
    """Id of a parameter -> the axis on which it changes places with a vector; None if it does not.

    Axes are counted from the last one on.
    """
    if isinstance(value, Fixed):
        return {id(value.tensor): axis} if value.tensor.ndim >= -axis else None
    learned = learned_behind(trace, value.node)
    generator = torch.Generator().manual_seed(0)
    found: list[int | None] | None = None
    for given in _given(trace, learned):
        element = Permutation(trace.node(value.node).shape[axis]).generic(generator)
        several = [*zip(learned, given, strict=True)]
        found = following(trace, value.node, axis, element, several)
        if found is None:
            return None
    return {id(tensor): way for tensor, way in zip(learned, found or (), strict=True)}


def _far(trace: Trace, node: int, learned: Sequence[Tensor], values: list[Tensor]) -> list[Tensor]:
    """Values of parameters far from zero, the farthest of which numbers can be computed."""
    for size in _FARTHEST:
        far = [size * value for value in values]
        by = {id(tensor): value for tensor, value in zip(learned, far, strict=True)}
        try:
            if bool(_made(trace, node, by).isfinite().all()):
                return far
        except (RuntimeError, ValueError, TypeError):
            break
    return values


def following(
    trace: Trace,
    node: int,
    axis: int,
    element: Element,
    given: Sequence[tuple[Tensor, Tensor]],
    *,
    strict: bool = True,
) -> list[int | None] | None:
    """Along which axes of parameters an element acts that acts on what is computed from them.

    Args:
        trace: the record.
        node: the node that holds what is computed.
        axis: the axis of that on which the element acts.
        element: the element.
        given: the parameters, and the values that they have.
        strict: whether what is computed must change by the element; else the axes that fit.

    Returns:
        An axis for each parameter, None for one of no such size; None if it does not change so.
    """
    values = [value for _, value in given]
    sizes = [[a for a in range(-1, -v.ndim - 1, -1) if v.shape[a] == element.dim] for v in values]
    options: list[list[int | None]] = [[*own] if own else [None] for own in sizes]
    if not any(sizes) or math.prod(map(len, options)) > _MOST_WAYS:
        return None

    def made(several: Sequence[Tensor]) -> Tensor:
        by = {id(tensor): value for (tensor, _), value in zip(given, several, strict=True)}
        return _made(trace, node, by).detach().double()

    try:
        now = made(values)
        if bool(now.isnan().any()) and not bool(made([v.abs() for v in values]).isnan().any()):
            # A function of positive numbers, such as a logarithm.
            values = [v.abs() for v in values]
            now = made(values)
        if now.shape[axis] != element.dim:
            return None
        wanted = element.act(now, axis % now.ndim)
        for ways in itertools.product(*options):
            found = [*ways]
            moved = [
                v if way is None else element.act(v, way % v.ndim)
                for v, way in zip(values, found, strict=True)
            ]
            apart = float((made(moved) - wanted).abs().max())
            if not strict or apart <= _EXACT * float(wanted.abs().max()):
                return found
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    return None


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
            far * torch.randn(start.shape, generator=generator, dtype=torch.float64)
            for far in (size, 100.0 * size, _FARTHEST[0])
        ]
        try:
            before = _made(trace, node, {id(one): start})
            moves = [
                (
                    _made(trace, node, {id(one): start + step.to(start)}) - before,
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
        element = group.generic(generator)
        if not isinstance(element, MonomialElement):
            element = group.draw(generator)
        matrix = factor * element.matrix().to(now)
        # A bounded weight follows small changes, and not large ones.
        if factor != 1.0 and not group.contains(matrix.cpu().numpy()):
            continue
        if inverse:
            matrix = torch.linalg.inv(matrix).T
        yield (matrix @ front.reshape(len(front), -1)).view(front.shape).movedim(0, axis)


def _is_entry_by_entry(trace: Trace, node: int, learned: Sequence[Tensor]) -> bool:
    """True for a weight every entry of which is the same function of one entry of a parameter."""
    if len(learned) != 1 or learned[0].numel() != math.prod(trace.node(node).shape):
        return False
    (given,) = next(_given(trace, learned))
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(given.numel(), generator=generator).to(given.device)
    one = given.clone()
    one.view(-1)[0] += 1.0

    def made(values: Tensor) -> Tensor:
        return _made(trace, node, {id(learned[0]): values.reshape(given.shape)}).flatten()

    try:
        now, moved, changed = (made(v) for v in (given, given.flatten()[order], one))
    except (RuntimeError, ValueError, TypeError):
        return False
    return torch.equal(moved, now[order]) and torch.equal(changed[1:], now[1:])


def _reaches_each(trace: Trace, node: int, learned: Tensor, target: Tensor) -> bool:
    """True if each entry of a target is taken by a function of single numbers, somewhere."""
    wanted = target.flatten()

    def made(values: Tensor) -> Tensor:
        return _made(trace, node, {id(learned): values.reshape(learned.shape)}).flatten()

    sizes = torch.logspace(-6, 6, 61, dtype=torch.float64, device=target.device)
    places = torch.cat([-sizes.flip(0), sizes.new_zeros(1), sizes])
    taken = torch.stack([made(place.expand_as(wanted))[0] for place in places])
    above = (taken[:, None] >= wanted).int()
    crossed = above.diff(dim=0) != 0
    if not bool(crossed.any(0).all()):
        return False
    first = crossed.int().argmax(0)
    low, high = places[first], places[first + 1]
    starts = above.gather(0, first[None])[0]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        same = (made(middle) >= wanted).int() == starts
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return bool(((made(high) - wanted).abs() <= _NEAR * wanted.abs() + _EXACT).all())


def _reaches(
    facts: Facts, node: int, learned: list[nn.Parameter], given: list[Tensor], target: Tensor
) -> bool:
    """True if parameters are found from which the node takes the target's values."""
    size = float(target.norm()) or 1.0
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
            return (_made(facts.graph.trace, node, by) - target).square().sum() / size**2

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
                before, left = left, float(distance().detach())
                if not left >= _NEAR**2 or left > before / 2:
                    break
                optimiser.state.clear()
    except (RuntimeError, ValueError, TypeError):
        return False
    return left < _NEAR**2
