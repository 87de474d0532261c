"""Changes of weights that are made where the weights are used, and only while they are."""

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from basis_probe.algebra.elements import Element
from basis_probe.model.weights import Slot, Weights, acted, held, require_numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Acted:
    """An element that acts along an axis of a parameter, or of a selection of its entries."""

    entries: Tensor | None
    axis: int
    element: Element
    places: Tensor | None

    def apply(self, whole: Tensor) -> Tensor:
        """The parameter afterwards; a new tensor."""
        if self.entries is None:
            return acted(whole, self.axis, self.element, self.places)
        chosen = acted(whole.flatten()[self.entries], self.axis, self.element, self.places)
        return _with_entries(whole, self.entries, chosen)


@dataclasses.dataclass(frozen=True, eq=False)
class Put:
    """Numbers that take the place of a parameter, or of a selection of its entries."""

    entries: Tensor | None
    values: Tensor

    def apply(self, whole: Tensor) -> Tensor:
        """The parameter afterwards; a new tensor."""
        if self.entries is None:
            return self.values.reshape(whole.shape).to(whole)
        return _with_entries(whole, self.entries, self.values)


@dataclasses.dataclass(frozen=True, eq=False)
class PutSome:
    """Numbers at some places along an axis of a parameter."""

    axis: int
    places: Tensor
    values: Tensor

    def apply(self, whole: Tensor) -> Tensor:
        """The parameter afterwards; a new tensor."""
        return whole.index_copy(self.axis, self.places.to(whole.device), self.values.to(whole))


Change: TypeAlias = Acted | Put | PutSome
Changes: TypeAlias = Mapping[str, tuple[Change, ...]]
"""Parameter -> what was done to it, in order."""


def after(whole: Tensor, changes: tuple[Change, ...]) -> Tensor:
    """A parameter after some changes, in the type and on the device of the one given."""
    for change in changes:
        whole = change.apply(whole)
    return whole


class DeferredWeights(Weights):
    """The weights of a model with changes that are noted, and made when numbers are asked for.

    Args:
        model: the model, which is not copied and stays as it is.
        more: weights that are computed where they are used, by name.

    Raises:
        WeightError: if the weights hold no numbers that can be changed.
    """

    def __init__(self, model: nn.Module, more: Mapping[str, Tensor] | None = None) -> None:
        require_numbers(model)
        self.model = model
        self._given = dict(held(model)) | dict(more or {})
        self._changes: dict[str, tuple[Change, ...]] = {}

    def begin_with(self, numbers: Mapping[int, Tensor]) -> None:
        """Takes other numbers for what some parameters hold.

        Args:
            numbers: id of a parameter -> its numbers.
        """
        self._given = {name: numbers.get(id(one), one) for name, one in self._given.items()}

    def shape(self, name: str) -> torch.Size:
        return self._given[name].shape

    def get(self, slot: Slot) -> Tensor:
        if slot.lengths is not None:
            return self.product(slot)
        whole = after(self._given[slot.name].detach().double(), self._changes.get(slot.name, ()))
        return slot.shown(whole)

    def rows(self, slot: Slot, places: Tensor) -> Tensor:
        return self.get(slot)[places]

    def set(self, slot: Slot, values: Tensor) -> None:
        if slot.lengths is not None:
            self.set_product(slot, values)
            return
        self._note(slot.name, Put(slot.entries, slot.held(values.detach().double())))

    def set_some(self, slot: Slot, axis: int, places: Tensor, values: Tensor) -> None:
        self._note(slot.name, PutSome(axis, places, values.detach().double()))

    def act(self, slot: Slot, axis: int, element: Element, places: Tensor | None) -> None:
        if slot.lengths is not None:
            self.set(slot, acted(self.get(slot), axis, element, places))
            return
        self._note(slot.name, Acted(slot.entries, axis, element, places))

    @property
    def changed(self) -> tuple[str, ...]:
        return tuple(self._changes)

    @property
    def changes(self) -> Changes:
        """What was done since everything was put back, as it is now."""
        return dict(self._changes)

    def restore(self) -> None:
        self._changes.clear()

    def _note(self, name: str, change: Change) -> None:
        self._changes[name] = (*self._changes.get(name, ()), change)


def _with_entries(whole: Tensor, entries: Tensor, values: Tensor) -> Tensor:
    flat = whole.flatten().clone()
    flat[entries.flatten()] = values.flatten().to(flat)
    return flat.reshape(whole.shape)
