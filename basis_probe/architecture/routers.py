"""Routers of mixtures of experts: their numbers change places with the experts that they choose."""

import dataclasses
import functools
import re
from collections.abc import Iterable

from torch import nn

from basis_probe.algebra.groups import Blocks, Group, Permutation
from basis_probe.model.facts import Facts
from basis_probe.model.graph import Kind
from basis_probe.model.trace import fixed_in
from basis_probe.model.weights import WeightError

_CHOOSES = frozenset("topk argmax max sort argsort gumbel_softmax".split())
_MEMBER = re.compile(r"(.*?)(\d+)(?=\.)")
_LEVELS = 3
_MAPS = (Kind.LINEAR, Kind.CONVOLUTION, Kind.GROUPED, Kind.ATTENTION, Kind.EMBEDDING)


@dataclasses.dataclass(frozen=True)
class Router:
    """A linear map with one output for every expert of a block.

    Attributes:
        owner: the path of the module that holds router and experts, with a full stop; "" for the
            model itself.
        count: the number of experts.
        groups: into how many groups of one size the choice divides the experts.
    """

    owner: str
    count: int
    groups: int = 1

    @property
    def group(self) -> Group:
        """The orders of the experts that the choice cannot tell apart."""
        if self.groups == 1:
            return Permutation(self.count)
        return Blocks(Permutation(self.count // self.groups), self.groups)

    def said(self) -> str:
        """Why it has its group."""
        where = self.owner.rstrip(".") or "the model"
        inside = ""
        if self.groups > 1:
            inside = f" inside their {self.groups} groups, which change places as wholes"
        return (
            f"its axes are the {self.count} experts of {where}, among which the "
            f"largest of these numbers choose: they change places with the experts{inside}."
        )


class Routers:
    """The routers of a model.

    Args:
        facts: what was seen of the model.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._found: dict[int, Router | None] = {}

    def of(self, index: int) -> Router | None:
        """The router whose numbers a stream holds; None if it holds others."""
        if index not in self._found:
            self._found[index] = self._router(index)
        return self._found[index]

    @functools.cached_property
    def _stacked(self) -> dict[str, int]:
        """The stacks of matrices that were used, by name, and how many matrices each has."""
        return {
            fixed.name: len(fixed.tensor)
            for node in self.facts.graph.trace.nodes
            for fixed in fixed_in((node.args, node.kwargs))
            if fixed.name is not None and fixed.tensor.ndim > 2
        }

    @functools.cached_property
    def _counted(self) -> dict[str, int]:
        """The beginnings of the names of numbered modules, and how many of each there are."""
        places: dict[str, set[int]] = {}
        for names in self.facts.graph.trace.owners.values():
            for name in names:
                for stem, place in _numbered(f"{name}."):
                    places.setdefault(stem, set()).add(place)
        return {stem: len(inside) for stem, inside in places.items()}

    def _router(self, index: int) -> Router | None:
        graph, stream = self.facts.graph, self.facts.streams[index]
        if len(stream.writers) != 1 or stream.returned or stream.value_mixed:
            return None
        (writer,) = stream.writers
        if graph.vertices[writer].kind is not Kind.LINEAR:
            return None
        layout, node = graph.layouts[writer], graph.trace.node(writer)
        if len(layout.axes) != 1 or layout.repeat != 1:
            return None
        count = node.shape[layout.axes[0]]
        owner = self._owner(node.module, count) if count > 1 else None
        if owner is None:
            return None
        chosen, groups = self._behind(stream.members, owner, count)
        return Router(owner, count, groups) if chosen else None

    def _owner(self, module: str, count: int) -> str | None:
        """The nearest module around a router that holds as many experts."""
        parts = module.split(".") if module else []
        for level in range(min(_LEVELS, len(parts) + 1)):
            owner = "".join(f"{part}." for part in parts[: len(parts) - level])
            if any(n.startswith(owner) and size == count for n, size in self._stacked.items()):
                return owner
            if any(n.startswith(owner) and size == count for n, size in self._counted.items()):
                return owner
        return None

    def _behind(self, members: Iterable[int], owner: str, count: int) -> tuple[bool, int]:
        """If the largest of the numbers are chosen, and into how many groups they are divided."""
        trace = self.facts.graph.trace
        seen, waiting = set[int](), [*members]
        chosen, groups = False, 1
        while waiting:
            here = waiting.pop()
            for reader in trace.readers.get(here, ()):
                node = trace.node(reader)
                if reader in seen or not f"{node.module}.".startswith(owner):
                    continue
                seen.add(reader)
                vertex = self.facts.graph.vertices.get(reader)
                if vertex is not None and vertex.kind in _MAPS:
                    # Behind a map there are other numbers.
                    continue
                chosen = chosen or node.op in _CHOOSES
                if node.floating and node.live:
                    waiting.append(reader)
                    inside = node.shape[-2:]
                    if node.op == "view" and len(inside) == 2 and inside[0] * inside[1] == count:
                        groups = max(groups, inside[0] if inside[1] > 1 else 1)
        return chosen, groups


def experts_of(names: Iterable[str], owner: str, count: int) -> dict[str, dict[int, str]]:
    """The parameters of experts that are modules of their own.

    Args:
        names: of all parameters.
        owner: how the names of the block begin.
        count: the number of experts.

    Returns:
        What all experts call a parameter -> expert -> the name of its own.
    """
    found: dict[str, dict[int, str]] = {}
    for name in names:
        for stem, place in _numbered(name):
            if stem.startswith(owner):
                rest = name[len(stem) + len(str(place)) :]
                found.setdefault(f"{stem}#{rest}", {})[place] = name
                break
    whole = [*range(count)]
    return {key: members for key, members in found.items() if sorted(members) == whole}


def require_alike(model: nn.Module, router: Router) -> None:
    """Raises `WeightError` if experts differ by more than the numbers in their parameters.

    Args:
        model: the model.
        router: what chooses among them.
    """
    modules = {
        f"{path}.": module
        for path, module in model.named_modules()
        if f"{path}.".startswith(router.owner)
    }
    for members in experts_of(modules, router.owner, router.count).values():
        forms = {place: _form(modules[name]) for place, name in members.items()}
        other = next((place for place in forms if forms[place] != forms[0]), None)
        if other is not None:
            raise WeightError(
                f"experts {members[0].rstrip('.')} and {members[other].rstrip('.')} differ by more "
                "than the numbers in their parameters"
            )
    for path, module in modules.items():
        for leaf, buffer in module.named_buffers(recurse=False):
            apart = buffer.ndim and len(buffer) == router.count and len(buffer.unique(dim=0)) > 1
            if apart and not leaf.endswith("correction_bias"):
                raise WeightError(
                    f"the buffer {path}{leaf} tells experts apart, and is no parameter"
                )


def _form(module: nn.Module) -> list[tuple[object, ...]]:
    """What a module is but for the numbers in its parameters."""
    found: list[tuple[object, ...]] = []
    for path, inner in module.named_modules():
        plain = {
            name: value
            for name, value in vars(inner).items()
            if isinstance(value, int | float | str | bool | tuple | type(None))
        }
        shapes = [(name, p.shape) for name, p in inner.named_parameters(recurse=False)]
        buffers = [(name, b.tolist()) for name, b in inner.named_buffers(recurse=False)]
        found.append((path, type(inner), sorted(plain.items()), shapes, buffers))
    return found


def _numbered(name: str) -> list[tuple[str, int]]:
    """What stands before each number in a name that begins, or ends, a part of it."""
    found: list[tuple[str, int]] = []
    start = 0
    while (match := _MEMBER.match(name, start)) is not None:
        found.append((name[: match.end(1)], int(match[2])))
        start = match.end(2)
    return found
