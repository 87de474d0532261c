"""Experts that no row of an example reached: they change with those that some row did reach."""

import dataclasses
import re

from basis_probe.model.rows import routed
from basis_probe.model.trace import Fixed, Ref, Trace, fixed_in
from basis_probe.model.weights import Slot, Slots

_PLACE = re.compile(r"(.+?)\.(\d+)\.(.+)")


@dataclasses.dataclass(frozen=True, eq=False)
class _Idle:
    """Parameter -> the same one of idle experts; stack -> the places of idle experts in it."""

    names: dict[str, tuple[str, ...]]
    places: dict[str, tuple[int, ...]]


class Experts:
    """The idle experts of a recorded model.

    An expert is a member of a list of modules, or a matrix of a stack, beside others to which the
    model sends rows of its own choice.

    Args:
        trace: the record.
        slots: where its weights lie.
    """

    def __init__(self, trace: Trace, slots: Slots) -> None:
        self.trace = trace
        self._slots = slots
        self._found = _Idle(self._modules(), self._stacks())

    def idle(self, slot: Slot) -> list[Slot]:
        """The same weights of every idle expert; none for weights that are no expert's."""
        if slot.entries is None:
            return [Slot(name) for name in self._found.names.get(slot.name, ())]
        places = self._found.places.get(slot.name, ())
        if not places:
            return []
        size = self._sizes[slot.name]
        own = int(slot.entries.min()) // size
        if int(slot.entries.max()) // size != own:
            return []
        return [
            dataclasses.replace(slot, entries=slot.entries + (place - own) * size)
            for place in places
        ]

    def holds(self, slot: Slot) -> bool:
        """True if the weights are those of one expert in a stack."""
        return slot.name in self._found.places

    def _modules(self) -> dict[str, tuple[str, ...]]:
        used = {
            name
            for node in self.trace.nodes
            for value in fixed_in((node.args, node.kwargs))
            for name in self._slots.names.get(id(value.tensor), ())
        }
        lists: dict[str, dict[str, list[tuple[str, str]]]] = {}
        for names in self._slots.names.values():
            for name in names:
                match = _PLACE.fullmatch(name)
                if match is not None:
                    owner, place, rest = match.groups()
                    lists.setdefault(owner, {}).setdefault(place, []).append((rest, name))
        found: dict[str, tuple[str, ...]] = {}
        for owner, members in lists.items():
            busy = {p for p, inside in members.items() if any(n in used for _, n in inside)}
            idle = [dict(inside) for place, inside in members.items() if place not in busy]
            if not busy or not idle or not routed(self.trace, owner):
                continue
            for place in busy:
                for rest, name in members[place]:
                    found[name] = tuple(other[rest] for other in idle if rest in other)
        return found

    def _stacks(self) -> dict[str, tuple[int, ...]]:
        self._sizes: dict[str, int] = {}
        seen: dict[str, set[int]] = {}
        counts: dict[str, int] = {}
        for node in self.trace.nodes:
            source = node.args[0] if node.args else None
            if node.op != "getitem" or not isinstance(source, Fixed) or len(node.args) < 2:
                continue
            names = self._slots.names.get(id(source.tensor), ())
            item = node.args[1]
            if isinstance(item, Ref):
                chosen = self.trace.picked.get(item.node)
                item = int(chosen) if chosen is not None and chosen.ndim == 0 else None
            if not isinstance(item, int) or isinstance(item, bool):
                continue
            for name in names if routed(self.trace, node.module) else ():
                counts[name] = len(source.tensor)
                self._sizes[name] = source.tensor[0].numel()
                seen.setdefault(name, set()).add(item % len(source.tensor))
        return {
            name: tuple(place for place in range(counts[name]) if place not in places)
            for name, places in seen.items()
        }
