"""The graph of what a model did with one input: which function read what, inside which module.

The graph is recorded while the model runs, so it needs nothing of the model but that it runs:
control flow, functional calls, in-place operations and hand-written nonlinearities are all seen as
they happen.
"""

import dataclasses
import functools
import operator
import re
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn, overrides
from torch.overrides import TorchFunctionMode, resolve_name

from basis_probe.model.ages import Ages
from basis_probe.model.products import written_out
from basis_probe.model.recurrent import recurrent_steps


@dataclasses.dataclass(frozen=True)
class Ref:
    """The place of a recorded tensor among the arguments of a call."""

    node: int


@dataclasses.dataclass(frozen=True, eq=False)
class Fixed:
    """A tensor among the arguments that no recorded call made: a parameter or a constant.

    Attributes:
        tensor: the tensor.
        name: its path among the parameters and buffers of the model; None if it is none of them.
        dtype: the type of its numbers during the call, where hooks make them wider while their
            module runs; None if it is that of the tensor.
    """

    tensor: Tensor
    name: str | None
    dtype: torch.dtype | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One tensor, and the call that made it.

    Attributes:
        index: its place in the order of execution.
        op: the name of the function: "linear", "relu", "add", ...; "input" for the model's input,
            "output" for one of several outputs of a call.
        function: the function itself.
        args, kwargs: what it was called with, recorded tensors replaced by `Ref`, others by
            `Fixed`.
        inputs: the recorded tensors that it read.
        shape: the shape of the tensor.
        floating: True if the tensor holds floating-point numbers.
        live: True if the tensor depends on the model's input.
        module: path of the innermost module that was running.
        call: how many times that module had been called before.
        ordinal: how many calls of this function the module had made before, in this call.
        inplace: True if the call overwrote its first argument.
        boolean: True if the tensor holds truth values.
        whole: of what the last of the steps of one call made, the name of that call's function,
            and its module, call and ordinal; None elsewhere.
    """

    index: int
    op: str
    function: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    floating: bool
    live: bool
    module: str
    call: int
    ordinal: int
    inplace: bool = False
    boolean: bool = False
    whole: tuple[str, str, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class ModuleCall:
    """One call of one module, of a class: the tensors that went in and came out, in order.

    A tensor that no recorded call made, such as a parameter that is handed on, counts as -1.
    """

    path: str
    kind: str
    call: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """Everything recorded in one forward pass.

    Attributes:
        nodes: every tensor, in the order in which it was made.
        calls: every module call, in the order in which it ended.
        outputs: the nodes that the model returned.
        asked: the nodes whose numbers the code itself read, as a branch does.
        branches: the modules, by path, whose code chose what to do by features; not those that
            asked whether all of them are finite.
        left: the nodes of several numbers that were handed to other libraries, as NumPy is.
        quantised: path of integers -> the weight that is computed from them.
        instead: id of a parameter -> the numbers by which calls are made anew, in place of its own.
        further: call that depends on no input -> what takes the place of its result when calls are
            made anew.
        readers: node -> the nodes that read it.
        example_batch: the size of the batch that was run.
        picked: node -> the numbers by which entries of weights were picked, as experts are.
        names: what the tensors were called that were fed to the model, which are the first nodes.
        main: which of them tells examples apart.
        owners: id of a parameter -> the modules that hold it under a name of their own.
    """

    nodes: tuple[Node, ...]
    calls: tuple[ModuleCall, ...]
    outputs: tuple[int, ...]
    readers: dict[int, tuple[int, ...]]
    example_batch: int
    picked: dict[int, Tensor] = dataclasses.field(default_factory=dict[int, Tensor])
    names: tuple[str, ...] = ()
    main: str = ""
    owners: dict[int, frozenset[str]] = dataclasses.field(default_factory=dict[int, frozenset[str]])
    asked: tuple[int, ...] = ()
    branches: tuple[str, ...] = ()
    left: tuple[int, ...] = ()
    quantised: dict[str, Tensor] = dataclasses.field(default_factory=dict[str, Tensor])
    instead: dict[int, Tensor] = dataclasses.field(default_factory=dict[int, Tensor])
    further: dict[int, Tensor] = dataclasses.field(default_factory=dict[int, Tensor])

    def node(self, index: int) -> Node:
        """The node of that index."""
        return self.nodes[index]


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every tensor inside nested tuples, lists, dicts and dataclass-like outputs, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():  # pyright: ignore[reportUnknownVariableType]
            yield from tensors_in(entry)  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, tuple | list):
        for entry in value:  # pyright: ignore[reportUnknownVariableType]
            yield from tensors_in(entry)  # pyright: ignore[reportUnknownArgumentType]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def fixed_in(value: object) -> Iterator[Fixed]:
    """Every fixed tensor among the arguments of a call."""
    if isinstance(value, Fixed):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():  # pyright: ignore[reportUnknownVariableType]
            yield from fixed_in(entry)  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, tuple | list):
        for entry in value:  # pyright: ignore[reportUnknownVariableType]
            yield from fixed_in(entry)  # pyright: ignore[reportUnknownArgumentType]


# Calls that say something about a tensor without making a new one.
_IGNORED = frozenset({"__get__", "__set__", "size", "dim", "stride", "numel", "is_floating_point"})

# One name for the several spellings of a function.
_SPELLINGS = {
    "__add__": "add", "__radd__": "add", "__iadd__": "add", "add_": "add",
    "__sub__": "sub", "__isub__": "sub", "sub_": "sub", "__rsub__": "rsub", "subtract": "sub",
    "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul", "mul_": "mul", "multiply": "mul",
    "__truediv__": "div", "__div__": "div", "__itruediv__": "div", "div_": "div", "divide": "div",
    "__rtruediv__": "rdiv", "__rdiv__": "rdiv", "__matmul__": "matmul", "__rmatmul__": "rmatmul",
    "__neg__": "neg", "negative": "neg", "__pow__": "pow", "pow_": "pow", "__rpow__": "rpow",
    "relu_": "relu", "leaky_relu_": "leaky_relu", "elu_": "elu", "celu_": "celu", "selu_": "selu",
    "hardtanh_": "hardtanh", "rrelu_": "rrelu", "threshold_": "threshold", "sigmoid_": "sigmoid",
    "tanh_": "tanh", "sin_": "sin", "clamp_": "clamp", "clip": "clamp",
    "masked_fill_": "masked_fill",
    "select": "getitem", "narrow": "getitem", "__getitem__": "getitem",
    "mv": "matmul", "concat": "cat", "concatenate": "cat",
    "type_as": "to", "float": "to", "double": "to", "half": "to", "bfloat16": "to", "type": "to",
    "reshape": "view", "view_as": "view", "flatten": "view", "unflatten": "view", "squeeze": "view",
    "unsqueeze": "view", "swapaxes": "transpose", "swapdims": "transpose", "t": "transpose",
    "split_with_sizes": "split", "unsafe_split": "split", "unsafe_chunk": "chunk",
    "expand_as": "expand", "absolute": "abs", "special_expit": "sigmoid", "special_erf": "erf",
}  # fmt: skip


# Calls that read the shape or the type of a second tensor only, and of all of their tensors.
_BY_FORM = {"expand": Tensor.expand, "view": Tensor.reshape, "to": Tensor.to}
_BLANK = frozenset("zeros_like ones_like new_zeros new_ones new_empty empty_like".split())


# Calls by which the numbers of a tensor leave torch: what comes back may be made of them.
_LEAVING = frozenset(
    "numpy tolist item __array__ __float__ __complex__ __dlpack__ to_dlpack untyped_storage "
    "storage data_ptr".split()
)
# Those that hand on the memory itself, so that it may be written to where nobody sees it.
_LENDING = frozenset(
    "numpy __array__ __dlpack__ to_dlpack untyped_storage storage data_ptr".split()
)
# Calls that make a tensor of numbers that are no tensor, or of memory that others may fill.
_BRINGING = frozenset(
    "tensor as_tensor asarray from_numpy frombuffer scalar_tensor from_dlpack empty "
    "empty_strided".split()
)
# Calls by which the code itself reads one number, as a branch does.
_ASKING = frozenset(
    "__bool__ __int__ __index__ __float__ item is_nonzero equal allclose tolist numpy "
    "__array__".split()
)
# Those by which it chooses, without a number of which it could be seen that it is used elsewhere.
_CHOOSING = frozenset({"__bool__", "is_nonzero"})
_FINITE = frozenset("isnan isinf isfinite isposinf isneginf".split())
# Calls whose result is of a size that the values decide, which code can read without a call.
_COUNTING = frozenset("nonzero argwhere masked_select unique unique_consecutive".split())
STEPS = " (step by step)"
"""Behind the path of a module: calls that stand for the steps of one call, and are no places."""

UNRECORDED = "unrecorded"
"""What a tensor is called that code out of sight made: scripts, other libraries, threads."""


# Attributes of a tensor that are tensors, under the name of the function that would make them.
_ATTRIBUTES = {
    "T": "transpose", "mT": "mT", "H": "H", "mH": "mH", "data": "detach", "real": "real",
    "imag": "imag",
}  # fmt: skip


def spelling(func: Callable[..., Any]) -> str | None:
    """The one name of a function on tensors; None if calling it makes no tensor."""
    name = getattr(func, "__name__", "") or (resolve_name(func) or "").rsplit(".", 1)[-1]
    if name == "__get__":
        return _ATTRIBUTES.get(getattr(getattr(func, "__self__", None), "__name__", ""))
    return None if name in _IGNORED else _SPELLINGS.get(name, name)


def tensor_version(tensor: Tensor) -> int:
    """How often the values of a tensor have been overwritten; 0 where torch does not count it."""
    return 0 if tensor.is_inference() else tensor._version


def _is_transformed(tensor: Tensor) -> bool:
    """True inside `vmap` and other transforms, where a tensor stands for many and has no memory."""
    if tensor.layout != torch.strided or type(tensor) is not Tensor:
        return False
    try:
        tensor.untyped_storage()
    except NotImplementedError:
        return True
    return False


def _storage(tensor: Tensor) -> int:
    """What tensors have in common that show the same values, and what nothing else has."""
    if (
        _is_transformed(tensor)
        or tensor.layout != torch.strided
        or type(tensor) not in (Tensor, nn.Parameter)
    ):
        return -id(tensor)
    return tensor.untyped_storage().data_ptr() or -id(tensor)


def _memory(tensor: Tensor) -> Tensor:
    """The memory that a tensor shows, or shows a part of, as bytes."""
    if tensor.layout != torch.strided or type(tensor) not in (Tensor, nn.Parameter):
        return tensor.detach()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


class Follower(TorchFunctionMode):
    """Knows, while a model runs, which module is running and which of its calls comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[tuple[str, int]] = [("", 0)]
        self.counts: Counter[str] = Counter()
        self.ordinals: Counter[tuple[str, int, str]] = Counter()

    def enter(self, path: str, inputs: object) -> None:
        """A module starts to run."""
        self.stack.append((path, self.counts[path]))
        self.counts[path] += 1

    def leave(self, outputs: object) -> None:
        """The module that started last has ended."""
        self.stack.pop()

    def place(self, op: str) -> tuple[str, int, str, int]:
        """Module, call of the module, function, and how many calls of it the module made before."""
        path, call = self.stack[-1]
        return path, call, op, self.ordinals[path, call, op]

    def step(self, op: str) -> None:
        """A call of the function has ended."""
        self.ordinals[(*self.stack[-1], op)] += 1


@contextmanager
def unfollowed(by: TorchFunctionMode | type[TorchFunctionMode]) -> Generator[None]:
    """Within the context a mode, or one of a kind, is told of no call, if it was entered last.

    To be told of a call takes longer than many a call does.
    """
    last = overrides._get_current_function_mode()  # pyright: ignore
    if last is None or (last is not by and not (isinstance(by, type) and isinstance(last, by))):
        yield
        return
    last.__exit__(None, None, None)
    try:
        yield
    finally:
        last.__enter__()


def in_steps(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """A function that does several things at once, written out; None for all others."""
    name = getattr(func, "__name__", "")
    if name == "multi_head_attention_forward" and isinstance(func, types.FunctionType):
        return _opened(func)
    return {"glu": _glu, "lerp": _lerp}.get(name)


def as_product(args: tuple[Any, ...]) -> tuple[str, Callable[..., Any], tuple[Any, ...]] | None:
    """An einsum of rows with one matrix, by the name of the product that it is; None for others.

    Args:
        args: what einsum was called with.

    Returns:
        The name, the function and what it is called with.
    """
    if len(args) == 2 and isinstance(args[1], tuple | list):
        args = (args[0], *args[1])
    if len(args) != 3 or not isinstance(args[0], str):
        return None
    found = _PRODUCT.fullmatch(args[0].replace(" ", ""))
    if found is None:
        return None
    rows, inner, left, right, out, last = found.groups()
    free = rows.replace("...", "")
    if out != rows or len(set(free + inner + last)) != len(free) + 2:
        return None
    if (left, right) == (inner, last):
        return "matmul", torch.matmul, args[1:]
    return ("linear", nn.functional.linear, args[1:]) if (left, right) == (last, inner) else None


_ROWS = r"((?:\.\.\.)?[A-Za-z]*)"
_PRODUCT = re.compile(_ROWS + "([A-Za-z]),([A-Za-z])([A-Za-z])->" + _ROWS + "([A-Za-z])")


@functools.cache
def _opened(func: types.FunctionType) -> Callable[..., Any]:
    """The same function, which does not hand itself over as a whole: its steps are seen."""
    own = {**func.__globals__, "has_torch_function": _never}
    made = types.FunctionType(func.__code__, own, func.__name__, func.__defaults__)
    made.__kwdefaults__ = func.__kwdefaults__
    return made


def _never(_: object) -> bool:
    return False


def _by_form(
    op: str, out: Tensor, seen: tuple[tuple[Any, ...], dict[str, Any]]
) -> tuple[Callable[..., Any], tuple[tuple[Any, ...], dict[str, Any]], list[int]]:
    """The call that gives a tensor the shape or the type of another, without that other."""
    value, form = seen[0][0], out.dtype if op == "to" else tuple(out.shape)
    inputs = [value.node] if isinstance(value, Ref) else []
    return _BY_FORM[op], ((value, form), {}), inputs


def _items_of(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor]
) -> tuple[Any, ...] | None:
    """What `select` and `narrow` take, as the items of an index; None for all other calls."""
    name = getattr(func, "__name__", "")
    names = {"select": ("dim", "index"), "narrow": ("dim", "start", "length")}.get(name)
    if names is None or not args or args[0] is not given[0]:
        return None
    rest = (*args[1:], *(kwargs[key] for key in names[len(args) - 1 :] if key in kwargs))
    if len(rest) != len(names) or not all(type(number) is int for number in rest):
        return None
    axis = rest[0] % given[0].ndim
    first = rest[1] % given[0].shape[axis]
    item = first if name == "select" else slice(first, first + rest[2])
    return (slice(None),) * axis + (item,)


def _items(places: Any) -> tuple[Any, ...]:
    """The entries of an index."""
    return places if isinstance(places, tuple) else (places,)


def _put(whole: Tensor, places: Any, values: Any) -> Tensor:
    """A copy of a tensor with other values at some places."""
    whole = whole.clone()
    whole[places] = values
    return whole


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    """Half of the features, each multiplied with the sigmoid of one of the other half."""
    first, gate = input.chunk(2, dim)
    return first * gate.sigmoid()


def _lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    """A part of the way from one tensor to another."""
    return input + weight * (end - input)


_Given = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments and keywords of a call, with the numbers of nodes in the place of tensors."""


class _Recorder(Follower):
    """Records every function on tensors that runs inside the context."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.nodes: list[Node] = []
        self.calls: list[ModuleCall] = []
        self.made: dict[int, int] = {}  # id of a tensor -> its node
        self.kept: list[Tensor] = []  # keeps the ids above from being used again
        self.stored: dict[int, list[Tensor]] = {}  # where values lie -> the tensors that show them
        self.names = {id(tensor): name for name, tensor in model.named_parameters()}
        self.names |= {id(tensor): name for name, tensor in model.named_buffers()}
        self.picked: dict[int, Tensor] = {}
        self.entered: list[tuple[int, ...]] = []
        self.kinds = {path: type(module).__name__ for path, module in model.named_modules()}
        # A tensor that is none of these and that no recorded call made is of unknown origin.
        self.ages = Ages()
        self.left: list[int] = []  # nodes whose numbers have left torch
        self.numbers: dict[float, int] = {}  # a number that was taken from a tensor -> its node
        self.lent: dict[int, Tensor] = {}  # where memory was handed on -> what lay there
        self.handed: dict[int, None] = {}  # those of several numbers
        self.asked: dict[int, None] = {}  # nodes whose numbers the code itself read
        self.branches: dict[str, None] = {}  # modules whose code chose by features
        self.followed: set[int] = set()  # those whose numbers came back as numbers

    def add(
        self,
        tensor: Tensor,
        op: str,
        *,
        function: Callable[..., Any] | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        inputs: tuple[int, ...] = (),
        live: bool = False,
        inplace: bool = False,
    ) -> int:
        path, call, _, ordinal = self.place(op)
        self.step(op)
        index = len(self.nodes)
        node = Node(
            index=index,
            op=op,
            function=function,
            args=args,
            kwargs=kwargs or {},
            inputs=inputs,
            shape=tuple(tensor.shape),
            floating=tensor.is_floating_point(),
            live=live,
            module=path,
            call=call,
            ordinal=ordinal,
            inplace=inplace,
            boolean=tensor.dtype is torch.bool,
        )
        self.nodes.append(node)
        self.made[id(tensor)] = index
        self.kept.append(tensor)
        self.stored.setdefault(_storage(tensor), []).append(tensor)
        return index

    def _overwrite(
        self, changed: list[Tensor], inputs: tuple[int, ...], made: list[Tensor]
    ) -> None:
        """Gives a new node to every tensor that shows values which a call has changed.

        A tensor that the call returns has its node already.
        """
        sources = (*inputs, *(self.made[id(tensor)] for tensor in made))
        returned = {id(tensor) for tensor in made}
        for tensor in changed:
            for shown in (tensor, *self.stored.get(_storage(tensor), ())):
                if id(shown) not in returned:
                    returned.add(id(shown))
                    before = self.made.get(id(shown))
                    if before is not None and self._put_back(shown, before, inputs, made):
                        continue
                    reads = sources if before is None else (before, *sources)
                    live = any(self.nodes[index].live for index in reads)
                    self.add(shown, "overwritten", inputs=reads, live=live)

    def _put_back(
        self, whole: Tensor, before: int, inputs: tuple[int, ...], made: list[Tensor]
    ) -> bool:
        """Gives a tensor a part of which a call has changed the node that says so, if it can."""
        view = self.nodes[inputs[0]] if inputs and len(made) == 1 else None
        if view is None or view.op != "getitem" or view.args[:1] != (Ref(before),):
            return False
        places, new = view.args[1], self.made[id(made[0])]
        elsewhere = "out" in self.nodes[new].kwargs
        if not self.nodes[new].inplace or elsewhere or any(True for _ in tensors_in(places)):
            return False
        if any(isinstance(item, Ref | Fixed | list) for item in _items(places)):
            return False
        live = self.nodes[before].live or self.nodes[new].live
        args = (Ref(before), places, Ref(new))
        self.add(whole, "setitem", function=_put, args=args, inputs=(before, new), live=live)
        return True

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        whole = in_steps(func)
        if whole is not None:
            with self:
                return whole(*args, **kwargs)
        steps = recurrent_steps(func, args, self._is_live)
        if steps is not None:
            with self._inside(), self:
                return steps(*args, **kwargs)
        product = written_out(func, args, kwargs) if as_product(args) is None else None
        if product is not None:
            return self._as_product(func, product)
        if any(map(_is_transformed, tensors_in((args, kwargs)))):
            # What comes out of the transform in the end is of unknown origin.
            return func(*args, **kwargs)
        return self._recorded(func, args, kwargs)

    def _as_product(self, func: Callable[..., Any], product: Callable[[], Tensor]) -> Tensor:
        """The result of a call that is a product, recorded step by step as one."""
        op, count = spelling(func) or "", len(self.nodes)
        path, call, _, ordinal = self.place(op)
        self.step(op)
        with self._inside(), self:
            made = product()
        index = self.made.get(id(made), -1)
        if index >= count:
            whole = (op, path, call, ordinal)
            self.nodes[index] = dataclasses.replace(self.nodes[index], whole=whole)
        return made

    def _recorded(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The result of a call, which becomes a node with what it was given."""
        given = list(tensors_in((args, kwargs)))
        inputs: list[int] = []
        # Positions are taken before the call: an in-place call gives its argument a new node.
        seen: _Given = (
            self._seen(args, inputs),
            {name: self._seen(value, inputs) for name, value in kwargs.items()},
        )
        before = {id(tensor) for tensor in given}
        versions = [tensor_version(tensor) for tensor in given]
        out = func(*args, **kwargs)
        op = spelling(func)
        if op is None:
            return out
        self._note(op, given, inputs, out)
        if self._is_still(out, given, versions):
            self.step(op)
            return out
        if op == "set_":
            # It shows memory from elsewhere now, as what is read from a file.
            self._found(given[0])
            return out
        if op in _BRINGING and self.left and isinstance(out, Tensor) and not inputs:
            self.add(out, UNRECORDED, inputs=tuple(dict.fromkeys(self.left)), live=True)
            return out
        if op in ("min", "max") and len(given) > 1 and isinstance(out, Tensor):
            op = f"{op}imum"
        product = as_product(seen[0]) if op == "einsum" else None
        if product is not None:
            op, func, seen = product[0], product[1], (product[2], {})
        items = _items_of(func, args, kwargs, given) if op == "getitem" else None
        if items is not None:
            func, seen = operator.getitem, ((seen[0][0], items), {})
        if op in _BY_FORM and isinstance(out, Tensor) and len(given) > 1:
            func, seen, inputs = _by_form(op, out, seen)
        live = op not in _BLANK and any(self.nodes[index].live for index in inputs)
        made = list(tensors_in(out))
        if made:
            source = self.add(
                made[0],
                op,
                function=func,
                args=seen[0],
                kwargs=seen[1],
                inputs=tuple(inputs),
                live=live,
                inplace=isinstance(out, Tensor) and id(out) in before,
            )
            if not isinstance(out, Tensor):
                for place, tensor in enumerate(made):
                    self.add(tensor, "output", args=(place,), inputs=(source,), live=live)
        changed = [
            t for t, version in zip(given, versions, strict=True) if tensor_version(t) != version
        ]
        if changed and op == "__setitem__" and changed[0] is given[0]:
            # What the tensor holds now is computed from what it held and what was put in.
            self.add(
                given[0], "setitem", function=_put, args=seen[0], inputs=tuple(inputs), live=live
            )
            made.append(given[0])
        if changed:
            self._overwrite(changed, tuple(inputs), made)
        return out

    def _is_still(self, out: Any, given: list[Tensor], versions: list[int]) -> bool:
        """True if a call gave back a weight as it was, as `to` where nothing has to be moved."""
        if id(out) not in self.names or id(out) in self.made:
            return False
        unchanged = (tensor_version(tensor) for tensor in given)
        return any(tensor is out for tensor in given) and [*unchanged] == versions

    def _note(self, op: str, given: list[Tensor], inputs: list[int], out: Any) -> None:
        """Notes what a call says of the run besides what it makes.

        That is what leaves torch, whose numbers are asked for, where the code may choose a branch,
        and which parameters are picked from by number.
        """
        if op in _LEAVING:
            self._left(op, given, out)
        if op in _ASKING or op in _COUNTING:
            self.asked |= {i: None for i in inputs if self._counts(i)}
        if op in _CHOOSING and any(map(self._measures, inputs)):
            self.branches[self.stack[-1][0]] = None
        if op == "getitem":
            # As many entries as are true.
            self.asked |= {i: None for i in inputs if self.nodes[i].live and self.nodes[i].boolean}
        if op in ("getitem", "index_select") and isinstance(given[0], nn.Parameter):
            by = {self.made.get(id(t)): t for t in given[1:] if not t.is_floating_point()}
            self.picked |= {index: t.clone() for index, t in by.items() if index is not None}

    @contextmanager
    def _inside(self) -> Generator[None]:
        """Within the context calls are those of steps of the module, which have no names."""
        path = self.stack[-1][0] + STEPS
        self.stack.append((path, self.counts[path]))
        self.counts[path] += 1
        try:
            yield
        finally:
            self.stack.pop()

    def _counts(self, index: int) -> bool:
        """True for what depends on the input otherwise than by whether all of it is finite."""
        node = self.nodes[index]
        if not node.live or node.op in _FINITE:
            return False
        return not node.boolean or not node.inputs or any(map(self._counts, node.inputs))

    def _measures(self, index: int) -> bool:
        """True for features, and for a condition on them that finite ones can fail."""
        node = self.nodes[index]
        if not node.boolean or node.op in _FINITE:
            return node.live and node.floating
        return any(map(self._measures, node.inputs))

    def _is_live(self, tensor: Tensor) -> bool:
        index = self.made.get(id(tensor))
        return index is not None and self.nodes[index].live

    def _seen(self, value: Any, inputs: list[int]) -> Any:
        if isinstance(value, Tensor):
            index = self.made.get(id(value))
            if index is None:
                name = self.names.get(id(value))
                known = name is not None or self.ages.is_older(value) or self._is_weight(value)
                if known and not (self.lent and self._is_changed(value)):
                    return Fixed(value, name, value.dtype)
                index = self._found(value)
            elif self.lent:
                index = self._as_it_is(value, index)
            inputs.append(index)
            return Ref(index)
        if type(value) is float and value in self.numbers:
            inputs.append(self.numbers[value])
            self.followed.add(self.numbers[value])
            return Ref(self.numbers[value])
        if isinstance(value, tuple):
            return tuple(self._seen(entry, inputs) for entry in value)
        if isinstance(value, list):
            return [self._seen(entry, inputs) for entry in value]
        return value

    def _is_weight(self, tensor: Tensor) -> bool:
        """True for a weight that was fetched while the model runs, as from another device."""
        if isinstance(tensor, nn.Parameter):
            return True
        return any(tensor is own for own in self.model.buffers())

    def _found(self, tensor: Tensor) -> int:
        """A node for a tensor of unknown origin: it may depend on all that its maker could see."""
        path, call = self.stack[-1]
        recent = (node.index for node in self.nodes if (node.module, node.call) == (path, call))
        entered = self.entered[-1] if self.entered else ()
        last = (len(self.nodes) - 1,) if self.nodes else ()
        seen = dict.fromkeys((*self.left, *self._held(), *entered, *recent, *last))
        inputs = tuple(i for i in seen if i >= 0 and self.nodes[i].live)
        return self.add(tensor, UNRECORDED, inputs=inputs, live=bool(inputs))

    def _held(self) -> Iterator[int]:
        """The tensors that somebody besides this record still holds."""
        for values in self.stored.values():
            for tensor in values:
                # Held by the two lists, by the loop and by the call that counts.
                if sys.getrefcount(tensor) > 4:
                    yield self.made[id(tensor)]

    def _left(self, op: str, given: list[Tensor], out: object) -> None:
        """Notes that the numbers of live tensors have left torch."""
        for tensor in given:
            if op in _LENDING and not tensor.is_meta:
                # What is no number of the example's may be filled with them.
                self.lent[_storage(tensor)] = _memory(tensor).clone()
            index = self.made.get(id(tensor))
            if index is None or not self.nodes[index].live:
                continue
            if tensor.is_floating_point() or op not in ("item", "__float__"):
                self.left.append(index)
            if tensor.is_floating_point() and op in _ASKING and tensor.numel() > 1:
                self.handed[index] = None
            if type(out) is float:
                self.numbers[out] = index

    def _as_it_is(self, tensor: Tensor, index: int) -> int:
        """The node of a tensor, a new one if its memory was written to behind torch's back."""
        if not self._is_changed(tensor):
            return index
        self._overwrite([tensor], (index, *dict.fromkeys(self.left)), [])
        return self.made[id(tensor)]

    def _is_changed(self, tensor: Tensor) -> bool:
        """True if memory was written to behind torch's back since this was last asked."""
        before = None if tensor.is_meta else self.lent.get(_storage(tensor))
        # Of the whole memory: whoever has it may write through a view of another form.
        if before is None or torch.equal(before, now := _memory(tensor)):
            return False
        self.lent[_storage(tensor)] = now.clone()
        return True

    def enter(self, path: str, inputs: object) -> None:
        super().enter(path, inputs)
        self.entered.append(self._known(inputs))

    def leave(self, outputs: object) -> None:
        path, call = self.stack[-1]
        kind = self.kinds.get(path, "")
        for tensor in tensors_in(outputs):
            # What a module returns that runs out of sight, as a script does.
            known = (
                id(tensor) in self.made or id(tensor) in self.names or self.ages.is_older(tensor)
            )
            if not known and not _is_transformed(tensor) and not self._is_weight(tensor):
                self._found(tensor)
        self.calls.append(ModuleCall(path, kind, call, self.entered.pop(), self._known(outputs)))
        super().leave(outputs)

    def _known(self, value: object) -> tuple[int, ...]:
        return tuple(self.made.get(id(t), -1) for t in tensors_in(value))


@contextmanager
def followed(model: nn.Module, follower: Follower) -> Generator[None]:
    """Within the context the follower knows which module is running."""
    mine = threading.get_ident()

    def enter(path: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == mine:
            follower.enter(path, (args, kwargs))

    def leave(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if threading.get_ident() == mine:
            follower.leave(out)

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if not path:
                continue
            here = functools.partial(enter, path)
            first = module.register_forward_pre_hook(here, prepend=True, with_kwargs=True)
            stack.callback(first.remove)
            last = module.register_forward_hook(leave, with_kwargs=True)
            stack.callback(last.remove)
        yield


def record(model: nn.Module, run: Callable[[], object], inputs: object, batch: int) -> Trace:
    """The trace of `run()`, which must call `model` once on `inputs`.

    Args:
        model: the model whose modules are watched. Its hooks are as before afterwards.
        run: calls the model and returns what it returned.
        inputs: the tensors that `run` feeds to the model; everything that depends on them is live.
        batch: the number of examples in them.

    Returns:
        The graph. Nothing but constants and parameters of the model is kept alive by it.
    """
    recorder = _Recorder(model)
    for tensor in tensors_in(inputs):
        recorder.add(tensor, "input", live=True)
    with torch.no_grad(), followed(model, recorder), recorder.ages, recorder:
        returned = run()
    outputs = tuple(
        recorder.made[id(tensor)] for tensor in tensors_in(returned) if id(tensor) in recorder.made
    )
    owners: dict[int, frozenset[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), frozenset()) | {path}
    readers: dict[int, list[int]] = {}
    for node in recorder.nodes:
        for index in dict.fromkeys(node.inputs):
            readers.setdefault(index, []).append(node.index)
    return Trace(
        nodes=tuple(recorder.nodes),
        calls=tuple(recorder.calls),
        outputs=outputs,
        readers={index: tuple(found) for index, found in readers.items()},
        example_batch=batch,
        picked=recorder.picked,
        owners=owners,
        asked=tuple(i for i in recorder.asked if i not in recorder.followed),
        branches=tuple(recorder.branches),
        left=tuple(recorder.handed),
    )
