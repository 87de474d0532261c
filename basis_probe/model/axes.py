"""Which axis of a tensor is which axis of which input, followed from call to call.

A mask speaks of the examples and positions of one input. Which rows of a layer it speaks of cannot
be told from their number: a decoder may be as long as its encoder, and a model may pad, prepend,
fold or turn axes. So the indices of every input's axes are passed through the calls that a model
made: calls that only move entries are made again with indices in place of numbers.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from basis_probe.model.graph import replay
from basis_probe.model.trace import STEPS, Fixed, Node, Ref, Trace, tensors_in

PADDING = -1
"""An entry that a model adds, and that no input has: a number of its own choice."""

EXTRA = -2
"""An entry that comes from elsewhere: a learned vector, another input."""

Source = tuple[str, int]
"""An input by its name, and one of its axes."""

Labels = tuple[dict[Source, Tensor], ...]
"""For every axis of a tensor: the axes of inputs that it shows, and the index at each entry."""

_BASE = 1 << 20

_MOVES = frozenset(
    "view transpose permute movedim moveaxis getitem cat stack hstack vstack dstack pad roll flip "
    "fliplr flipud narrow select index_select unbind split chunk tensor_split hsplit vsplit dsplit "
    "expand broadcast_to repeat repeat_interleave tile mT H mH setitem atleast_2d channel_shuffle "
    "atleast_3d".split()
)
"""Calls that move entries and compute nothing."""

_MOVED = frozenset({"input", "tensors", "self"})
"""What the tensors are called whose entries such a call moves."""

_FIRST = frozenset(
    "masked_scatter masked_scatter_ index_add index_add_ index_put index_put_ index_copy "
    "index_copy_ scatter scatter_ scatter_add scatter_add_ masked_fill index_fill".split()
)
"""Calls whose result has the axes of their first tensor."""

_REDUCTIONS = frozenset(
    "mean sum amax amin max min any all prod std var nanmean nansum logsumexp argmax argmin median "
    "count_nonzero norm".split()
)

_MATRICES = frozenset("matmul bmm mm addmm baddbmm rmatmul".split())

_OF_FIRST = _MATRICES | {"einsum", "scaled_dot_product_attention"}
"""Products, whose rows are those of their first factor."""

_CONVOLUTIONS = frozenset("conv1d conv2d conv3d".split())

_RECURRENCES = frozenset("lstm gru rnn_tanh rnn_relu".split())

_LOST = frozenset(
    "sort topk gather take_along_dim take kthvalue unique argsort nonzero unfold as_strided "
    "rot90 msort fft_fftshift fft_ifftshift fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 "
    "fft_ifft2".split()
)
"""Calls behind which nothing is known of the entries."""

_BLANKS = frozenset(
    "zeros zeros_like new_zeros full full_like new_full empty ones ones_like".split()
)


class Axes:
    """The axes of every tensor of a trace, as axes of the inputs.

    Args:
        trace: the record.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        fed = zip(trace.names, trace.nodes, strict=False)
        self.inputs = {name: node for name, node in fed if node.op == "input"}
        self.mixed: set[Source] = set()
        """Axes along which the model was seen to mix entries: positions, not examples."""
        self.joined: dict[Source, set[Source]] = {}
        """Axes that were seen to run side by side with equal indices."""
        self.fixed: dict[int, dict[Source, int]] = {}
        """Node -> axes of inputs of which it shows one entry, that was picked by its number."""
        self._known: dict[int, Labels] = {}
        self._several: dict[int, list[Labels]] = {}
        self._names = {node.index: name for name, node in self.inputs.items()}
        self._origins: dict[int, frozenset[str]] = {}
        self._blank_nodes: dict[int, bool] = {}
        self._made: dict[Hashable, tuple[list[Labels], dict[Source, int]]] = {}
        for node in trace.nodes:
            self.fixed[node.index] = self._inherited(node)
            self._known[node.index] = self._follow(node)
            self._join(self._known[node.index])

    def _inherited(self, node: Node) -> dict[Source, int]:
        """The picked entries of which a tensor is, where all that a call reads agrees on them.

        Rows of a product are those of its first factor, as where one position attends to all.
        """
        read = node.inputs[:1] if node.op in _OF_FIRST else node.inputs
        found: dict[Source, int] = {}
        for index in read:
            for source, entry in self.fixed[index].items():
                others = (i for i in read if source[0] in self.origins(i))
                if all(self.fixed[i].get(source) == entry for i in others):
                    found[source] = entry
        return found

    def _is_blank(self, index: int) -> bool:
        """True for a tensor that is made of one number of the model's own, as padding is."""
        if index not in self._blank_nodes:
            node = self.trace.node(index)
            found = node.op in _BLANKS
            if not found and node.inputs:
                # A table is read alike everywhere; what is added to zeros is no padding.
                weights = any(isinstance(v, Fixed) for v in _leaves((node.args, node.kwargs)))
                plain = node.op == "embedding" or not weights
                found = plain and all(map(self._is_blank, node.inputs))
            self._blank_nodes[index] = found
        return self._blank_nodes[index]

    def of(self, index: int) -> Labels:
        """The axes of one tensor."""
        return self._known[index]

    def origins(self, index: int) -> frozenset[str]:
        """The inputs on which a tensor depends."""
        waiting = [index]
        while waiting:
            here = waiting[-1]
            before = [i for i in self.trace.node(here).inputs if i not in self._origins]
            if before:
                waiting.extend(before)
                continue
            own = {self._names[here]} if here in self._names else set[str]()
            read = (self._origins[i] for i in self.trace.node(here).inputs)
            self._origins[here] = frozenset(own).union(*read)
            waiting.pop()
        return self._origins[index]

    def beside(self, source: Source) -> frozenset[Source]:
        """The axes of inputs that run side by side with one, itself among them."""
        found, waiting = {source}, [source]
        while waiting:
            for other in self.joined.get(waiting.pop(), ()):
                if other not in found:
                    found.add(other)
                    waiting.append(other)
        return frozenset(found)

    def _join(self, labels: Labels) -> None:
        for axis in labels:
            sources = [*axis]
            for place, source in enumerate(sources[1:], 1):
                for other in sources[:place]:
                    if other in self.joined.get(source, ()):
                        continue
                    if other[0] != source[0] and torch.equal(axis[source], axis[other]):
                        self.joined.setdefault(source, set()).add(other)
                        self.joined.setdefault(other, set()).add(source)

    # --- one call ---------------------------------------------------------------------------------

    def _follow(self, node: Node) -> Labels:
        none: Labels = tuple({} for _ in node.shape)
        if node.op == "input":
            name = self._names.get(node.index)
            if name is None:
                return none
            return tuple({(name, k): torch.arange(n)} for k, n in enumerate(node.shape))
        if not any(any(self._known[i]) for i in node.inputs):
            return none
        found = self._outcome(node)
        if found is None or len(found) != len(node.shape):
            return none
        kept: list[dict[Source, Tensor]] = []
        for axis, size in zip(found, node.shape, strict=True):
            kept.append({source: v for source, v in axis.items() if len(v) == size})
        return tuple(kept)

    def _outcome(self, node: Node) -> Labels | None:
        op = node.op
        if op == "output":
            several = self._several.get(node.inputs[0], [])
            place = node.args[0]
            return several[place] if isinstance(place, int) and place < len(several) else None
        if op == "overwritten":
            return self._known[node.inputs[0]]
        if op in _LOST or (node.function is None and op != "setitem"):
            return None
        sequence = self._sequence(node) if op == "stack" and node.module.endswith(STEPS) else None
        if sequence is not None:
            rows = self._known[sequence][:-1]
            self._mix(rows[node.args[1]])
            return (*rows, {})
        if op in _MOVES:
            return self._moved(node)
        operands = self._operands(node)
        if not operands:
            return None
        first = operands[0]
        if op in ("embedding", "linear", "_weight_norm"):
            rows = first[1] if op == "embedding" else first[1][:-1]
            return (*rows, {})
        if op in _MATRICES:
            return self._product(node, operands)
        if op == "einsum":
            return self._einsum(node)
        if op == "scaled_dot_product_attention" and len(operands) >= 3:
            query, key = operands[0][1], operands[1][1]
            self._mix(key[-2])
            for _, mask in operands[3:]:
                if mask:
                    self._join(({**key[-2], **mask[-1]},))
            lead = _lead(operands[:3], node.shape)
            return (*lead, query[-2], {})
        if op in _RECURRENCES:
            return self._recurrent(node, first)
        if op in _CONVOLUTIONS:
            return self._convolved(node, first)
        if op in _REDUCTIONS and len(operands) == 1 and node.shape != first[0]:
            return self._reduced(node, first)
        if op in _FIRST:
            return first[1] if first[0] == node.shape else None
        if any(shape == node.shape for shape, _ in operands) or _broadcast(operands) == node.shape:
            return _aligned(operands, node.shape)
        if node.shape and first[0][:1] == node.shape[:1] and "pool" in op:
            return (*first[1][:2], *({} for _ in node.shape[2:]))
        return None

    def _operands(self, node: Node) -> list[tuple[tuple[int, ...], Labels]]:
        """The shapes and axes of the tensors that a call reads, in order."""
        found: list[tuple[tuple[int, ...], Labels]] = []
        for value in _leaves((node.args, node.kwargs)):
            if isinstance(value, Ref):
                found.append((self.trace.node(value.node).shape, self._known[value.node]))
            elif isinstance(value, Fixed):
                shape = tuple(value.tensor.shape)
                found.append((shape, tuple({} for _ in shape)))
        return found

    def _mix(self, axis: Mapping[Source, Tensor]) -> None:
        for source, vector in axis.items():
            if len(vector) > 1:
                self.mixed.add(source)

    def _product(self, node: Node, operands: list[tuple[tuple[int, ...], Labels]]) -> Labels | None:
        if node.op in ("addmm", "baddbmm"):
            operands = operands[1:]
        if node.op == "rmatmul":
            operands = operands[::-1]
        if len(operands) < 2:
            return None
        (shape, a), (other, b) = operands[:2]
        if len(shape) < 2 or len(other) < 2:
            return (*a[:-1],) if len(other) == 1 else None
        if any(a) and any(b):
            self._mix(a[-1])
            self._mix(b[-2])
        return (*_lead(operands[:2], node.shape), a[-2], b[-1])

    def _einsum(self, node: Node) -> Labels | None:
        equation = next(_leaves((node.args, node.kwargs)), None)
        if not isinstance(equation, str) or "->" not in equation:
            return None
        left, right = equation.replace(" ", "").split("->")
        terms, operands = left.split(","), self._operands(node)
        if len(terms) != len(operands) or "." in left:
            return None
        found: dict[str, dict[Source, Tensor]] = {}
        several: dict[str, int] = {}
        for term, (_, labels) in zip(terms, operands, strict=True):
            for letter, axis in zip(term, labels, strict=False):
                found[letter] = _both(found.get(letter, {}), axis)
                several[letter] = several.get(letter, 0) + bool(any(labels))
        for letter, axis in found.items():
            if letter not in right and several[letter] > 1:
                self._mix(axis)
        return tuple(found.get(letter, {}) for letter in right)

    def _recurrent(self, node: Node, first: tuple[tuple[int, ...], Labels]) -> Labels | None:
        flags = [value for value in node.args if isinstance(value, bool)]
        if len(first[0]) != 3 or len(flags) < 4:
            return None  # Packed rows.
        self._mix(first[1][1 if flags[-1] else 0])
        found = (*first[1][:2], {})
        self._several[node.index] = [found]
        return found

    def _sequence(self, node: Node) -> int | None:
        """What the steps of a recurrent layer read whose states a call puts side by side."""
        waiting, seen = [*node.inputs], set[int]()
        while waiting:
            here = self.trace.node(waiting.pop(0))
            if here.index in seen or here.module != node.module:
                continue
            seen.add(here.index)
            whole = self.trace.node(here.inputs[0]) if here.op == "getitem" else None
            if whole is not None and whole.op == "linear":
                return whole.index if whole.shape[:-1] == node.shape[:-1] else None
            waiting += here.inputs
        return None

    def _convolved(self, node: Node, first: tuple[tuple[int, ...], Labels]) -> Labels | None:
        if len(first[0]) != len(node.shape):
            return None
        stride = node.kwargs.get("stride", node.args[3] if len(node.args) > 3 else 1)
        plain = all(s == 1 for s in (stride if isinstance(stride, tuple | list) else (stride,)))
        kept: list[dict[Source, Tensor]] = [first[1][0], {}]
        for axis in range(2, len(node.shape)):
            self._mix(first[1][axis])
            kept.append(first[1][axis] if plain and first[0][axis] == node.shape[axis] else {})
        return tuple(kept)

    def _reduced(self, node: Node, first: tuple[tuple[int, ...], Labels]) -> Labels | None:
        place = 2 if node.op == "norm" else 1
        given = node.kwargs.get("dim", node.args[place] if len(node.args) > place else None)
        dims = given if isinstance(given, tuple | list) else (given,)
        if not all(isinstance(dim, int) for dim in dims) or isinstance(given, bool):
            return None
        gone = {dim % len(first[0]) for dim in dims if isinstance(dim, int)}
        keep = len(node.shape) == len(first[0])
        found = tuple(
            {} if axis in gone else labels
            for axis, labels in enumerate(first[1])
            if keep or axis not in gone
        )
        self._several[node.index] = [found, found]
        return found

    # --- entries that move ------------------------------------------------------------------------

    def _moved(self, node: Node) -> Labels | None:
        """The axes of what a call makes that moves entries: it is made again with indices."""
        key = self._alike(node)
        made = None if key is None else self._made.get(key)
        if made is None:
            made = self._moved_anew(node)
            if key is not None:
                self._made[key] = made
        several, entries = made
        self._several[node.index] = several
        self.fixed[node.index] |= entries
        return several[0] if several else None

    def _alike(self, node: Node) -> Hashable | None:
        """What two calls have in common that move the same entries in the same way.

        None where they are moved by numbers that a tensor holds.
        """
        moved = {0, 2} if node.op == "setitem" else {0}

        def said(value: Any, *, data: bool) -> Hashable:
            if isinstance(value, list | tuple):
                parts = [said(entry, data=data) for entry in value]  # pyright: ignore[reportUnknownVariableType]
                return type(value).__name__, *parts  # pyright: ignore[reportUnknownArgumentType]
            if isinstance(value, Ref | Fixed):
                if not data:
                    raise LookupError("a tensor says where entries go")
                return self._shown(value)
            if isinstance(value, slice):
                whole = value.start, value.stop, value.step
                return "slice", *(said(part, data=data) for part in whole)
            if value is None or value is ... or isinstance(value, bool | int | float | str):
                return type(value).__name__, value
            raise LookupError("nothing is known of this kind of argument")

        try:
            args = [said(value, data=place in moved) for place, value in enumerate(node.args)]
            kwargs = [
                (name, said(value, data=name in _MOVED)) for name, value in node.kwargs.items()
            ]
        except LookupError:
            return None
        return node.op, node.function, node.shape, (*args,), (*kwargs,)

    def _shown(self, value: Ref | Fixed) -> Hashable:
        """All that is known of the entries of a tensor."""
        if isinstance(value, Fixed):
            return "fixed", tuple(value.tensor.shape)
        labels = tuple(
            tuple((source, vector.numpy().tobytes()) for source, vector in axis.items())
            for axis in self._known[value.node]
        )
        node = self.trace.node(value.node)
        whence = self._is_blank(value.node), node.op == "setitem", self.origins(value.node)
        return node.shape, labels, whence

    def _moved_anew(self, node: Node) -> tuple[list[Labels], dict[Source, int]]:
        """The axes of all that a call makes, and axes of inputs of which it shows one entry."""
        entries: dict[Source, int] = {}
        sources = dict.fromkeys(
            (source, axis)
            for value in _leaves((node.args, node.kwargs))
            if isinstance(value, Ref)
            for axis, labels in enumerate(self._known[value.node])
            for source in labels
        )
        several: list[list[dict[Source, Tensor]]] = []
        for source, axis in sources:
            try:
                made = self._indices(node, source, axis, 1)
                wide = self._widened(node, source, axis)
            except (RuntimeError, ValueError, TypeError, LookupError):
                continue
            while len(several) < len(made):
                several.append([{} for _ in range(made[len(several)].ndim)])
            for place, (labels, tensor) in enumerate(zip(several, made, strict=False)):
                read = _line(tensor) or _alone(
                    tensor, wide[place] if place < len(wide) else None, self._single(node, source)
                )
                if read is not None and read[0] < len(labels):
                    labels[read[0]][source] = read[1]
                elif not place and read is None:
                    entry = _entry(tensor)
                    if entry is not None and self._stays(node, source, axis, tensor):
                        labels[axis][source] = torch.tensor([entry])
                    elif entry is not None:
                        entries[source] = entry
        return [tuple(labels) for labels in several], entries

    def _is_lengthened(self, node: Node, axis: int) -> bool:
        """True if a call puts tensors behind one another along an axis."""
        if node.op != "cat":
            return False
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        return isinstance(dim, int) and dim % len(node.shape) == axis

    def _stays(self, node: Node, source: Source, axis: int, made: Tensor) -> bool:
        """True if one entry was cut out of an axis, which stays where it was."""
        for value in _leaves((node.args, node.kwargs)):
            if isinstance(value, Ref) and any(source in at for at in self._known[value.node]):
                before = self.trace.node(value.node).shape
                if made.ndim != len(before) or made.shape[axis] != 1:
                    return False
                return all(
                    a == b
                    for k, (a, b) in enumerate(zip(made.shape, before, strict=True))
                    if k != axis
                )
        return False

    def _single(self, node: Node, source: Source) -> tuple[tuple[int, ...], int, int] | None:
        """Shape, axis and index of an operand that shows one entry of an axis."""
        for value in _leaves((node.args, node.kwargs)):
            if isinstance(value, Ref):
                for axis, labels in enumerate(self._known[value.node]):
                    if source in labels and len(labels[source]) == 1:
                        return self.trace.node(value.node).shape, axis, int(labels[source][0])
        return None

    def _widened(self, node: Node, source: Source, axis: int) -> list[Tensor]:
        """What the call makes if an axis of one entry had two; nothing if it cannot."""
        if self._single(node, source) is None:
            return []
        try:
            return self._indices(node, source, axis, 2)
        except (RuntimeError, ValueError, TypeError, LookupError):
            return []

    def _indices(self, node: Node, source: Source, axis: int, single: int) -> list[Tensor]:
        """What the call makes of the indices along one axis.

        Args:
            node: the call.
            source: the axis of an input that is followed.
            axis: on which axis of its operands it is, where it is on several.
            single: how many entries axes of one entry get.
        """
        function = node.function
        if function is None:
            raise LookupError("the function is not known")

        def data(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return [data(entry) for entry in value]  # pyright: ignore[reportUnknownVariableType]
            if isinstance(value, Fixed):
                return torch.full(value.tensor.shape, _BASE + EXTRA)
            if not isinstance(value, Ref):
                return value
            other, labels = self.trace.node(value.node), self._known[value.node]
            places = [k for k, at in enumerate(labels) if source in at]
            if not places:
                blank = self._is_blank(value.node) or (other.op == "setitem" and not any(labels))
                longer = not blank and self._is_lengthened(node, axis)
                if longer and source[0] in self.origins(value.node):
                    raise LookupError("some of the positions are not known")
                return torch.full(other.shape, _BASE + (PADDING if blank else EXTRA))
            place = axis if axis in places else places[0]
            vector, shape = labels[place][source], [*other.shape]
            if len(vector) == 1 and single > 1:
                vector = vector + torch.arange(single)
                shape[place] = single
            view = [1] * len(shape)
            view[place] = -1
            return (vector + _BASE).view(view).expand(shape).contiguous()

        def chosen(value: Any) -> Any:
            if isinstance(value, list | tuple):
                made = [chosen(entry) for entry in value]  # pyright: ignore[reportUnknownVariableType]
                return made if isinstance(value, list) else tuple(made)
            if isinstance(value, Fixed):
                return value.tensor.cpu()
            if isinstance(value, Ref):
                if self.trace.node(value.node).live:
                    raise LookupError("entries are picked by numbers that depend on the input")
                return replay(self.trace, value.node, {}).cpu()
            return value

        args = [*node.args]
        kwargs = dict(node.kwargs)
        moved = {0, 2} if node.op == "setitem" else {0}
        args = [data(v) if place in moved else chosen(v) for place, v in enumerate(args)]
        kwargs = {name: data(v) if name in _MOVED else chosen(v) for name, v in kwargs.items()}
        return [*tensors_in(function(*args, **kwargs))]


def _leaves(value: Any) -> Iterator[Any]:
    """Every entry of nested arguments, in order."""
    if isinstance(value, dict):
        for entry in value.values():  # pyright: ignore[reportUnknownVariableType]
            yield from _leaves(entry)
    elif isinstance(value, list | tuple):
        for entry in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _leaves(entry)
    else:
        yield value


def _line(tensor: Tensor) -> tuple[int, Tensor] | None:
    """The one axis along which indices differ, and the indices; None if there are none or more.

    Entries that come from elsewhere, such as a token that is put in front of every example, belong
    to whatever stands beside them.
    """
    found: list[tuple[int, Tensor]] = []
    if not tensor.numel():
        return None
    for axis, size in enumerate(tensor.shape):
        others = [other for other in range(tensor.ndim) if other != axis]
        vector = tensor.amax(others) if others else tensor
        if size == 1 or bool((vector == vector[0]).all()):
            continue
        view = [1] * tensor.ndim
        view[axis] = -1
        if bool(((tensor == vector.view(view)) | (tensor < _BASE)).all()):
            found.append((axis, vector - _BASE))
    if len(found) != 1:
        return None
    axis, vector = found[0]
    vector = vector.masked_fill(vector < EXTRA, PADDING)
    return (axis, vector) if bool((vector >= 0).any()) else None


def _entry(tensor: Tensor) -> int | None:
    """The one index that a tensor shows; None if there is none, or more."""
    if not tensor.numel():
        return None
    first = int(tensor.flatten()[0])
    return first - _BASE if first >= _BASE and bool((tensor == first).all()) else None


def _alone(
    tensor: Tensor, wide: Tensor | None, single: tuple[tuple[int, ...], int, int] | None
) -> tuple[int, Tensor] | None:
    """Where an axis of one entry has gone."""
    if single is None:
        return None
    shape, axis, index = single
    if wide is not None and wide.ndim == tensor.ndim:
        read = _line(wide)
        if read is not None and tensor.shape[read[0]] == 1:
            return read[0], torch.tensor([index])
    # Sizes are written into the call: an axis stays where those before it are as they were.
    if wide is None and tuple(tensor.shape[: axis + 1]) == shape[: axis + 1]:
        return axis, torch.tensor([index])
    return None


def _broadcast(operands: list[tuple[tuple[int, ...], Labels]]) -> tuple[int, ...] | None:
    try:
        return tuple(torch.broadcast_shapes(*(shape for shape, _ in operands)))
    except RuntimeError:
        return None


def _both(one: Mapping[Source, Tensor], other: Mapping[Source, Tensor]) -> dict[Source, Tensor]:
    """What two axes show that are put side by side.

    Where they show an input's axis with other indices, as a model that looks at the position
    before, the entries are those of the axis that shows it as it is; without one nothing is known.
    """
    found = dict(one)
    for source, vector in other.items():
        known = found.get(source)
        if known is None or torch.equal(known, vector):
            found[source] = vector
            continue
        # It shows all that the other one does.
        plain = [v for v in (known, vector) if torch.equal(v, torch.arange(len(v)))]
        furthest = max(int(known.max()), int(vector.max()))
        if plain and int(plain[0].max()) == furthest:
            found[source] = plain[0]
        else:
            del found[source]
    return found


def _aligned(operands: list[tuple[tuple[int, ...], Labels]], shape: tuple[int, ...]) -> Labels:
    """The axes of a result whose operands are broadcast against each other."""
    found: list[dict[Source, Tensor]] = [{} for _ in shape]
    for size, labels in operands:
        shift = len(shape) - len(size)
        if shift < 0 or any(n not in (1, shape[k + shift]) for k, n in enumerate(size)):
            continue
        for axis, at in enumerate(labels):
            if size[axis] == shape[axis + shift]:
                found[axis + shift] = _both(found[axis + shift], at)
    return tuple(found)


def _lead(operands: list[tuple[tuple[int, ...], Labels]], shape: tuple[int, ...]) -> Labels:
    """The axes of products before their last two."""
    return _aligned([(size[:-2], labels[:-2]) for size, labels in operands], shape[:-2])
