"""Prints which room hands the data of one call on to which: `python docs/data_flow.py`.

A plain `probe` runs while every call is looked at. `run` conducts, and the doors before it: what
they hand to another room, a batch or what was made of it, is a line. A room does its work with the
rooms above it in the list of `tests/test_structure.py`, which are named beside it. What a value
does by itself, with nothing else handed over, is no line.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pathlib
import sys
from types import CodeType, FrameType

import numpy as np
import torch

import basis_probe as bp

PACKAGE = pathlib.Path(bp.__file__).resolve().parent
CONDUCTORS = ("observation", "run")
SERVICES = ("errors", "interrupts", "parallel", "brief", "arguments", "files", "arrays")
DEPTH = 4
"""So deep a value may hold a tensor and count as made of the data."""


@dataclasses.dataclass
class Line:
    """A room that was handed data.

    Attributes:
        room: which.
        functions: what was called there, where it was called here first.
        beneath: the rooms that did part of the work.
    """

    room: str
    functions: list[str]
    beneath: set[str]


def lines() -> list[Line]:
    """What a plain `probe` of a small network hands from room to room, in the order of its code."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 8),
        torch.nn.LayerNorm(8),
        torch.nn.Linear(8, 4),
    )
    data = [torch.randn(150, 8) for _ in range(3)]
    watching = _Watching({id(parameter) for parameter in model.parameters()})
    sys.setprofile(watching.see)
    try:
        bp.probe(model, data, progress=False)
    finally:
        sys.setprofile(None)
    return watching.lines


class _Watching:
    """Looks at every call from one room to another."""

    def __init__(self, parameters: set[int]) -> None:
        self.parameters = parameters
        self.lines: list[Line] = []
        self.known: set[tuple[CodeType, CodeType]] = set()

    def see(self, frame: FrameType, event: str, _: object) -> None:
        room, caller = _room(frame.f_code), frame.f_back
        if event != "call" or room in (*SERVICES, *CONDUCTORS, ""):
            return
        while caller is not None and _room(caller.f_code) in (*SERVICES, ""):
            caller = caller.f_back
        pair = (frame.f_code, frame.f_code if caller is None else caller.f_code)
        if caller is None or pair in self.known:
            return
        if _room(caller.f_code) in CONDUCTORS:
            # Without its data a function may still be handed them by the same caller later.
            if self._is_handed(frame):
                self.known.add(pair)
                self._add(room, _name(frame))
        elif _room(caller.f_code) != room:
            self.known.add(pair)
            entered = self._entered(caller)
            for line in self.lines:
                if line.room == entered != room:
                    line.beneath.add(room)

    def _add(self, room: str, function: str) -> None:
        if not self.lines or self.lines[-1].room != room:
            self.lines.append(Line(room, [], set()))
        if not any(function in line.functions for line in self.lines):
            self.lines[-1].functions.append(function)

    def _is_handed(self, frame: FrameType) -> bool:
        """True if a function with a public name is given data besides the value that it is of."""
        code = frame.f_code
        if _name(frame).rpartition(".")[2].startswith(("_", "<")) or _is_inner(code):
            return False
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        return any(
            self._is_data(frame.f_locals.get(name)) for name in names if name not in ("self", "cls")
        )

    @staticmethod
    def _entered(frame: FrameType | None) -> str:
        """The room that a conductor entered to get here."""
        room = ""
        while frame is not None:
            here = _room(frame.f_code)
            if here in CONDUCTORS:
                return room
            room = room if here in (*SERVICES, "") else here
            frame = frame.f_back
        return room

    def _is_data(self, value: object, depth: int = 0) -> bool:
        if isinstance(value, torch.Tensor | np.ndarray):
            return id(value) not in self.parameters
        if depth == DEPTH or isinstance(value, torch.nn.Module | type):
            return False
        if isinstance(value, list | tuple):
            return any(self._is_data(one, depth + 1) for one in value)
        if isinstance(value, dict):
            return any(self._is_data(one, depth + 1) for one in value.values())
        if type(value).__module__.startswith("basis_probe"):
            return any(self._is_data(one, depth + 1) for one in vars(value).values())
        return False


@functools.cache
def _room(code: CodeType) -> str:
    """The room of a function; nothing outside of the package."""
    path = pathlib.Path(code.co_filename)
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py") if _is_ours(path) else ""


def _is_inner(code: CodeType) -> bool:
    """True for a function that was made within another, which a value holds as its own."""
    return bool(code.co_flags & inspect.CO_NESTED)


def _is_ours(path: pathlib.Path) -> bool:
    return path.is_relative_to(PACKAGE)


def _name(frame: FrameType) -> str:
    """The name of the function that runs, with its class; of a class that is made, the class's."""
    name = getattr(frame.f_code, "co_qualname", "")
    if not name:  # Python 3.10
        own = type(frame.f_locals["self"]).__name__ if "self" in frame.f_locals else ""
        name = f"{own}.{frame.f_code.co_name}" if own else frame.f_code.co_name
    return name.removesuffix(".__init__")


def table() -> str:
    """The lines as Markdown."""
    rows = ["| room | is handed the data by | with the help of |", "| --- | --- | --- |"]
    for line in lines():
        shown = [f"`{name}`" for name in line.functions]
        helped = ", ".join(sorted(line.beneath)) or "-"
        rows.append(f"| **{line.room}** | {', '.join(shown)} | {helped} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
