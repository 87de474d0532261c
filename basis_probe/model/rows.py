"""Rows of features that a model picks, and puts back: the tokens that an expert works on.

A row that is picked keeps its features, so that the place in the graph stays the same one whatever
the choice depends on. Only where the features are in the result has to be known.
"""

import torch

from basis_probe.model.trace import Fixed, Node, Ref, Trace

GROUPED_PRODUCTS = frozenset("_grouped_mm grouped_mm grouped_mm_fallback".split())
"""Rows in groups, each group times a matrix of its own out of a stack."""

PUTS = frozenset("index_add index_add_ index_copy index_copy_ setitem".split())
"""Calls that put rows of features among others, or add them to them."""


def put_rows(node: Node) -> tuple[object, object] | None:
    """The tensor that rows are put into, and the rows, of a call that does so."""

    def argument(place: int, name: str) -> object:
        return node.kwargs.get(name, node.args[place] if len(node.args) > place else None)

    if node.op == "setitem":
        return argument(0, "self"), argument(2, "value")
    if node.op in PUTS:
        return argument(0, "self"), argument(3, "source")
    return None


def is_blank(trace: Trace, value: object) -> bool:
    """True for a tensor of zeros, whatever the weights are."""
    if not isinstance(value, Ref):
        return isinstance(value, Fixed) and value.name is None and not bool(value.tensor.any())
    node = trace.node(value.node)
    if node.op in _FACTORS:
        return any(is_blank(trace, factor) for factor in node.args[: _FACTORS[node.op]])
    if node.op == "linear":
        return bias_of_blank(trace, node) is None and is_blank(trace, node.args[0])
    if node.op in _SHOWS:
        return is_blank(trace, node.args[0])
    return node.op in ("zeros_like", "zeros", "new_zeros")


def bias_of_blank(trace: Trace, node: Node) -> object | None:
    """The bias that a linear map of zeros makes; None if it has none, or reads something else."""
    if node.op != "linear" or not is_blank(trace, node.args[0]):
        return None
    return node.kwargs.get("bias", node.args[2] if len(node.args) > 2 else None)


_SHOWS = frozenset("getitem view to expand transpose permute contiguous clone repeat".split())
# How many of the arguments make a product zero.
_FACTORS = {"mul": 2, "div": 1, "matmul": 2, "mm": 2, "bmm": 2}

BLANKING = frozenset(_FACTORS)
"""Calls whose result is zero where one of their factors is."""


_PICKS = frozenset("getitem index_select view transpose permute to contiguous mT expand".split())


def picks_weights(trace: Trace, node: Node, known: set[int]) -> bool:
    """True if a call picks whole matrices, or single vectors, out of weights by numbers.

    What the numbers are may depend on the input, as which expert is at work; what is picked does
    not.

    Args:
        trace: the record.
        node: the call.
        known: the nodes that do so already.
    """
    source = node.args[0] if node.args else None
    if node.op not in _PICKS or not node.floating or not node.live:
        return False
    if isinstance(source, Ref):
        before = trace.node(source.node)
        if before.live:
            return source.node in known
        shape = before.shape
    elif isinstance(source, Fixed):
        shape = tuple(source.tensor.shape)
    else:
        return False
    # A table of vectors that is read row by row is an embedding.
    return len(shape) > 2 or len(node.shape) < len(shape) or is_blank(trace, source)


def picked_weight(trace: Trace, index: int) -> bool:
    """True for a floating-point tensor that was picked out of weights by number."""
    node = trace.node(index)
    while node.live and node.floating and node.op in _PICKS:
        source = node.args[0]
        if not isinstance(source, Ref):
            return True
        node = trace.node(source.node)
        if not node.live:
            return True
    return False


def routed(trace: Trace, path: str) -> bool:
    """True if rows are picked, by what depends on the input, where a module or its owner runs."""
    for node in trace.nodes:
        if node.op in ("getitem", "index_select") and node.floating and node.live:
            by = [trace.node(i) for i in node.inputs[1:]]
            if any(b.live and not b.floating for b in by):
                inner, outer = f"{node.module}.", f"{path}."
                if not node.module or outer.startswith(inner) or inner.startswith(outer):
                    return True
    return False


def picked_axes(
    trace: Trace, node: Node, before: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Where feature axes are after rows were picked by tensors of indices; None if not understood.

    Args:
        trace: the record.
        node: the call, `x[rows]` or an `index_select`.
        before: the shape of x.
        axes: its feature axes.
    """
    if node.op == "index_select":
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        kept = isinstance(dim, int) and dim % len(before) not in axes
        return axes if kept else None
    given = node.args[1] if len(node.args) > 1 else None
    items = given if isinstance(given, tuple) else (given,)
    tensors = [_index(trace, item) for item in items]
    if not any(tensors):
        return None
    plain = sum(item is not None and item is not Ellipsis for item in items)
    used = plain + sum(found[0] - 1 for found in tensors if found is not None)
    return _placed(items, tensors, len(before) - used, axes)


def _placed(
    items: tuple[object, ...],
    tensors: list[tuple[int, int] | None],
    rest: int,
    axes: tuple[int, ...],
) -> tuple[int, ...] | None:
    places: dict[int, int] = {}
    axis = out = 0
    chosen: list[int] = []
    for number, (item, found) in enumerate(zip(items, tensors, strict=True)):
        if found is not None:
            if chosen and chosen[-1] != number - 1:
                return None  # Indices that lie apart move to the front.
            out += 0 if chosen else found[1]
            chosen.append(number)
            axis += found[0]
        elif item is None:
            out += 1
        elif item is Ellipsis:
            for more in range(rest):
                places[axis + more] = out + more
            axis, out = axis + rest, out + rest
        elif item == slice(None):
            places[axis] = out
            axis, out = axis + 1, out + 1
        else:
            return None
    if Ellipsis not in items:
        places |= {axis + more: out + more for more in range(rest)}
    return tuple(places[a] for a in axes) if all(a in places for a in axes) else None


def _index(trace: Trace, item: object) -> tuple[int, int] | None:
    """How many axes a tensor of indices takes, and how many it leaves in their place."""
    if isinstance(item, Ref):
        node = trace.node(item.node)
        if node.floating:
            return None
        return (len(node.shape), 1) if node.boolean else (1, len(node.shape))
    if isinstance(item, Fixed):
        tensor = item.tensor
        if tensor.is_floating_point():
            return None
        return (tensor.ndim, 1) if tensor.dtype is torch.bool else (1, tensor.ndim)
    return None
