"""Which instances of a parametrised test run when.

A long list of instances goes through the same code many times over. Its test says with a mark how
many of them are enough on most days:

    @pytest.mark.sample(default=6, slow=40)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_...(family): ...

`make test` then runs 6 of them, `make slow-test` 40 others, and `make battery` the rest; without
`slow`, all others are slow. Every instance runs in exactly one of the three. Which ones is drawn
from their names and a seed: it is the same on every machine and in every process, and an instance
that is added or renamed moves at most one other. Another `seed=` draws others.

Instances that are marked as slow or battery by hand stay at least as late as their mark says.
"""

import hashlib
from collections.abc import Collection, Sequence
from typing import Literal

import pytest

Tier = Literal["default", "slow", "battery"]


def ranked(names: Collection[str], seed: int) -> list[str]:
    """The names in an order that depends on each name and the seed, and on nothing else."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())


def tiers(
    names: Collection[str], *, default: int, slow: int | None = None, seed: int = 0
) -> dict[str, Tier]:
    """When each instance runs: `default` of them always, `slow` more with the slow tests."""
    if default < 1 or (slow is not None and slow < 1):
        raise ValueError(
            f"sample(default={default}, slow={slow}): every test needs one instance in every run"
        )
    order = ranked(names, seed)
    ends = default, len(order) if slow is None else default + slow
    return {
        name: "default" if place < ends[0] else "slow" if place < ends[1] else "battery"
        for place, name in enumerate(order)
    }


def mark(items: Sequence[pytest.Item]) -> None:
    """Marks the instances of tests with a `sample` mark that are left to a later run."""
    tests: dict[str, list[pytest.Item]] = {}
    settings: dict[str, pytest.Mark] = {}
    for item in items:
        asked = item.get_closest_marker("sample")
        if asked is not None and not _late(item):
            test = item.nodeid.partition("[")[0]
            tests.setdefault(test, []).append(item)
            settings[test] = asked
    for test, instances in tests.items():
        drawn = tiers([item.nodeid for item in instances], **settings[test].kwargs)
        for item in instances:
            if drawn[item.nodeid] != "default":
                item.add_marker(drawn[item.nodeid])


def _late(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) is not None for name in ("slow", "battery"))
