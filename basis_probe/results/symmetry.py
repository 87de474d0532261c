"""What the architecture says of a site: its group, the reason, and the proof."""

import collections
import dataclasses
from collections.abc import Callable, Mapping
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
class Completeness:
    """Whether the claimed groups hold every continuous symmetry of a model, counted.

    The directions in parameter space that leave the function unchanged to first order, at these
    weights, against those that are claimed. Orders and signs of axes are not seen by the count.

    Attributes:
        parameters: how many numbers the parameters hold, tied ones as if they were not.
        nullity: the dimension of the null space of the Jacobian of (parameters -> outputs).
        claimed: the dimension of what is claimed of it: the six that follow, added up.
        of_groups: what the groups of all sites do to the parameters.
        unreached: numbers that no output depends on, such as the embeddings of other tokens.
        of_shifts: further directions in which only biases and tables that are added change, as a
            bias that the next one absorbs.
        unseen: further directions that a LayerNorm does not let through: what is written along the
            all-ones direction, and what is read along it behind the norm.
        of_gains: further directions in which a gain grows and what reads it shrinks.
        of_scales: further directions in which a stream grows as a whole that norms read, where the
            epsilon of the norms is too small to be seen.
        missing: the parameters in which most of the unclaimed part lies, each with its share; empty
            if nothing is missing.
        near: singular values that are not zero, relative to the largest, below 1e-5: symmetries but
            for an epsilon, such as the scale of a stream that RMSNorm reads.
        largest_stray: by how much a claimed direction left the null space at most; what left it by
            more than 1e-6 is not counted.
    """

    parameters: int
    nullity: int
    claimed: int
    of_groups: int
    unreached: int
    of_shifts: int
    unseen: int
    of_gains: int
    of_scales: int = 0
    missing: tuple[tuple[str, float], ...] = ()
    near: tuple[float, ...] = ()
    scales: tuple[tuple[str, float], ...] = ()
    largest_stray: float = 0.0

    @property
    def complete(self) -> bool:
        """True if every direction of the null space is claimed, and every claim lies in it."""
        return self.claimed == self.nullity and self.largest_stray <= 1e-6

    def __str__(self) -> str:
        if self.complete:
            return f"complete: {self.claimed} of {self.nullity} directions are claimed"
        where = ", ".join(f"{name} ({share:.0%})" for name, share in self.missing)
        stray = "" if self.largest_stray <= 1e-6 else "; a claimed direction changes the function"
        return (
            f"{self.claimed} of {self.nullity} directions are claimed; the others move {where}"
            if where
            else f"{self.claimed} of {self.nullity} directions are claimed"
        ) + stray


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class CompleteCertificate(Certificate):
    """The proof of a claim, with the count for the whole model.

    Attributes:
        completeness: whether the claims about all sites hold every continuous symmetry.
    """

    completeness: Completeness | None = None


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

    _counted: Completeness | None = None
    _count: Callable[[], Completeness] | None = None

    @property
    def completeness(self) -> Completeness:
        """Whether these claims hold every continuous symmetry of the model, counted when asked.

        Raises:
            ValueError: if the model is too large for it, or these symmetries were stored.

        Example:
            >>> import torch, basis_probe as bp
            >>> _ = torch.manual_seed(0)
            >>> layers = torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
            >>> model = torch.nn.Sequential(*layers)
            >>> print(bp.symmetries(model, torch.randn(40, 3)).completeness)
            complete: 4 of 4 directions are claimed
        """
        if self._counted is None:
            if self._count is None:
                raise ValueError(
                    "it is not known which model these symmetries are of: ask what "
                    "basis_probe.symmetries returned, before it is stored"
                )
            self._counted = self._count()
        return self._counted

    def __getstate__(self) -> dict[str, object]:
        # What counts refers to the model.
        return {"_counted": self._counted}

    def counting(self, count: Callable[[], Completeness]) -> "Symmetries":
        """The same symmetries, which know how they are counted."""
        self._count = count
        return self

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
