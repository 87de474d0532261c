"""Where the numbers that a model computes with lie among its parameters, to be read and changed."""

import abc
import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from basis_probe.algebra.elements import Element, Local, local
from basis_probe.model.facts import leaves_of, nodes_behind
from basis_probe.model.graph import replay
from basis_probe.model.offloaded import hooks, is_plain
from basis_probe.model.trace import Fixed, Node, Ref, Trace


class WeightError(ValueError):
    """What stands between a number in a computation and the parameter that it comes from."""


class ContradictionError(WeightError):
    """What is asked of weights cannot be done to all that takes part in it."""


class MisfitError(WeightError):
    """An element is asked to act along an axis that does not hold its features."""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The parameter that holds the lengths of a weight, of which another holds the directions.

    Attributes:
        name: the path of the parameter.
        axis: the axis that keeps its entries apart; over all others a length is taken.
    """

    name: str
    axis: int


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """A tensor that a function is given, as a place in one parameter.

    Attributes:
        name: path of the parameter.
        entries: for every entry of the tensor its flat place in the parameter; None if the tensor
            is the parameter.
        lengths: where its lengths are, if the parameter holds directions only; else None.
        factor: by which the model multiplies what lies there to have the tensor. What acts on the
            one acts on the other, which is as well as to say that it is linear.
    """

    name: str
    entries: Tensor | None = None
    lengths: "Lengths | None" = None
    factor: float = 1.0

    def shown(self, whole: Tensor) -> Tensor:
        """The tensor, where the parameter is this."""
        made = whole if self.entries is None else whole.flatten()[self.entries]
        return made if self.factor == 1.0 else made * self.factor

    def held(self, values: Tensor) -> Tensor:
        """What lies in the parameter where the tensor has these numbers."""
        return values if self.factor == 1.0 else values / self.factor


class Slots:
    """The parameters of a model by the tensors that they are.

    Args:
        model: the model that was recorded.
        trace: the record.
    """

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self.trace = trace
        self.names: dict[int, list[str]] = {}
        for name, tensor in held(model):
            self.names.setdefault(id(tensor), []).append(name)
        for name, tensor in trace.quantised.items():
            self.names[id(tensor)] = [name]

    def parameter(self, tensor: Tensor, node: Node) -> str | None:
        """The path of a parameter, as the module that used it knows it."""
        names = self.names.get(id(tensor))
        if names is None:
            return None
        return next((name for name in names if name.rpartition(".")[0] == node.module), names[0])

    def slot(self, node: Node, value: object) -> Slot:
        """Where an argument of a call lies among the parameters.

        Raises:
            WeightError: if it is no parameter, nor a selection of the entries of one.
        """
        if isinstance(value, Fixed):
            name = self.parameter(value.tensor, node)
            if name is None:
                raise WeightError(
                    f"a tensor that {spoken_at(node)} uses is no parameter of the model"
                )
            return Slot(name)
        if not isinstance(value, Ref):
            raise WeightError(f"{spoken_at(node)} uses a number that is no parameter of the model")
        parted = self._parted(self.trace.node(value.node))
        if parted is not None:
            return parted
        leaves = self._leaves(value)
        if len(leaves) != 1:
            raise WeightError(
                f"what {spoken_at(node)} uses is computed from {len(leaves)} parameters"
            )
        (tensor,) = leaves
        if tensor.is_meta:
            raise WeightError("the weights are on the meta device, which holds no numbers")
        name = self.parameter(tensor, node)
        assert name is not None
        if tensor.is_complex():
            raise WeightError(
                f"{name} holds complex numbers, and which of their parts are used is not followed"
            )
        view = view_of(self.trace, value.node, tensor)
        if view is not None:
            every = torch.arange(tensor.numel(), device=tensor.device)
            return Slot(name, every.as_strided(view.shape, view.stride(), view.storage_offset()))
        try:
            found = entries_of(self.trace, value.node, tensor, self.trace.picked)
        except (RuntimeError, TypeError) as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise WeightError(
                f"what {spoken_at(node)} uses cannot be computed anew ({said})"
            ) from error
        if found is None:
            raise WeightError(
                f"what {spoken_at(node)} uses is not a parameter, but computed from one"
            )
        return Slot(name, found[0], factor=found[1])

    def turned(self, node: Node, value: object) -> tuple[str, tuple[int, ...]] | None:
        """A whole parameter that an argument of a call shows with its axes in some other order.

        Returns:
            Its path, and which of its axes every axis of the argument is; None if it is none.
        """
        if not isinstance(value, Ref) or len(leaves := self._leaves(value)) != 1:
            return None
        view, name = view_of(self.trace, value.node, leaves[0]), self.parameter(leaves[0], node)
        if view is None or name is None or view.ndim != leaves[0].ndim:
            return None
        whole = torch.empty(leaves[0].shape, device="meta")
        axes = [*zip(whole.shape, whole.stride(), strict=True)]
        shown = [*zip(view.shape, view.stride(), strict=True)]
        if sorted(axes) != sorted(shown) or len(set(axes)) < len(axes):
            return None
        return name, tuple(axes.index(axis) for axis in shown)

    def _leaves(self, value: Ref) -> list[Tensor]:
        """The parameters that a value is computed from."""
        leaves = {id(fixed.tensor): fixed.tensor for fixed in leaves_of(self.trace, value.node)}
        return [tensor for key, tensor in leaves.items() if key in self.names]

    def _parted(self, made: Node) -> Slot | None:
        """A weight that is the product of directions and lengths, as torch's weight norm has it."""
        if made.op != "_weight_norm" or made.kwargs or not 2 <= len(made.args) <= 3:
            return None
        directions, lengths, axis = (*made.args, 0)[:3]
        if not (isinstance(directions, Fixed) and isinstance(lengths, Fixed)):
            return None
        names = [self.parameter(fixed.tensor, made) for fixed in (directions, lengths)]
        if None in names or not isinstance(axis, int):
            return None
        return Slot(str(names[0]), lengths=Lengths(str(names[1]), axis))


_FAR = 1e6
"""By so much the numbers are apart by which entries are known again."""


def entries_of(
    trace: Trace, node: int, tensor: Tensor, by: dict[int, Tensor]
) -> tuple[Tensor, float] | None:
    """Which entries of a tensor a node holds, and by what they are multiplied, found by numbers.

    Args:
        trace: the record.
        node: the node.
        tensor: a parameter.
        by: node -> what is picked by.

    Returns:
        For every entry of the node its flat place in the tensor, and the factor; None if the node
        holds anything else.
    """
    ones = torch.ones(tensor.shape, dtype=torch.float64, device=tensor.device)
    places = torch.arange(1, tensor.numel() + 1, dtype=torch.float64, device=tensor.device)
    # Far from zero on both sides: what bends or bounds the numbers does so to some of them.
    far = _FAR * places.reshape(tensor.shape)
    one, shown, minus = (replay(trace, node, by, {id(tensor): put}) for put in (ones, far, -far))
    factor = float(one.flatten()[0]) if one.numel() else 1.0
    if not math.isfinite(factor) or factor == 0 or not bool((one == factor).all()):
        return None
    if not torch.equal(minus, -shown):
        return None
    entries = (shown / (_FAR * factor)).round().long() - 1
    given = replay(trace, node, by)
    if not bool((entries >= 0).all()) or not bool((entries < tensor.numel()).all()):
        return None
    held = trace.instead.get(id(tensor), tensor).detach().flatten()[entries]
    if factor == 1.0:
        return (entries, factor) if torch.equal(held.to(given), given) else None
    # Whether it multiplies or divides, and in which order, is not known: the last digit may differ.
    close = 4 * torch.finfo(given.dtype).eps
    alike = torch.allclose((held.double() * factor).to(given), given, rtol=close, atol=0.0)
    return (entries, factor) if alike else None


def view_of(trace: Trace, node: int, tensor: Tensor) -> Tensor | None:
    """How a node shows entries of a tensor, if it does nothing but show them.

    Returns:
        A tensor without numbers, whose strides are those in the tensor's entries in their order;
        None if the node may be computed from them, or shows them by where they lie in memory.
    """
    # A cast is left out of a replay, and may round.
    if any(made.op in ("as_strided", "to") for made in nodes_behind(trace, node)):
        return None
    if tensor.is_complex():
        # What stands in for it is its own conjugate.
        return None
    whole = torch.empty(tensor.shape, dtype=torch.float64, device="meta")
    try:
        shown = replay(trace, node, {}, {id(tensor): whole})
    except Exception:
        # Code of a model's own may refuse what holds no numbers in any words.
        return None
    plain = shown.dtype is whole.dtype and not shown.is_neg()
    ours, theirs = shown.untyped_storage(), whole.untyped_storage()
    same = ours._cdata == theirs._cdata  # pyright: ignore[reportPrivateUsage]
    return shown if plain and same else None


def held(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter, batch statistic and bias of a router, by the module that holds it.

    Each is given as often as it is held.

    Modules bear the paths under which they are recorded, whatever the model calls its parameters.
    """
    for path, module in model.named_modules():
        stem = f"{path}." if path else ""
        for leaf, parameter in module.named_parameters(recurse=False):
            yield stem + leaf, parameter
        if isinstance(module, nn.modules.batchnorm._NormBase):  # pyright: ignore[reportPrivateUsage]
            for leaf, buffer in module.named_buffers(recurse=False):
                if leaf in ("running_mean", "running_var"):
                    yield stem + leaf, buffer
        for leaf, buffer in module.named_buffers(recurse=False):
            # Training moves it by a rule of its own, so that experts are chosen alike often.
            if leaf.endswith("correction_bias"):
                yield stem + leaf, buffer


class Weights(abc.ABC):
    """The weights of a model that can be changed and put back; the model itself is untouched.

    Attributes:
        model: the module that they are computed with.
    """

    model: nn.Module

    @abc.abstractmethod
    def shape(self, name: str) -> torch.Size:
        """The shape of a parameter, or of a batch statistic."""

    @abc.abstractmethod
    def get(self, slot: Slot) -> Tensor:
        """The numbers there, in float64."""

    @abc.abstractmethod
    def rows(self, slot: Slot, places: Tensor) -> Tensor:
        """Some of the rows of a parameter."""

    @abc.abstractmethod
    def set(self, slot: Slot, values: Tensor) -> None:
        """Puts numbers there; a parameter that was shared is one of its own from now on."""

    @abc.abstractmethod
    def set_some(self, slot: Slot, axis: int, places: Tensor, values: Tensor) -> None:
        """Puts numbers at some places along an axis of a parameter."""

    @abc.abstractmethod
    def act(self, slot: Slot, axis: int, element: Element, places: Tensor | None) -> None:
        """Lets an element act along an axis of what is there.

        Args:
            slot: where.
            axis: the axis. If it is longer than the element's dimension, several positions were
                flattened into each feature.
            element: what acts.
            places: the entries along the axis that it acts on; None for all.
        """

    def product(self, slot: Slot) -> Tensor:
        """The weight that directions and lengths make, in float64."""
        assert slot.lengths is not None
        directions, lengths = self.get(Slot(slot.name)), self.get(Slot(slot.lengths.name))
        return directions * lengths / torch.norm_except_dim(directions, 2, slot.lengths.axis)

    def set_product(self, slot: Slot, values: Tensor) -> None:
        """Sets directions and lengths to those of a weight."""
        assert slot.lengths is not None
        self.set(Slot(slot.name), values)
        lengths = torch.norm_except_dim(values, 2, slot.lengths.axis)
        self.set(Slot(slot.lengths.name), lengths)

    @property
    @abc.abstractmethod
    def changed(self) -> tuple[str, ...]:
        """The parameters that were changed."""

    @abc.abstractmethod
    def restore(self) -> None:
        """Puts everything back."""


def require_numbers(model: nn.Module) -> None:
    """Raises WeightError if the weights of a model hold no numbers that can be changed."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise WeightError(
                f"the weights are on the meta device ({name}), which holds no numbers: load "
                "them first"
            )
        if not is_plain(parameter):
            raise WeightError(
                f"the parameter {name} is quantised or packed ({type(parameter).__name__}, "
                f"{parameter.dtype}): give the model in floating point"
            )


class CopiedWeights(Weights):
    """The weights of a copy of a model.

    Args:
        model: the model.
        dtype: the type of the copy's floating-point numbers; None to keep it.

    Raises:
        WeightError: if the weights hold no numbers that can be changed.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        require_numbers(model)
        memo: dict[int, Any] = {}
        if dtype is not None:
            for parameter in filter(torch.is_floating_point, model.parameters()):
                cast = parameter.detach().to(dtype, copy=True)
                memo[id(parameter)] = nn.Parameter(cast, parameter.requires_grad)
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    memo[id(buffer)] = buffer.detach().to(dtype, copy=True)
        memo |= {id(hook.weights_map): hook.weights_map for _, hook in hooks(model)}
        try:
            self.model = copy.deepcopy(model, memo)
        except Exception as error:
            raise WeightError(
                f"the model cannot be copied: {type(error).__name__}: {error}"
            ) from error
        self._kept: dict[str, Tensor] = {}
        self._some: list[tuple[str, Tensor, int, Tensor, Tensor]] = []
        self._modules = dict(self.model.named_modules())
        names: dict[int, list[str]] = {}
        for name, parameter in held(self.model):
            names.setdefault(id(parameter), []).append(name)
        several = [found for found in names.values() if len(found) > 1]
        if dtype is not None:
            # Nobody sees this copy: what is tied is untied now, and not anew for every element.
            for name in (name for found in several for name in found[1:]):
                tied = self.now(name)
                self._put(name, nn.Parameter(tied.detach().clone(), tied.requires_grad))
            several = []
        self._tied = several
        self._shared = {name for found in several for name in found}

    def now(self, name: str) -> Tensor:
        """The parameter, or the batch statistic, as it is now."""
        path, _, leaf = name.rpartition(".")
        tensor = getattr(self._modules[path], leaf, None)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise WeightError(
                f"{name} holds integers, which could not hold the change exactly: give the model "
                "in floating point"
            )
        return tensor

    def _put(self, name: str, tensor: Tensor) -> None:
        path, _, leaf = name.rpartition(".")
        setattr(self._modules[path], leaf, tensor)

    def tie_equal(self) -> None:
        """Ties anew what was tied, where the same change came to it under all its names."""
        for first, *others in self._tied:
            for name in others:
                if not {first, name}.isdisjoint(self.changed):
                    one, other = self.now(first), self.now(name)
                    if one.shape == other.shape and torch.equal(one, other):
                        self._put(name, one)

    def shape(self, name: str) -> torch.Size:
        return self.now(name).shape

    def rows(self, slot: Slot, places: Tensor) -> Tensor:
        return self.now(slot.name).detach()[places]

    def get(self, slot: Slot) -> Tensor:
        if slot.lengths is not None:
            return self.product(slot)
        return slot.shown(self.now(slot.name).detach().double())

    def set(self, slot: Slot, values: Tensor) -> None:
        if slot.lengths is not None:
            self.set_product(slot, values)
            return
        before = self.now(slot.name)
        values = slot.held(values)
        if slot.entries is not None:
            whole = before.detach().double().flatten().clone()
            whole[slot.entries.flatten()] = values.flatten()
            values = whole.reshape(before.shape)
        values = values.to(device=before.device, dtype=before.dtype)
        self._kept.setdefault(slot.name, before)
        learned = isinstance(before, nn.Parameter)
        self._put(slot.name, nn.Parameter(values, before.requires_grad) if learned else values)

    def set_some(self, slot: Slot, axis: int, places: Tensor, values: Tensor) -> None:
        assert slot.entries is None
        if slot.name in self._shared:
            self.set(slot, self.now(slot.name).detach().clone())
        whole = self.now(slot.name)
        with torch.no_grad():
            self._some.append((slot.name, whole, axis, places, some(whole, axis, places).clone()))
            _put_some(whole, axis, places, values)

    def act(self, slot: Slot, axis: int, element: Element, places: Tensor | None) -> None:
        if slot.lengths is not None:
            self.set(slot, acted(self.get(slot), axis, element, places))
            return
        few = local(element)
        now = self.now(slot.name).detach()
        if slot.entries is None and places is not None:
            changed = element.act(some(now, axis % now.ndim, places).double(), axis)
            self.set_some(slot, axis % now.ndim, places, changed)
        elif slot.entries is None and isinstance(few, Local) and now.shape[axis] == few.dim:
            changed = few.inner.act(some(now, axis % now.ndim, few.axes).double(), axis)
            self.set_some(slot, axis % now.ndim, few.axes, changed)
        else:
            self.set(slot, acted(self.get(slot), axis, element, places))

    @property
    def changed(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._kept, *(name for name, *_ in self._some))))

    def untied(self, model: nn.Module) -> bool:
        """True if what the model has under several names is no longer one parameter."""
        shared: dict[int, list[str]] = {}
        for name, tensor in held(model):
            shared.setdefault(id(tensor), []).append(name)
        several = (names for names in shared.values() if set(names) & set(self.changed))
        return any(len({id(self.now(name)) for name in names}) > 1 for names in several)

    def settle(self) -> None:
        """Keeps the weights as they are now: they are what is put back from here on."""
        self._some.clear()
        self._kept.clear()

    def restore(self) -> None:
        with torch.no_grad():
            for _, whole, axis, places, values in reversed(self._some):
                _put_some(whole, axis, places, values)
        self._some.clear()
        for name, tensor in self._kept.items():
            self._put(name, tensor)
        self._kept.clear()


def acted(values: Tensor, axis: int, element: Element, places: Tensor | None) -> Tensor:
    """The values after an element acted along an axis, or on some places of it; a new tensor."""
    if places is not None:
        chosen = places.to(values.device)
        changed = element.act(values.index_select(axis, chosen), axis)
        return values.index_copy(axis, chosen, changed)
    if values.shape[axis] != element.dim:
        if values.shape[axis] % element.dim:
            raise MisfitError(
                f"a weight of {values.shape[axis]} entries along an axis does not read "
                f"{element.dim} features"
            )
        # Positions that were flattened into the features of a linear map.
        each = values.unflatten(axis, (element.dim, -1))
        return element.act(each, axis % values.ndim).flatten(axis % values.ndim, axis + 1)
    return element.act(values, axis)


def some(whole: Tensor, axis: int, places: Tensor) -> Tensor:
    """What lies at some places along an axis; a view where they are neighbours."""
    if _neighbours(places):
        return whole.narrow(axis, int(places[0]), len(places))
    return whole.index_select(axis, places.to(whole.device))


def _put_some(whole: Tensor, axis: int, places: Tensor, values: Tensor) -> None:
    if _neighbours(places):
        whole.narrow(axis, int(places[0]), len(places)).copy_(values)
    else:
        whole.index_copy_(axis, places.to(whole.device), values.to(whole))


def _neighbours(places: Tensor) -> bool:
    return len(places) > 0 and bool((places.diff() == 1).all())


def spoken_at(node: Node) -> str:
    """A call by its name, and the module in which it was made."""
    return f"{node.op} in {node.module}" if node.module else node.op
