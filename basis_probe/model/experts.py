"""Experts whose matrices stand in one stack: which rows reach each of them, and from where."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from basis_probe.model.places import Address, Place, Site
from basis_probe.model.products import letters
from basis_probe.model.trace import Fixed, Node, Ref, Trace, spelling, tensors_in


@dataclasses.dataclass(frozen=True)
class Expert(Address):
    """What the matrix of one expert is given, wherever in a pass that is.

    `path` is the name of the parameter that holds the stack, and `index` the expert.

    Attributes:
        count: how many experts the stack holds.
        writer: the name of the stack that made what this one is given; its own name for the first.
        root: the module whose input's rows are given out to experts; empty where it is not known.
    """

    count: int = 1
    writer: str = ""
    root: str = ""

    def at(self, name: str) -> "Expert":
        """The same expert's matrix in the stack from which the others go on."""
        return dataclasses.replace(self, path=name, writer=name)


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """A call that multiplies rows with an expert's matrix, or with all of a stack.

    Attributes:
        node: the call.
        given: the tensor whose rows it reads.
        name: the parameter.
        count: how many experts it holds.
        matrix: the weight [outputs, inputs] of an expert.
        own: the expert, where the program says it by a number; None where all are meant, and -1
            where the input decides.
    """

    node: int
    given: int
    name: str
    count: int
    matrix: Callable[[int], Tensor]
    own: int | None = None


_GROUPED = ("_grouped_mm", "grouped_mm", "grouped_mm_fallback")
_PRODUCTS = ("linear", "matmul", "mm", "bmm", *_GROUPED)
_WEIGHTS = ("weight", "other", "mat2", "mat_b")
_FORMS = frozenset("transpose t mT T permute view reshape to contiguous".split())
_PICKS = frozenset("getitem select index_select".split())


def use_of(trace: Trace, node: Node) -> Use | None:
    """The use of a stack of experts' matrices that a call is; None if it is none."""
    if node.op not in _PRODUCTS:
        return None
    given, weight = _factors(node.args, node.kwargs)
    found = _stacked(trace, weight, 2)
    if found is None or not isinstance(given, Ref):
        return None
    fixed, count, one = found

    def matrix(expert: int) -> Tensor:
        own = one(expert)
        return own if node.op == "linear" else own.mT

    assert fixed.name is not None
    return Use(node.index, given.node, fixed.name, count, matrix, _own(trace, weight))


def _own(trace: Trace, value: object) -> int | None:
    """The expert that a weight is taken of; None for all of them, -1 where the input decides."""
    while isinstance(value, Ref):
        node = trace.node(value.node)
        if _unbound(trace, node) is not None:
            return node.args[0]
        if _takes_one(node):
            given = (
                node.args[-1] if node.op == "getitem" else node.kwargs.get("index", node.args[-1])
            )
            first = given[0] if isinstance(given, tuple) else given
            return first if isinstance(first, int) else -1
        value = node.args[0]
    return None


def times(trace: Trace) -> Counter[tuple[str, int | None]]:
    """How often a pass multiplies with an expert's matrix: (stack, expert, or None for all)."""
    return Counter((use.name, use.own) for use in stacks(trace).values() if use.own != -1)


def bias_of(trace: Trace, value: object) -> tuple[int, Callable[[int], Tensor]] | None:
    """How many experts have a bias in a stack, and each of them; None for anything else."""
    found = _stacked(trace, value, 1)
    return None if found is None else found[1:]


def _factors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """What a product is given, and its weight."""
    given = kwargs.get("input", args[0] if args else None)
    named = next((kwargs[name] for name in _WEIGHTS if name in kwargs), None)
    return given, args[1] if len(args) > 1 else named


def _stacked(
    trace: Trace, value: object, axes: int
) -> tuple[Fixed, int, Callable[[int], Tensor]] | None:
    """A stack of parameters with so many axes each, out of which one was taken, or all of it."""
    steps: list[Node] = []
    while isinstance(value, Ref):
        node = trace.node(value.node)
        whole = _unbound(trace, node)
        if whole is None and (node.op not in _FORMS | _PICKS or node.function is None):
            return None
        steps.append(node)
        value = node.args[0] if whole is None else whole
    if not isinstance(value, Fixed) or value.name is None:
        return None
    steps.reverse()
    counts: list[int] = []

    def one(expert: int) -> Tensor:
        made = fixed.tensor.detach()
        for step in steps:
            one_of = _takes_one(step) or step.op == "output" or _only_adds_axes(step)
            if made.ndim == axes + 1 and one_of:
                counts.append(len(made))
                made = made[expert]
            elif any(isinstance(a, Ref) for a in (*step.args[1:], *step.kwargs.values())):
                raise ValueError("it is taken by numbers that the model computed")
            elif step.function is None:
                raise ValueError("it is one of several, and not of a stack")
            else:
                made = step.function(made, *step.args[1:], **step.kwargs)
        if made.ndim == axes + 1:
            counts.append(len(made))
            made = made[expert]
        return made

    fixed = value
    try:
        shape = one(0).shape
    except (ValueError, RuntimeError, IndexError, TypeError):
        return None
    if len(shape) != axes or not counts or counts[0] < 2:
        return None
    return fixed, counts[0], one


def _unbound(trace: Trace, step: Node) -> object:
    """What a tensor is an entry of, where a stack was taken apart along its first axis."""
    source = trace.node(step.inputs[0]) if step.op == "output" and step.inputs else None
    if source is None or source.op != "unbind":
        return None
    given = list(source.args)
    dim = source.kwargs.get("dim", given[1] if len(given) > 1 else 0)
    return given[0] if dim == 0 else None


def _takes_one(step: Node) -> bool:
    """True for a call that takes one entry of a tensor's first axis, and all of what is in it."""
    if step.op in ("select", "index_select"):
        dim = step.kwargs.get("dim", step.args[1] if len(step.args) > 1 else None)
        return isinstance(dim, int) and dim == 0
    if step.op != "getitem":
        return False
    given = step.args[1]
    first, *others = given if isinstance(given, tuple) and given else (given,)
    return isinstance(first, int | Ref) and all(o is Ellipsis or o == slice(None) for o in others)


def _only_adds_axes(step: Node) -> bool:
    """True for a call such as `x[:, None]`, after which the entries are what they were."""
    items = step.args[1] if step.op == "getitem" else None
    if not isinstance(items, tuple) or not items or items[0] != slice(None):
        return False
    return all(item is None or item is Ellipsis or item == slice(None) for item in items)


def stacks(trace: Trace) -> dict[int, Use]:
    """Call -> its use of a stack of experts, where rows are given out to them."""
    found = {node.index: use for node in trace.nodes if (use := use_of(trace, node)) is not None}
    if not found:
        return {}
    chosen = {node.module for node in trace.nodes if node.op in _CHOOSES}
    return {
        index: use
        for index, use in found.items()
        if _is_picked(trace, index) or any(_are_near(use.name, module) for module in chosen)
    }


_CHOOSES = frozenset("topk argmax sort argsort".split())


def _is_picked(trace: Trace, index: int) -> bool:
    """True if the rows of a product, or its matrix, were taken by numbers that depend on the input.

    Only a few steps back: what lies further is another layer.
    """
    waiting, seen = [(index, 0)], {index}
    while waiting:
        here, steps = waiting.pop()
        node = trace.node(here)
        if node.op in ("getitem", "index_select", *_GROUPED):
            given = [trace.node(i) for i in node.inputs]
            source = node.args[0] if node.args else None
            # A table of vectors of which rows are taken is an embedding.
            table = isinstance(source, Fixed) and source.tensor.ndim < 3
            if not table and any(other.live and not other.floating for other in given):
                return True
        if steps < _STEPS:
            ahead = [i for i in node.inputs if i not in seen]
            seen.update(ahead)
            waiting += [(i, steps + 1) for i in ahead]
    return False


_STEPS = 4


def _are_near(name: str, module: str) -> bool:
    """True if a module is the owner of a stack, in it, or beside it."""
    path, names = module.split("."), name.split(".")
    owner, block = names[:-1], names[:-2]
    return path[: len(owner)] == owner or (bool(block) and path[: len(block)] == block)


def sites(
    uses: Mapping[int, Use],
    trace: Trace,
    is_neurons: Callable[[int], bool],
    is_told: Callable[[int], bool],
    *,
    as_bridge: bool = False,
) -> list[Site]:
    """A site for what every expert's second matrix reads.

    Args:
        uses: what `stacks` found.
        trace: the record.
        is_neurons: True for a tensor that a nonlinearity wrote.
        is_told: True for a tensor whose rows are known to be examples and positions.
        as_bridge: True for names such as those that a TransformerBridge gives to neurons.
    """
    first: dict[str, Use] = {}
    for use in uses.values():
        if is_neurons(use.given):
            first.setdefault(use.name, use)
    found: list[Site] = []
    for use in first.values():
        writer = _writer(trace, uses, use)
        root = "" if writer is None else root_of(trace, writer.node, writer.given, is_told)
        own = "" if writer is None else writer.name
        for expert in range(use.count):
            address = Expert(
                Place.EXPERT, use.name, 0, expert, count=use.count, writer=own, root=root
            )
            found.append(Site(_named(use.name, expert), address, use.given))
    if not as_bridge:
        return found
    bridged = [dataclasses.replace(site, name=_as_bridge(site.name)) for site in found]
    return bridged if len({site.name for site in bridged}) == len(found) else found


def _as_bridge(name: str) -> str:
    """The neurons of an expert as the neurons of a block are called."""
    found = re.search(r"(?:layers|layer|h|blocks)\.(\d+)\..*?(\d+)(?:\.\w+)?:in$", name)
    return name if found is None else f"blocks.{found[1]}.mlp.experts.{found[2]}.hook_post"


def _named(parameter: str, expert: int) -> str:
    """What the second matrix of an expert reads is called, as if experts were modules."""
    owner, _, leaf = re.sub(r"_original_component\.", "", parameter).rpartition(".")
    if leaf == "weight":
        return f"{owner}.{expert}:in" if owner else f"{expert}:in"
    return f"{owner}.{expert}.{leaf}:in" if owner else f"{expert}.{leaf}:in"


def _writer(trace: Trace, uses: Mapping[int, Use], use: Use) -> Use | None:
    """The use that made what another one reads."""
    waiting, seen = [use.given], set[int]()
    while waiting:
        here = max(waiting)
        waiting.remove(here)
        if here in uses:
            return uses[here]
        ahead = [i for i in trace.node(here).inputs if i not in seen and trace.node(i).floating]
        seen.update(ahead)
        waiting += ahead
    return None


def between(trace: Trace, is_neurons: Callable[[int], bool]) -> dict[int, str]:
    """Tensor between an expert's two matrices -> the stack that holds the second one.

    What a first matrix wrote is among them; what leads from one block of experts to the next is
    not.

    Args:
        trace: the record.
        is_neurons: True for a tensor that a nonlinearity wrote.
    """
    uses = stacks(trace)
    found: dict[int, str] = {}
    for use in uses.values():
        writer = _writer(trace, uses, use) if is_neurons(use.given) else None
        if writer is None or not _of_one_block(writer.name, use.name):
            continue
        above, waiting = set[int](), [use.given]
        while waiting:
            here = waiting.pop()
            if here not in above:
                above.add(here)
                waiting.extend(() if here in uses else trace.node(here).inputs)
        below = {index for index in above if index in uses and uses[index].name == writer.name}
        for index in sorted(above):
            if below.intersection(trace.node(index).inputs):
                below.add(index)
        found |= {index: use.name for index in below}
    return found


def _of_one_block(first: str, second: str) -> bool:
    """True if two parameters are of one module, or of modules that stand beside one another."""
    one, two = first.split("."), second.split(".")
    beside = len(one) > 2 and one[:-2] == two[:-2] and not one[-2].isdigit()
    return one[:-1] == two[:-1] or beside


def member_of(trace: Trace, path: str) -> tuple[int, int] | None:
    """The number of the expert that a module is in, and how many there are; None for no expert.

    Experts are modules of a list, or under names that are numbered from 0, with weights of the
    same names, to which rows are given out.
    """
    parts = path.split(".")
    for place in range(len(parts) - 1, -1, -1):
        numbered = re.fullmatch(r"(.*?)(\d+)", parts[place])
        if numbered is None or (not place and not numbered[1]):
            continue
        stem = "".join(f"{part}." for part in parts[:place]) + numbered[1]
        inside: dict[int, set[str]] = {}
        for names in trace.owners.values():
            for name in names:
                number, _, leaf = name.removeprefix(stem).partition(".")
                if name.startswith(stem) and number.isdigit():
                    inside.setdefault(int(number), set()).add(leaf)
        own = int(numbered[2])
        if numbered[1] and {*inside} != {*range(len(inside))}:
            continue
        alike = own in inside and all(leaves == inside[own] for leaves in inside.values())
        if not alike or not own < len(inside) > 1:
            continue
        given = {number: input_of(trace, f"{stem}{number}") for number in inside}
        routed = given[own]
        if routed is None or not _is_picked(trace, routed):
            continue
        # Modules of a sequence read what others of it made.
        made = {i for call in trace.calls if call.path == f"{stem}{own}" for i in call.outputs}
        others = [i for number, i in given.items() if i is not None and number != own]
        if numbered[1] and _reads_others(trace, stem, own, routed):
            continue
        if not any(made & _above(trace, i, routed) for i in others):
            return own, len(inside)
    return None


def _reads_others(trace: Trace, stem: str, own: int, given: int) -> bool:
    """True if what a module is given was made by another one of the same name and other number."""
    made = {
        i
        for call in trace.calls
        if call.path.startswith(stem) and call.path.removeprefix(stem).isdigit()
        if call.path != f"{stem}{own}"
        for i in call.outputs
    }
    return bool(made) and bool(made & _above(trace, given, min(made)))


def _above(trace: Trace, index: int, first: int) -> set[int]:
    """What a tensor was made of, and itself, back to a tensor that was made before."""
    above, waiting = set[int](), [index]
    while waiting:
        here = waiting.pop()
        if here >= first and here not in above:
            above.add(here)
            waiting.extend(trace.node(here).inputs)
    return above


def root_of(trace: Trace, node: int, given: int, is_told: Callable[[int], bool]) -> str:
    """The innermost running module whose input's rows are known, and are given out to experts.

    Args:
        trace: the record.
        node: a call inside an expert.
        given: a tensor whose rows were given out to it.
        is_told: True for a tensor whose rows are known to be examples and positions.
    """
    before, waiting = set[int](), [given]
    while waiting:
        here = waiting.pop()
        if here not in before:
            before.add(here)
            waiting.extend(trace.node(here).inputs)
    path = trace.node(node).module
    while path:
        for call in trace.calls:
            if call.path != path or call.call:
                continue
            given = next((i for i in call.inputs if i >= 0 and trace.node(i).floating), -1)
            if given in before and len(trace.node(given).shape) > 1 and is_told(given):
                return path
        path = path.rpartition(".")[0]
    return ""


def input_of(trace: Trace, root: str) -> int | None:
    """The tensor whose rows a module gives out to experts."""
    for call in trace.calls:
        if call.path == root and not call.call:
            return next((i for i in call.inputs if i >= 0 and trace.node(i).floating), None)
    return None


# --- while the model runs -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """Where the rows of a tensor come from.

    Attributes:
        rows: for each of them its place among the rows that are given out, of the tensor's shape
            without its features.
        lead: the sizes of the axes of what is given out, before its features.
    """

    rows: Tensor
    lead: tuple[int, ...]


_ORIGINS = WeakTensorKeyDictionary()


def origin_of(rows: Tensor) -> Origin | None:
    """Where the rows come from that were caught at an expert; None where that is not known."""
    return _ORIGINS.get(rows)


_MOVES = frozenset(
    "getitem view reshape flatten unflatten expand repeat repeat_interleave index_select unsqueeze "
    "squeeze permute transpose movedim swapaxes split chunk unbind narrow select tile "
    "broadcast_to".split()
)
_MIXES = frozenset("sum mean cumsum flip roll sort topk scaled_dot_product_attention".split())
"""Calls that may leave the sizes of all axes but the last, and not the rows in their places."""


class Routing(TorchFunctionMode):
    """Hands over the rows that reach each expert, and says where they come from.

    Args:
        model: the model; it must run once while this is entered.
        wanted: expert -> what to do with the rows that its matrix is given.
        roots: further modules whose input's rows are followed.
    """

    def __init__(
        self,
        model: nn.Module,
        wanted: Mapping[Expert, Callable[[Tensor], None]],
        roots: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.model, self.wanted = model, wanted
        self.by_name: dict[str, dict[int, Expert]] = {}
        for address in wanted:
            self.by_name.setdefault(address.path, {})[address.index] = address
            if address.writer:
                self.by_name.setdefault(address.writer, {})
        self.roots = {address.root for address in wanted if address.root} | set(roots)
        self.held: dict[int, list[tuple[int, int, str, int]]] = {}
        for name in self.by_name:
            stack = model.get_parameter(name)
            counts = {a.count for a in wanted if name in (a.path, a.writer)}
            start, size = int(stack.storage_offset()), stack.numel()
            self.held.setdefault(stack.untyped_storage().data_ptr(), []).append(
                (start, size, name, counts.pop())
            )
        # What reached an expert of a stack: its origin, and which of the rows were given to it.
        self.reached: dict[tuple[str, int], tuple[Origin | None, Tensor | None]] = {}
        self.done: set[tuple[str, int]] = set()

    @contextmanager
    def following(self) -> Generator[None]:
        """Within the context it sees what the model does."""
        modules = dict(self.model.named_modules())
        hooks = [
            modules[path].register_forward_pre_hook(self._start, with_kwargs=True)
            for path in self.roots
        ]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _start(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = next((t for t in tensors_in((args, kwargs)) if t.is_floating_point()), None)
        if given is not None and given.ndim > 1:
            lead = tuple(given.shape[:-1])
            places = torch.arange(given[..., 0].numel(), device=given.device).reshape(lead)
            _ORIGINS[given] = Origin(places, lead)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = spelling(func)
        if name in _PRODUCTS or name == "einsum":
            with _unseen():
                self._use(name, args, kwargs)
        out = func(*args, **kwargs)
        if name is not None:
            with _unseen():
                self._follow(name, func, args, kwargs, out)
        return out

    def _follow(
        self,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
    ) -> None:
        at = next((k for k in range(min(2, len(args))) if _is_known(args[k])), None)
        if at is None:
            return
        source, origin = args[at], _ORIGINS[args[at]]
        if name not in _MOVES or at:
            # Whatever does the same to every row leaves it where it is.
            same = isinstance(out, Tensor) and out.shape[:-1] == source.shape[:-1]
            if same and name not in _MIXES:
                _ORIGINS[out] = origin
            return
        shadow = origin.rows[..., None].expand(source.shape)
        try:
            made = func(shadow, *args[1:], **kwargs)
        except (RuntimeError, IndexError, TypeError):
            return
        for tensor, rows in zip(tensors_in(out), tensors_in(made), strict=True):
            alike = rows.shape == tensor.shape and rows.ndim > 1 and rows.shape[-1] > 0
            # What moved features among rows has no rows of one origin.
            if alike and torch.equal(rows[..., 0], rows[..., -1]):
                _ORIGINS[tensor] = Origin(rows[..., 0].contiguous(), origin.lead)

    def _use(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given, weight = self._of_einsum(args) if op == "einsum" else _factors(args, kwargs)
        if not isinstance(given, Tensor) or not isinstance(weight, Tensor):
            return
        found = self._stack(weight)
        if found is None:
            return
        name, own = found
        for expert, rows, origin in self._parts(op, name, own, given, args, kwargs):
            address = self.by_name[name].get(expert)
            writer = name if address is None or not address.writer else address.writer
            if writer == name:
                kept = None
                if own is None and op not in _GROUPED:
                    # Experts that compute all rows are given zeros in place of those of others.
                    kept = torch.nonzero((rows != 0).any(-1)).flatten()
                self.reached.setdefault((name, expert), (origin, kept))
            origin, kept = self.reached.get((writer, expert), (None, None))
            if address is None or (name, expert) in self.done or not len(rows):
                continue
            self.done.add((name, expert))
            self._hand(address, rows, origin, kept)

    def _of_einsum(self, args: tuple[Any, ...]) -> tuple[Tensor | None, Tensor | None]:
        """The rows and the weight of an einsum with a stack, or with a matrix out of one.

        The rows have the axis of experts first, where there is one, and the summed axis last.
        """
        factors = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
        if not isinstance(args[0], str) or len(factors) != 2:
            return None, None
        rows, weight = factors
        first, second, out = letters(args[0], rows.ndim, weight.ndim)
        if self._stack(weight) is None:
            rows, weight, first, second = weight, rows, second, first
        summed = [x for x in first if x in second and x not in out]
        shared = [x for x in first if x in second and x in out]
        if self._stack(weight) is None or len(summed) != 1 or shared != [*second[: len(shared)]]:
            return None, None
        if len(shared) != weight.ndim - 2 or len(shared) > 1:
            return None, None
        order = [*shared, *(x for x in first if x not in summed + shared), *summed]
        places = [first.index(x) for x in order]
        turned, origin = rows.permute(places), _ORIGINS.get(rows)
        if origin is not None and places[-1] == rows.ndim - 1:
            _ORIGINS[turned] = Origin(origin.rows.permute(places[:-1]), origin.lead)
        return turned, weight

    def _hand(
        self, address: Expert, rows: Tensor, origin: Origin | None, kept: Tensor | None
    ) -> None:
        # An object of its own: what is known of it is not known of what it shows.
        rows = rows.view(rows.shape) if kept is None else rows[kept]
        if not len(rows):
            return
        if origin is not None:
            places = origin.rows.flatten()
            places = places if kept is None else places[kept]
            if len(places) == len(rows):
                _ORIGINS[rows] = Origin(places, origin.lead)
        self.wanted[address](rows)

    def _stack(self, weight: Tensor) -> tuple[str, int | None] | None:
        """The stack that a weight is, or is taken of, and the expert; None for all of them."""
        if weight.layout != torch.strided or type(weight) not in (Tensor, nn.Parameter):
            return None
        offset = weight.storage_offset()
        for start, size, name, count in self.held.get(weight.untyped_storage().data_ptr(), ()):
            if not start <= offset < start + size:
                continue
            if weight.numel() == size:
                return name, None
            if weight.numel() * count == size:
                return name, (offset - start) // weight.numel()
        return None

    def _parts(
        self,
        op: str,
        name: str,
        own: int | None,
        given: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Iterator[tuple[int, Tensor, Origin | None]]:
        """Expert, the rows that its matrix is given, and where they come from."""
        origin = _ORIGINS.get(given)
        if own is not None:
            yield own, given.reshape(-1, given.shape[-1]), origin
        elif op in _GROUPED:
            ends = kwargs.get("offs", args[2] if len(args) > 2 else None)
            start = 0
            for expert, end in enumerate(ends.tolist() if isinstance(ends, Tensor) else ()):
                part = None if origin is None else Origin(origin.rows[start:end], origin.lead)
                yield expert, given[start:end], part
                start = end
        elif given.ndim > 2:
            for expert, rows in enumerate(given.flatten(1, -2)):
                part = None if origin is None else Origin(origin.rows[expert], origin.lead)
                yield expert, rows, part


def _unseen() -> AbstractContextManager[None]:
    """A context in which nobody who follows the model sees what is computed."""
    return torch._C.DisableTorchFunction()  # pyright: ignore


def _is_known(value: object) -> bool:
    return isinstance(value, Tensor) and value in _ORIGINS
