"""What the architecture says of a site: its group, the reason, and the proof."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from basis_probe.algebra.groups import Group, Privileged
from basis_probe.brief import brief
from basis_probe.results.codec import Exact


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Certificate(Exact):
    """How far the outputs moved when elements of the claimed group acted, and others outside it.

    Attributes:
        holds: True if no element moved the outputs, or the site otherwise than it says, by more
            than the tolerance, and every stranger moved the outputs a thousand times further.
        max_error: by how much an element of the group moved an output at most, relative to the
            largest output.
        tolerance: by how much it may: 1e-9 in float64; 1e-4 for a model that returns less.
        violation: by how much the stranger that did least moved the outputs; NaN if none was tried.
        action_error: by how much the activations at the site missed what the element makes of them,
            relative to the largest.
        stranger: what that stranger was.
    """

    holds: bool
    max_error: float
    tolerance: float
    violation: float
    action_error: float = 0.0
    stranger: str = ""

    def _repr_html_(self) -> str:
        from basis_probe.show.html import certificate_fragment

        return certificate_fragment(self)


@brief
@dataclasses.dataclass(frozen=True)
class Symmetry:
    """The changes of basis at one site that the surrounding weights could absorb, and why.

    Attributes:
        group: the group, acting on the activations of the site itself.
        privileged: which directions it leaves meaningful.
        because: the reason, in one or two sentences, from what the modules were seen to compute.
        reference: where the statement is proved or published.
        certificate: the numerical proof on this very model, or None where none was made.
        unproved: why none was made, or what the one that failed had claimed.
    """

    group: Group
    privileged: Privileged
    because: str
    reference: str
    certificate: Certificate | None = None
    unproved: str = ""

    def _repr_html_(self) -> str:
        from basis_probe.show.html import symmetry_fragment

        return symmetry_fragment(self)


@brief
class Symmetries(dict[str, Symmetry]):
    """Site name -> symmetry, in forward order; shows itself as a table."""

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with one row per site: group, what it privileges, certificate, why.

        Example:
            >>> from basis_probe import Symmetries, Symmetry
            >>> from basis_probe.algebra.groups import Permutation
            >>> group = Permutation(3)
            >>> found = Symmetries(mlp=Symmetry(group, group.privileged, "GELU.", "algebra"))
            >>> found.to_dataframe().loc["mlp", "privileges"]
            'AXES'
        """
        from basis_probe.show.architecture import dataframe

        return dataframe(self)

    def _brief(self) -> Mapping[str, object]:
        kinds = collections.Counter(symmetry.privileged for symmetry in self.values())
        return {"sites": len(self)} | {kind.name.lower(): n for kind, n in kinds.items()}

    def _repr_html_(self) -> str:
        from basis_probe.show.architecture import html

        return html(self)

    def __str__(self) -> str:
        from basis_probe.show.architecture import text

        return text(self)
