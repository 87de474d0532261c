"""Before the data: what was asked for, and where in the model it is."""

import dataclasses
import fnmatch
import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, cast

from torch import Tensor, nn

from basis_probe.algebra.groups import (
    GeneralLinear,
    Group,
    group_from_name,
    require_group,
)
from basis_probe.architecture.derive import Derivation
from basis_probe.architecture.symmetries import proved
from basis_probe.arguments import flag, instance, one_of, seed_of, texts, whole
from basis_probe.brief import described
from basis_probe.errors import SiteError
from basis_probe.evidence.measure import affordable
from basis_probe.evidence.site import (
    Companions,
    chosen_null,
    chosen_scores,
    listed_scores,
    parted_scores,
)
from basis_probe.memory import give_back
from basis_probe.model.around import Around, around
from basis_probe.model.batches import Batch
from basis_probe.model.experts import Expert, times
from basis_probe.model.facts import Facts, facts_of
from basis_probe.model.linear_layer import Layer, bend, bent_by, layer, unlike_mixtures
from basis_probe.model.network import Subject, fingerprint
from basis_probe.model.places import Place, Site
from basis_probe.model.roles import Role, role
from basis_probe.model.sites import asked, sensible
from basis_probe.results.symmetry import Symmetry
from basis_probe.run.parts import DATA, beginning, differing
from basis_probe.run.stream import Plan, Stream
from basis_probe.statistics.nulls import Geometry, Null, Rotation, geometry_of
from basis_probe.statistics.scores import ATTRIBUTION, INTEGRATED, Score

Groups = Mapping[str, Group | str] | Group | str
Effort = Literal["full", "quick"]

QUICK = 1024
"""How many samples of a site a quick look keeps."""


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """A site with everything that does not depend on the data beyond the first batch.

    Attributes:
        trouble: why nothing can be compared there; empty if it can.
        expert: which expert's neurons they are, and of how many; None elsewhere.
        bent_by: which function makes the axes, where no counterfactual is had; empty for none.
        unlike_mixtures: why no mixture of all channels is like one that is bent; or empty.
    """

    site: Site
    role: Role
    shape: tuple[int, ...]
    symmetry: Symmetry
    plan: Plan
    layer: Layer | None
    geometry: Geometry
    bend: Callable[[Tensor], Tensor] | None
    notes: tuple[str, ...]
    trouble: str = ""
    expert: tuple[int, int] | None = None
    around: Callable[[], Around] = Around
    bent_by: str = ""
    unlike_mixtures: str = ""

    @property
    def dim(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Choices:
    """What a user chose, checked as far as no model is needed for it.

    Attributes:
        sites: names or globs; None for the sensible ones.
        scores: the scores.
        null: the null for all sites; None for the one each site calls for.
        said: the null in the user's words.
        groups: groups that override the derived ones.
        seed: seeds the sample of rows and the alternatives.
        max_samples: at most this many samples at each site.
        certificates: whether to prove what is claimed; None to do so.
        progress: whether to show progress bars.
        quick: whether it is a quick look, of few samples and without proofs.
        asked: the sites in the user's words, where `sites` says what they came to.
        companions: what is computed besides the evidence.
        own: names of scores that have a null of their own.
        initialisation: whether an untrained network is asked where axes stand out, or which; None
            to ask at embeddings.
    """

    sites: str | tuple[str, ...] | None
    scores: tuple[Score, ...]
    null: Null | None
    said: str | Null | None
    groups: Groups | None
    seed: int
    max_samples: int | None
    certificates: bool | None
    progress: bool
    quick: bool = False
    asked: str = ""
    companions: Companions = dataclasses.field(default_factory=Companions)
    own: tuple[str, ...] = ()
    initialisation: bool | nn.Module | None = None

    @staticmethod
    def of(
        *,
        sites: str | Iterable[str] | None,
        scores: Iterable[str | Score] | None,
        null: str | Null | None,
        groups: Groups | None,
        seed: int,
        max_samples: int | None,
        certificates: bool | None,
        progress: bool,
        companions: Companions | None = None,
        effort: Effort = "full",
        runs: bool = False,
        initialisation: bool | nn.Module | None = None,
    ) -> "Choices":
        """The choices, if they make sense.

        Scores with a null of their own are known only where it `runs` the model itself.

        Raises:
            ValueError: for a score, null or number that makes none.
            TypeError: for an initialisation that is no network.
        """
        scores = listed_scores(scores)
        used, own = parted_scores(scores) if runs else (chosen_scores(scores), ())
        wanted, seed = chosen_null(null), seed_of(seed)
        if max_samples is not None:
            max_samples = whole("max_samples", max_samples, least=1, else_=", or None for all")
        if sites is not None:
            try:
                named = texts("sites", sites, "names or globs of sites")
            except ValueError as error:
                raise SiteError(str(error)) from None
            sites = sites if isinstance(sites, str) else named
        certificates = flag("certificates", certificates, unknown=True)
        one_of("effort", effort, ("full", "quick"))
        require_groups(groups)
        quick = effort == "quick"
        if quick:
            max_samples = QUICK if max_samples is None else max_samples
            certificates = certificates or False
        progress = bool(flag("progress", progress))
        return Choices(
            sites=sites,
            scores=used,
            null=wanted,
            said=null,
            groups=groups,
            seed=seed,
            max_samples=max_samples,
            certificates=certificates,
            progress=progress,
            quick=quick,
            companions=companions or Companions.of(None, 0, scores),
            own=own,
            initialisation=_initialisation(initialisation),
        )

    @property
    def settings(self) -> dict[str, str]:
        """The choices in words."""
        return {
            "sites": self.asked or _said(self.sites),
            "scores": ", ".join(
                (*(s.name for s in (*self.scores, *self.companions.own)), *self.own)
            ),
            "null": "by site" if self.said is None else str(self.said),
            "groups": "derived" if self.groups is None else str(self.groups),
            "max_samples": "all" if self.max_samples is None else str(self.max_samples),
            "rows_for_nulls": str(self.capacity),
            "bases": ", ".join(basis.name for basis in self.companions.bases) or "none",
            **({"effort": "quick"} if self.quick else {}),
            **_said_of(self.initialisation),
            **({"gradients": "kept"} if ATTRIBUTION in self.own else {}),
            **({"gradients": "integrated"} if INTEGRATED in self.own else {}),
        }

    @property
    def capacity(self) -> int:
        """How many rows are kept of a site at most."""
        return max(_capacity(self.null), self.companions.rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Watched:
    """A model that was watched on the first examples, and the sites that were asked for.

    Attributes:
        leaders: site -> the site whose numbers it shares, because both show one tensor.
        plans: what is caught at every leader.
        left_out: how many experts have sites that nobody asked for by name, and were too many.
    """

    subject: Subject
    first: Batch
    derivation: Derivation
    places: dict[str, Placed]
    leaders: dict[str, str]
    plans: dict[str, Plan]
    left_out: int = 0

    @staticmethod
    def of(subject: Subject, first: Batch, choices: Choices) -> "Watched":
        """The sites of a model as it runs on a batch.

        Raises:
            SiteError: if a name stands for no site.
            DataError: if the model fails on the batch.
        """
        facts = facts_of(subject, first)
        if choices.sites is None:
            chosen = sensible(facts, facts.sites, subject.usual)
        else:
            chosen = asked(choices.sites, facts.sites, silent=subject.silent())
        derivation = Derivation(facts)
        places = {
            name: dataclasses.replace(place, plan=_sized(place, choices))
            for name, place in placed(derivation, chosen, choices.groups).items()
        }
        few = first.first(facts.graph.trace.example_batch)
        for name, place in places.items():
            missing = _unapplied(facts, place, few)
            if missing:
                note = unapplied(missing)
                places[name] = dataclasses.replace(place, notes=(*place.notes, note))
        leaders: dict[str, str] = {}
        plans: dict[str, Plan] = {}
        for name, place in places.items():
            leaders[name] = next(
                (
                    other
                    for other, plan in plans.items()
                    if places[other].site.node == place.site.node
                    and not isinstance(place.site.address, Expert)
                    and plan == dataclasses.replace(place.plan, address=plan.address)
                ),
                name,
            )
            if leaders[name] == name:
                plans[name] = place.plan
        routed = [n for n, s in facts.sites.items() if isinstance(s.address, Expert)]
        left_out = 0 if choices.sites is not None else len(set(routed) - places.keys())
        # A record holds what is as large as the activations of a pass, and most of it is let go of.
        give_back()
        return Watched(subject, first, derivation, places, leaders, plans, left_out)

    @property
    def few(self) -> Batch:
        """The examples of the first batch on which the model was watched."""
        return self.first.first(self.derivation.seen.graph.trace.example_batch)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of how the batches were read, and of what was left out."""
        unread = [
            f"{name} looks like it says what is padding, and it is not known how, so padding is "
            "counted: give attention_mask, 1 where a position counts."
            for name in self.first.unread
        ]
        if self.left_out:
            routed = sum(isinstance(p.site.address, Expert) for p in self.places.values())
            unread.append(
                f"{routed} of {routed + self.left_out} experts were probed, at equal distances in "
                "every block: name others in sites=, such as '*experts*', to have them."
            )
        return tuple(unread)

    def later(self, stream: Stream) -> tuple[str, ...]:
        """What a reader must know of sites whose rows could be told in the first batch only."""
        found = [
            f"{name} could not be followed in {often} batches, which do not count there: {said}."
            for name, (often, said) in stream.failures.items()
        ]
        for name, (masks, batches) in stream.unapplied.items():
            if unapplied(masks) not in self.places[name].notes:
                found.append(f"{name}: {unapplied(masks, f'in {batches} batches')}")
        return tuple(found)

    def plan(self, choices: Choices, *, identified: bool) -> dict[str, str]:
        """Everything that must agree for what was seen to be added."""
        settings = dict(choices.settings)
        # What is seen does not depend on what is asked about it.
        for name in ("scores", "initialisation"):
            settings.pop(name, None)
        caught = hashlib.sha256(repr(sorted(self.plans.items())).encode()).hexdigest()
        return {
            "model": self.subject.description,
            "weights": fingerprint(self.subject.model) if identified else "",
            "dtype": str(self.subject.dtype).removeprefix("torch."),
            "names": json.dumps([*self.places]),
            "seed": str(choices.seed),
            "caught": caught[:16],
            DATA: beginning(self.first),
        } | settings


def _unapplied(facts: Facts, place: Placed, batch: Batch) -> tuple[str, ...]:
    """The masks that could not be laid on the rows of a site when the model was watched."""
    rows, shape = place.plan.rows, facts.graph.trace.node(place.site.node).shape
    if rows is None or place.plan.routed is not None:
        return ()
    axes = (len(shape) - 1,) if place.plan.layout is None else place.plan.layout.axes
    lead = tuple(size for axis, size in enumerate(shape) if axis not in axes)
    return rows.unapplied(batch, rows.place(lead, batch))


def unapplied(masks: tuple[str, ...], where: str = "") -> str:
    """What a reader must know of masks that could not be laid on the rows of a site."""
    return (
        f"{' and '.join(masks)} could not be applied here{where and ' '}{where}: it is not known "
        "which rows of this site are which positions of the input, so padding is counted."
    )


def require_same(was: Mapping[str, str], now: Mapping[str, str], what: str) -> None:
    """Raises ValueError with everything in which two plans differ."""
    found = [f"{name} {old!r} (now {new!r})" for name, old, new in differing(was, now)]
    if found:
        raise ValueError(
            f"{what} {'; '.join(found)}: give the same model, data and settings, or start anew "
            "without that file"
        )


# --- places ---------------------------------------------------------------------------------------


def certified(
    places: Mapping[str, Placed],
    subject: Subject,
    first: Batch,
    derivation: Derivation,
    wanted: bool | None,
) -> dict[str, Placed]:
    """The places with a certificate for what was derived of each; what fails becomes unknown."""
    derived = {n: place for n, place in places.items() if place.symmetry.reference != _GIVEN}
    found = proved(
        subject,
        first,
        derivation,
        {name: place.site for name, place in derived.items()},
        {name: place.symmetry for name, place in derived.items()},
        wanted,
    )
    return {
        name: dataclasses.replace(place, symmetry=found.get(name, place.symmetry))
        for name, place in places.items()
    }


_GIVEN = "the user"


def placed(
    derivation: Derivation, chosen: Mapping[str, Site], groups: Groups | None
) -> dict[str, Placed]:
    """The sites with their groups, and with what is known of the layers in front of them."""
    facts = derivation.seen
    places: dict[str, Placed] = {}
    given = overrides(groups, chosen)
    routes = any(isinstance(site.address, Expert) for site in chosen.values())
    repeats = times(facts.graph.trace) if routes else Counter[tuple[str, int | None]]()
    for name, site in chosen.items():
        shape = facts.shape(site)
        symmetry = _overridden(derivation.symmetry(site), given.get(name), math.prod(shape))
        found = layer(facts, site)
        bent = None if isinstance(site.address, Expert) else bend(facts, site)
        notes = (*_calls(facts, site), *_again(site, repeats))
        trouble, routed = _trouble(facts, site, found), facts.routed(site)
        known = None if isinstance(found, str) else found
        if known is not None and known.address == site.address:
            known = None
        if bent is not None and bent[0] == site.address:
            bent = None
        if isinstance(found, str) and bent is not None:
            notes = (
                *notes,
                f"The layer in front of the site is not one linear map away: {found}.",
            )
        places[name] = Placed(
            site=site,
            role=role(facts, site),
            shape=shape,
            symmetry=symmetry,
            plan=Plan(
                address=site.address,
                layout=None if isinstance(site.address, Expert) else facts.layout(site),
                dim=math.prod(shape),
                inputs=None if known is None else known.address,
                width=0 if known is None else known.width,
                repeat=1 if known is None else known.repeat,
                convolution=None if known is None else known.convolution,
                pre=None if bent is None else bent[0],
                held=() if known is None else known.held,
                centred=geometry_of(symmetry.group) is Geometry.LINE,
                across=compares_axes(symmetry.group),
                rows=None if isinstance(site.address, Expert) else facts.rows(site),
                routed=None if routed is None else routed[1],
                root="" if routed is None else routed[0],
            ),
            layer=known,
            geometry=_input_geometry(derivation, known),
            bend=None if bent is None else bent[1],
            notes=notes,
            trouble=trouble,
            expert=facts.expert(site),
            around=functools.partial(around, facts, site, known),
            bent_by=_bent_by(facts, site, found),
            unlike_mixtures=unlike_mixtures(facts, site) if known is None else "",
        )
    return places


def _bent_by(facts: Facts, site: Site, found: Layer | str) -> str:
    """What makes the axes of a site what no turned axis is, and why none can be made as well."""
    function = "" if isinstance(site.address, Expert) else bent_by(facts, site)
    if not function:
        return ""
    why = f": {found}" if isinstance(found, str) else ""
    return f"{function} makes the axes, and no neurons that point elsewhere can be had{why}"


def _trouble(facts: Facts, site: Site, found: Layer | str) -> str:
    """Why nothing can be compared at a site of experts; empty where something can."""
    if isinstance(site.address, Expert):
        if isinstance(found, str):
            return f"the expert's neurons could not be told from what it reads: {found}."
        return ""
    vertex = facts.vertex(site)
    stack = None if vertex is None else facts.pooled.get(vertex.node)
    if stack is None:
        return ""
    own = [s.name for s in facts.sites.values() if s.address.path == stack]
    where = f"; each expert has a site of its own, such as {own[0]}" if own else ""
    return f"rows of several experts are mixed here, as if they were of one layer{where}."


def _calls(facts: Facts, site: Site) -> tuple[str, ...]:
    """What a reader must know of a module that runs several times in a pass."""
    address = site.address
    if address.place not in (Place.OUTPUT, Place.INPUT) or address.call:
        return ()
    count = sum(call.path == address.path for call in facts.graph.trace.calls)
    if count < 2:
        return ()
    return (
        f"{address.path} runs {count} times in a pass, and this is what it does the first time; "
        "its other calls are sites of their own.",
    )


def _again(site: Site, repeats: Counter[tuple[str, int | None]]) -> tuple[str, ...]:
    """What a reader must know of an expert in a stack that works several times in a pass."""
    address = site.address
    if not isinstance(address, Expert):
        return ()
    count = max(repeats[address.path, own] for own in (address.index, None))
    if count < 2:
        return ()
    return (
        f"A pass multiplies with this expert's matrix {count} times, and only the rows of the "
        "first time are seen here.",
    )


def compares_axes(group: Group) -> bool:
    """True if comparing a sample's axes with each other says something under the group."""
    return geometry_of(group) in (Geometry.EUCLIDEAN, Geometry.LINE, Geometry.PLANES)


def _input_geometry(derivation: Derivation, known: Layer | None) -> Geometry:
    """The geometry in which the input of a layer is turned: the one that its group picks."""
    if known is None or known.normalised:
        return Geometry.EUCLIDEAN
    group = derivation.read(known.source, known.width)
    if isinstance(group, GeneralLinear):
        return Geometry.POLAR
    return Geometry.BALANCED if group.rescales else Geometry.EUCLIDEAN


def require_groups(groups: object) -> None:
    """Raises TypeError or ValueError for what gives no site a group."""
    if not isinstance(groups, Mapping):
        if groups is not None:
            instance("groups", groups, (Group, str), "a group, its name, or a dict")
        require_group("groups", groups)
        return
    several = cast("Mapping[object, object]", groups)
    texts("groups", tuple(several), "names or globs of sites")
    for group in several.values():
        if group is None:
            raise ValueError("groups holds None: give a group or its name")
        require_group("one of groups", group)


def overrides(groups: Groups | None, chosen: Mapping[str, object]) -> dict[str, Group | str]:
    """Site -> the group that was given for it, by its name or a glob.

    Raises:
        SiteError: if a name or glob stands for none of the sites.
        TypeError, ValueError: as `require_groups`.
    """
    require_groups(groups)
    if groups is None:
        return {}
    if isinstance(groups, Group | str):
        return dict.fromkeys(chosen, groups)
    found: dict[str, Group | str] = {}
    for pattern, group in groups.items():
        names = [pattern] if pattern in chosen else fnmatch.filter(chosen, pattern)
        if not names:
            raise SiteError(
                f"groups names {described(pattern)}, which matches none of the probed sites: "
                f"{', '.join([*chosen][:5])}{'…' if len(chosen) > 5 else ''}"
            )
        found |= dict.fromkeys(names, group)
    return found


def _overridden(symmetry: Symmetry, group: Group | str | None, dim: int) -> Symmetry:
    if group is None:
        return symmetry
    if isinstance(group, str):
        group = group_from_name(group, dim)
    if group.dim != dim:
        raise ValueError(f"the group {group!r} acts on {group.dim} features, the site has {dim}")
    return Symmetry(group, group.privileged, "The group was given, not derived.", _GIVEN)


def _capacity(wanted: Null | None) -> int:
    return Rotation().samples if wanted is None else wanted.samples


def _sized(place: Placed, choices: Choices) -> Plan:
    """The plan of a site with as many rows as will be used of it."""
    if choices.null is not None or choices.companions.rows:
        return place.plan
    known = place.layer
    read = place.dim
    if known is not None:
        windows = place.plan.convolution
        positions = known.repeat if windows is None else math.prod(windows.kernel)
        read = known.width * positions * len(known.weights)
    return dataclasses.replace(place.plan, capacity=affordable(read, place.dim).samples)


def _initialisation(wanted: object) -> bool | nn.Module | None:
    """Whether an untrained network is asked, or which.

    Raises:
        TypeError: for what is neither a network nor True, False or None.
    """
    if isinstance(wanted, nn.Module):
        return wanted
    try:
        return flag("initialisation", wanted, unknown=True)
    except ValueError as error:
        raise TypeError(f"{error}, or the network as it was before training") from None


def _said_of(initialisation: bool | nn.Module | None) -> dict[str, str]:
    if initialisation is None:
        return {}
    if isinstance(initialisation, nn.Module):
        return {"initialisation": "a network that was given"}
    return {"initialisation": "asked" if initialisation else "not asked"}


def _said(sites: str | Iterable[str] | None) -> str:
    if sites is None:
        return "the sensible ones"
    return sites if isinstance(sites, str) else ", ".join(sites)
