"""Writes the tables of calibration.md on offset, scale and form: `python docs/calibration.py`.

They are those of calibration_orders.jsonl beside the page, which `basis_probe.calibration.rates`
counted; what is between the two headings is written anew, and nothing else. With the record of a
run, `python docs/calibration.py rates.jsonl`, its counts are first added up and written there.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence

from basis_probe.calibration import rates
from basis_probe.calibration.cases import OWN_AXES, TRIALS, WEAK, WEAK_NEURONS
from basis_probe.statistics.orders import FORM, OFFSET, SCALE

HERE = pathlib.Path(__file__).resolve().parent
PAGE, RECORD = HERE / "calibration.md", HERE / "calibration_orders.jsonl"
BEGINS, ENDS = "## Offset, scale and form\n", "## Counted before\n"
FREE = ("no nonlinearity, rotations admitted", "no nonlinearity, rotations about the all-ones "
        "direction admitted")  # fmt: skip
STREAM = "residual stream, untrained language model"


def main(arguments: Sequence[str]) -> None:
    """Writes the page, and the record too where a new one is given."""
    if arguments:
        tallies = rates.read(pathlib.Path(arguments[0]))
        RECORD.write_text("".join(f"{tally.to_json()}\n" for tally in tallies), encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGINS)
    _, after = rest.split(ENDS)
    made = "\n\n".join(_parts(rates.read(RECORD)))
    PAGE.write_text(f"{before}{BEGINS}\n{made}\n\n{ENDS}{after}", encoding="utf-8")


def _parts(tallies: Sequence[rates.Tally]) -> list[str]:
    """The section, paragraph by paragraph."""

    def some(chosen: Callable[[rates.Tally], bool]) -> list[rates.Tally]:
        return [tally for tally in tallies if chosen(tally)]

    matrices = some(lambda t: t.place in FREE and not t.planted)
    streams = some(lambda t: t.place == STREAM)
    own = some(lambda t: t.place == OWN_AXES)
    planted = some(lambda t: t.place in FREE and t.planted)
    weak = some(lambda t: t.place in (WEAK, WEAK_NEURONS) or (t.bounded > 0 and not t.planted))
    named = (*FREE, STREAM, OWN_AXES, WEAK, WEAK_NEURONS)
    others = some(lambda t: not t.planted and t.place not in named)
    null = [*matrices, *streams, *others]
    counted = sum(tally.datasets for tally in null)
    narrow = sum(tally.datasets for tally in null if tally.dim == 16)
    every = rates.wilson(sum(tally.called for tally in null), counted)
    kinds = _kinds(null)
    highest = max(rates.wilson(t.called, t.datasets).low for t in kinds)
    parts = [
        "What decides where rotations are admitted, counted at 16 and at 64 axes and 1,000 "
        "samples, from the beginning with alternatives in single precision and sums in double. "
        "The one rule that is younger, on axes beside a very loud one, only withholds findings. "
        "The tables sum over both sizes; the last three columns say how many of the data sets were "
        "called by that order, and one may be called by several. `python docs/calibration.py` "
        "writes this section from `calibration_orders.jsonl`.",
        f"Of all {counted:,} data sets below with nothing on the axes, {narrow / counted:.0%} of "
        f"them at 16 axes, {every} were called. Of the {len(kinds)} kinds the highest lower end of "
        f"a 95 % interval is {highest:.1%}.",
        "**Nothing on the axes**, matrices:",
        _table(matrices),
        "**Nothing on the axes**, the last residual stream of untrained language models of two "
        "layers, Gaussian weights:",
        _table(streams),
    ]
    if others:
        parts += [
            "**Nothing on the axes**, the other sites of the battery, at which form alone is "
            "asked:",
            _table(others, orders=False),
        ]
    if own:
        parts += [
            "**Initialisations that are not rotation-invariant.** Nothing was learned, yet what is "
            "drawn may have axes; the verdict then says EMERGENT, and that training *or an "
            "initialisation with axes of its own* made them stand out; `initialisation=True` "
            "tells which. Seen in the stream after two blocks; in the embedding itself a "
            "heavy-tailed law stands out far more.",
            _table(own, together=False),
        ]
    if planted:
        parts += [
            "**Sources on the axes**, each found by the order that it belongs to:",
            _table(planted, together=False),
        ]
    if weak:
        parts += [
            "**The bound** beside ARBITRARY and UNUSED, with 95 % confidence: in how many of the "
            "verdicts that stated one the true value lay below it. At 1,000 samples it is wide, "
            "which is why it holds more often than it promises. Not counted: rare events (one "
            "sample in a hundred), which it may miss and then says so.",
            _bounds(weak),
        ]
    return parts


def _kinds(tallies: Sequence[rates.Tally]) -> list[rates.Tally]:
    """Tallies of one kind added up over sizes, in the order of the battery."""
    found: dict[tuple[str, str], rates.Tally] = {}
    for tally in tallies:
        key = (tally.place, tally.trial)
        one = dataclasses.replace(tally, dim=0)
        found[key] = found[key] + one if key in found else one
    order = [(trial.place, trial.name) for trial in TRIALS]
    return [found[key] for key in sorted(found, key=order.index)]


def _name(tally: rates.Tally) -> str:
    return tally.trial + (", about the all-ones direction" if tally.place == FREE[1] else "")


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _table(tallies: Sequence[rates.Tally], *, orders: bool = True, together: bool = True) -> str:
    asked = (OFFSET, SCALE, FORM) if orders else ()
    head = ["data", "data sets", "called", *asked]
    head = head if orders else ["site", *head]
    kinds = _kinds(tallies)
    lines = [_row(head), _row(["---"] * len(head))]
    for tally in kinds:
        names = [_name(tally)] if orders else [tally.place, _name(tally)]
        cells = [*names, tally.datasets, rates.wilson(tally.called, tally.datasets)]
        lines.append(_row([*cells, *(_claimed(tally, order) for order in asked)]))
    if together:
        datasets, called = (sum(getattr(t, n) for t in kinds) for n in ("datasets", "called"))
        names = ["*all*"] if orders else ["*all*", ""]
        cells = [*names, datasets, rates.wilson(called, datasets)]
        lines.append(_row([*cells, *(sum(_claimed(t, o) for t in kinds) for o in asked)]))
    return "\n".join(lines)


def _claimed(tally: rates.Tally, order: str) -> int:
    count = tally.scores.get(order)
    return 0 if count is None else count.below


def _bounds(tallies: Sequence[rates.Tally]) -> str:
    head = ["data", "data sets", "called", "bound holds"]
    lines = [_row(head), _row(["---"] * len(head))]
    for tally in _kinds(tallies):
        holds = f"{rates.wilson(tally.covered, tally.bounded)} of {tally.bounded}"
        called = rates.wilson(tally.called, tally.datasets)
        lines.append(_row([_name(tally), tally.datasets, called, holds]))
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
