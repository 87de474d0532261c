"""The main job: a model and data in, a report out."""

import dataclasses
import fnmatch
import functools
import importlib.metadata
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from basis_probe.adapters.batches import Batch, batch_of
from basis_probe.adapters.layers import Layer, bend, layer
from basis_probe.adapters.models import Subject, device_of, prepared, recognise
from basis_probe.adapters.places import Site
from basis_probe.algebra.groups import GeneralLinear, Group, group_from_name
from basis_probe.architecture import proved, watched
from basis_probe.errors import DataError, SiteError, StreamError
from basis_probe.findings import (
    Case,
    Evidence,
    chosen_null,
    chosen_scores,
    chosen_seed,
    gather,
    halves_of,
    report,
)
from basis_probe.results import Provenance, Report, Symmetry
from basis_probe.roles import Role, role
from basis_probe.sites import asked, sensible
from basis_probe.statistics.nulls import Geometry, LinearLayer, Null, Problem, geometry_of
from basis_probe.statistics.scores import Score
from basis_probe.stream import Plan, Seen, Stream
from basis_probe.symmetry import Derivation
from basis_probe.verdict import LEVEL

Groups = Mapping[str, Group | str] | Group | str


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """A site with everything that does not depend on the data beyond the first batch."""

    site: Site
    role: Role
    shape: tuple[int, ...]
    symmetry: Symmetry
    plan: Plan
    layer: Layer | None
    geometry: Geometry
    bend: Callable[[Tensor], Tensor] | None
    notes: tuple[str, ...]

    @property
    def dim(self) -> int:
        return math.prod(self.shape)


def probe(
    model: nn.Module,
    data: Iterable[Any],
    *,
    sites: str | Iterable[str] | None = None,
    scores: Iterable[str | Score] | None = None,
    null: str | Null | None = None,
    groups: Groups | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    max_samples: int | None = None,
    progress: bool = True,
    certificates: bool | None = None,
) -> Report:
    """A verdict for every site: what the architecture allows, what the data show, what follows.

    The data pass through the model once, in evaluation mode and without gradients. The same seed
    gives the same numbers for every batch size and order of the data, on every device, to the
    model's own precision. The model is left as it was: hooks, weights, modes, random state.

    Args:
        model: a `TransformerBridge`, an older `HookedTransformer`, a Hugging Face model or any
            `nn.Module`.
        data: an iterable of batches. A batch is a tensor [batch, ...]; a dict of keywords, whose
            `attention_mask` [batch, positions] drops padding from all statistics; a tuple or list
            whose first element is one of these; or a list of strings if the model has a tokenizer.
            A tensor or array or a dict in place of the iterable is taken for one batch.
        sites: names or globs ("blocks.*.mlp.hook_post"); None for residual streams, attention
            outputs and neurons.
        scores: names of scores, any of `SCORES`; None for `DEFAULT_SCORES`.
        null: "rotation", "counterfactual" or a null as a value; None for the one each site calls
            for.
        groups: groups that override the derived ones: one for all sites, or name or glob -> group
            or its name.
        seed: seeds the sample of rows and the alternatives.
        device: where the model runs; it is put back afterwards. None: where it is.
        max_samples: at most this many samples (tokens, pixels, rows) at each site.
        progress: whether to show progress bars.
        certificates: whether to prove what is claimed of the architecture on a float64 copy of the
            model; None to do so if that is cheap, up to 150 million parameters.

    Raises:
        SiteError: if a name stands for no site; the message lists the nearest.
        DataError: if there is no batch, or the first one cannot be used.
        StreamError: if the data or the model fail later; its `report()` holds what was gathered.
        ValueError: for a score, null, group or number that makes no sense.

    Example:
        >>> import torch, basis_probe as bp
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
        ... )
        >>> data = [torch.randn(100, 8, generator=generator) for _ in range(3)]
        >>> report = bp.probe(model, data, progress=False)
        >>> report.sites, report["1"].symmetry.group
        (('1',), PositiveMonomial(dim=16))
    """
    choices = Choices.of(
        sites=sites,
        scores=scores,
        null=null,
        groups=groups,
        seed=seed,
        max_samples=max_samples,
        certificates=certificates,
        progress=progress,
    )
    subject = recognise(model)
    target = None if device is None else device_of(device)
    with prepared(subject.model, target) as notes:
        batches = batches_of(data, subject)
        first = next(batches, None)
        if first is None:
            raise DataError("the data hold no batch: give at least one, better several")
        session = Session.open(subject, first, choices)
        finish = functools.partial(session.report, notes=notes)
        interrupted = _run(subject, session.stream, first, batches, finish, progress=progress)
        if interrupted:
            return finish(
                partial=True,
                more=(f"The run was interrupted after {session.stream.batches} batches.",),
            )
        return finish(partial=False)


# --- what is asked for, and what it is asked of ---------------------------------------------------


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
        certificates: whether to prove what is claimed; None if that is cheap.
        progress: whether to show progress bars.
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
    ) -> "Choices":
        """The choices, if they make sense.

        Raises:
            ValueError: for a score, null or number that makes none.
        """
        used, wanted, seed = chosen_scores(scores), chosen_null(null), chosen_seed(seed)
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"max_samples={max_samples}: give a positive number, or None for all")
        # An iterator can be read only once.
        sites = sites if sites is None or isinstance(sites, str) else tuple(sites)
        return Choices(sites, used, wanted, null, groups, seed, max_samples, certificates, progress)

    @property
    def settings(self) -> dict[str, str]:
        """The choices in words."""
        return {
            "sites": "the sensible ones" if self.sites is None else _said(self.sites),
            "scores": ", ".join(score.name for score in self.scores),
            "null": "by site" if self.said is None else str(self.said),
            "groups": "derived" if self.groups is None else str(self.groups),
            "max_samples": "all" if self.max_samples is None else str(self.max_samples),
            "rows_for_nulls": str(_capacity(self.null)),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """A model and its sites, and what has been seen at them so far.

    Attributes:
        choices: what the user asked for.
        subject: the model.
        first: the batch on which it was watched.
        derivation: what follows from what was seen of it.
        places: the sites.
        stream: what has been seen at them.
    """

    choices: Choices
    subject: Subject
    first: Batch
    derivation: Derivation
    places: Mapping[str, Placed]
    stream: Stream

    @staticmethod
    def open(subject: Subject, first: Batch, choices: Choices) -> "Session":
        """The sites of the model as it runs on a batch, nothing seen at them yet.

        Args:
            subject: the model, in evaluation mode.
            first: the batch; it is counted only when the stream sees it.
            choices: what the user asked for.

        Raises:
            SiteError: if a name stands for no site.
            DataError: if the model fails on the batch.
        """
        facts = watched(subject, first)
        if choices.sites is None:
            chosen = sensible(facts, facts.sites, subject.usual)
        else:
            chosen = asked(choices.sites, facts.sites, silent=subject.silent())
        derivation = Derivation(facts)
        places = placed(derivation, chosen, choices.groups)
        stream = Stream(
            {name: place.plan for name, place in places.items()},
            seed=choices.seed,
            capacity=_capacity(choices.null),
            most=choices.max_samples,
        )
        return Session(choices, subject, first, derivation, places, stream)

    def report(
        self, *, partial: bool, notes: tuple[str, ...] = (), more: tuple[str, ...] = ()
    ) -> Report:
        """The verdicts on what has been seen so far.

        Args:
            partial: whether the data were meant to go on.
            notes: what a reader must know of how the model was run.
            more: what a reader must know besides.
        """
        choices, stream = self.choices, self.stream
        provenance = Provenance(
            model=self.subject.description,
            data=f"{stream.batches} batches of {self.first.form}, {stream.examples} examples",
            seed=choices.seed,
            n_batches=stream.batches,
            n_examples=stream.examples,
            versions=_versions(),
            device=str(self.subject.device),
            dtype=str(self.subject.dtype).removeprefix("torch."),
            level=LEVEL,
            settings=choices.settings,
        )
        stopped = False
        shown = self.places
        try:
            shown = _proved(
                self.places, self.subject, self.first, self.derivation, choices.certificates
            )
        except KeyboardInterrupt:
            stopped = True
            more = (*more, "It was interrupted while the architecture was proved.")
        gathered, interrupted = _gather(
            shown,
            stream,
            choices.scores,
            choices.null,
            seed=choices.seed,
            dtype=self.subject.dtype,
            progress=choices.progress,
        )
        if interrupted:
            more = (*more, "It was interrupted while axes were compared with alternatives.")
        partial = partial or interrupted or stopped
        return Report(report(gathered), provenance, partial, (*notes, *more))


# --- before the data ------------------------------------------------------------------------------


def _proved(
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
    facts = derivation.facts
    places: dict[str, Placed] = {}
    overrides = _overrides(groups, chosen)
    for name, site in chosen.items():
        shape = facts.shape(site)
        symmetry = _overridden(derivation.symmetry(site), overrides.get(name), math.prod(shape))
        found = layer(facts, site)
        bent = bend(facts, site)
        notes: tuple[str, ...] = ()
        known = None if isinstance(found, str) else found
        if known is not None and known.address == site.address:
            known = None
        if bent is not None and bent[0] == site.address:
            bent = None
        if isinstance(found, str) and bent is not None:
            notes = (f"The layer in front of the site is not one linear map away: {found}.",)
        places[name] = Placed(
            site=site,
            role=role(facts, site),
            shape=shape,
            symmetry=symmetry,
            plan=Plan(
                address=site.address,
                layout=facts.layout(site),
                dim=math.prod(shape),
                inputs=None if known is None else known.address,
                width=0 if known is None else known.width,
                repeat=1 if known is None else known.repeat,
                convolution=None if known is None else known.convolution,
                pre=None if bent is None else bent[0],
                held=() if known is None else known.held,
                centred=geometry_of(symmetry.group) is Geometry.LINE,
            ),
            layer=known,
            geometry=_input_geometry(derivation, known),
            bend=None if bent is None else bent[1],
            notes=notes,
        )
    return places


def _input_geometry(derivation: Derivation, known: Layer | None) -> Geometry:
    """The geometry in which the input of a layer is turned: the one that its group picks."""
    if known is None or known.normalised:
        return Geometry.EUCLIDEAN
    group = derivation.read(known.source, known.width)
    if isinstance(group, GeneralLinear):
        return Geometry.POLAR
    return Geometry.BALANCED if group.rescales else Geometry.EUCLIDEAN


def _overrides(groups: Groups | None, chosen: Mapping[str, Site]) -> dict[str, Group | str]:
    if groups is None:
        return {}
    if isinstance(groups, Group | str):
        return dict.fromkeys(chosen, groups)
    if not isinstance(groups, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"groups is a {type(groups).__name__}: give a group, its name, or a dict from site "
            "names or globs to groups"
        )
    found: dict[str, Group | str] = {}
    for pattern, group in groups.items():
        names = [pattern] if pattern in chosen else fnmatch.filter(chosen, pattern)
        if not names:
            raise SiteError(
                f"groups names {pattern!r}, which matches none of the probed sites: "
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
    from basis_probe.statistics.nulls import Rotation

    return Rotation().samples if wanted is None else wanted.samples


def _said(sites: str | Iterable[str]) -> str:
    return sites if isinstance(sites, str) else ", ".join(sites)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("basis-probe", "torch", "transformer-lens", "transformers", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# --- the data -------------------------------------------------------------------------------------


def batches_of(data: Iterable[Any], subject: Subject) -> Iterator[Batch]:
    """The batches of the data, checked one by one.

    Raises:
        DataError: for data that are no iterable of batches, or change their form on the way.
    """
    if isinstance(data, str):
        raise DataError(
            "the data are one string: give batches, for example [[text]], a list with one batch of "
            "one string"
        )
    if isinstance(data, Tensor | np.ndarray | Mapping):
        data = [data]
    if not isinstance(data, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DataError(
            f"the data are a {type(data).__name__}: give an iterable of batches, such as a "
            "DataLoader"
        )
    tokenizer, device, form = subject.tokenizer, subject.device, None
    for number, raw in enumerate(data):
        batch = batch_of(raw, number=number, tokenizer=tokenizer, device=device)
        if form is not None and batch.form != form:
            raise DataError(
                f"batch {number} is {batch.form}, the ones before were {form}: give batches of one "
                "form"
            )
        form = batch.form
        yield batch


def _run(
    subject: Subject,
    stream: Stream,
    first: Batch,
    rest: Iterator[Batch],
    finish: Callable[..., Report],
    *,
    progress: bool,
) -> bool:
    """Streams all batches; True if the user interrupted it after at least one."""
    from tqdm.auto import tqdm

    bar = tqdm(desc="running the model", unit="batch", disable=not progress, leave=False)
    try:
        batch: Batch | None = first
        while batch is not None:
            stream.see(subject.model, batch, functools.partial(subject.call, batch))
            bar.update()
            batch = None if stream.full else next(rest, None)
    except KeyboardInterrupt:
        if not stream.batches:
            raise
        return True
    except Exception as error:
        if not stream.batches:
            raise
        # The error itself is forgotten when this clause ends.
        what = f"{type(error).__name__}: {error}"
        raise StreamError(
            f"batch {stream.batches} failed: {what}. The "
            f"{stream.batches} batches before it are kept: call .report() of this error for their "
            "report",
            batches=stream.batches,
            finish=lambda: finish(
                partial=True,
                more=(f"The run failed after {stream.batches} batches: {what}",),
            ),
        ) from error
    finally:
        bar.close()
    return False


# --- after the data -------------------------------------------------------------------------------


def _gather(
    places: Mapping[str, Placed],
    stream: Stream,
    used: tuple[Score, ...],
    wanted: Null | None,
    *,
    seed: int,
    dtype: torch.dtype,
    progress: bool,
) -> tuple[list[Evidence], bool]:
    """The evidence of every site, and whether the user interrupted it."""
    from tqdm.auto import tqdm

    gathered: list[Evidence] = []
    interrupted = False
    bar = tqdm(
        places.items(),
        desc="comparing axes with alternatives",
        unit="site",
        disable=not progress,
        leave=False,
    )
    for name, place in bar:
        if not interrupted:
            try:
                case = _case(name, place, stream, dtype)
                gathered.append(gather(case, used, wanted, seed=seed))
                continue
            except KeyboardInterrupt:
                interrupted = True
        case = _case(name, place, stream, dtype)
        gathered.append(Evidence(dataclasses.replace(case, trouble=_INTERRUPTED)))
    return gathered, interrupted


_INTERRUPTED = "the run was interrupted before these axes were compared with alternatives."


def _case(name: str, place: Placed, stream: Stream, dtype: torch.dtype) -> Case:
    seen = stream.seen[name]
    notes = list(place.notes)
    trouble = ""
    if seen.missed:
        notes.append(f"The site did not run in {seen.missed} of {stream.batches} batches.")
    if seen.bad:
        number, count = seen.bad[0]
        more = f", and more in {len(seen.bad) - 1} later batches" if len(seen.bad) > 1 else ""
        trouble = (
            f"{count} values of {name} are NaN or infinite in batch {number}{more}; give data on "
            "which the model stays finite."
        )
    dead = int(seen.moments.constant.sum()) if seen.moments.count else 0
    problem = None
    if not trouble and len(seen.kept.priorities):
        problem, more_notes = problem_of(place, seen, dtype)
        notes.extend(more_notes)
    return Case(
        site=name,
        kind=place.role.kind,
        layer=place.role.layer,
        shape=place.shape,
        symmetry=place.symmetry,
        n_samples=seen.moments.count,
        n_dead=dead,
        problem=problem,
        all_samples=_all_samples(place, seen),
        trouble=trouble,
        notes=tuple(notes),
    )


def _all_samples(place: Placed, seen: Seen) -> dict[str, float]:
    geometry = geometry_of(place.symmetry.group)
    if geometry in (Geometry.WHITENED, Geometry.HEADS):
        # What is compared there is the whitened axes, and whitening needs a second pass.
        return {}
    found = {"kurtosis": float(seen.moments.kurtosis.nanmean())}
    if geometry is not Geometry.STANDARDISED:
        found["sample_kurtosis"] = float(seen.kurtosis.mean)
    # Behind a nonlinearity it is computed before it, and that is not streamed.
    if place.bend is None and (place.layer is None or place.layer.pre is None):
        found["non_gaussianity"] = float(seen.moments.excess_kurtosis.abs().nanmean())
    return found


_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


def problem_of(place: Placed, seen: Seen, dtype: torch.dtype) -> tuple[Problem, tuple[str, ...]]:
    """The kept rows of a site as nulls need them, and what a reader must know.

    Args:
        place: the site.
        seen: what was seen there.
        dtype: the model's own floating-point type, in which its layers are computed again.
    """
    rows = seen.kept.rows
    x = rows["x"].double()
    halves = halves_of(seen.kept.priorities)
    notes: tuple[str, ...] = ()
    linear = None
    if place.layer is not None and "inputs" in rows:
        linear = _linear_layer(place.layer, rows, place.geometry, dtype)
        made = linear.post(_outputs(linear)).double()
        scale = float(x.square().mean().sqrt())
        error = float((made - x).abs().max()) if made.shape == x.shape else math.inf
        if not error <= _TOLERANCE.get(dtype, 0.1) * max(scale, 1e-30) * 10:
            linear = None
            notes = (
                "The activations could not be computed again from the layer's input and weights "
                f"(off by {error:.1g} at a size of {scale:.1g}), so its counterfactuals were not "
                "used.",
            )
    pre = rows["pre"].double() if "pre" in rows and place.bend is not None else None
    if pre is not None and not bool(torch.isfinite(pre).all()):
        pre = None
        if linear is None:
            notes = (*notes, "Some pre-activations are NaN or infinite, so they were not turned.")
    return (
        Problem(
            x=x,
            group=place.symmetry.group,
            halves=halves,
            pre=pre,
            nonlinearity=place.bend if pre is not None else None,
            layer=linear,
        ),
        notes,
    )


def _outputs(linear: LinearLayer) -> tuple[Tensor, ...]:
    flat = linear.inputs.reshape(len(linear.inputs), -1)
    outputs: list[Tensor] = []
    for weight, bias in zip(linear.weights, linear.biases, strict=True):
        out = flat @ weight.reshape(len(weight), -1).T
        outputs.append(out if bias is None else out + bias)
    return tuple(outputs)


def _linear_layer(
    found: Layer, rows: Mapping[str, Tensor], geometry: Geometry, dtype: torch.dtype
) -> LinearLayer:
    """The layer as numbers, a norm's gain moved from the input into the weights."""
    working = torch.float64 if dtype is torch.float64 else torch.float32
    inputs = rows["inputs"].double()
    held = tuple(rows[f"held {place}"].to(working) for place in range(len(found.held)))
    weights = [
        weight.detach().cpu().double().reshape(len(weight), found.width, -1)
        for weight in found.weights
    ]
    biases = [None if bias is None else bias.detach().cpu().double() for bias in found.biases]
    if found.gain is not None:
        gain = found.gain.cpu().double()
        shift = torch.zeros_like(gain) if found.bias is None else found.bias.cpu().double()
        inputs = (inputs - shift[None, :, None]) / gain[None, :, None]
        moved = [torch.einsum("ocp,c->o", weight, shift) for weight in weights]
        biases = [
            more if bias is None else bias + more for bias, more in zip(biases, moved, strict=True)
        ]
        weights = [weight * gain[None, :, None] for weight in weights]
    return LinearLayer(
        inputs=inputs.to(working),
        weights=tuple(weight.to(working) for weight in weights),
        biases=tuple(None if bias is None else bias.to(working) for bias in biases),
        pre=_holding(found.pre, held),
        post=_holding(found.post, held) or found.post,
        geometry=geometry,
        centred=found.centred,
    )


def _holding(
    function: Callable[[tuple[Tensor, ...]], Tensor] | None, held: tuple[Tensor, ...]
) -> Callable[[tuple[Tensor, ...]], Tensor] | None:
    """The function of the maps' outputs alone, what is held given."""
    return None if function is None else lambda outputs: function((*outputs, *held))
