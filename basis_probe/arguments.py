"""What users hand over, checked at once: every refusal says what was given and what is needed."""

import enum
import math
import operator
import os
from collections.abc import Iterable
from typing import SupportsFloat, SupportsIndex, TypeVar, cast

import numpy as np
import torch

from basis_probe.brief import described

SEEDS = range(-(2**63), 2**64)
"""What torch takes as a seed."""

_MOST = 2**63 - 1
_LONGEST = 10_000
"""Characters of a name at most; comparing longer ones with others takes long."""


def whole(name: str, value: object, *, least: int = 0, most: int = _MOST, else_: str = "") -> int:
    """The whole number that is meant, of Python, numpy or torch.

    Args:
        name: of the argument.
        value: what was given.
        least: the smallest that makes sense.
        most: the largest.
        else_: what else may be given, such as ", or None for all".

    Raises:
        ValueError: for anything else, a bool too.

    Example:
        >>> whole("frames", np.int64(3), least=1)
        3
    """
    if not isinstance(value, bool | np.bool_) and isinstance(value, SupportsIndex):
        try:
            found = operator.index(value)
        except (TypeError, ValueError, RuntimeError):
            found = least - 1
        if least <= found <= most:
            return found
    if most != _MOST:
        room = f"from {_power(least)} to {_power(most)}"
    else:
        room = "above zero" if least == 1 else f"of at least {least}"
    raise ValueError(f"{name}={described(value)}: give a whole number {room}{else_}")


def _power(value: int) -> str:
    """A large limit as people write it."""
    for near, said in ((-(2**63), "-2**63"), (2**64 - 1, "2**64 - 1")):
        if value == near:
            return said
    return str(value)


def seed_of(value: object) -> int:
    """The seed that is meant, if a random generator can take it.

    Raises:
        ValueError: if it is not a whole number of 64 bits.
    """
    return whole("seed", value, least=SEEDS.start, most=SEEDS.stop - 1)


def number(
    name: str,
    value: object,
    *,
    above: float = 0.0,
    least: float | None = None,
    most: float = math.inf,
) -> float:
    """The number that is meant, finite and above a limit.

    Args:
        name: of the argument.
        value: what was given.
        above: what it must exceed; -inf for any number.
        least: the smallest that makes sense, in place of `above`.
        most: the largest.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, SupportsFloat) and not isinstance(value, bool | np.bool_ | str):
        try:
            found = float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            found = math.nan
        enough = found > above if least is None else found >= least
        if enough and found <= most and math.isfinite(found):
            return found
    limits = [f"above {above:g}" if least is None else f"of at least {least:g}"]
    if least is None and above == -math.inf:
        limits = ["that is finite"]
    if most != math.inf:
        limits.append(f"at most {most:g}")
    raise ValueError(f"{name}={described(value)}: give a number {' and '.join(limits)}")


def flag(name: str, value: object, *, unknown: bool = False) -> bool | None:
    """True or False as it is meant; None too where `unknown` says so.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if unknown and value is None:
        return None
    raise ValueError(
        f"{name}={described(value)}: give True or False{', or None to leave it open' * unknown}"
    )


def several(name: str, value: object, what: str) -> tuple[object, ...]:
    """The entries of a list that was given, which an iterator gives once only.

    Args:
        name: of the argument.
        value: what was given.
        what: what the entries are, such as "names of sites".

    Raises:
        ValueError: for what cannot be listed, or is empty.
    """
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        found = tuple(cast("Iterable[object]", value))
        if found:
            return found
        raise ValueError(f"{name} is empty: give {what}, or None")
    raise ValueError(f"{name}={described(value)}: give {what}, in a list, or None")


def texts(name: str, value: object, what: str) -> tuple[str, ...]:
    """The texts of a list that was given; a single text counts as a list of one.

    Raises:
        ValueError: for anything else.
    """
    entries = (value,) if isinstance(value, str) else several(name, value, what)
    found = tuple(entry for entry in entries if isinstance(entry, str))
    if len(found) < len(entries):
        other = next(entry for entry in entries if not isinstance(entry, str))
        raise ValueError(f"{name} holds {described(other)}: give {what}, in a list, or None")
    longest = max(found, key=len, default="")
    if len(longest) > _LONGEST:
        raise ValueError(
            f"{name} holds a text of {len(longest):,} characters, {described(longest)}: give {what}"
        )
    return found


def one_of(name: str, value: object, known: Iterable[str]) -> str:
    """The name that was given, if it is one of those that are known.

    Raises:
        ValueError: for anything else.
    """
    choice = tuple(known)
    if isinstance(value, str) and value in choice:
        return value
    raise ValueError(f"{name}={described(value)} is not known: give one of {', '.join(choice)}")


Kind = TypeVar("Kind", bound=enum.Enum)


def member(name: str, value: object, kind: type[Kind]) -> Kind:
    """The member of an enumeration that was given, or named.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, kind):
        return value
    names = {one.name.lower(): one for one in kind}
    return names[one_of(name, value.lower() if isinstance(value, str) else value, names)]


def function(name: str, value: object, what: str) -> None:
    """Raises TypeError for what cannot be called; `what` says what to give."""
    if not callable(value):
        raise TypeError(f"{name}={described(value)}: give {what}")


def array_of(name: str, value: object, what: str) -> np.ndarray:
    """The numbers or texts that were given, as an array.

    Args:
        name: of the argument.
        value: a tensor, an array, or a list of numbers or texts.
        what: what to give, in words.

    Raises:
        TypeError: for what holds none, such as sparse and nested tensors.
    """
    try:
        found = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        found = None
    if found is None or found.dtype.kind not in "biufUS":
        raise TypeError(f"{name}={described(value)}: give {what}")
    return found


Wanted = TypeVar("Wanted")


def instance(
    name: str, value: object, kind: type[Wanted] | tuple[type[Wanted], ...], what: str
) -> Wanted:
    """The value, if it is of a kind.

    Args:
        name: of the argument.
        value: what was given.
        kind: the class that it must belong to, or several.
        what: what to give, in words.

    Raises:
        TypeError: if it is not.
    """
    if isinstance(value, kind):
        return value
    raise TypeError(f"{name}={described(value)}: give {what}")


def path(name: str, value: object) -> str | os.PathLike[str]:
    """The path that is meant.

    Raises:
        ValueError: for what is none.
    """
    if isinstance(value, str) and value:
        return value
    if isinstance(value, os.PathLike):
        return cast("os.PathLike[str]", value)
    raise ValueError(f"{name}={described(value)}: give the path of a file, or None")
