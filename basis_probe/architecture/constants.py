"""Weights that serve the features of an input, and constants as well.

A table of relative positions may pass through the keys of the tokens, learned latents through the
norm and the first layer of the data. What does not depend on the input is no stream, so that
nothing acts on it: where a change of basis would have to go along with it, none is claimed.
"""

from collections.abc import Iterator

from torch import Tensor

from basis_probe.architecture.vectors import span
from basis_probe.model.facts import Facts, matrix
from basis_probe.model.rows import is_blank
from basis_probe.model.trace import Fixed, Node, Ref, Trace

_MAPS = frozenset("linear addmm matmul mm bmm".split())
_SHOWS = frozenset(
    "getitem view to expand transpose permute contiguous clone repeat mT chunk split unbind "
    "output repeat_interleave movedim".split()
)
"""Calls that hand on the numbers that they are given."""
_SUMS = frozenset("embedding index_select add sub".split())
"""Calls on tables whose features stay where they are: tables that are summed change alike."""
_MEETS = frozenset("matmul bmm baddbmm scaled_dot_product_attention add sub mul div cat".split())
"""Calls in which features of the input meet a constant as one of their own."""


def held_by_constants(facts: Facts) -> dict[int, str]:
    """Stream -> why its axes stay, where what acts on it acts on constants as well."""
    graph, trace = facts.graph, facts.graph.trace
    users = [
        (node, weight) for node in trace.nodes if node.live for weight in _weights(trace, node)
    ]
    found: dict[int, str] = {}
    for node in trace.nodes:
        if node.live or node.op in _SHOWS or not node.floating:
            continue
        meets: bool | None = None
        for weight in _weights(trace, node):
            for user, own in users:
                if not _overlap(weight, own):
                    continue
                meets = _meets_features(trace, node) if meets is None else meets
                for place in _held(trace, node, user, meets=meets):
                    vertex = graph.same.get(place)
                    if vertex is not None:
                        found[facts.stream_of[vertex]] = (
                            "weights that act on it also act on numbers that do not depend on the "
                            f"input, in {node.module or 'the model'}, and these would have to "
                            "change with it"
                        )
    return found


def _held(trace: Trace, constant: Node, user: Node, *, meets: bool) -> tuple[int, ...]:
    """Nodes whose features cannot move because a constant call uses a weight of a live one.

    Args:
        trace: the record.
        constant: the call that does not depend on the input.
        user: the call that does.
        meets: whether what the first makes meets features of the input, and nothing else reads it.
    """
    if constant.op in _SUMS or _is_of_weights_alone(constant):
        return () if meets else (user.index, *user.inputs)
    one, other = _matrix(trace, constant), _matrix(trace, user)
    if one is None or other is None:
        # A gain, or a function of a table: whatever it is given would have to change places, too.
        return (user.index, *user.inputs)
    if is_blank(trace, constant.args[0]):
        return ()  # No change of basis moves zeros, as a first state is.
    alike = one.shape == other.shape and one.stride() == other.stride()
    return user.inputs if alike and meets else (user.index, *user.inputs)


def _is_of_weights_alone(node: Node) -> bool:
    """True for a function of one tensor and plain numbers, such as one minus a gain."""
    given = (*node.args, *node.kwargs.values())
    return sum(isinstance(value, Ref | Fixed) for value in given) == 1


def _matrix(trace: Trace, node: Node) -> Tensor | None:
    """The matrix of a linear map; None for another call."""
    known = node.op in _MAPS or node.op.startswith("conv")
    given = known and bool(node.args) and isinstance(node.args[0], Ref | Fixed)
    return matrix(trace, node) if given else None


def _weights(trace: Trace, node: Node) -> Iterator[Tensor]:
    """The parameters and buffers that a call is given, as they are or as parts of them."""
    for value in (*node.args, *node.kwargs.values()):
        while isinstance(value, Ref):
            made = trace.node(value.node)
            if made.live or made.op not in _SHOWS or not made.args:
                break
            value = made.args[0]
        if isinstance(value, Fixed) and value.name is not None:
            tensor = value.tensor
            if tensor.is_floating_point() and tensor.numel() > 1 and not tensor.is_meta:
                yield tensor


def _overlap(one: Tensor, other: Tensor) -> bool:
    """True if two tensors may have numbers in common."""
    (key, first, last), (storage, start, end) = span(one), span(other)
    return key == storage and start <= last and first <= end


def _meets_features(trace: Trace, start: Node) -> bool:
    """True if features of the input meet what a call made of constants, and nothing else reads it.

    Added to features, or multiplied with them as keys with queries, it changes as they do.
    """
    behind = {start.index}
    for node in trace.nodes[start.index + 1 :]:
        if behind.isdisjoint(node.inputs):
            continue
        if node.live:
            weight = node.op == "linear" or node.op.startswith("conv")
            if weight and node.inputs[0] not in behind:
                continue  # A weight that is computed, which has rules of its own.
            if node.op not in _MEETS:
                return False
        elif node.op in _SHOWS or node.op in _SUMS:
            behind.add(node.index)
        else:
            return False
    return True
