"""Places in a model that have a name, and how to find the tensors there again."""

import dataclasses
import enum
from collections.abc import Iterator

from basis_probe.model.graph import nonlinear, part_of_one
from basis_probe.model.trace import STEPS, Fixed, Node, Ref, Trace


class Place(enum.Enum):
    """Where a tensor can be caught while the model runs."""

    OUTPUT = "what a module returns"
    INPUT = "what a module is given"
    FUNCTION = "what a function returns"
    ARGUMENT = "what a function is given"
    EXPERT = "what the matrix of one expert is given"


@dataclasses.dataclass(frozen=True)
class Address:
    """How to find a tensor again in another forward pass of the same model.

    Attributes:
        place: at which end of what.
        path: the module.
        call: which call of the module, from 0.
        index: which of the tensors that went in or came out, or that a function returned.
        op, ordinal: for functions, the name and which of its calls inside the module's call.
    """

    place: Place
    path: str
    call: int = 0
    index: int = 0
    op: str = ""
    ordinal: int = 0


@dataclasses.dataclass(frozen=True)
class Site:
    """A place in a model whose activations can be probed.

    Attributes:
        name: what users call it.
        address: where it is caught.
        node: its tensor in the trace.
    """

    name: str
    address: Address
    node: int


def module_sites(trace: Trace) -> dict[str, Site]:
    """Every place of a plain model that has a name: module outputs, inputs, functional calls.

    A module's output bears the module's path, a later call of the same module `path:2`, its input
    `path:in`; a nonlinearity called as a function inside a module `path.relu()`, the second one
    there `path.relu():2`.
    """
    found: list[tuple[int, str, Site]] = []

    def floating(index: int) -> bool:
        if index < 0:
            return False
        node = trace.node(index)
        return node.floating and node.live and len(node.shape) >= 2

    for call in trace.calls:
        again = f":{call.call + 1}" if call.call else ""
        for kind, nodes in ((Place.OUTPUT, call.outputs), (Place.INPUT, call.inputs)):
            usable = [(i, index) for i, index in enumerate(nodes) if floating(index)]
            if usable:
                i, index = usable[0]
                name = f"{call.path}{again}" if kind is Place.OUTPUT else f"{call.path}{again}:in"
                address = Address(kind, call.path, call.call, i)
                found.append((index, name, Site(name, address, index)))
    made = {index for call in trace.calls for index in call.outputs}
    counts: dict[tuple[str, str], int] = {}
    for node in trace.nodes:
        if nonlinear(node.op) and node.index not in made and floating(node.index):
            if node.module.endswith(STEPS) or part_of_one(trace, node):
                continue
            key = (node.module, node.op)
            counts[key] = counts.get(key, 0) + 1
            stem = f"{node.module}.{node.op}()" if node.module else f"{node.op}()"
            name = stem if counts[key] == 1 else f"{stem}:{counts[key]}"
            address = Address(
                Place.FUNCTION, node.module, node.call, op=node.op, ordinal=node.ordinal
            )
            found.append((node.index, name, Site(name, address, node.index)))
    return {name: site for _, name, site in sorted(found, key=lambda entry: entry[0])}


def piece(trace: Trace, node: Node, name: str) -> Site | None:
    """A site at what a call takes out of a tensor, or at one of the pieces that it makes of it."""
    made = trace.node(node.inputs[0]) if node.op == "output" and node.inputs else node
    op, module, call, ordinal = made.whole or (made.op, made.module, made.call, made.ordinal)
    if module.endswith(STEPS) or made.function is None:
        return None
    place = node.args[0] if node.op == "output" else 0
    again = f":{call + 1}" if call else ""
    stem = f"{module}.{name}" if module else name
    address = Address(Place.FUNCTION, module, call, place, op, ordinal)
    return Site(f"{stem}{again}", address, node.index)


def catch(trace: Trace, reader: Node, argument: int) -> Address | None:
    """Where what a function reads can be caught: at its module, if it is the module's input.

    None if both the function and what it reads are steps of one call, which nobody can see.
    """
    if reader.module.endswith(STEPS):
        return made(trace, argument)
    for call in trace.calls:
        if call.path == reader.module and call.call == reader.call and argument in call.inputs:
            return Address(Place.INPUT, call.path, call.call, call.inputs.index(argument))
    place = list(_references((reader.args, reader.kwargs))).index(argument)
    return Address(
        Place.ARGUMENT, reader.module, reader.call, place, op=reader.op, ordinal=reader.ordinal
    )


def made(trace: Trace, index: int) -> Address | None:
    """Where a tensor can be caught as it is made."""
    for call in trace.calls:
        for kind, nodes in ((Place.OUTPUT, call.outputs), (Place.INPUT, call.inputs)):
            if index in nodes:
                return Address(kind, call.path, call.call, nodes.index(index))
    site = piece(trace, trace.node(index), "")
    return None if site is None else site.address


def _references(value: object) -> Iterator[int | None]:
    """The node of every tensor among the arguments of a call, in order; None for fixed ones."""
    if isinstance(value, Ref):
        yield value.node
    elif isinstance(value, Fixed):
        yield None
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _references(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _references(entry)


def spoken(trace: Trace, node: Node) -> str:
    """What a function is called: by its own name, or by its module's class if it is arithmetic."""
    if not nonlinear(node.op):
        for call in trace.calls:
            if (call.path, call.call) == (node.module, node.call) and node.index in call.outputs:
                return call.kind
    return node.op
