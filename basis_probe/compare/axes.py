"""Do several trainings come to the same axes? The best signed permutation between them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from basis_probe.algebra.groups import (
    Blocks,
    GeneralLinear,
    Monomial,
    Planes,
    Privileged,
    SignedPermutation,
)
from basis_probe.arguments import flag, seed_of, whole
from basis_probe.devices import on_own_device
from basis_probe.errors import DataError, SiteError
from basis_probe.interrupts import guarded, hold, stoppable, unstoppable
from basis_probe.model.network import device_of, prepared, recognise
from basis_probe.results.axes import ALL, AxesComparison, AxesShared
from basis_probe.run.problems import problem_of
from basis_probe.run.read import batches_of, count_of, require_batches
from basis_probe.run.report import Session
from basis_probe.run.watch import Choices, Groups
from basis_probe.statistics.moments import Moments
from basis_probe.statistics.nulls import Geometry, Problem, geometry_of
from basis_probe.statistics.nulls.rotations import roots
from basis_probe.statistics.p_values import Tail, holm, monte_carlo_p, tail_p
from basis_probe.statistics.shared_axes import (
    AllAxes,
    Between,
    Fit,
    InBlocks,
    Side,
    Turns,
    between,
    compare,
    interval,
)

_FEWEST_ROWS = 32
_FEWEST_AXES = 2
_PARTS, _PARTS_OF_WIDE, _WIDE = 10, 5, 256


@on_own_device
def compare_axes(
    models: Sequence[nn.Module] | Mapping[str, nn.Module],
    data: Iterable[Any],
    *,
    sites: str | Iterable[str] | None = None,
    groups: Groups | None = None,
    frames: int = 99,
    seed: int = 0,
    max_samples: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    tokenizer: Any = None,
) -> AxesComparison:
    """Whether two or more trainings come to the same axes, at every site.

    Where the group of a site holds rotations, one network is brought to the other by the best
    rotation (whitened first where the group holds every linear map, inside heads too), and the
    trace of its best signed permutation is compared with that of a rotation turned uniformly:
    exact at that number of axes if training is blind to the group. Neurons are matched by their
    correlations before the nonlinearity, one to one and nothing fitted, against the neurons of one
    network turned among themselves; Gaussian weights make those as likely. Eigenvalues of the
    rotation between networks, which are often tested instead, see none of this.

    Every network runs once over the data, each batch in turn; the same rows are compared of all.

    Args:
        models: two or more networks, as for `probe`; a list, or name -> network.
        data: as for `probe`; every network sees each batch.
        sites: as for `probe`; those that all networks have are compared.
        groups: as for `probe`.
        frames: how many alternatives.
        seed: seeds the sample of rows and the alternatives.
        max_samples: at most this many samples at each site.
        device: as for `probe`.
        progress: whether to show a progress bar.
        tokenizer: as for `probe`.

    Returns:
        For every site a row for each pair of networks, and for more than two one for all.

    Raises:
        DataError: for data that cannot be used, or fewer than two networks.
        SiteError: if the networks share none of the sites.

    Source: A. Brown, Vyas and Bansal (2023), On Privileged and Convergent Bases in Neural Network
        Representations, for the question.

    Example:
        >>> import copy, torch, basis_probe as bp
        >>> def network(seed):
        ...     torch.manual_seed(seed)
        ...     layers = torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)
        ...     return torch.nn.Sequential(*layers)
        >>> data = [torch.randn(300, 6, generator=torch.Generator().manual_seed(0))]
        >>> same = bp.compare_axes([network(0), network(0)], data, progress=False)
        >>> round(same["1"].observed, 3), same["1"].p_value
        (1.0, 0.01)
        >>> bp.compare_axes([network(0), network(1)], data, progress=False)["1"].p_value > 0.01
        True
    """
    named = _named(models)
    progress = bool(flag("progress", progress))
    frames = whole("frames", frames, least=19)
    choices = Choices.of(
        sites=sites, scores=None, null=None, groups=groups, seed=seed_of(seed),
        max_samples=max_samples, certificates=False, progress=progress,
    )  # fmt: skip
    require_batches(data)
    target = None if device is None else device_of(device)
    subjects = {name: recognise(model, tokenizer) for name, model in named.items()}
    notes: list[str] = []
    with guarded(), contextlib.ExitStack() as stack:
        for subject in subjects.values():
            stack.enter_context(prepared(subject.model, target))
        anyone = next(iter(subjects.values()))
        batches = batches_of(data, anyone)
        first = next(batches, None)
        if first is None:
            raise DataError("the data hold no batch: give at least one, better several")
        sessions = {n: Session.open(subject, first, choices) for n, subject in subjects.items()}
        common = _common(sessions, notes)
        _run(sessions, itertools.chain([first], batches), count_of(data), progress, notes)
        rows: list[AxesShared] = []
        for site in common:
            made = _at_site(sessions, site, frames, choices.seed)
            if isinstance(made, str):
                notes.append(f"{site} was left out: {made}.")
            else:
                rows += made
    adjusted = holm(torch.tensor([row.p_tail for row in rows], dtype=torch.float64)).tolist()
    return AxesComparison(
        tuple(named),
        tuple(
            dataclasses.replace(row, p_adjusted=p) for row, p in zip(rows, adjusted, strict=True)
        ),
        tuple(dict.fromkeys(notes)),
    )


def _named(models: object) -> dict[str, nn.Module]:
    """The networks by name.

    Raises:
        DataError, TypeError: for anything but two or more different networks.
    """
    if isinstance(models, nn.Module) or not isinstance(models, Mapping | Sequence | Iterator):
        raise DataError(
            f"models is a {type(models).__name__}: give a list of two or more networks, or a dict "
            "of them by name"
        )
    if isinstance(models, Mapping):
        named = {str(name): model for name, model in models.items()}
    else:
        named = {str(place): model for place, model in enumerate(models)}
    for name, model in named.items():
        if not isinstance(model, nn.Module):
            raise DataError(
                f"network {name!r} is a {type(model).__name__}: give an nn.Module for each name"
            )
    if len(named) < 2:
        raise DataError(
            f"{len(named)} networks: axes are compared between two or more, as of several seeds"
        )
    if len({id(model) for model in named.values()}) < len(named):
        raise DataError(
            "one network is given twice: give copies (copy.deepcopy) to compare it with itself"
        )
    return named


def _common(sessions: Mapping[str, Session], notes: list[str]) -> list[str]:
    """The sites that all networks have, in the order of the first."""
    everywhere = [set(session.places) for session in sessions.values()]
    first = next(iter(sessions.values()))
    common = [name for name in first.places if all(name in places for places in everywhere)]
    if not common:
        raise SiteError(
            f"the networks share none of their sites (the first has {', '.join(first.places)[:200]}"
            "): give networks of one architecture, or name sites that all have"
        )
    missing = [name for name in first.places if name not in common]
    if missing:
        notes.append(f"Not all networks have {', '.join(missing[:5])}.")
    return common


def _run(
    sessions: Mapping[str, Session],
    batches: Iterable[Any],
    count: int | None,
    progress: bool,
    notes: list[str],
) -> None:
    """Shows every batch to every network; what an interruption leaves is said."""
    from tqdm.auto import tqdm

    seen = 0
    with tqdm(
        total=count, desc="running all models", unit="batch", disable=not progress, leave=False
    ) as bar:
        try:
            for batch in batches:
                with stoppable():
                    looks = [
                        session.stream.look(
                            session.subject.model,
                            batch,
                            functools.partial(session.subject.call, batch),
                        )
                        for session in sessions.values()
                    ]
                with unstoppable():
                    for look in looks:
                        look()
                    hold()
                seen += 1
                bar.update()
                if all(session.stream.full for session in sessions.values()):
                    break
        except KeyboardInterrupt:
            if not seen:
                raise
            hold()
            notes.append(f"The run was interrupted after {seen} batches.")


def _at_site(
    sessions: Mapping[str, Session], site: str, frames: int, seed: int
) -> list[AxesShared] | str:
    """The rows of one site, or why there are none."""
    problems: list[Problem] = []
    priorities: list[Tensor] = []
    for name, session in sessions.items():
        place = session.places[site]
        seen = session.stream.seen[session.watching.leaders[site]]
        if seen.bad:
            return f"network {name} has NaN or infinite values there"
        if not len(seen.kept.priorities):
            return f"no data passed there in network {name}"
        problems.append(problem_of(place, seen, session.subject.dtype)[0])
        priorities.append(seen.kept.priorities)
    if any(not torch.equal(priorities[0], other) for other in priorities[1:]):
        return "the networks hold different samples there"
    widths = {problem.x.shape[1] for problem in problems}
    if len(widths) > 1:
        several = ", ".join(map(str, sorted(widths)))
        return f"the networks have {several} axes, and axes are matched one to one"
    kinds = {_kind(problem) for problem in problems}
    if len(kinds) > 1:
        return "the networks have groups of different kinds there"
    kind = kinds.pop()
    if len(problems[0].x) < _FEWEST_ROWS:
        return f"{len(problems[0].x)} samples, and it takes {_FEWEST_ROWS}"
    if widths.pop() < _FEWEST_AXES:
        return "one axis, which is always itself"
    sides = [_side(problem, kind, seed) for problem in problems]
    if any(not bool(side.x.any()) for side in sides):
        return "the axes of a network never vary"
    if min(side.x.shape[1] for side in sides) < _FEWEST_AXES:
        return "all neurons of a network but one never vary"
    widest = [problem.x.shape[1] for problem in problems]
    still = [dim - side.x.shape[1] for dim, side in zip(widest, sides, strict=True)]
    if any(still):
        count = ", ".join(map(str, still))
        kind = dataclasses.replace(kind, words=f"{kind.words}; {count} that never vary left out")
    return _rows(sessions, site, problems, sides, kind, frames, seed)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How the axes of a site are compared.

    Attributes:
        rotated: after the best rotation.
        line: off the all-ones direction.
        signs: whether axes may be reversed.
        before: the tensor before the nonlinearity is compared.
        words: the alternatives, in words.
    """

    rotated: bool
    line: bool
    signs: bool
    before: bool
    words: str


def _kind(problem: Problem) -> _Kind:
    group, geometry = problem.group, geometry_of(problem.group)
    if group.privileged in (Privileged.AXES, Privileged.UNKNOWN):
        before = problem.before is not None
        signs = not before or isinstance(group, Monomial | SignedPermutation)
        words = "neurons turned among themselves" if before else "axes turned among themselves"
        return _Kind(rotated=False, line=False, signs=signs, before=before, words=words)
    words = {
        Geometry.HEADS: "the best rotation, turned inside heads",
        Geometry.PLANES: "the best rotation, turned inside planes",
        Geometry.PARTS: "the best rotation, turned inside parts",
        Geometry.LINE: "uniform rotations about the all-ones direction",
    }.get(geometry, "uniform rotations")
    line = geometry is Geometry.LINE
    return _Kind(rotated=True, line=line, signs=True, before=False, words=words)


def _side(problem: Problem, kind: _Kind, seed: int) -> Side:
    """The samples of a network as its axes are compared."""
    dim = problem.x.shape[1]
    whole = problem.before if kind.before and problem.before is not None else problem.x
    x = whole.double().cpu()
    x = x - x.mean(0)
    if not kind.rotated:
        if problem.group.rescales:
            x = x / _units(problem, x)
        # What never varies is like nothing, and is no neuron that could point elsewhere.
        x = x[:, ~Moments.of(whole).constant.cpu()]
        return Side(x, AllAxes(x.shape[1], seed=seed))
    geometry, group = geometry_of(problem.group), problem.group
    if kind.line:
        return Side(x - x.mean(1, keepdim=True), AllAxes(dim, line=True, seed=seed))
    if geometry is Geometry.PLANES and isinstance(group, Planes):
        places = torch.arange(2 * (dim // 2))
        pairs = places.reshape(2, -1).T if group.pairing == "half" else places.reshape(-1, 2)
        return Side(x, InBlocks(pairs[:, None, :], reflections=False))
    if isinstance(group, Blocks):
        blocks = torch.arange(dim).reshape(group.count, group.copies, group.inner.dim)
        if isinstance(group.inner, GeneralLinear):
            x = _whitened(x, blocks)
        return Side(x, InBlocks(blocks, reflections=True))
    if geometry is Geometry.WHITENED:
        x = _whitened(x, torch.arange(dim)[None, None])
    turns: Turns = AllAxes(dim, seed=seed)
    return Side(x, turns)


def _units(problem: Problem, x: Tensor) -> Tensor:
    """By what neurons are divided that may be rescaled: the length of their weights, or their size.

    The length, because turned neurons of Gaussian weights keep it.
    """
    layer = problem.layer
    size = x.std(0, correction=0)
    if layer is not None and len(layer.weights) == 1 and len(layer.weights[0]) == x.shape[1]:
        size = layer.weights[0].double().flatten(1).norm(dim=1).cpu()
    return torch.where(size > 0, size, torch.ones_like(size))


def _whitened(x: Tensor, blocks: Tensor) -> Tensor:
    """The samples with every block of axes whitened symmetrically, its copies alike."""
    white = torch.zeros_like(x)
    for copies in blocks:
        rows = torch.cat([x[:, axes] for axes in copies])
        inverse = roots(rows.T @ rows / len(rows))[1]
        for axes in copies:
            white[:, axes] = x[:, axes] @ inverse
    return white


def _rows(
    sessions: Mapping[str, Session],
    site: str,
    problems: Sequence[Problem],
    sides: Sequence[Side],
    kind: _Kind,
    frames: int,
    seed: int,
) -> list[AxesShared]:
    names = list(sessions)
    fit = Fit(kind.rotated, kind.line, kind.signs, seed)
    two = list(itertools.combinations(range(len(sides)), 2))
    pairs: list[tuple[int, int, Between]] = [
        (a, b, between(sides[a].x, sides[b].x, fit)) for a, b in two
    ]
    found = compare(sides, pairs, frames=frames, seed=seed)
    dim, samples = problems[0].x.shape[1], len(sides[0].x)
    parts = _parts(problems[0], dim)
    rows: list[AxesShared] = []
    named = [(names[a], names[b]) for a, b in two]
    if len(two) > 1:
        named.append((ALL, ALL))
    for place, (one, other) in enumerate(named):
        shared, convergence = found.shared[place], found.convergence[place]
        low = high = float("nan")
        both = two[place] if place < len(two) else range(len(sides))
        observed, others = float(shared[0]), shared[1:]
        if place < len(two):
            a, b = both
            low, high = interval((sides[a], sides[b]), parts, observed, fit)
        mean, std = float(others.mean()), float(others.std())
        rows.append(
            AxesShared(
                site=site,
                first=one,
                second=other,
                axes=dim,
                compared=min(len(sides[side].turns.axes) for side in both),
                observed=observed,
                low=low,
                high=high,
                null_mean=mean,
                null_std=std,
                effect=(observed - mean) / std if std > 0 else float("nan"),
                p_value=monte_carlo_p(observed, others, tail=Tail.UPPER),
                p_tail=tail_p(observed, others, tail=Tail.UPPER).value,
                p_adjusted=float("nan"),
                convergence=float(convergence[0]),
                convergence_null=float(convergence[1:].mean()),
                convergence_p_value=monte_carlo_p(
                    float(convergence[0]), convergence[1:], tail=Tail.UPPER
                ),
                null=kind.words,
                samples=samples,
                null_values=others.numpy().copy(),
            )
        )
    return rows


def _parts(problem: Problem, dim: int) -> Tensor:
    """To which part of the examples every row belongs; rows of one example stay together."""
    examples = problem.examples
    if examples is None:
        examples = torch.arange(len(problem.x))
    _, place = examples.cpu().unique(return_inverse=True)
    return place % (_PARTS if dim <= _WIDE else _PARTS_OF_WIDE)
