"""What was seen of a model while it ran or trained, look by look."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from basis_probe.brief import brief
from basis_probe.results.codec import Exact

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Glance:
    """One score of one look.

    Attributes:
        observed: its value on the axes.
        null_mean, null_std: over the alternatives.
        effect: (observed - null_mean) / null_std.
        p_value: of this look alone, the tail of the alternatives extrapolated.
    """

    observed: float
    null_mean: float
    null_std: float
    effect: float
    p_value: float


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Look(Exact):
    """What one forward pass showed at one site.

    Attributes:
        step: which of the forward passes that were seen, from 0.
        site: its name.
        n_samples: how many samples the pass had there.
        null: against what the axes were compared; empty where they were not.
        scores: name -> what it was; offset and scale too, where the group holds rotations.
        e_value: of all looks so far. It may be watched and stopped at will: where nothing is on
            the axes it ever reaches 20 with a probability of 1 in 20 at most. It never falls. NaN
            where no exact test could be made so far.
        note: why nothing was compared, or an empty string.
    """

    step: int
    site: str
    n_samples: int
    null: str
    scores: Mapping[str, Glance]
    e_value: float
    note: str = ""


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class History(Exact):
    """All looks at a model, in order.

    Attributes:
        looks: step by step, sites in forward order within each.
        every: how many forward passes lie between looks.
    """

    looks: tuple[Look, ...]
    every: int

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps at which was looked."""
        return tuple(dict.fromkeys(look.step for look in self.looks))

    @property
    def e_value(self) -> float:
        """Of all sites together: the mean of their latest ones, and as valid as each."""
        last = {look.site: look.e_value for look in self.looks}
        known = [value for value in last.values() if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for every step, site and score, as a pandas DataFrame.

        `e_value` is that of the site up to the step, and the same in all rows of both; a site at
        which nothing was compared has one row, without a score.
        """
        import pandas

        names = [field.name for field in dataclasses.fields(Glance)]
        rows: list[dict[str, object]] = []
        for look in self.looks:
            for score, glance in look.scores.items() or [("", None)]:
                given = dict.fromkeys(names, math.nan) if glance is None else vars(glance)
                row: dict[str, object] = {"step": look.step, "site": look.site, "score": score}
                row |= given
                row |= {"e_value": look.e_value, "n_samples": look.n_samples}
                rows.append(row | {"null": look.null, "note": look.note})
        columns = ["step", "site", "score", *names, "e_value", "n_samples", "null", "note"]
        return pandas.DataFrame(rows, columns=columns)

    def scalars(self, step: int | None = None) -> dict[str, float]:
        """Name -> number of one look, as loggers take them; what is not known is left out.

        Args:
            step: which; None for the latest. Without any look the dict is empty.

        Raises:
            KeyError: if there was no look at the step.

        Example:
            >>> look = Look(0, "1", 9, "rotation", {"kurtosis": Glance(5, 3, 1, 2, 0.1)}, 1.5)
            >>> History((look,), 10).scalars()
            {'1/kurtosis': 5, '1/kurtosis/effect': 2, '1/e_value': 1.5, 'e_value': 1.5}
        """
        steps = self.steps
        if step is None and not steps:
            return {}
        at = steps[-1] if step is None else step
        if at not in steps:
            raise KeyError(f"there was no look at step {step}; there were looks at {list(steps)}")
        found: dict[str, float] = {}
        for look in self.looks:
            if look.step != at:
                continue
            for name, glance in look.scores.items():
                found[f"{look.site}/{name}"] = glance.observed
                found[f"{look.site}/{name}/effect"] = glance.effect
            found[f"{look.site}/e_value"] = look.e_value
        until = tuple(look for look in self.looks if look.step <= at)
        found["e_value"] = dataclasses.replace(self, looks=until).e_value
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def plot(
        self, what: str = "e_value", *, figsize: tuple[float, float] | str | None = None
    ) -> Figure:
        """One line for every site over the steps.

        Args:
            what: "e_value", of which the logarithm is drawn, or the name of a score, of which the
                effect is.
            figsize: as for `Report.plot`.

        Raises:
            ValueError: if there is nothing of that name, or another size.
        """
        from basis_probe.show.heatmap import lines

        frame = self.to_dataframe()
        series: dict[str, list[tuple[str, float]]] = {}
        for look in self.looks:
            if what == "e_value" and look.e_value > 0:
                series.setdefault(look.site, []).append((str(look.step), math.log10(look.e_value)))
            elif what in look.scores:
                value = look.scores[what].effect
                series.setdefault(look.site, []).append((str(look.step), value))
        if not series:
            known = ", ".join(["e_value", *sorted({*frame.score} - {""})])
            raise ValueError(f"no look has {what!r} to draw; there are {known}")
        label = "log10 of the e-value (1.3 is 20)" if what == "e_value" else f"effect of {what}"
        return lines(series, label=label, size=figsize)

    def __str__(self) -> str:
        count, sites = len(self.steps), {look.site for look in self.looks}
        return f"{count} looks at {len(sites)} sites, one every {self.every} passes"
