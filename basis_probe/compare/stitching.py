"""The front of one network joined to the back of another by a layer restricted to a group."""

import copy
import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from basis_probe.algebra.elements import Element
from basis_probe.algebra.groups import (
    DirectSum,
    GeneralLinear,
    Group,
    Monomial,
    OnAxes,
    Orthogonal,
    Permutation,
    PositiveMonomial,
    SignedPermutation,
    Trivial,
    require_group,
)
from basis_probe.arguments import (
    flag,
    function,
    instance,
    number,
    one_of,
    seed_of,
    several,
    texts,
    whole,
)
from basis_probe.brief import brief
from basis_probe.compare import layers
from basis_probe.compare.alignments import align, axes_group, on_axes
from basis_probe.compare.backs import Answer, Answers, standing_in, unread_before
from basis_probe.compare.matching import assignment
from basis_probe.compare.plan import groups_of
from basis_probe.compare.running import Caught, Network, Spot, pooled
from basis_probe.devices import on_own_device
from basis_probe.errors import DataError, SiteError
from basis_probe.interrupts import guarded, hold, stoppable
from basis_probe.model.batches import Batch, batch_of
from basis_probe.model.capture import catching
from basis_probe.model.graph import Layout
from basis_probe.model.network import Subject, prepared, recognise
from basis_probe.model.replace import NotReplaceable, replacing
from basis_probe.model.trace import tensors_in
from basis_probe.run.read import in_batches, require_batches
from basis_probe.run.stream import rows_last
from basis_probe.run.twins import normalisations, settle
from basis_probe.statistics.second_moments import Crossed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Method = Literal["closed-form", "birkhoff", "lasso"]
Statistics = Literal["recomputed", "kept"]
Objective = Callable[[Any, Any], Tensor]

# Two sites are the same up to the group if this share of the variance, or less, is left over.
_EXACT = 1e-9

# So many bytes of what was made of batches are kept.
_ROOM = 2**28

# On so many forms of batches it is tried whether modules may be left out.
_FORMS = 4

# Where as little as this is left over, sums are taken in double precision.
_NEARLY = 1e-4

# Smaller entries of a lasso layer are set to zero, as in the paper.
_THRESHOLD = 1e-4


@dataclasses.dataclass(frozen=True)
class Performance:
    """How well a network does on some data.

    Attributes:
        loss: the mean loss of an example.
        accuracy: the share of examples that are classified as labelled; NaN without labels.
        n_examples: how many examples.
    """

    loss: float
    accuracy: float
    n_examples: int


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Stitched:
    """Two networks joined at a place.

    Attributes:
        model: the joined network: the front of the first, the stitching layer, the back of the
            second. Both are copies; only the layer has parameters that can be trained.
        group: the group of the layer.
        method: how the layer was found.
        matrix: [dim_b, dim_a], what the layer multiplies with.
        element: the same as an element of the group; None where it has no inverse there.
        stitched, first, second: how well the joined network and the two originals do.
        initial: how well the joined network did before training.
        curve: the training loss after each epoch.
        fit: the share of the second network's activations at the place, about zero, that the
            layer reproduces.
        sites: the places in the first network and in the second.
        notes: what a reader must know.
        interrupted: True if the training was broken off.
    """

    model: "StitchedModel"
    group: Group
    method: str
    matrix: Float[Tensor, "dim_b dim_a"]
    element: Element | None
    stitched: Performance
    first: Performance
    second: Performance
    initial: Performance
    curve: tuple[float, ...]
    fit: float
    sites: tuple[str, str]
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def penalty(self) -> float:
        """The accuracy that is lost against the mean of both originals; NaN without labels."""
        return (self.first.accuracy + self.second.accuracy) / 2 - self.stitched.accuracy

    @property
    def loss_penalty(self) -> float:
        """The loss that is added to the mean of both originals."""
        return self.stitched.loss - (self.first.loss + self.second.loss) / 2

    def __str__(self) -> str:
        lost = (
            f"loss {self.stitched.loss:.4f} ({self.loss_penalty:+.4f})"
            if math.isnan(self.penalty)
            else f"accuracy {self.stitched.accuracy:.2%} (penalty {self.penalty:.2%})"
        )
        return f"{self.sites[0]} -> {self.sites[1]}, {self.group.name}, {self.method}: {lost}"


class StitchedModel(nn.Module):
    """The front of one network, a stitching layer, and the back of another.

    It is called as the two networks are. The second also computes its own front, which is then
    replaced: its places are known by what ran before them.

    Attributes:
        front: a copy of the first network.
        back: a copy of the second.
        layer: the stitching layer, the only part with parameters that require gradients.
    """

    def __init__(
        self,
        models: tuple[nn.Module, nn.Module],
        spots: tuple[Spot, Spot],
        layer: layers.StitchingLayer,
    ) -> None:
        super().__init__()
        self.front, self.back = copy.deepcopy(models[0]), copy.deepcopy(models[1])
        for part in (self.front, self.back):
            part.requires_grad_(False)
        self.layer = layer
        self._spots = spots

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the joined network computes."""
        return self._joined(lambda: self.front(*args, **kwargs), lambda: self.back(*args, **kwargs))

    def run(self, batch: Batch) -> Any:
        """The same for a batch."""
        front, back = recognise(self.front), recognise(self.back)
        return self._joined(lambda: front.call(batch), lambda: back.call(batch))

    def run_behind(self, x: Tensor | None, batch: Batch, answers: Mapping[str, Answer]) -> Any:
        """The same for a batch of which something is known.

        Args:
            x: [..., dim_a], what the front holds at its place; None to run it.
            batch: the batch.
            answers: modules of the back that need not run, and what stands in for their answers.
        """
        other = self._spots[1].site.address
        front = recognise(self.front)
        rows = self._reached(lambda: front.call(batch)) if x is None else x
        with (
            standing_in(self.back, answers),
            replacing(self.back, other, lambda there: self._at(rows, there)),
        ):
            return recognise(self.back).call(batch)

    def _joined(self, front: Callable[[], Any], back: Callable[[], Any]) -> Any:
        rows, other = self._reached(front), self._spots[1]
        with replacing(self.back, other.site.address, lambda there: self._at(rows, there)):
            return back()

    def _reached(self, front: Callable[[], Any]) -> Tensor:
        """[..., dim_a], what the front holds at its place as it runs."""
        own = self._spots[0]
        caught: list[Tensor] = []

        def stop(tensor: Tensor) -> None:
            caught.append(tensor.detach())
            raise _Reached

        try:
            with torch.no_grad(), catching(self.front, {own.site.address: stop}):
                front()
        except _Reached:
            pass
        if not caught:
            raise DataError(f"{own.site.name} did not run")
        return rows_last(caught[0], own.layout)

    def _at(self, rows: Tensor, there: Tensor) -> Tensor:
        """What takes the place of the second network's activations, laid out as they are."""
        own, other = self._spots
        target = rows_last(there, other.layout).shape
        if own.spatial and other.spatial and rows.shape[1:-1] != target[1:-1]:
            rows = _resized(rows.movedim(-1, 1), tuple(target[1:-1])).movedim(1, -1)
        made = self.layer(rows)
        if made.shape != target:
            raise DataError(
                f"{own.site.name} holds {tuple(rows.shape[:-1])} places and {other.site.name} "
                f"{tuple(target[:-1])}: stitch places with the same positions"
            )
        return _laid_out(made, there, other.layout)


def _laid_out(rows: Tensor, there: Tensor, layout: Layout | None) -> Tensor:
    """Rows with features last laid out as some other tensor is: what undoes `rows_last`."""
    axes = (there.ndim - 1,) if layout is None else layout.axes
    split = rows.unflatten(-1, [there.shape[axis] for axis in axes])
    last = tuple(range(there.ndim - len(axes), there.ndim))
    return split.movedim(last, axes).to(there.dtype)


class _Reached(Exception):
    """The front has run as far as it is needed."""


def _resized(maps: Tensor, space: tuple[int, ...]) -> Tensor:
    """Averaged down where a side is larger, repeated where it is smaller."""
    least = tuple(min(a, b) for a, b in zip(maps.shape[2:], space, strict=True))
    return nn.functional.interpolate(pooled(maps, least), space)


@on_own_device
@torch.inference_mode(False)
@torch.enable_grad()
def stitch(
    model_a: nn.Module,
    model_b: nn.Module,
    site: str,
    data: Iterable[Any],
    *,
    other_site: str | None = None,
    group: Group | str | None = None,
    method: Method = "closed-form",
    rank: int | None = None,
    objective: Objective | None = None,
    held_out: Iterable[Any] | None = None,
    epochs: int = 4,
    learning_rate: float | None = None,
    sparsity: float = 1e-4,
    reward: float = 1e-3,
    batch_norm: Statistics = "recomputed",
    seed: int = 0,
    progress: bool = True,
) -> Stitched:
    """The front of `model_a` joined to the back of `model_b` by a layer within a group.

    The layer begins as the element that lays the one network's activations on the other's best:
    least squares (under a rank the best of that rank), a polar factor, an assignment with scales by
    least squares. Then it is trained within its group, nothing else is, and the better of the two
    on the held-out data is kept. Where the two places are the same up to the group there is nothing
    left to train. Ctrl-C ends the training, and the layer as it is then is measured; before the
    training there is nothing to keep.

    Args:
        model_a: whose front is used, as for `probe`.
        model_b: whose back is used.
        site: the place in `model_a` up to which it runs.
        data: batches that can be read several times, such as a list or a DataLoader. The second
            element of a tuple holds labels.
        other_site: the place in `model_b`; None for the same name.
        group: the group of the layer, or its name: "general-linear" for any linear map,
            "orthogonal", "permutation", "positive-monomial", "trivial" for no layer at all; None
            for the group of the place.
        method: "closed-form"; "birkhoff" for a doubly stochastic matrix that is trained and then
            rounded, as the paper does for permutations and positive monomial matrices; "lasso" for
            a linear map that is made sparse.
        rank: for a linear map, its largest rank.
        objective: (what the model returns, the batch as the data gave it) -> loss; None for the
            cross entropy of the labels, or without labels for the relative squared difference to
            what `model_b` returns.
        held_out: batches on which the networks are compared; None for `data`, and then the penalty
            is one of training.
        epochs: how often the data are gone through in training; 0 for the closed form alone.
        learning_rate: of Adam; None for 1e-3 for linear maps and turns, 1e-2 for the others.
        sparsity: the weight of absolute values in a lasso.
        reward: the weight of the norm of a doubly stochastic matrix.
        batch_norm: "recomputed" for what the paper does: batch normalisation uses the statistics
            of each batch while the layer is trained, and in the end its running statistics are
            averaged anew over the data; "kept" for those of the originals, as they also are where
            the two places are the same up to the group.
        seed: seeds the Birkhoff matrix to begin with.
        progress: whether to show a progress bar of the training.

    Raises:
        DataError: for data that can be read once only, or that the models cannot be called with.
        SiteError: for a name that stands for no site, places of different kinds, or a layer to
            train on which the loss does not depend.
        ValueError: for a group, method or number that makes no sense.

    Example:
        >>> import torch, basis_probe as bp
        >>> generator = torch.Generator().manual_seed(0)
        >>> layers = torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> x = torch.randn(200, 4, generator=generator)
        >>> data = [(x, model(x).argmax(1))]
        >>> element = bp.groups.PositiveMonomial(6).draw(generator)
        >>> twin = bp.reparametrize(model, "1", element, example_input=x)
        >>> joined = bp.stitch(model, twin, "1", data)
        >>> joined.penalty, torch.equal(joined.element.columns, element.columns)
        (0.0, True)
    """
    site = instance("site", site, str, "the name of one site, such as 'blocks.0.mlp'")
    if other_site is not None:
        instance("other_site", other_site, str, "the name of one site, or None for the same")
    instance("model_a", model_a, nn.Module, "a torch module")
    instance("model_b", model_b, nn.Module, "a torch module")
    require_group("group", group)
    if objective is not None:
        function("objective", objective, "a function of (output, batch), or None")
    if learning_rate is not None:
        learning_rate = number("learning_rate", learning_rate, most=1e6)
    sparsity, reward = number("sparsity", sparsity, least=0.0), number("reward", reward, least=0.0)
    seed, epochs = seed_of(seed), whole("epochs", epochs)
    progress = bool(flag("progress", progress))
    rank = None if rank is None else whole("rank", rank, least=1)
    _check(method, batch_norm, data, held_out)
    models = model_a, model_b
    work = Work(models, data, objective)
    with prepared(model_a, None), prepared(model_b, None):
        both = _Both(work, (site, other_site or site), group, method)
        judges = _Judge(work), _Judge(work)
        moments = both.gather(judges if held_out is None else None)
        own, other = both.groups

        def begun(moments: Crossed) -> tuple[layers.StitchingLayer, list[str], float]:
            raw = moments.uncentred()
            layer, notes = _layer(
                own, other, raw, moments, method=method, rank=rank, sparsity=sparsity,
                reward=reward, seed=seed,
            )  # fmt: skip
            return layer, notes, _fit(layer.weight().detach().double().cpu(), raw)

        layer, notes, fit = begun(moments)
        if both.single and 1 - fit <= _NEARLY:
            # Whether nothing is left over cannot be told in single precision.
            both.single = False
            moments = both.gather(None)
            layer, notes, fit = begun(moments)
        names = both.names
        joined = StitchedModel(models, both.spots, layer)
        joined.eval()
        test = data if held_out is None else held_out
        if held_out is None:
            notes.append("Compared on the data that the layer was fitted on.")
        else:
            both.judge(held_out, judges)
        originals = [judge.performance for judge in judges]
    exact = 1 - fit <= _EXACT and method != "birkhoff"
    # What is joined without a seam computes what the second network does, statistics included.
    trainer = _Trainer(work, joined, "kept" if exact else batch_norm, test, progress=progress)
    try:
        with torch.no_grad():
            trainer.settle()
            initial = trainer.performance()
    except NotReplaceable as error:
        raise SiteError(f"{names[1]} cannot be stitched to: {error}") from error
    curve: tuple[float, ...] = ()
    trainable = [p for p in layer.parameters() if p.requires_grad]
    trained = False
    with guarded():
        if exact:
            notes.append("The two places are the same up to the group: nothing was trained.")
        elif trainable and epochs:
            trained = True
            curve, better = trainer.train(epochs, learning_rate or _rate(layer), initial.loss)
            if trainer.interrupted:
                notes.append(
                    f"The training was interrupted after {len(curve)} of {epochs} epochs; the "
                    "layer is as it was then."
                )
            if not better:
                notes.append("Training did not lower the loss: the closed form was kept.")
        if trainer.normalisations:
            notes.append(
                "The statistics of batch normalisation were "
                + (
                    "averaged anew over the data for the joined network, in training mode."
                    if trainer.statistics == "recomputed"
                    else "those of the originals."
                )
            )
        # What was not trained does what it did.
        stitched = trainer.performance() if trained else initial
    matrix = layer.weight().detach().double().cpu()
    return Stitched(
        model=joined,
        group=own,
        method=method if rank is None else f"rank {rank}",
        matrix=matrix,
        element=_element(own, matrix),
        stitched=stitched,
        first=originals[0],
        second=originals[1],
        initial=initial,
        curve=curve,
        fit=_fit(matrix, moments.uncentred()),
        sites=names,
        notes=tuple(notes),
        interrupted=trainer.interrupted,
    )


def _check(
    method: str,
    batch_norm: str,
    data: Iterable[Any],
    held_out: Iterable[Any] | None,
) -> None:
    one_of("method", method, ("closed-form", "birkhoff", "lasso"))
    one_of("batch_norm", batch_norm, ("recomputed", "kept"))
    require_several_readings(data)
    if held_out is not None:
        require_several_readings(held_out)


def require_several_readings(data: Iterable[Any]) -> None:
    """Raises DataError for data that can be read once only."""
    if isinstance(data, Iterator):
        raise DataError(
            "the data can be read only once, and are needed several times: give a list or a "
            "DataLoader"
        )


# --- the layer to begin with ----------------------------------------------------------------------


def _layer(
    own: Group,
    other: Group,
    raw: Crossed,
    centred: Crossed,
    *,
    method: Method,
    rank: int | None,
    sparsity: float,
    reward: float,
    seed: int,
) -> tuple[layers.StitchingLayer, list[str]]:
    """The layer of a group, as the closed form has it.

    Args:
        own: the group on the axes of the first network.
        other: that on those of the second.
        raw: the moments between the two about zero.
        centred: those about the mean.
        method: how the layer is found.
        rank: the rank of a linear map.
        sparsity: for a lasso.
        reward: for a doubly stochastic matrix.
        seed: for a doubly stochastic matrix.
    """
    linear = isinstance(own, GeneralLinear)
    if (method == "lasso" or rank is not None) and not linear:
        raise ValueError(
            f"a rank and the lasso belong to linear maps and the group is {own.name}: give "
            'group="general-linear"'
        )
    if method == "birkhoff":
        if not isinstance(own, Permutation | PositiveMonomial) or own.dim != other.dim:
            raise ValueError(
                "a doubly stochastic matrix relaxes permutations of equally many axes, with "
                f"positive scales or without: {own.name} on {own.dim} and {other.dim} axes is "
                "neither"
            )
        generator = torch.Generator().manual_seed(seed)
        scales = isinstance(own, PositiveMonomial)
        return layers.Birkhoff(own.dim, scales=scales, reward=reward, generator=generator), []
    if linear:
        matrix = raw.x.least_squares(raw.sums).T
        if rank is not None:
            # The best of a rank: what is fitted without one, along its own leading directions
            # (reduced-rank regression; Izenman 1975).
            fitted = matrix @ raw.sums
            leading = torch.linalg.eigh((fitted + fitted.T) / 2)[1][:, -rank:]
            return layers.ReducedRank(leading @ (leading.T @ matrix), min(rank, *matrix.shape)), []
        if method == "lasso":
            return layers.Linear(matrix, sparsity=sparsity, threshold=_THRESHOLD), []
        return layers.Linear(matrix), []
    if isinstance(own, Orthogonal):
        u, _, v = torch.linalg.svd(raw.sums, full_matrices=False)
        return layers.Turn(v.T @ u.T), []
    if isinstance(own, OnAxes) or (isinstance(own, DirectSum) and on_axes(own)):
        return _on_axes(own, other, raw, centred)
    if isinstance(own, Trivial):
        if own.dim != other.dim:
            raise ValueError(f"{own.dim} axes cannot be joined to {other.dim} without a layer")
        return layers.Fixed(torch.eye(own.dim, dtype=torch.float32)), []
    found = align(own, other, centred, constant="ignore")
    note = f"A layer in {own.name} has a closed form and is not trained."
    return layers.Fixed(found.matrix), [note]


def _on_axes(
    group: Group, other: Group, raw: Crossed, centred: Crossed
) -> tuple[layers.StitchingLayer, list[str]]:
    """Axes matched by assignment; scales by least squares where the group has them."""
    whole = axes_group([group], group.dim)
    signs, scales = isinstance(whole, SignedPermutation | Monomial), group.rescales
    gain = raw.sums
    if scales:
        sizes = [side.sizes.sqrt() for side in (centred.x, centred.y)]
        safe = [torch.where(size == 0, torch.full_like(size, math.inf), size) for size in sizes]
        gain = centred.sums / safe[0][:, None] / safe[1]
    if isinstance(group, DirectSum):
        # Axes change places within their parts only.
        found = align(group, other, centred, constant="ignore").inner
        places, rows = torch.arange(len(found)), found.abs().argmax(1)
    else:
        rows, places = assignment(gain.abs() if signs else gain)
    columns = torch.full((gain.shape[1],), -1)
    columns[places] = rows
    factors = torch.ones(len(columns), dtype=torch.float64)
    chosen = raw.sums[rows, places]
    if scales:
        energy = raw.x.sizes[rows]
        fitted = chosen / torch.where(energy == 0, torch.ones_like(energy), energy)
        # An axis without a scale of its own keeps the one that it has.
        fitted = torch.where(fitted == 0, torch.ones_like(fitted), fitted)
        if not signs:
            fitted = torch.where(fitted > 0, fitted, torch.full_like(fitted, 1e-6))
        factors[places] = fitted
    elif signs:
        factors[places] = torch.where(gain[rows, places] < 0, -1.0, 1.0).double()
    notes: list[str] = []
    dead = int((centred.y.sizes == 0).sum())
    if dead:
        notes.append(
            f"{dead} axes of the second network never vary on the data: what is matched to them is "
            "arbitrary."
        )
    return layers.Monomial(columns, factors, gain.shape[0], scales=scales), notes


def _fit(matrix: Tensor, raw: Crossed) -> float:
    """The share of y's size about zero that A x reproduces."""
    left = raw.y.sizes.sum() - 2 * (matrix * raw.sums.T).sum()
    if raw.x.between is None:
        # Every axis of y is made of one of x.
        left = left + (matrix.square() @ raw.x.sizes).sum()
    else:
        left = left + ((matrix @ raw.x.between) * matrix).sum()
    return float(1 - left / raw.y.sizes.sum())


def _rate(layer: layers.StitchingLayer) -> float:
    slow = (layers.Linear, layers.ReducedRank, layers.Turn)
    return 1e-3 if isinstance(layer, slow) else 1e-2


def _element(group: Group, matrix: Tensor) -> Element | None:
    if matrix.shape[0] != matrix.shape[1]:
        return None
    try:
        return group.element(matrix, atol=1e-4)
    except ValueError:
        return None


# --- data, losses, training -----------------------------------------------------------------------


class Work:
    """The data as both networks take them, and how losses are computed from them.

    Args:
        models: the two networks.
        data: batches.
        objective: the loss; None for that of the labels, or of the second network's outputs.
    """

    def __init__(
        self,
        models: tuple[nn.Module, nn.Module],
        data: Iterable[Any],
        objective: Objective | None,
    ) -> None:
        self.subjects: tuple[Subject, Subject] = recognise(models[0]), recognise(models[1])
        self.data, self.objective = data, objective
        self.seen = _Seen()

    def items(self, data: Iterable[Any]) -> Iterator[tuple[Batch, Any]]:
        """The batches, each with what the data gave.

        Raises:
            DataError: if there is none, or one that the networks cannot be called with.
        """
        require_batches(data)
        subject, number = self.subjects[1], -1
        for number, raw in enumerate(in_batches(data)):
            batch = batch_of(raw, number=number, tokenizer=subject.tokenizer, device=subject.device)
            yield batch, raw
        if number < 0:
            raise DataError("the data hold no batch: give at least one, better several")

    def loss(
        self, outputs: Any, batch: Batch, raw: Any, wanted: Tensor | None = None
    ) -> tuple[Tensor, int | None]:
        """The loss, and how many examples were classified as labelled if there are labels.

        Args:
            outputs: what a network returned.
            batch: the batch.
            raw: the same as the data gave it.
            wanted: what the second network returns for it, where losses are differences to that.
        """
        if self.objective is not None:
            return self.objective(outputs, raw), None
        made = _answer_in(outputs)
        if made is None:
            raise DataError("the model returns no floating-point tensor to compute a loss from")
        labels = _labels(raw, batch.size)
        if labels is not None and made.ndim == 2:
            labels = labels.to(made.device)
            right = int((made.argmax(1) == labels).sum())
            return nn.functional.cross_entropy(made, labels), right
        assert wanted is not None
        return (made - wanted).square().sum() / wanted.square().sum().clamp(min=1e-30), None

    def wants_answers(self, batch: Batch, raw: Any) -> bool:
        """True if losses are differences to what the second network returns."""
        return self.objective is None and _labels(raw, batch.size) is None

    def wanted(self, place: int, batch: Batch, raw: Any) -> Tensor | None:
        """What the second network returns for a batch, if losses are differences to it.

        Args:
            place: of the batch among all.
            batch: the batch.
            raw: the same as the data gave it.
        """
        if not self.wants_answers(batch, raw):
            return None
        known = self.seen.of(place, batch)
        if known is not None and known.wanted is not None:
            return known.wanted
        with torch.no_grad(), prepared(self.subjects[1].model, None):
            wanted = _answer_in(self.subjects[1].call(batch))
        if known is None:
            self.seen.keep(place, _Before(batch, None, wanted))
        return wanted

    def performance(self, run: Callable[[Batch], Any], data: Iterable[Any]) -> Performance:
        """How well a network does."""
        judge = _Judge(self)
        with torch.no_grad():
            for place, (batch, raw) in enumerate(self.items(data)):
                judge.see(run(batch), batch, raw, self.wanted(place, batch, raw))
        return judge.performance


def _answer_in(outputs: Any) -> Tensor | None:
    """The first numbers among what a network returns."""
    return next((t for t in tensors_in(outputs) if t.is_floating_point()), None)


@dataclasses.dataclass(frozen=True, eq=False)
class _Before:
    """What both networks made of a batch.

    Attributes:
        batch: the batch, with tensors of its own.
        front: [..., dim_a], what the first holds at its place; None if that was not seen.
        wanted: what the second returns, where losses are differences to it.
        answers: of modules of the second that need not run again.
    """

    batch: Batch
    front: Tensor | None
    wanted: Tensor | None
    answers: Mapping[str, Answer] = dataclasses.field(default_factory=dict[str, Answer])


class _Seen:
    """What both networks made of the batches, kept as long as there is room."""

    def __init__(self) -> None:
        self._known: dict[int, _Before] = {}
        self._room = _ROOM

    @property
    def left_out(self) -> frozenset[str]:
        """The modules of the second network that need not run again for some of the batches."""
        return frozenset(path for before in self._known.values() for path in before.answers)

    def leave_nothing_out(self) -> None:
        """From now on every module of the second network runs."""
        for place, before in self._known.items():
            self._known[place] = dataclasses.replace(before, answers={})

    def keep(self, number: int, before: _Before) -> None:
        """Keeps what was made of the batch of this number."""
        batch = before.batch
        if not _is_told_by_tensors(batch):
            return
        short = dataclasses.replace(before, wanted=None)
        # What the second returns may be much larger than what the first holds.
        for known in (before, short):
            held = (known.front, known.wanted, *batch.named().values())
            size = sum(tensor.nbytes for tensor in held if tensor is not None)
            if size <= self._room:
                self._room -= size
                self._known[number] = dataclasses.replace(known, batch=batch.copied())
                return

    def of(self, number: int, batch: Batch) -> _Before | None:
        """What was made of a batch, if it was this one that had the number."""
        before = self._known.get(number)
        if before is None or not _is_told_by_tensors(batch):
            return None
        own, other = before.batch.named(), batch.named()
        same = own.keys() == other.keys() and all(
            own[name].dtype == other[name].dtype and torch.equal(own[name], other[name])
            for name in own
        )
        return before if same else None


def _is_told_by_tensors(batch: Batch) -> bool:
    """True if a model is called with tensors alone, beside what is said of every batch."""
    plain = Tensor | bool | int | float | str | None
    return all(isinstance(value, plain) for value in (*batch.args, *batch.kwargs.values()))


class _Both:
    """Both networks over some data: what they hold at their places, and what they return.

    Args:
        work: the data.
        sites: the places by name.
        group: the group of the layer, its name, or None for that of the place.
        method: how the layer is found.

    Attributes:
        spots, names, groups: of either network, once something was gathered.
        single: True if sums of products were taken in single precision.
    """

    def __init__(
        self, work: Work, sites: tuple[str, str], group: Group | str | None, method: Method
    ) -> None:
        self.work, self._sites, self._group = work, sites, group
        self._method: Method = method
        self.single = True
        self._networks: tuple[Network, Network] | None = None
        self._unread: tuple[str, ...] = ()
        self._tried: dict[object, Batch] = {}

    def _watch(self, batch: Batch) -> tuple[Network, Network]:
        one, other = zip(self.work.subjects, self._sites, strict=True)
        network = Network(one[0], batch, one[1])
        networks = network, Network(other[0], batch, other[1], like=network)
        (first, own), (second, their) = networks[0].one(), networks[1].one()
        self.names, self.spots = (first, second), (own, their)
        self.groups = groups_of(own, their, self._group)
        facts = networks[1].facts
        trace = facts.graph.trace if facts.recorded is None else facts.recorded
        self._unread = unread_before(self.work.subjects[1].model, trace, their.site.node)
        return networks

    def gather(self, judges: "tuple[_Judge, _Judge] | None") -> Crossed:
        """The moments between the axes of the two places; judges see what is returned meanwhile."""
        total: Crossed | None = None
        rounded = False
        for place, (batch, raw) in enumerate(self.work.items(self.work.data)):
            x, y = self._see(place, batch, raw, judges)
            single, sizes_only = _read_of(self.groups[0], self._method)
            total = total or Crossed.empty(self.spots[0].dim, self.spots[1].dim)
            if x.space is not None and y.space is not None and x.space != y.space:
                maps = _resized(x.maps(), y.space)
                x = dataclasses.replace(x, values=maps.flatten(2).movedim(1, 2), space=y.space)
            if len(x.rows) != len(y.rows):
                raise DataError(
                    f"{self.names[0]} holds {len(x.rows)} samples and {self.names[1]} "
                    f"{len(y.rows)}: stitch places with the same positions"
                )
            sides = [side.samples(single=single and self.single) for side in (x, y)]
            rounded = rounded or any(side.single for side in sides)
            total += Crossed.of(*sides, sizes_only=sizes_only)
        assert total is not None
        self.single = rounded
        return total

    def judge(self, data: Iterable[Any], judges: "tuple[_Judge, _Judge]") -> None:
        """Judges both networks on other data."""
        for place, (batch, raw) in enumerate(self.work.items(data)):
            self._see(place, batch, raw, judges)

    def _see(
        self, number: int, batch: Batch, raw: Any, judges: "tuple[_Judge, _Judge] | None"
    ) -> tuple[Caught, Caught]:
        """What both hold for a batch, of which all is kept that its judges will need again."""
        if self._networks is None:
            self._networks = self._watch(batch)
        first, second = self._networks
        found, output = first.answer(batch)
        answers = Answers(second.subject.model, self._unread if judges else ())
        with answers.noted():
            others, wanted = second.answer(batch)
        x, y = found[self.names[0]], others[self.names[1]]
        if judges is not None:
            target = _answer_in(wanted) if self.work.wants_answers(batch, raw) else None
            judges[0].see(output, batch, raw, target)
            judges[1].see(wanted, batch, raw, target)
            if self._unread and not self._is_enough(batch, y, wanted, answers):
                self._unread = ()
                self.work.seen.leave_nothing_out()
            known = answers.made if self._unread and answers.complete else {}
            if x.whole is not None:
                self.work.seen.keep(number, _Before(batch, x.whole, target, known))
        return x, y

    def _is_enough(self, batch: Batch, y: Caught, returned: Any, answers: Answers) -> bool:
        """True if the second network does the same without what comes before its place.

        It is tried on the first batches of different forms, each after another batch has run:
        modules may leave behind what others read, such as how many examples there were.
        """
        form = tuple((name, tensor.shape) for name, tensor in batch.named().items())
        if form in self._tried or len(self._tried) == _FORMS:
            return True
        other = next(reversed(self._tried.values()), batch.first(1))
        self._tried[form] = batch.copied()
        if y.whole is None or not answers.complete:
            return False
        held, layout = y.whole, self.spots[1].layout
        subject, address = self.work.subjects[1], self.spots[1].site.address
        try:
            with torch.no_grad():
                subject.call(other.copied())
            with (
                torch.no_grad(),
                standing_in(subject.model, answers.made),
                replacing(subject.model, address, lambda there: _laid_out(held, there, layout)),
            ):
                again = list(tensors_in(subject.call(batch)))
        except Exception:
            # Zeros may be nothing that code before the place can work with.
            return False
        before = list(tensors_in(returned))
        return len(again) == len(before) and all(map(torch.equal, before, again))


def _read_of(group: Group, method: Method) -> tuple[bool, tuple[bool, bool]]:
    """Which moments the layers of a group and their fit are made of.

    Returns:
        Whether single precision is enough, and of either side, whether sizes of axes are.
    """
    if isinstance(group, GeneralLinear | Orthogonal):
        return False, (False, True)
    if method == "closed-form" and on_axes(group):
        return True, (True, True)
    return False, (False, False)


class _Judge:
    """How well a network does, from what it returns batch by batch."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.total, self.right, self.count, self.labelled = 0.0, 0, 0, True

    def see(self, output: Any, batch: Batch, raw: Any, wanted: Tensor | None) -> None:
        """Adds what it returns for a batch."""
        with torch.no_grad():
            loss, correct = self.work.loss(output, batch, raw, wanted)
        self.total += float(loss) * batch.size
        self.labelled = self.labelled and correct is not None
        self.right += correct or 0
        self.count += batch.size

    @property
    def performance(self) -> Performance:
        """Of all batches so far."""
        accuracy = self.right / self.count if self.labelled else math.nan
        return Performance(self.total / self.count, accuracy, self.count)


def _labels(raw: Any, size: int) -> Tensor | None:
    """The second element of a batch, if it holds one whole number for every example."""
    if not isinstance(raw, tuple | list) or len(raw) < 2:  # pyright: ignore[reportUnknownArgumentType]
        return None
    second: Any = raw[1]
    if not isinstance(second, Tensor) or second.is_floating_point() or second.shape != (size,):
        return None
    return second.long()


@final
class _Trainer:
    """Trains the layer of a joined network, and nothing else."""

    def __init__(
        self,
        work: Work,
        joined: StitchedModel,
        statistics: Statistics,
        test: Iterable[Any],
        *,
        progress: bool,
    ) -> None:
        self.work, self.joined, self.statistics, self.test = work, joined, statistics, test
        self.progress, self.interrupted = progress, False
        self.normalisations = normalisations(joined)

    def performance(self) -> Performance:
        """How well the joined network does."""
        judge = _Judge(self.work)
        with torch.no_grad():
            for place, (batch, raw) in enumerate(self.work.items(self.test)):
                output = self._run(place, batch)
                judge.see(output, batch, raw, self.work.wanted(place, batch, raw))
        return judge.performance

    def _run(self, place: int, batch: Batch) -> Any:
        """What the joined network returns for a batch, with what is known of its parts."""
        known = self.work.seen.of(place, batch)
        if known is None:
            return self.joined.run(batch)
        # With other statistics its front makes something else.
        same = not self.normalisations or self.statistics == "kept"
        return self.joined.run_behind(known.front if same else None, batch, known.answers)

    def settle(self) -> None:
        """Averages the statistics of batch normalisation anew over the data.

        Those of layers of which nothing is read, as they come before the place, stay as they are.
        """
        if self.statistics != "recomputed":
            return
        left_out = [self.joined.back.get_submodule(path) for path in self.work.seen.left_out]
        before = {
            buffer: buffer.clone()
            for module in left_out
            for norm in normalisations(module)
            for buffer in norm.buffers()
        }
        batches = enumerate(self.work.items(self.work.data))
        runs = (functools.partial(self._run, place, batch) for place, (batch, _) in batches)
        settle(self.joined, runs)
        for buffer, value in before.items():
            buffer.copy_(value)

    @contextmanager
    def _batch_statistics(self) -> Generator[None]:
        """Within the context batch normalisation is in training mode, averaging all it sees."""
        momenta = [module.momentum for module in self.normalisations]
        try:
            for module in self.normalisations:
                module.training, module.momentum = True, None
            yield
        finally:
            for module, momentum in zip(self.normalisations, momenta, strict=True):
                module.training, module.momentum = False, momentum

    def train(self, epochs: int, rate: float, start: float) -> tuple[tuple[float, ...], bool]:
        """The training loss after each epoch, and whether the held-out loss ended below `start`."""
        from tqdm.auto import tqdm

        layer = self.joined.layer
        before = copy.deepcopy(layer.state_dict())
        relaxed = isinstance(layer, layers.Birkhoff)
        curve: list[float] = []
        stages = [math.ceil(epochs / 2), epochs // 2] if relaxed else [epochs]
        bar = tqdm(
            total=epochs,
            desc="training the layer",
            unit="epoch",
            disable=not self.progress,
            leave=False,
        )
        try:
            for stage, rounds in enumerate(stages):
                if stage or not relaxed:
                    layer.harden()
                trainable = [p for p in layer.parameters() if p.requires_grad]
                if not trainable:
                    break
                optimiser = torch.optim.Adam(trainable, lr=rate)
                for _ in range(rounds):
                    curve.append(self._epoch(optimiser))
                    bar.update()
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            bar.close()
        layer.harden()
        self.settle()
        end = self.performance().loss
        if end < start or relaxed:
            return tuple(curve), True
        layer.load_state_dict(before)
        self.settle()
        return tuple(curve), False

    def _epoch(self, optimiser: torch.optim.Optimizer) -> float:
        total, count = 0.0, 0
        recomputed = self.statistics == "recomputed"
        hold()
        for place, (batch, raw) in enumerate(self.work.items(self.work.data)):
            with stoppable():
                wanted = self.work.wanted(place, batch, raw)
                with self._batch_statistics() if recomputed else nullcontext():
                    loss, _ = self.work.loss(self._run(place, batch), batch, raw, wanted)
                if not loss.requires_grad:
                    raise SiteError(
                        "the loss does not depend on the place in the second network, so that no "
                        "layer can be trained: give an objective that reads what comes of it, or "
                        "epochs=0"
                    )
                added = self.joined.layer.penalty()
                optimiser.zero_grad()
                (loss if added is None else loss + added).backward()
            optimiser.step()
            self.joined.layer.project()
            total += float(loss.detach()) * batch.size
            count += batch.size
        return total / count


# --- a curve over layers --------------------------------------------------------------------------


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class StitchingCurve:
    """Networks joined at several places, under several groups.

    Attributes:
        stitches: every joined network, group by group, in forward order.
    """

    stitches: tuple[Stitched, ...]

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with one row for each place and layer."""
        import pandas as pd

        rows = [
            {
                "site": found.sites[0],
                "other_site": found.sites[1],
                "group": found.group.name,
                "method": found.method,
                "accuracy": found.stitched.accuracy,
                "penalty": found.penalty,
                "loss": found.stitched.loss,
                "loss_penalty": found.loss_penalty,
                "initial_accuracy": found.initial.accuracy,
                "fit": found.fit,
                "n_examples": found.stitched.n_examples,
            }
            for found in self.stitches
        ]
        return pd.DataFrame(rows)

    def plot(self, *, figsize: tuple[float, float] | str | None = None) -> "Figure":
        """The penalty over places, one line for each group.

        Args:
            figsize: as for `Report.plot`.

        Raises:
            ValueError: for any other size.
        """
        from basis_probe.show.heatmap import lines

        frame = self.to_dataframe()
        measured = "penalty" if not frame.penalty.isna().any() else "loss_penalty"
        return lines(
            {
                f"{group}, {method}": list(zip(part.site, part[measured], strict=True))
                for (group, method), part in frame.groupby(["group", "method"], sort=False)
            },
            label="accuracy lost" if measured == "penalty" else "loss added",
            size=figsize,
        )


@on_own_device
def stitching_curve(
    model_a: nn.Module,
    model_b: nn.Module,
    data: Iterable[Any],
    *,
    sites: Sequence[str] | None = None,
    groups: Sequence[Group | str | None] = (None,),
    **options: Any,
) -> StitchingCurve:
    """Two networks joined at each of several places, under each of several groups.

    Ctrl-C gives the curve of those that are joined by then, with a warning that says so.

    Args:
        model_a: whose fronts are used.
        model_b: whose backs are used.
        data: as for `stitch`.
        sites: the places; None for the sensible ones that both have.
        groups: the groups; None among them for that of the place.
        options: as for `stitch`.

    Raises:
        ValueError: for sites or groups that are no lists of such.
        Exception: whatever `stitch` raises.
    """
    if sites is not None:
        sites = texts("sites", sites, "names of places")
    for group in several("groups", groups, "groups, their names, or None for that of the place"):
        require_group("one of groups", group)
    names = list(sites) if sites is not None else _shared_sites((model_a, model_b), data)
    stitches: list[Stitched] = []
    for group, name in itertools.product(groups, names):
        try:
            stitches.append(stitch(model_a, model_b, name, data, group=group, **options))
        except KeyboardInterrupt:
            if not stitches:
                raise
            stopped = True
        else:
            stopped = stitches[-1].interrupted
        if stopped:
            warnings.warn(
                f"It was interrupted after {len(stitches)} of {len(names) * len(groups)} joined "
                "networks, which the curve is of.",
                stacklevel=2,
            )
            break
    return StitchingCurve(tuple(stitches))


def _shared_sites(models: tuple[nn.Module, nn.Module], data: Iterable[Any]) -> list[str]:
    require_several_readings(data)
    work = Work(models, data, None)
    batch, _ = next(work.items(data))
    with prepared(models[0], None), prepared(models[1], None):
        found = [Network(subject, batch, None).spots for subject in work.subjects]
    shared = [name for name in found[0] if name in found[1]]
    if not shared:
        raise SiteError("the two models have no site of the same name: stitch places one by one")
    return shared
