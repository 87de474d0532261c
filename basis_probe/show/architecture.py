"""The architecture's answers as a table: in a notebook, on a terminal, as text, for pandas."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from basis_probe.algebra.groups import Blocks, Privileged
from basis_probe.results.symmetry import Certificate, Symmetry
from basis_probe.show import words

if TYPE_CHECKING:
    import pandas
    from rich.table import Table

_BLOCK = re.compile(r"(?<=[A-Za-z_]\.)\d+(?=\.[A-Za-z_])")
"""The number of a block in the name of a module."""

_NAMES = 4
"""So many names of one row are written out; the others are counted."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Sites with one and the same answer, in forward order.

    Attributes:
        sites: their names.
        symmetry: the answer; its certificate is that of the site where it holds most narrowly.
    """

    sites: tuple[str, ...]
    symmetry: Symmetry

    @property
    def patterns(self) -> dict[str, tuple[str, ...]]:
        """The names with the number of their block left open -> the names that differ in it only.

        Example:
            >>> row = Row(("h.0.mlp", "h.1.mlp", "ln"), Symmetry(*[None] * 4))  # type: ignore
            >>> [*row.patterns]
            ['h.*.mlp', 'ln']
        """
        found: dict[str, list[str]] = {}
        for name in self.sites:
            found.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name, count=1), []).append(name)
        return {
            pattern if len(names) > 1 else names[0]: tuple(names)
            for pattern, names in found.items()
        }

    @property
    def named(self) -> str:
        """The sites in a few words; how many of them share a pattern stands behind it."""
        parts = [
            words.shorten(words.clean(pattern), 60) + (f" ({len(names)})" if len(names) > 1 else "")
            for pattern, names in self.patterns.items()
        ]
        shown = ", ".join(parts[:_NAMES])
        more = sum(len(names) for names in [*self.patterns.values()][_NAMES:])
        return f"{shown} and {more} more" if more > 0 else shown

    @property
    def group(self) -> str:
        """The group by its name and size."""
        found = self.symmetry.group
        if isinstance(found, Blocks):
            copies = f" x {found.copies} copies" if found.copies > 1 else ""
            return f"{found.count} blocks{copies}: {found.inner.name} ({found.inner.dim})"
        return f"{found.name} ({found.dim})"

    @property
    def proof(self) -> str:
        """What the certificate says, briefly."""
        return proof(self.symmetry)


def rows(found: Mapping[str, Symmetry]) -> tuple[Row, ...]:
    """The answers, each once, with all the sites that it holds for.

    What is proved at some sites and not, or not in the same words, at others is not one answer;
    words that differ in the number of a block only are the same.
    """
    gathered: dict[tuple[Symmetry, bool | None], list[str]] = {}
    for name, symmetry in found.items():
        made = symmetry.certificate
        because = _BLOCK.sub("*", symmetry.because)
        claim = dataclasses.replace(symmetry, because=because, certificate=None)
        gathered.setdefault((claim, None if made is None else made.holds), []).append(name)
    answers: list[Row] = []
    for (claim, _), names in gathered.items():
        one = _narrowest([found[name] for name in names])
        if len({found[name].because for name in names}) > 1:
            one = dataclasses.replace(one, because=claim.because)
        answers.append(Row(tuple(names), one))
    return tuple(answers)


def _narrowest(alike: Sequence[Symmetry]) -> Symmetry:
    """The answer with a certificate that says no more than that of any of the sites."""
    made = [symmetry.certificate for symmetry in alike if symmetry.certificate is not None]
    if not made:
        return alike[0]
    tried = [one for one in made if not math.isnan(one.violation)]
    least = min(tried, key=lambda one: one.violation, default=made[0])
    worst = Certificate(
        holds=all(one.holds for one in made),
        max_error=max(one.max_error for one in made),
        tolerance=max(one.tolerance for one in made),
        violation=least.violation,
        action_error=max(one.action_error for one in made),
        stranger=least.stranger,
    )
    return dataclasses.replace(alike[0], certificate=worst)


def proof(symmetry: Symmetry) -> str:
    """What the certificate of a claim says, in a few words.

    Example:
        >>> from basis_probe.algebra.groups import Permutation
        >>> group = Permutation(2)
        >>> proved = Certificate(True, 2e-15, 1e-9, 0.4, stranger="rotation")
        >>> proof(Symmetry(group, group.privileged, "GELU.", "algebra", proved))
        'holds: moved by 2e-15; a rotation outside it by 0.4'
    """
    found = symmetry.certificate
    if found is None:
        unknown = symmetry.privileged is Privileged.UNKNOWN
        return words.DASH if unknown else f"none: {symmetry.unproved or 'not asked for'}"
    outside = (
        "nothing outside it to try"
        if math.isnan(found.violation)
        else f"a {found.stranger or 'stranger'} outside it by {found.violation:.1g}"
    )
    return f"{'holds' if found.holds else 'FAILS'}: moved by {found.max_error:.1g}; {outside}"


def dataframe(found: Mapping[str, Symmetry]) -> pandas.DataFrame:
    """One row for every site, with the same columns and types for every model."""
    import pandas as pd

    def numbers(symmetry: Symmetry) -> tuple[object, float, float, str]:
        made: Certificate | None = symmetry.certificate
        if made is None:
            return pd.NA, math.nan, math.nan, ""
        return made.holds, made.max_error, made.violation, made.stranger

    columns = {
        "group": [symmetry.group.name for symmetry in found.values()],
        "dim": [symmetry.group.dim for symmetry in found.values()],
        "privileges": [symmetry.privileged.name for symmetry in found.values()],
        "certified": [numbers(symmetry)[0] for symmetry in found.values()],
        "max_error": [numbers(symmetry)[1] for symmetry in found.values()],
        "violation": [numbers(symmetry)[2] for symmetry in found.values()],
        "stranger": [numbers(symmetry)[3] for symmetry in found.values()],
        "because": [words.clean(symmetry.because) for symmetry in found.values()],
        "unproved": [words.clean(symmetry.unproved) for symmetry in found.values()],
        "reference": [symmetry.reference for symmetry in found.values()],
    }
    frame = pd.DataFrame(columns, index=pd.Index([*found], name="site", dtype="string"))
    text = "group privileges stranger because unproved reference".split()
    types = dict.fromkeys(text, "string") | {"dim": "int64", "certified": "boolean"}
    return frame.astype(types | {"max_error": "float64", "violation": "float64"})


def records(found: Mapping[str, Symmetry]) -> list[dict[str, object]]:
    """One entry for every site, of values that JSON can hold.

    Example:
        >>> from basis_probe.algebra.groups import Permutation
        >>> group = Permutation(2)
        >>> [entry] = records({"mlp": Symmetry(group, group.privileged, "GELU.", "algebra")})
        >>> entry["group"], entry["dim"], entry["certificate"]
        ('permutation', 2, None)
    """

    def certificate(made: Certificate | None) -> dict[str, object] | None:
        if made is None:
            return None
        # JSON has no NaN.
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in dataclasses.asdict(made).items()
        }

    return [
        {
            "site": name,
            "group": symmetry.group.name,
            "dim": symmetry.group.dim,
            "privileges": symmetry.privileged.name,
            "because": symmetry.because,
            "reference": symmetry.reference,
            "certificate": certificate(symmetry.certificate),
            "unproved": symmetry.unproved,
        }
        for name, symmetry in found.items()
    ]


def html(found: Mapping[str, Symmetry]) -> str:
    """The table as one HTML element for a notebook; its styles touch nothing outside it."""
    from basis_probe.show.html import architecture

    return architecture(rows(found), summary(found))


def text(found: Mapping[str, Symmetry]) -> str:
    """The table as plain text, three lines for each answer."""
    if not found:
        return "No site ran."
    lines = [summary(found), ""]
    for row in rows(found):
        lines.append(row.named)
        lines.append(f"    {row.group}, privileges {row.symmetry.privileged.name}; {row.proof}")
        lines.append(f"    {words.clean(row.symmetry.because)}")
    return "\n".join(lines)


def terminal(found: Mapping[str, Symmetry]) -> Table:
    """The table for a rich console; nothing in it is read as markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=summary(found))
    for heading in ("site", "group", "privileges", "certificate", "because"):
        table.add_column(heading, overflow="fold")
    for row in rows(found):
        symmetry = row.symmetry
        made = symmetry.certificate
        style = "" if made is None else "green" if made.holds else "bold red"
        table.add_row(
            Text(row.named),
            Text(row.group),
            Text(symmetry.privileged.name),
            Text(row.proof, style),
            Text(words.clean(symmetry.because)),
        )
    return table


def summary(found: Mapping[str, Symmetry]) -> str:
    """How many claims there are, and how many of them were proved."""
    claims = [s for s in found.values() if s.privileged is not Privileged.UNKNOWN]
    proved = [s for s in claims if s.certificate is not None and s.certificate.holds]
    failed = [s for s in found.values() if s.certificate is not None and not s.certificate.holds]
    said = (
        f"{words.several(len(found), 'site')}, {words.several(len(claims), 'claim')}, "
        f"{words.count(len(proved))} proved on this model"
    )
    return f"{said}; {words.several(len(failed), 'claim')} refuted" if failed else said
