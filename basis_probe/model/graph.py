"""The condensed graph: the places where features are written, mixed, bent, normalised or joined.

Everything between such places leaves the features of a tensor alone (a view, a cast, dropout in
evaluation mode) or is one function of a single tensor, row by row: an activation written out in six
primitive calls and `torch.nn.functional.gelu` become the same kind of vertex, whose function can be
replayed on any values and so be measured instead of looked up.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from basis_probe.model.rows import (
    BLANKING,
    GROUPED_PRODUCTS,
    PUTS,
    is_blank,
    picked_axes,
    picks_weights,
    put_rows,
)
from basis_probe.model.trace import Fixed, ModuleCall, Node, Ref, Trace
from basis_probe.model.views import groups_of_axes


class Kind(enum.Enum):
    """What a vertex does to features; the value says it in words."""

    INPUT = "the model's input"
    LINEAR = "a linear map"
    CONVOLUTION = "a convolution"
    DEPTHWISE = "a convolution of single channels"
    GROUPED = "a convolution within groups of channels"
    EMBEDDING = "an embedding"
    SUM = "a sum"
    CARRIER = "an operation that leaves the features alone"
    MAX_POOL = "max pooling"
    ALONG = "a function of each feature along positions"
    PART = "a part of the features"
    REORDERED = "the features in another order"
    CONCAT = "a concatenation of features"
    PADDED = "features with zeros before and behind them"
    ATTENTION = "attention, reading values"
    REGION = "a function of single rows"
    BATCH_NORM = "batch normalisation"
    GROUP_NORM = "normalisation within groups of channels"
    OTHER = "an operation that is not understood"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which axes of a tensor hold its features, from major to minor.

    Attributes:
        axes: the axes, non-negative.
        channels: True if positions follow the feature axis, as behind a convolution.
        repeat: how many consecutive entries of the feature axis belong to one feature (more than
            one only where positions were flattened into the features).
        copies: axes before the features that came from them by a view, with a single head or
            copies of it: they belong to the features again where they are merged with them.
    """

    axes: tuple[int, ...]
    channels: bool = False
    repeat: int = 1
    copies: tuple[int, ...] = dataclasses.field(default=(), compare=False)

    def moved(self, place: Callable[[int], int]) -> "Layout":
        """The same where every axis has another number."""
        axes, copies = tuple(map(place, self.axes)), tuple(map(place, self.copies))
        return dataclasses.replace(self, axes=axes, copies=copies)


@dataclasses.dataclass(frozen=True, eq=False)
class Vertex:
    """One place of the condensed graph.

    Attributes:
        node: the tensor there, as the index of its node in the trace.
        kind: what made it.
        carried: the vertices whose features arrive here.
        used: further vertices that it reads without carrying their features (attention patterns).
        op: the name of the function, for messages.
        zeros: how many zero features were put before and behind the carried ones.
        part: which of the carried features are left, where only a part of them is, counted from
            major to minor.
        across: True if a linear map does not read features, but acts across positions, or inside
            parts of the features only.
        by_head: True if heads are multiplied by different numbers.
    """

    node: int
    kind: Kind
    carried: tuple[int, ...]
    used: tuple[int, ...] = ()
    op: str = ""
    zeros: tuple[int, int] = (0, 0)
    part: tuple[int, ...] | None = None
    across: bool = False
    by_head: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """The condensed graph of a trace.

    Attributes:
        trace: what it was made from.
        vertices: node -> vertex.
        same: node -> the vertex that holds the same features, for every node that has one.
        layouts: node -> where its features are.
        readers: vertex -> the vertices that read it, in order.
        returned: the vertices that the model returns.
        lost: the vertices that outputs depend on by a way that is not in the graph.
    """

    trace: Trace
    vertices: dict[int, Vertex]
    same: dict[int, int]
    layouts: dict[int, Layout]
    readers: dict[int, tuple[int, ...]]
    returned: frozenset[int]
    lost: frozenset[int] = frozenset()

    def replay(
        self, target: int, values: dict[int, Tensor], fixed: dict[int, Tensor] | None = None
    ) -> Tensor:
        """The value of node `target` when the nodes in `values` have the given values."""
        return replay(self.trace, target, values, fixed)


class NotGivenError(ValueError):
    """A value that a replay needs was not given."""


def replay(
    trace: Trace, target: int, values: dict[int, Tensor], fixed: dict[int, Tensor] | None = None
) -> Tensor:
    """The value of node `target`, computed anew from the given values of nodes before it.

    Args:
        trace: the record.
        target: the node.
        values: node -> its value.
        fixed: id of a parameter or constant -> what takes its place.

    Raises:
        NotGivenError: if the target depends on a live tensor that was not given.
    """
    known: dict[int, Any] = dict(values)
    fixed = fixed or {}
    given = (*values.values(), *fixed.values())
    dtype = next((v.dtype for v in given if v.is_floating_point()), None)
    device = given[0].device if given else None

    def value_of(value: Ref | Fixed) -> Any:
        if isinstance(value, Ref):
            return compute(value.node)
        # What takes a parameter's place may be differentiated by; the parameter itself is not.
        own = fixed.get(id(value.tensor))
        if own is None:
            other = trace.instead.get(id(value.tensor))
            tensor = value.tensor.detach() if other is None else other.to(value.tensor)
        else:
            tensor = own
        if tensor.is_floating_point() and dtype is not None:
            tensor = tensor.to(device=device, dtype=dtype)
        return tensor

    def compute(index: int) -> Any:
        if index in known:
            return known[index]
        node = trace.node(index)
        if index in trace.further:
            there = trace.further[index]
            wider = dtype is not None and there.is_floating_point()
            known[index] = there.to(device=device, dtype=dtype) if wider else there
            return known[index]
        if node.function is None:
            if node.op == "output":
                place = node.args[0]
                source = compute_all(node.inputs[0])
                known[index] = source[place]
                return known[index]
            raise NotGivenError(f"node {index} ({node.op}) is needed and was not given")
        known[index] = compute_all(index)
        return known[index]

    def compute_all(index: int) -> Any:
        node = trace.node(index)
        return compute(index) if node.function is None else called(node, value_of, dtype)

    try:
        # Differentiated only by what takes the place of a parameter.
        with torch.set_grad_enabled(any(tensor.requires_grad for tensor in fixed.values())):
            return compute(target)
    finally:
        # The functions above refer to each other; what they hold must not wait for the collector.
        known.clear()


def called(node: Node, value_of: Callable[[Ref | Fixed], Any], dtype: torch.dtype | None) -> Any:
    """What the function of a node returns when it is called anew.

    Args:
        node: of a function.
        value_of: the value of a tensor among its arguments.
        dtype: the type that floating-point numbers are computed in; None for their own.
    """
    function = node.function
    assert function is not None

    def argument(value: Any) -> Any:
        if isinstance(value, Ref | Fixed):
            return value_of(value)
        if isinstance(value, tuple):
            return tuple(argument(entry) for entry in value)
        if isinstance(value, list):
            return [argument(entry) for entry in value]
        return value

    args = [argument(value) for value in node.args]
    kwargs = {name: argument(value) for name, value in node.kwargs.items()}
    rounds = _to_bytes((*args[1:], *kwargs.values()))
    if node.op == "to" and dtype is not None and node.floating and not rounds:
        # A cast on the way must not lower the precision of the replay.
        return args[0] if args[0].is_floating_point() else args[0].to(dtype)
    if node.inplace and args and isinstance(args[0], Tensor):
        args[0] = args[0].clone()
    asked = kwargs.get("dtype")
    if dtype is not None and isinstance(asked, torch.dtype) and asked.is_floating_point:
        kwargs["dtype"] = dtype
    found = function(*args, **kwargs)
    if dtype is None or not isinstance(found, Tensor) or not found.is_floating_point():
        return found
    # What the model makes in a precision of its own meets the others in theirs.
    return found.to(dtype)


def constant(trace: Trace, value: object, fixed: dict[int, Tensor] | None = None) -> Tensor | None:
    """A tensor that does not depend on the input, computed anew if the model computes it.

    Args:
        trace: the record.
        value: the tensor, as a call was given it.
        fixed: id of a parameter or constant -> what takes its place.
    """
    if isinstance(value, Fixed):
        own = trace.instead.get(id(value.tensor), value.tensor)
        return (fixed or {}).get(id(value.tensor), own).detach()
    if isinstance(value, Ref) and not trace.node(value.node).live:
        try:
            found = replay(trace, value.node, {}, fixed)
        except (RuntimeError, ValueError, TypeError):
            return None
        return found.detach()
    return None


def _to_bytes(values: Iterable[object]) -> bool:
    """True if a type of numbers of one byte is among the arguments of a cast."""
    return any(isinstance(value, torch.dtype) and value.itemsize == 1 for value in values)


def replay_all(
    trace: Trace, values: dict[int, Tensor], fixed: dict[int, Tensor]
) -> dict[int, Tensor]:
    """Every node's value that can be computed anew from those of the inputs, in float64.

    Args:
        trace: the record.
        values: input node -> its value.
        fixed: id of a parameter or constant -> what takes its place.
    """
    known = dict(values)
    failed: set[int] = set()
    for node in trace.nodes:
        if node.index in known:
            continue
        try:
            if failed & set(node.inputs):
                raise ValueError("what it reads could not be computed")
            found: Any = replay(trace, node.index, known, fixed)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
            failed.add(node.index)
            continue
        # A call with several outputs has none of its own.
        if isinstance(found, Tensor):
            known[node.index] = found.detach()
    return known


# --- which function is what ---------------------------------------------------------------------

_IDENTITY = frozenset(
    "to contiguous clone detach dropout dropout1d dropout2d dropout3d alpha_dropout alias "
    "feature_alpha_dropout requires_grad_ cpu cuda positive identity".split()
)
_TURNED_OVER = frozenset("mT mH adjoint".split())  # the last two axes change places
_MOVES = _TURNED_OVER | frozenset(
    "view transpose permute expand movedim moveaxis repeat repeat_interleave tile "
    "broadcast_to".split()
)
_SPLITS = frozenset("chunk split unbind".split())  # the layout is that of the whole
_CONVOLUTIONS = frozenset(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split()
)


def _positions(convolution: str) -> int:
    """The number of axes of positions of a convolution, by its name."""
    return int(convolution.removesuffix("d")[-1])


_PRODUCTS = frozenset("linear addmm matmul mm bmm baddbmm einsum".split())
_AVERAGE_POOLS = frozenset(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d interpolate upsample".split()
)
_MAX_POOLS = frozenset(
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d _max_pool1d _max_pool2d _max_pool3d".split()
)
_REORDERS = frozenset(
    "view getitem index_select flip roll channel_shuffle native_channel_shuffle".split()
)
_TURNS = frozenset("flip roll channel_shuffle native_channel_shuffle".split())
_EXTREMES = frozenset("amax amin max min sort topk cummax cummin median kthvalue".split())
_MOVED_ALONG = frozenset("cumsum flip roll".split())
_ALONG = frozenset(
    "softmax log_softmax logsumexp std var norm linalg_vector_norm vector_norm".split()
)
"""Functions of each feature along positions: what they take, move or make of it."""
_REDUCTIONS = (_EXTREMES | _ALONG | {"mean", "sum"}) - {"softmax", "log_softmax"}
POINTWISE = frozenset(
    "add sub rsub mul div rdiv neg pow rpow abs relu relu6 leaky_relu prelu rrelu elu selu celu "
    "gelu silu mish sigmoid logsigmoid hardsigmoid hardswish hardtanh hardshrink softshrink "
    "tanhshrink softsign softplus tanh sin cos tan sinh cosh asinh atan exp expm1 log log1p log2 "
    "sqrt rsqrt square reciprocal erf erfc sign clamp clamp_min clamp_max minimum maximum where "
    "threshold addcmul addcdiv lerp sinc heaviside exp2 round floor ceil "
    "special_erfc special_exp2 logit xlogy masked_fill nan_to_num gt lt ge le eq ne logical_not "
    "logical_and logical_or bitwise_not zeros_like ones_like full_like".split()
)
"""Functions of single entries, and of tensors entry by entry."""
_ROWWISE = frozenset(
    "mean sum var std norm linalg_vector_norm vector_norm layer_norm rms_norm softmax log_softmax "
    "amax normalize logsumexp".split()
)

_MADE_ALIKE = frozenset("ones ones_like new_ones full full_like new_full".split())
"""Tensors of one number, whatever they are made like."""


def is_one_number(trace: Trace, value: object) -> bool:
    """True for a constant all of whose entries are one number, whatever the parameters are.

    Numbers that are shown often, and functions of such.
    """
    if isinstance(value, Fixed):
        return value.tensor.numel() == 1
    if not isinstance(value, Ref):
        return not isinstance(value, tuple | list)
    node = trace.node(value.node)
    if node.op in _MADE_ALIKE or is_blank(trace, value):
        return True
    if node.live:
        return False
    if math.prod(node.shape) == 1:
        return True
    if node.op in _MOVES | _IDENTITY or node.op in ("getitem", "flip", "expand_as"):
        return is_one_number(trace, node.args[0])
    given = (*node.args, *node.kwargs.values())
    return node.op in POINTWISE and all(is_one_number(trace, one) for one in given)


PLAIN = frozenset(
    "add sub rsub mul div rdiv neg where minimum maximum addcmul addcdiv lerp masked_fill "
    "gt lt ge le eq ne logical_not logical_and logical_or bitwise_not zeros_like ones_like "
    "full_like nan_to_num pow sqrt rsqrt square reciprocal".split()
)
"""Pointwise functions that are arithmetic, not nonlinearities that a user would name."""


def norm_argument(node: Node, name: str) -> object:
    """What a normalisation over batches, examples or groups of channels was given; None if not."""
    if node.op == "group_norm":
        names = ("input", "num_groups", "weight", "bias", "eps")
    else:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "", "eps")
        if node.op == "instance_norm" and name == "training":
            name = "use_input_stats" if "use_input_stats" in node.kwargs else name
    place = names.index(name) if name in names else len(node.args)
    return node.kwargs.get(name, node.args[place] if len(node.args) > place else None)


def groups_of(node: Node) -> int:
    """The number of groups in which a normalisation takes its channels together."""
    found = norm_argument(node, "num_groups") if node.op == "group_norm" else 1
    return found if isinstance(found, int) else 1


def looked_up(node: Node) -> int | None:
    """The axis of a table along which rows, or columns, are picked by number; None for others.

    As in `table[tokens]`, `table[:, tokens]` and `table.index_select(0, tokens)`.
    """
    table = node.args[0] if node.args else None
    if len(node.args) < 2 or not isinstance(table, Fixed) or table.tensor.ndim != 2:
        return None
    if node.op == "index_select":
        return node.args[1] % 2 if type(node.args[1]) is int else None
    if node.op != "getitem":
        return None
    items = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    picked = [axis for axis, item in enumerate(items) if isinstance(item, Ref)]
    rest = all(item == slice(None) for axis, item in enumerate(items) if axis not in picked)
    return picked[0] if len(picked) == 1 and rest and len(items) <= 2 else None


def nonlinear(op: str) -> bool:
    """True if the function is one that users call a nonlinearity."""
    return op in POINTWISE and op not in PLAIN


def _dims(node: Node, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes over which a reduction runs, or None for all of them."""
    value = node.kwargs.get("dim", node.kwargs.get("axis", node.kwargs.get("dims")))
    later = ("norm", "linalg_vector_norm", "topk", "kthvalue", "roll")
    place = 2 if node.op in later else 1
    if value is None and len(node.args) > place:
        value = node.args[place]
    if value is None and node.op in ("sort", "topk", "kthvalue", "median"):
        value = -1
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value,)
    if isinstance(value, tuple | list) and all(isinstance(entry, int) for entry in value):
        return tuple(entry % len(shape) for entry in value)
    return None


class _Builder:
    def __init__(self, trace: Trace, cuts: frozenset[int], wanted: frozenset[int]) -> None:
        self.trace = trace
        self.cuts, self.wanted = cuts, wanted
        self.relevant = self._ancestors(frozenset((*trace.outputs, *trace.asked)) | wanted)
        self.vertices: dict[int, Vertex] = {}
        self.same: dict[int, int] = {}  # node -> vertex with the same features
        self.roots: dict[int, frozenset[int]] = {}  # node inside a region -> what it is made of
        self.layouts: dict[int, Layout] = {}
        self.picked: set[int] = set()  # weights that were picked by number
        self.coupled: set[int] = set()  # functions of whole rows, and what is made of them
        self.stacks: dict[int, tuple[int, list[int]]] = {}  # the new axis, and what lies along it

    def _ancestors(self, nodes: frozenset[int]) -> frozenset[int]:
        found: set[int] = set()
        waiting = list(nodes)
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting.extend(self.trace.node(index).inputs)
        return frozenset(found)

    def build(self) -> Graph:
        for node in self.trace.nodes:
            if node.live and node.index in self.relevant:
                self.visit(node)
        # A branch depends on the numbers that it asks for, whichever way this example went.
        last = (*self.trace.outputs, *self.trace.asked)
        left = frozenset(self.trace.left).difference(self.trace.outputs)
        returned = [self.vertex(i) for i in last if i not in left and self.known(i)]
        onpath = self._reaching([*returned, *(self.vertex(i) for i in left if self.known(i))])
        lost = self._lost(frozenset(onpath))
        # Nobody sees what other libraries make of numbers.
        lost |= {self.vertex(index) for index in left if self.known(index)}
        onpath |= self._reaching([*lost])
        readers: dict[int, list[int]] = {}
        for vertex in self.vertices.values():
            if vertex.node in onpath:
                for index in (*vertex.carried, *vertex.used):
                    readers.setdefault(index, []).append(vertex.node)
        return Graph(
            self.trace,
            self.vertices,
            self.same,
            self.layouts,
            {index: tuple(dict.fromkeys(found)) for index, found in readers.items()},
            frozenset(returned),
            lost,
        )

    def _lost(self, onpath: frozenset[int]) -> frozenset[int]:
        """The places that outputs depend on by a way that is not in the graph."""
        needed = set[int]()
        waiting = [*self.trace.outputs, *self.trace.asked]
        while waiting:
            index = waiting.pop()
            if index not in needed and self.trace.node(index).live:
                needed.add(index)
                waiting.extend(self.trace.node(index).inputs)
        return frozenset(
            index
            for index in self.vertices
            if index in needed
            and index not in onpath
            and self.trace.node(index).floating
            and not self._is_passed_over(index, onpath, needed)
        )

    def _is_passed_over(self, index: int, onpath: frozenset[int], needed: set[int]) -> bool:
        """True if what reads a place is in the graph as made of what the place is made of."""
        base, waiting = set[int](), [index]
        while waiting:
            vertex = self.vertices[waiting.pop()]
            for source in (*vertex.carried, *vertex.used):
                (base.add if source in onpath else waiting.append)(source)
        seen, waiting = set[int](), [index]
        while waiting:
            for reader in self.trace.readers.get(waiting.pop(), ()):
                if reader in seen or reader not in needed or is_blank(self.trace, Ref(reader)):
                    continue
                seen.add(reader)
                if reader not in onpath:
                    waiting.append(reader)
                    continue
                vertex = self.vertices[reader]
                if not base.issubset((*vertex.carried, *vertex.used)):
                    return False
        return True

    def _reaching(self, targets: list[int]) -> set[int]:
        found: set[int] = set()
        waiting = list(targets)
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                vertex = self.vertices[index]
                waiting.extend((*vertex.carried, *vertex.used))
                if vertex.kind is Kind.EMBEDDING:
                    # The numbers may be computed from features, as those of the nearest code.
                    by = self.live(self.trace.node(index))
                    waiting.extend(self.same[i] for i in by if i in self.same)
        return found

    def known(self, index: int) -> bool:
        return index in self.same or index in self.roots or index in self.stacks

    def live(self, node: Node) -> list[int]:
        return [i for i in dict.fromkeys(node.inputs) if self.trace.node(i).live and self.known(i)]

    def vertex(self, index: int) -> int:
        """The vertex that holds the features of a node, made now if the node is inside a region."""
        if index not in self.same and index in self.stacks:
            self.put(index, Kind.CARRIER, tuple(map(self.vertex, self.stacks[index][1])))
        elif index not in self.same:
            self.put(index, Kind.REGION, tuple(sorted(self.roots[index])))
        return self.same[index]

    def put(
        self,
        index: int,
        kind: Kind,
        carried: tuple[int, ...],
        used: tuple[int, ...] = (),
        zeros: tuple[int, int] = (0, 0),
        part: tuple[int, ...] | None = None,
        across: bool = False,
        by_head: bool = False,
    ) -> None:
        op = self.trace.node(index).op
        self.vertices[index] = Vertex(index, kind, carried, used, op, zeros, part, across, by_head)
        self.same[index] = index
        self.roots[index] = frozenset((index,))

    def visit(self, node: Node) -> None:
        if node.op == "input":
            self._input(node)
            return
        if picks_weights(self.trace, node, self.picked):
            self.picked.add(node.index)
            return
        live = self.live(node)
        if not live or (node.op in BLANKING and is_blank(self.trace, Ref(node.index))):
            return
        first = live[0]
        layout = self._layout(node, live)
        order = self._reordered(node, first) if layout is None or node.op in _TURNS else None
        if order is not None:
            layout, part = order
            self.layouts[node.index] = layout
            self.put(node.index, Kind.REORDERED, (self.vertex(first),), part=part)
            return
        if layout is not None:
            if node.op not in _SPLITS:
                layout = _without_single(layout, node.shape)
            self.layouts[node.index] = layout
        if self._stays(node, live, layout):
            return
        for rule in (self._mixes, self._normalises, self._pools, self._moves_rows, self._parts):
            if rule(node, live, layout):
                break
        else:
            self._meets_others(node, live)
        if node.index in self.cuts and node.index not in self.same and self._is_whole(node.index):
            self.vertex(node.index)

    def _input(self, node: Node) -> None:
        """What the model is given."""
        shape = node.shape
        places = self._convolved(node.index)
        channels = len(shape) == 4 or (len(shape) > 2 and places is not None)
        if shape:
            # An image may come without an axis of examples.
            axis = 0 if places is not None and len(shape) == places + 1 else 1
            axis = axis if channels else len(shape) - 1
            self.layouts[node.index] = Layout((axis,), channels)
        self.put(node.index, Kind.INPUT, ())

    def _stays(self, node: Node, live: list[int], layout: Layout | None) -> bool:
        """True where the features are those of a node before, and there is no place of its own."""
        first = live[0]
        if node.op == "stack" and layout is not None:
            self.stacks[node.index] = (self._stacked_along(node), live)
            if node.index in self.wanted:
                self.vertex(node.index)
            return True
        one = self._of_stack(node)
        if one is not None:
            self._take_over(node, one)
            return True
        for index in live:
            if index in self.stacks:
                self.vertex(index)
        made = self.trace.node(first)
        if not self._is_identity(node) and not (node.op == "output" and self._is_identity(made)):
            return False
        if node.index in self.cuts and first in self.roots and self._is_whole(first):
            self.vertex(first)
        self._take_over(node, first)
        return True

    def _mixes(self, node: Node, live: list[int], _: Layout | None) -> bool:
        """Tables, linear maps and convolutions, which write features by weights."""
        op, first = node.op, live[0]
        if op == "embedding" or self._averages_rows(node) or self._is_lookup(node):
            self.put(node.index, Kind.EMBEDDING, ())
        elif self._is_linear(node):
            last = len(self.trace.node(first).shape) - 1 - self._is_turned(node)
            across = not self._features_at(first, last)
            # With one number for each of several, such as functions, a vector makes no features.
            weighs = across and len(node.shape) < len(self.trace.node(first).shape)
            kind = Kind.OTHER if weighs else Kind.LINEAR
            self.put(node.index, kind, (), (self.vertex(first),), across=across)
        elif op in _CONVOLUTIONS and self._weighed(node, 1, "weight"):
            across = not self._features_at(first, 1)
            groups = node.kwargs.get("groups", node.args[6] if len(node.args) > 6 else 1)
            if groups == 1:
                kind = Kind.CONVOLUTION
            elif groups == self.trace.node(first).shape[1] == node.shape[1] and not across:
                kind = Kind.DEPTHWISE
            else:
                # Channels mix inside their groups: neither one linear map nor single channels.
                kind = Kind.OTHER if across or "transpose" in op else Kind.GROUPED
            self.put(node.index, kind, (), (self.vertex(first),), across=across)
        else:
            return False
        return True

    def _normalises(self, node: Node, live: list[int], _: Layout | None) -> bool:
        """Norms that are one call and whose features are channels."""
        op, first = node.op, live[0]
        if op in ("batch_norm", "instance_norm") and self._features_at(first, 1):
            kind = Kind.BATCH_NORM
        elif (op == "group_norm" and self._features_at(first, 1)) or (
            op == "layer_norm" and self._takes_channels(node, first)
        ):
            kind = Kind.GROUP_NORM
        else:
            return False
        self.put(node.index, kind, (self.vertex(first),))
        return True

    def _pools(self, node: Node, live: list[int], _: Layout | None) -> bool:
        """What takes one number of several positions, feature by feature."""
        op, first = node.op, live[0]
        if (op in _MAX_POOLS and self._pools_positions(node, first)) or (
            op in _EXTREMES and self._runs_along(node, first)
        ):
            kind = Kind.MAX_POOL
        elif op in _MOVED_ALONG and self._runs_along(node, first):
            kind = Kind.CARRIER
        elif op in _ALONG and self._runs_along(node, first):
            kind = Kind.ALONG
        elif (
            (op == "output" and self._made_by(first, _MAX_POOLS | _EXTREMES) and node.args[0] == 0)
            or (op in _AVERAGE_POOLS and self._pools_positions(node, first))
            or self._is_average(node, first)
        ):
            kind = Kind.CARRIER
        else:
            return False
        self.put(node.index, kind, (self.vertex(first),))
        return True

    def _moves_rows(self, node: Node, live: list[int], layout: Layout | None) -> bool:
        """What hands rows on in another shape or order."""
        op, first = node.op, live[0]
        if (op in _MOVES and layout is not None) or (
            op in ("getitem", "index_select") and self._picks(node, first)
        ):
            self.put(node.index, Kind.CARRIER, (self.vertex(first),))
        elif op in PUTS:
            self._puts(node, live)
        else:
            return False
        return True

    def _parts(self, node: Node, live: list[int], layout: Layout | None) -> bool:
        """What takes features apart or puts them side by side."""
        op, first = node.op, live[0]
        if op == "getitem" and layout is not None:
            kind, part = self._getitem(node, first)
            self.put(node.index, kind, (self.vertex(first),), part=part)
        elif op in _SPLITS:
            self.put(node.index, Kind.CARRIER, (self.vertex(first),))
        elif op == "output" and self._made_by(first, _SPLITS):
            kind, part = self._piece(node, first)
            made = self.trace.node(first)
            whole = made.inputs[0] if made.op == "unbind" else first
            self.put(node.index, kind, (self.vertex(whole),), part=part)
        elif op == "cat":
            self._cat(node, live, layout)
        elif op == "pad":
            self._pad(node, first, layout)
        else:
            return False
        return True

    def _meets_others(self, node: Node, live: list[int]) -> None:
        """Attention, products and functions of several tensors, and all that is not known."""
        op = node.op
        if op == "scaled_dot_product_attention":
            value = self._ref(node, 2, "value")
            if value is None or not self.known(value):
                self.put(node.index, Kind.OTHER, (), tuple(map(self.vertex, live)))
            else:
                used = tuple(self.vertex(i) for i in live if i != value)
                self.put(node.index, Kind.ATTENTION, (self.vertex(value),), used)
        elif op in ("matmul", "bmm"):
            self._matmul(node, live)
        elif op in POINTWISE or op == "to" or self._is_rowwise(node, live[0]):
            self._pointwise(node, live)
        else:
            self.put(node.index, Kind.OTHER, (), tuple(self.vertex(i) for i in live))

    def _made_by(self, index: int, ops: frozenset[str]) -> bool:
        """True if one of these operations wrote a node."""
        return self.trace.node(index).op in ops

    def _is_whole(self, index: int) -> bool:
        """True if a node is as large as something that it is made of, or has all its features."""
        node = self.trace.node(index)
        return any(
            self.trace.node(root).shape == node.shape or self._meets(root, node)
            for root in self.roots[index]
        )

    def _take_over(self, node: Node, source: int) -> None:
        """A node whose features are those of another."""
        self.roots[node.index] = self.roots[source]
        if source in self.layouts:
            self.layouts[node.index] = self.layouts[source]
        if source in self.same:
            self.same[node.index] = self.same[source]

    def _stacked_along(self, node: Node) -> int:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        return dim % len(node.shape)

    def _of_stack(self, node: Node) -> int | None:
        """The one of several stacked tensors that a call takes out again."""
        source = self._ref(node, 0, "input")
        if node.op != "getitem" or source not in self.stacks:
            return None
        axis, parts = self.stacks[source]
        if source in self.same or not all(
            part in self.same or part in self.roots for part in parts
        ):
            return None
        taken = dict(_items(node, self.trace.node(source).shape))
        whole = all(item == slice(None) for at, item in taken.items() if at not in (axis, None))
        item = taken.get(axis)
        return parts[item] if whole and None not in taken and type(item) is int else None

    def _convolved(self, index: int) -> int | None:
        """The number of axes of positions, if a convolution is the first that reads a tensor."""
        for reader in self.trace.readers.get(index, ()):
            op = self.trace.node(reader).op
            if op in _CONVOLUTIONS:
                return _positions(op)
        return None

    # --- single functions -----------------------------------------------------------------------

    def _ref(self, node: Node, place: int, name: str) -> int | None:
        value = node.kwargs.get(name, node.args[place] if len(node.args) > place else None)
        return value.node if isinstance(value, Ref) else None

    def _constant(self, value: object) -> bool:
        """True for a tensor that does not depend on the model's input."""
        return isinstance(value, Fixed) or (
            isinstance(value, Ref)
            and (not self.trace.node(value.node).live or value.node in self.picked)
        )

    def _weighed(self, node: Node, place: int, name: str) -> bool:
        """True if a live tensor comes first and the weight does not depend on the input."""
        weight = node.kwargs.get(name, node.args[place] if len(node.args) > place else None)
        given = node.args[0] if node.args else node.kwargs.get("input")
        return self._constant(weight) and not self._constant(given)

    def _features_at(self, index: int, axis: int) -> bool:
        """True if that axis holds all the features of a tensor, and nothing else but positions.

        What the model is given counts as such, as its axes are not changed anyway.
        """
        layout = self.layouts.get(index)
        if layout is not None and layout.axes == (axis,):
            return True
        vertex = self.vertices[self.vertex(index)]
        while vertex.kind in (Kind.CARRIER, Kind.PART):
            vertex = self.vertices[vertex.carried[0]]
        return vertex.kind is Kind.INPUT

    def _is_identity(self, node: Node) -> bool:
        if node.op not in _IDENTITY:
            return False
        if "dropout" in node.op:
            rate = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
            on = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
            return not on or rate == 0
        # A cast to integers rounds, and so does one to a byte.
        whole = node.floating and all(self.trace.node(i).floating for i in node.inputs[:1])
        return whole and not _to_bytes((*node.args[1:], *node.kwargs.values()))

    def _is_lookup(self, node: Node) -> bool:
        """True for a table that is read row by row, as `table[tokens]`, or column by column."""
        return looked_up(node) is not None

    def _averages_rows(self, node: Node) -> bool:
        """True for a bag of embeddings that is a sum or a mean of them."""
        mode = node.kwargs.get("mode", node.args[6] if len(node.args) > 6 else "mean")
        return node.op == "embedding_bag" and mode in ("mean", "sum")

    def _pools_positions(self, node: Node, first: int) -> bool:
        layout, ndim = self.layouts.get(first), len(self.trace.node(first).shape)
        found = [int(rank) for rank in "123" if f"{rank}d" in node.op]
        pooled = ndim - (found[0] if found else ndim - 2)
        return layout is not None and max(layout.axes) < pooled

    def _is_linear(self, node: Node) -> bool:
        if node.op == "linear":
            return self._weighed(node, 1, "weight")
        if node.op == "addmm" and len(node.args) >= 3:
            live = isinstance(node.args[1], Ref) and not self._constant(node.args[1])
            return live and self._constant(node.args[2]) and self._constant(node.args[0])
        if node.op in GROUPED_PRODUCTS and len(node.args) >= 2:
            return self._weighed(node, 1, "weight") and node.kwargs.get("bias") is None
        if node.op in ("matmul", "mm", "bmm") and len(node.args) >= 2:
            return self._weighed(node, 1, "other") or self._is_turned(node)
        return False

    def _is_turned(self, node: Node) -> bool:
        """True for a weight times a tensor whose features lie along the axis before the last."""
        value = self._ref(node, 1, "other")
        if node.op not in ("matmul", "mm", "bmm") or value is None:
            return False
        ndim = len(self.trace.node(value).shape)
        layout = self.layouts.get(value)
        return self._constant(node.args[0]) and layout is not None and layout.axes == (ndim - 2,)

    def _reordered(self, node: Node, first: int) -> tuple[Layout, tuple[int, ...]] | None:
        """Where features are that a call only put in another order, and which is where."""
        source, layout = self.trace.node(first), self.layouts.get(first)
        if node.op not in _REORDERS or layout is None or node.function is None:
            return None
        if layout.repeat != 1 or self._ref(node, 0, "input") != first:
            return None
        sizes = [source.shape[axis] for axis in layout.axes]
        count = math.prod(sizes)
        # Every feature by its number, the same at all positions.
        numbers = torch.arange(count, dtype=torch.float64).reshape(sizes)
        numbers = numbers.permute(sorted(range(len(sizes)), key=lambda rank: layout.axes[rank]))
        shape = [s if axis in layout.axes else 1 for axis, s in enumerate(source.shape)]
        given = numbers.reshape(shape).expand(source.shape)
        try:
            made = replay(self.trace, node.index, {first: given})
        except (RuntimeError, ValueError, TypeError, LookupError):
            return None
        if not made.numel():
            return None
        still = torch.arange(count)
        for axis in range(made.ndim):
            row = made.movedim(axis, 0).reshape(made.shape[axis], -1)
            order = row[:, 0].long()
            if (
                bool((row == row[:, :1]).all())
                and torch.equal(order.sort().values, still)
                and not (axis in layout.axes and torch.equal(order, still))
            ):
                return Layout((axis,), axis < made.ndim - 1), tuple(order.tolist())
        return None

    def _runs_along(self, node: Node, first: int) -> bool:
        """True if a function runs along positions, of each feature by itself."""
        dims = _dims(node, self.trace.node(first).shape)
        layout = self.layouts.get(first)
        return (
            dims is not None
            and layout is not None
            and node.index in self.layouts
            and 0 not in dims
            and not set(dims) & set(layout.axes)
        )

    def _is_average(self, node: Node, first: int) -> bool:
        if node.op not in ("mean", "sum") or first not in self.layouts:
            return False
        shape, layout = self.trace.node(first).shape, self.layouts[first]
        dims = _dims(node, shape)
        # Experts may stand along the first axis, in front of rows and features.
        first_too = node.op == "sum" and len(shape) > 2
        return (
            dims is not None and (0 not in dims or first_too) and not set(dims) & set(layout.axes)
        )

    def _is_rowwise(self, node: Node, first: int) -> bool:
        if node.op not in _ROWWISE or first not in self.layouts:
            return False
        shape = self.trace.node(first).shape
        if node.op in ("layer_norm", "rms_norm"):
            dims: tuple[int, ...] | None = (len(shape) - 1,)
            given = node.kwargs.get("normalized_shape", node.args[1] if len(node.args) > 1 else ())
            if len(tuple(given)) != 1:
                return False
        else:
            dims = _dims(node, shape)
        # Heads are rows of their own to a function of the last axis.
        last = self.layouts[first].axes[-1:]
        return dims == (len(shape) - 1,) == last and len(node.shape) == len(shape)

    def _takes_channels(self, node: Node, first: int) -> bool:
        """True for a norm without weights over all channels and all their positions."""
        given = node.kwargs.get("normalized_shape", node.args[1] if len(node.args) > 1 else ())
        weighed = any(isinstance(v, Ref | Fixed) for v in (*node.args[1:], *node.kwargs.values()))
        channels = len(tuple(given)) == len(node.shape) - 1 > 1 and self._features_at(first, 1)
        return channels and not weighed

    def _piece(self, node: Node, first: int) -> tuple[Kind, tuple[int, ...] | None]:
        """One of the pieces that a tensor was split into, whole features or a part of them."""
        source = self.trace.node(first)
        before = self.trace.node(source.inputs[0]).shape
        dim = source.kwargs.get("dim", source.args[2] if len(source.args) > 2 else 0)
        layout = self.layouts.get(first)
        if source.op == "unbind":
            dim = source.kwargs.get("dim", source.args[1] if len(source.args) > 1 else 0)
            layout = self.layouts.get(source.inputs[0])
        if layout is None or node.index not in self.layouts or not isinstance(dim, int):
            return Kind.OTHER, None
        axis = dim % len(before)
        if axis not in layout.axes:
            return Kind.CARRIER, None
        if source.op == "unbind":
            return Kind.PART, _taken(before, layout, {axis: node.args[0]})
        # The pieces were recorded one behind the other.
        pieces = range(node.index - node.args[0], node.index)
        start = sum(self.trace.node(index).shape[axis] for index in pieces)
        part = _taken(before, layout, {axis: slice(start, start + node.shape[axis])})
        whole = math.prod(before[a] for a in layout.axes)
        return (Kind.CARRIER if len(part) == whole else Kind.PART), part

    def _getitem(self, node: Node, first: int) -> tuple[Kind, tuple[int, ...] | None]:
        before, layout = self.trace.node(first).shape, self.layouts[first]
        items = {axis: item for axis, item in _items(node, before) if axis is not None}
        if any(not isinstance(item, int | slice | list) for item in items.values()):
            return Kind.OTHER, None
        part = _taken(before, layout, {a: items[a] for a in layout.axes if a in items})
        whole = tuple(range(math.prod(before[axis] for axis in layout.axes)))
        return (Kind.CARRIER, None) if part == whole else (Kind.PART, part)

    def _picks(self, node: Node, first: int) -> bool:
        """True if a call picks whole rows of features."""
        if first not in self.layouts or self._ref(node, 0, "input") != first:
            return False
        before, axes = self.trace.node(first).shape, self.layouts[first].axes
        return picked_axes(self.trace, node, before, axes) is not None

    def _puts(self, node: Node, live: list[int]) -> None:
        """Rows of features that are put among others, or added to them."""
        whole, rows = put_rows(node) or (None, None)
        layout = self.layouts.get(node.index)
        given = [v for v in (whole, rows) if not is_blank(self.trace, v)]
        known = [v.node for v in given if isinstance(v, Ref) and v.node in live]
        if layout is None or len(known) < len(given) or not self._puts_rows(node, layout):
            self.put(node.index, Kind.OTHER, (), tuple(self.vertex(i) for i in live))
        else:
            kind = Kind.SUM if len(known) > 1 else Kind.CARRIER
            self.put(node.index, kind, tuple(self.vertex(i) for i in known))

    def _puts_rows(self, node: Node, layout: Layout) -> bool:
        if node.op != "setitem":
            dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
            return isinstance(dim, int) and dim % len(node.shape) not in layout.axes
        items = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        picked = picked_axes(self.trace, node, node.shape, layout.axes)
        # Rows at places that are counted, such as whole[:, 3] = rows.
        return picked is not None or (
            _indexed(node, node.shape, layout) is not None
            and len(items) <= min(layout.axes)
            and Ellipsis not in items
        )

    def _put_layout(self, node: Node) -> Layout | None:
        """Where the features of rows are among others: where theirs were, at the end."""
        whole, rows = put_rows(node) or (None, None)
        for value in (rows, whole):
            found = self.layouts.get(value.node) if isinstance(value, Ref) else None
            if found is not None and isinstance(value, Ref):
                shape = self.trace.node(value.node).shape
                shift = len(node.shape) - len(shape)
                axes = tuple(axis + shift for axis in found.axes)
                if all(
                    0 <= b < len(node.shape) and node.shape[b] == shape[a]
                    for a, b in zip(found.axes, axes, strict=True)
                ):
                    return Layout(axes, found.channels, found.repeat)
        return None

    def _cat(self, node: Node, live: list[int], layout: Layout | None) -> None:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        parts = tuple(self.vertex(i) for i in live)
        if layout is None or not isinstance(dim, int):
            self.put(node.index, Kind.OTHER, (), parts)
        elif dim % len(node.shape) in layout.copies and len(parts) > 1:
            # Single heads side by side are no copies of one.
            self.put(node.index, Kind.OTHER, (), parts)
        elif dim % len(node.shape) in layout.axes:
            given = node.kwargs.get("tensors", node.args[0] if node.args else ())
            tensors = [value for value in given if isinstance(value, Ref | Fixed)]
            refs = [v.node for v in tensors if isinstance(v, Ref) and v.node in live]
            # The same features may come twice.
            parts = tuple(self.vertex(i) for i in refs)
            own = len(refs) == len(tensors) and all(i in self.layouts for i in refs)
            if own and dim % len(node.shape) == layout.axes[-1] and len(layout.axes) == 1:
                self.put(node.index, Kind.CONCAT, parts)
            else:
                self.put(node.index, Kind.OTHER, (), parts)
        else:
            self.put(node.index, Kind.CARRIER, parts)

    def _pad(self, node: Node, first: int, layout: Layout | None) -> None:
        widths = node.kwargs.get("pad", node.args[1] if len(node.args) > 1 else None)
        if layout is None or not isinstance(widths, tuple | list):
            self.put(node.index, Kind.OTHER, (), (self.vertex(first),))
            return
        padded = {
            len(node.shape) - 1 - place // 2 for place, width in enumerate(widths) if width != 0
        }
        mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
        value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
        if padded & set(layout.axes):
            place = 2 * (len(node.shape) - 1 - layout.axes[-1])
            if mode == "constant" and not value and padded & set(layout.axes) == {layout.axes[-1]}:
                zeros = (widths[place], widths[place + 1])
                if len(layout.axes) == 1 and layout.repeat == 1 and min(zeros) >= 0:
                    self.put(node.index, Kind.PADDED, (self.vertex(first),), (), zeros)
                    return
            self.put(node.index, Kind.OTHER, (), (self.vertex(first),))
        elif mode == "constant" and (isinstance(value, Ref | Fixed) or value):
            # Numbers other than zero in place of features, which no change of basis leaves alone.
            self.put(node.index, Kind.OTHER, (), (self.vertex(first),))
        else:
            self.put(node.index, Kind.CARRIER, (self.vertex(first),))

    def _matmul(self, node: Node, live: list[int]) -> None:
        """Values are mixed across positions by a pattern, whatever that is made of."""
        pattern, value = self._ref(node, 0, "input"), self._ref(node, 1, "other")
        layout = None if value is None else self.layouts.get(value)
        if (
            pattern in live
            and value in live
            and pattern != value
            and layout is not None
            and layout.axes[-1] == len(self.trace.node(value).shape) - 1
            and len(self.trace.node(value).shape) - 2 not in layout.axes
        ):
            self.put(node.index, Kind.ATTENTION, (self.vertex(value),), (self.vertex(pattern),))
        elif self._sums_positions(node, live):
            rows, weights = live
            self.put(node.index, Kind.CARRIER, (self.vertex(rows),), (self.vertex(weights),))
        else:
            self.put(node.index, Kind.OTHER, (), tuple(self.vertex(i) for i in live))

    def _sums_positions(self, node: Node, live: list[int]) -> bool:
        """True for features times a matrix behind them that sums over positions, alike for all.

        As where a state [channels, states] is read by a vector over its states.
        """
        if node.op not in ("matmul", "bmm") or len(live) != 2:
            return False
        if [self._ref(node, 0, "input"), self._ref(node, 1, "other")] != live:
            return False
        rows, weights = live
        shape, layout = self.trace.node(rows).shape, self.layouts.get(rows)
        alike = len(self.trace.node(weights).shape) == len(shape) == len(node.shape)
        return alike and layout is not None and layout.axes == (len(shape) - 2,)

    def _widened(self, node: Node, live: list[int]) -> Layout | None:
        """Where features are that meet others, or constants, along new axes of positions.

        Of two tensors that widen one another, the one whose features come first keeps them.
        """
        found: list[Layout] = []
        for index in live:
            layout, shape = self.layouts.get(index), self._aligned(index, node)
            if layout is None or len(layout.axes) != 1 or layout.repeat != 1:
                continue
            shift = len(node.shape) - len(self.trace.node(index).shape)
            moved = layout.moved(lambda axis, shift=shift: axis + shift)
            (axis,) = moved.axes
            if shape[axis] == node.shape[axis] > 1:
                found.append(dataclasses.replace(moved, channels=axis < len(node.shape) - 1))
        return min(found, key=lambda layout: layout.axes) if found else None

    def _pointwise(self, node: Node, live: list[int]) -> None:
        if node.op in _ROWWISE or self.coupled & set(live):
            self.coupled.add(node.index)
        whole = [i for i in live if self._meets(i, node)]
        sets = {self.roots[i] for i in whole}
        full = [i for i in live if not is_blank(self.trace, Ref(i))]
        if node.op == "add" and any(is_blank(self.trace, v) for v in node.args) and full == whole:
            self.put(node.index, Kind.CARRIER, (self.vertex(whole[0]),))
            return
        if node.op in ("masked_fill", "where") and self._blanks_rows(node, live):
            return
        if node.op in ("mul", "div") and len(live) == 1:
            varying, layout = self._varying(node, live[0]), self.layouts.get(live[0])
            if varying and layout is not None:
                heads, rows = set(layout.axes[:-1]), not varying & set(layout.axes)
                if rows or varying <= heads:
                    self.put(node.index, Kind.CARRIER, (self.vertex(live[0]),), by_head=not rows)
                    return
        roots = frozenset[int]().union(*(self.roots[i] for i in live))
        base = self._base(roots)
        if len(base) == 1 and len(roots) > 1:
            # However it was written, it is a function of one tensor.
            self.roots[node.index] = base
            return
        if len(roots) > 1:
            # A norm is a place of its own, also where another tensor multiplies it.
            for index in self.coupled & set(live):
                self.vertex(index)
            roots = frozenset[int]().union(*(self.roots[i] for i in live))
        if len(live) == 1 and len(roots) > 1:
            # What joined two tensors is one step, and what bends the result is the next.
            roots = frozenset((self.vertex(live[0]),))
        if node.op in ("add", "sub") and (len(sets) > 1 or self._learned(node, live)):
            if len(whole) < len(live):
                self.put(node.index, Kind.OTHER, (), tuple(self.vertex(i) for i in live))
            else:
                self.put(node.index, Kind.SUM, tuple(self.vertex(i) for i in live))
            return
        if node.op in ("mul", "div") and self._weighs_rows(node, live):
            return
        if len(roots) > 2:
            roots = frozenset(self.vertex(i) for i in live)
        if len(roots) > 2:
            self.put(node.index, Kind.OTHER, (), tuple(sorted(roots)))
            return
        self.roots[node.index] = roots

    def _blanks_rows(self, node: Node, live: list[int]) -> bool:
        """Puts down what puts zeros in place of whole rows; False if that is not what it does.

        Which rows these are must not depend on what the rows hold.
        """
        names = ("input", "mask", "value") if node.op == "masked_fill" else _OF_WHERE
        padded = zip(names, (*node.args, *[None] * len(names)), strict=False)
        given = {name: node.kwargs.get(name, value) for name, value in padded}
        mask, layout = given.pop(names[node.op == "masked_fill"]), self.layouts.get(node.index)
        rows = [v.node for v in given.values() if isinstance(v, Ref) and v.node in live]
        left = [v for v in given.values() if not (isinstance(v, Ref) and v.node in live)]
        if layout is None or len(rows) != 1 or not self._meets(rows[0], node):
            return False
        if not all(_is_zero(value) or is_blank(self.trace, value) for value in left):
            return False
        used: tuple[int, ...] = ()
        if isinstance(mask, Fixed):
            shape = tuple(mask.tensor.shape)
        elif isinstance(mask, Ref):
            shape = self.trace.node(mask.node).shape
            if mask.node in live:
                if self._base(self.roots[rows[0]]) & self._base(self.roots[mask.node]):
                    return False
                used = (self.vertex(mask.node),)
            elif self._reads_features(mask.node):
                return False
        else:
            return False
        shape = (1,) * (len(node.shape) - len(shape)) + shape
        if any(shape[axis] != 1 for axis in layout.axes):
            return False
        self.put(node.index, Kind.CARRIER, (self.vertex(rows[0]),), used)
        return True

    def _reads_features(self, index: int) -> bool:
        """True if a node is made of numbers with features, such as a mask of large ones."""
        seen, waiting = set[int](), [index]
        while waiting:
            here = waiting.pop()
            if here not in seen:
                seen.add(here)
                if here in self.layouts or (self.trace.node(here).live and self.known(here)):
                    return True
                waiting.extend(self.trace.node(here).inputs)
        return False

    def _weighs_rows(self, node: Node, live: list[int]) -> bool:
        """Puts down a product with one number for every row; False if it is none.

        All features of a row are multiplied alike, so that nothing happens to their axes.
        """
        layout = self.layouts.get(node.index)
        if layout is None or len(live) != 2 or self._ref(node, 0, "input") not in live:
            return False
        rows, weights = live
        if not self._meets(rows, node):
            rows, weights = weights, rows
        if node.op == "div" and self._ref(node, 0, "input") != rows:
            return False
        shape = self._aligned(weights, node)
        if not self._meets(rows, node):
            return False
        if shape[layout.axes[-1]] != 1 or node.shape[layout.axes[-1]] == 1:
            return False
        if self._base(self.roots[rows]) & self._base(self.roots[weights]):
            return False  # As in a norm, whose factor is made of the row itself.
        by_head = any(shape[axis] != 1 for axis in layout.axes)
        used = (self.vertex(weights),)
        self.put(node.index, Kind.CARRIER, (self.vertex(rows),), used, by_head=by_head)
        return True

    def _varying(self, node: Node, rows: int) -> set[int]:
        """Along which axes the constants vary by which features are multiplied or divided."""
        if self.layouts.get(rows) is None or self.trace.node(rows).shape != node.shape:
            return set()
        if node.op == "div" and self._ref(node, 0, "input") != rows:
            return set()
        for value in (*node.args, *node.kwargs.values()):
            shape: tuple[int, ...] | None = None
            if isinstance(value, Fixed):
                shape = tuple(value.tensor.shape)
            elif isinstance(value, Ref) and value.node != rows:
                shape = self.trace.node(value.node).shape
            if shape is not None:
                padded = (1,) * (len(node.shape) - len(shape)) + shape
                return {axis for axis, size in enumerate(padded) if size > 1}
        return set()

    def _meets(self, index: int, node: Node) -> bool:
        """True if an operand has the same features as the result, at each position or at all."""
        layout, own = self.layouts.get(node.index), self.layouts.get(index)
        shape = self.trace.node(index).shape
        if not shape or len(shape) > len(node.shape):
            return False  # A single number has no features, and what sums them has others.
        if layout is None or own is None:
            return layout is own and shape == node.shape
        shift = len(node.shape) - len(shape)
        axes = tuple(axis + shift for axis in own.axes)
        sizes = zip(shape, node.shape[shift:], strict=True)
        alike = axes == layout.axes and own.repeat == layout.repeat
        return (
            alike
            and all(shape[a] == node.shape[b] for a, b in zip(own.axes, axes, strict=True))
            and all(a in (1, b) for a, b in sizes)
        )

    def _aligned(self, index: int, node: Node) -> tuple[int, ...]:
        """The shape of a tensor as it meets the result of a call, with axes of size one before."""
        shape = self.trace.node(index).shape
        return (1,) * (len(node.shape) - len(shape)) + shape

    def _base(self, roots: frozenset[int]) -> frozenset[int]:
        """What functions of single rows among the roots are made of, in the end."""
        found: set[int] = set()
        waiting = list(roots)
        while waiting:
            here = waiting.pop()
            vertex = self.vertices[here]
            if vertex.kind is Kind.REGION:
                waiting.extend(vertex.carried)
            else:
                found.add(here)
        return frozenset(found)

    def _learned(self, node: Node, live: list[int]) -> bool:
        """True if something that depends on the position, but not on the input, is added."""
        shape = self.trace.node(live[0]).shape
        layout = self.layouts.get(live[0])
        if layout is None or len(live) > 1:
            return False
        for value in node.args:
            other = None
            if isinstance(value, Fixed):
                other = tuple(value.tensor.shape)
            elif is_blank(self.trace, value):
                continue
            elif isinstance(value, Ref) and self._constant(value):
                other = self.trace.node(value.node).shape
                if math.prod(other) > 1 and is_one_number(self.trace, value):
                    continue
            if other is None:
                continue
            padded = (1,) * (len(shape) - len(other)) + other
            if (
                any(size > 1 and axis not in layout.axes for axis, size in enumerate(padded))
                # The bias of a linear map.
                or (math.prod(other) > 1 and self._is_bias_of_map(value, live[0]))
            ) and all(padded[axis] == shape[axis] for axis in layout.axes):
                return True
        return False

    def _is_bias_of_map(self, value: object, index: int) -> bool:
        """True for a vector that is added to what a linear map made, alone or with others.

        A parameter, also where it was moved, or multiplied by constants, in between.
        """
        own = self.vertices.get(self.same.get(index, -1))
        if own is not None and own.kind in (Kind.LINEAR, Kind.CONVOLUTION, Kind.GROUPED):
            return True
        if not (isinstance(value, Fixed) and isinstance(value.tensor, nn.Parameter)):
            return False
        while True:
            made = self.vertices.get(self.same.get(index, -1))
            if made is not None and made.kind is Kind.CARRIER and len(made.carried) == 1:
                index = made.carried[0]
            elif made is not None and made.kind is not Kind.REGION:
                return made.kind in (Kind.LINEAR, Kind.CONVOLUTION, Kind.GROUPED, Kind.SUM)
            else:
                node = self.trace.node(index)
                before = self.live(node)
                if node.op not in ("mul", "div", "neg") or len(before) != 1:
                    return False
                index = before[0]

    # --- where the features are -----------------------------------------------------------------

    def _layout(self, node: Node, live: list[int]) -> Layout | None:
        """On which axes the features of a node are; None where it has none that are known."""
        shape, op = node.shape, node.op
        if not shape:
            return None
        if op in _CONVOLUTIONS:
            return Layout((len(shape) - 1 - _positions(op),), True)
        if self._is_turned(node):
            return Layout((len(shape) - 2,), True)
        if looked_up(node) == 1:
            return Layout((0,), len(shape) > 1)
        if op in ("embedding", "embedding_bag") or self._is_linear(node) or self._is_lookup(node):
            return Layout((len(shape) - 1,))
        if op in PUTS:
            return self._put_layout(node)
        if op in ("scaled_dot_product_attention", "matmul", "bmm", "baddbmm"):
            return self._product_layout(node, live)
        source = next((i for i in live if i in self.layouts), None)
        if source is None:
            return None
        before, layout = self.trace.node(source).shape, self.layouts[source]
        if op in _MOVES:
            return _reshaped(node, before, layout)
        if op in _SPLITS or op in ("stack", "getitem", "index_select", "output"):
            return self._parted_layout(node, live, before, layout)
        if op == "view_as_complex" and len(layout.axes) > 1 and layout.axes[-1] == len(before) - 1:
            return Layout(layout.axes[:-1], False, layout.repeat)
        if op == "view_as_real":
            return Layout((*layout.axes, len(shape) - 1), False, layout.repeat)
        if op in _REDUCTIONS and len(shape) < len(before):
            dims = _dims(node, before) or ()
            if set(dims) & set(layout.axes):
                return None
            moved = tuple(a - sum(d < a for d in dims) for a in layout.axes)
            return Layout(moved, layout.channels and moved[-1] < len(shape) - 1, layout.repeat)
        if op in POINTWISE:
            full = [i for i in live if self.trace.node(i).shape == shape and i in self.layouts]
            return self.layouts[full[0]] if full else self._widened(node, live)
        return layout if len(shape) == len(before) else None

    def _product_layout(self, node: Node, live: list[int]) -> Layout | None:
        """The layout of what attention or a product of two tensors writes: that of its values."""
        name = {"scaled_dot_product_attention": "value", "baddbmm": "batch2"}.get(node.op, "other")
        value = self._ref(node, 1 if name == "other" else 2, name)
        found = None if value is None else self.layouts.get(value)
        if value is None or found is None:
            return None
        before = self.trace.node(value).shape
        if name == "value":
            return _served(before, node.shape, found)
        # What a product sums over is gone: of scores no features are left.
        summed = len(before) - 2
        kept = found.axes[-1] == len(before) - 1 and summed not in found.axes
        if kept and len(before) <= len(node.shape):
            return _served(before, node.shape, found)
        return self.layouts[self.same[live[0]]] if self._sums_positions(node, live) else None

    def _parted_layout(
        self, node: Node, live: list[int], before: tuple[int, ...], layout: Layout
    ) -> Layout | None:
        """The layout of several tensors in one, of one of several, and of what an index picks."""
        shape, op = node.shape, node.op
        if op == "stack":
            axis = self._stacked_along(node)
            alike = all(self.layouts.get(i) == layout for i in live)
            if not alike or len(live) != len(_given_to(node)):
                return None
            axes = tuple(a + (a >= axis) for a in layout.axes)
            return Layout(axes, axes[-1] < len(shape) - 1, layout.repeat)
        if op in ("getitem", "index_select"):
            table = node.args[0]
            if isinstance(table, Fixed) or not self.trace.node(table.node).live:
                # The numbers themselves are what picks: of a single row each gets another number.
                ndim = table.tensor.ndim if isinstance(table, Fixed) else 0
                return layout if ndim == 1 and shape == before else None
            picked = picked_axes(self.trace, node, before, layout.axes)
            if picked is not None:
                channels = layout.channels and picked[-1] < len(shape) - 1
                return Layout(picked, channels, layout.repeat)
            return _indexed(node, before, layout) if op == "getitem" else None
        made = self.trace.node(live[0])
        if op == "output" and made.op == "unbind":
            before, layout = self.trace.node(made.inputs[0]).shape, self.layouts[made.inputs[0]]
            dim = made.kwargs.get("dim", made.args[1] if len(made.args) > 1 else 0) % len(before)
            axes = tuple(axis - (axis > dim) for axis in layout.axes if axis != dim)
            if not axes or layout.axes[-1] == dim:
                return None
            return Layout(axes, layout.channels and axes[-1] < len(shape) - 1, layout.repeat)
        return layout if op == "unbind" or len(shape) == len(before) else None


def _reshaped(node: Node, before: tuple[int, ...], layout: Layout) -> Layout | None:
    """Where features are after a call that hands the same numbers on in another shape."""
    shape, op = node.shape, node.op
    if op == "view":
        return _viewed(before, shape, layout)
    if op == "repeat_interleave":
        same = len(shape) == len(before) and shape[layout.axes[-1]] == before[layout.axes[-1]]
        return layout if same else None
    shift = len(shape) - len(before)
    if op in ("repeat", "tile"):
        moved = layout.moved(lambda a: a + shift)
        sizes = zip((1,) * shift + before, shape, strict=True)
        # Rows that come again are rows like the others.
        once = tuple(b if a == 1 else a for a, b in sizes)
        if any(once[axis] != shape[axis] for axis in moved.axes):
            return None
        return _broadcast((1,) * shift + before, once, moved)
    if op in ("expand", "broadcast_to"):
        return _broadcast((1,) * shift + before, shape, layout.moved(lambda a: a + shift))
    return _permuted(node, before, layout)


def _without_single(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """The same where a single head, or one copy of it, is no axis of features."""
    *before, last = layout.axes
    single = tuple(axis for axis in before if shape[axis] == 1)
    axes = tuple(axis for axis in before if axis not in single)
    return dataclasses.replace(layout, axes=(*axes, last), copies=(*layout.copies, *single))


def _served(values: tuple[int, ...], made: tuple[int, ...], layout: Layout) -> Layout | None:
    """Where the features of values are after attention: one head may serve several of queries."""
    shift = len(made) - len(values)
    before = (1,) * shift + values
    sizes = zip(before[:-2], made[:-2], strict=True)
    after = tuple(b if a == 1 else a for a, b in sizes)
    return _broadcast(before, (*after, *before[-2:]), layout.moved(lambda axis: axis + shift))


def _broadcast(before: tuple[int, ...], after: tuple[int, ...], layout: Layout) -> Layout | None:
    """Where features are after axes of size one were repeated."""
    grown = [axis for axis, size in enumerate(before) if size != after[axis]]
    axes = tuple(axis for axis in layout.axes if axis not in grown)
    if layout.axes[-1] in grown or any(before[axis] != 1 for axis in grown):
        return None
    copies = tuple(dict.fromkeys((*layout.copies, *grown)))
    return dataclasses.replace(layout, axes=axes, copies=copies)


def _viewed(before: tuple[int, ...], after: tuple[int, ...], layout: Layout) -> Layout | None:
    """Where features are after a reshape: axes may split and merge, in order."""
    groups = groups_of_axes(before, after)
    if groups is None:
        return None
    found: list[tuple[int, list[int]]] = []  # how major they were, and where they are now
    repeat, copies = layout.repeat, list[int]()
    for left, right in groups:
        inside = [axis for axis in left if axis in layout.axes and before[axis] > 1]
        copied = [axis for axis in left if axis in layout.copies]
        if not inside:
            # Copies of a single head, along an axis beside its own.
            copies += right if copied and len(right) == 1 else []
            continue
        sized = [axis for axis in left if before[axis] > 1]
        axes: list[int] = []
        rank = layout.axes.index(inside[0])
        if tuple(inside) != layout.axes[rank : rank + len(inside)]:
            # Merged in another order, the features change places.
            return None
        if inside == sized:
            axes.extend(axis for axis in right if after[axis] > 1)
            copies += [axis for axis in right if after[axis] == 1 and axis < axes[0]]
        elif len(right) == 1 and sized == [axis for axis in sized if axis in (*copied, *inside)]:
            # A single head merges with its copies.
            axes.append(right[0])
        elif len(right) == 1 and inside == sized[: len(inside)] and layout.axes[-1] in inside:
            # Positions behind the channel axis are flattened into it.
            for axis in sized[len(inside) :]:
                repeat *= before[axis]
            axes.append(right[0])
        elif len(right) == 1 and inside[0] == sized[0] and len(layout.axes) > 1:
            # A head axis that was repeated for grouped queries merges with its copies.
            axes.append(right[0])
        else:
            return None
        found.append((rank, axes))
    axes = [axis for _, several in sorted(found) for axis in several]
    if not axes:
        return None
    channels = layout.channels and axes[-1] < len(after) - 1
    return Layout(tuple(axes), channels, repeat, tuple(copies))


def _given_to(node: Node) -> list[object]:
    """What a call that joins tensors was given."""
    given = node.kwargs.get("tensors", node.args[0] if node.args else ())
    return list(given)


def _permuted(node: Node, before: tuple[int, ...], layout: Layout) -> Layout | None:
    """Where features are after axes changed places; the call is made on a tensor without memory."""
    ndim = len(before)
    # Every axis has a size of its own, by which it is known again.
    sizes = tuple(range(2, ndim + 2))
    try:
        function: Any = node.function
        blank = torch.empty(sizes, device="meta")
        after = tuple(function(blank, *node.args[1:], **node.kwargs).shape)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    if sorted(after) != list(sizes):
        return None
    found = layout.moved(lambda axis: after.index(sizes[axis]))
    last = found.axes[-1] == ndim - 1
    return dataclasses.replace(found, channels=not last and len(found.axes) == 1)


def _items(node: Node, before: tuple[int, ...]) -> list[tuple[int | None, Any]]:
    """What is taken of which axis, in order; no axis for a new one."""
    items = node.args[1] if len(node.args) > 1 else None
    items = items if isinstance(items, tuple) else (items,)
    used = sum(item is not None and item is not Ellipsis for item in items)
    found: list[tuple[int | None, Any]] = []
    axis = 0
    for item in items:
        if item is None:
            found.append((None, None))
        elif item is Ellipsis:
            found += [(axis + more, slice(None)) for more in range(len(before) - used)]
            axis += len(before) - used
        else:
            found.append((axis, item))
            axis += 1
    return found + [(rest, slice(None)) for rest in range(axis, len(before))]


_OF_WHERE = ("condition", "input", "other")


def _is_zero(value: object) -> bool:
    return isinstance(value, int | float) and value == 0


def _taken(before: tuple[int, ...], layout: Layout, items: dict[int, Any]) -> tuple[int, ...]:
    """Which features are left, counted from major to minor, if this is taken of their axes."""
    sizes = [before[axis] for axis in layout.axes]
    features = torch.arange(math.prod(sizes)).reshape(sizes)
    chosen = tuple(items.get(axis, slice(None)) for axis in layout.axes)
    return tuple(features[chosen].flatten().tolist())


def _indexed(node: Node, before: tuple[int, ...], layout: Layout) -> Layout | None:
    places: dict[int, int] = {}
    out = lists = 0
    for axis, item in _items(node, before):
        if axis is None:
            out += 1
        elif isinstance(item, slice) or (isinstance(item, list) and not lists):
            # More than one list picks single entries, and not from each axis by itself.
            lists += isinstance(item, list)
            places[axis] = out
            out += 1
        elif not isinstance(item, int) or isinstance(item, bool):
            return None
    if lists and any(isinstance(item, int) for _, item in _items(node, before)):
        return None
    axes = tuple(places[axis] for axis in layout.axes if axis in places)
    if not axes or layout.axes[-1] not in places:
        return None
    copies = tuple(places[axis] for axis in layout.copies if axis in places)
    return Layout(axes, layout.channels and axes[-1] < out - 1, layout.repeat, copies)


def condense(trace: Trace, *, sites: frozenset[int]) -> Graph:
    """The condensed graph of a trace, cut at every module boundary, nonlinearity and site.

    Args:
        trace: a recorded forward pass.
        sites: further nodes that must be vertices.
    """
    boundaries = {index for call in trace.calls for index in (*call.inputs, *call.outputs)} - {-1}
    named = {node.index for node in trace.nodes if node.floating and nonlinear(node.op)}
    # A nonlinearity inside an activation module or a norm is not a place of its own.
    inside = {
        node.index
        for node in trace.nodes
        if node.index in named and node.index not in boundaries and part_of_one(trace, node)
    }
    cuts = frozenset(boundaries | (named - inside) | sites)
    return _Builder(trace, cuts, sites).build()


def part_of_one(trace: Trace, node: Node) -> bool:
    """True for a step inside an activation module or a norm, which is no place of its own.

    Such a module has one full tensor in and out, calls no module within, and mixes nothing
    linearly.
    """
    inner = f"{node.module}."
    if not node.module or any(
        call.path.startswith(inner) and _sized(trace, call.outputs, node.shape)
        for call in trace.calls
    ):
        return False
    for call in trace.calls:
        if (call.path, call.call) == (node.module, node.call) and len(call.outputs) == 1:
            whole = _sized(trace, call.outputs, node.shape)
            return whole and _sized(trace, call.inputs, node.shape) and not _mixes(trace, call)
    return False


def _mixes(trace: Trace, call: ModuleCall) -> bool:
    """True if a linear map runs in a module's own code."""
    return any(
        (node.module, node.call) == (call.path, call.call)
        and (node.op in _CONVOLUTIONS or node.op in _PRODUCTS)
        for node in trace.nodes
    )


def _sized(trace: Trace, nodes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return any(index >= 0 and trace.node(index).shape == shape for index in nodes)


Function = Callable[[Tensor], Tensor]
