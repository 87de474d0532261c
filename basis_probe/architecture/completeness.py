"""Is there a continuous symmetry that nothing claims? A count that answers it.

The directions in parameter space that leave the function unchanged are the null space of the
Jacobian of (parameters -> outputs on many inputs). What the claimed groups do to the parameters,
linearised, spans a part of it. Where both have the same dimension, no continuous symmetry is
missed, to first order and at these weights. Orders and signs of axes are not seen by the count.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from basis_probe.algebra.groups import Group, Unknown
from basis_probe.algebra.tangents import tangents
from basis_probe.architecture.act import Action
from basis_probe.architecture.directions import Directions
from basis_probe.architecture.prove import Unproved
from basis_probe.architecture.prove_copied import CopyProver
from basis_probe.model.batches import Batch
from basis_probe.model.facts import Facts
from basis_probe.model.graph import Kind
from basis_probe.model.places import Site
from basis_probe.model.precision import in_double
from basis_probe.model.trace import fixed_in, tensors_in
from basis_probe.model.weights import Slot, WeightError, held
from basis_probe.results.symmetry import Completeness

LARGEST = 6_000
"""So many numbers the parameters may hold: the work grows with their cube."""

ZERO = 1e-10
"""Singular values below this share of the largest are zero but for rounding."""

NEAR = 1e-5
"""Singular values below this share, and not zero, are symmetries but for an epsilon."""

SOUND = 1e-6
"""By how much a claimed direction may leave the null space, relative to its length."""

_STEP = 1e-4
_SPARE = 64
_OUTPUTS, _BATCHES = 12, 512
"""So many outputs for every parameter, from at most so many batches."""


def too_large(size: int) -> str:
    """What is said of a model whose parameters hold too many numbers."""
    return (
        f"the parameters hold {size:,} numbers, and the count is made for at most {LARGEST:,}: "
        "give a small model of the same architecture"
    )


class Counter:
    """Counts the directions that leave a small model's function unchanged, claimed or not.

    Args:
        prover: holds the copy of the model, and acts on its weights.

    Raises:
        Unproved: if the model is too large, or cannot be differentiated in float64.
    """

    def __init__(self, prover: CopyProver) -> None:
        self.prover = prover
        self.facts: Facts = prover.facts
        self.action: Action = prover.action
        self.names: list[str] = []
        self.places: dict[str, slice] = {}
        count = 0
        for name, tensor in held(prover.weights.model):
            if isinstance(tensor, nn.Parameter):
                self.names.append(name)
                self.places[name] = slice(count, count + tensor.numel())
                count += tensor.numel()
        self.count = count
        if count > LARGEST:
            raise Unproved(too_large(count))
        if not prover.exact:
            raise Unproved("the model does not run in float64")

    def completeness(self, sites: dict[str, Site]) -> Completeness:
        """The count over the whole model.

        Args:
            sites: the places whose groups are claimed.
        """
        claims = self._claims(sites)
        self._fold(claims)
        jacobian = self._jacobian()
        reached = jacobian.abs().amax(0) > 0
        values, right = _decomposed(jacobian)
        values = torch.cat([values, values.new_zeros(self.count - len(values))])
        top = float(values[0]) if len(values) else 0.0
        null = right[values <= ZERO * top]
        near = values[(values > ZERO * top) & (values <= NEAR * top)]
        groups = self._of_groups(claims)
        strays = groups @ jacobian.T
        sizes = groups.norm(dim=1).clamp(min=1e-300)
        unsound = (
            strays.norm(dim=1) / (top * sizes)
            if len(groups)
            else torch.zeros(0, dtype=torch.float64)
        )
        idle = torch.eye(self.count, dtype=torch.float64)[~reached]
        seen = self.prover.values() or {}
        others = Directions(self.facts, self.action, self.places, self.count, seen)
        added = [*others.shifts()]
        shifts = self._unmoved(jacobian, added, top)
        scaled = self._unmoved(jacobian, [*others.gains(), *others.followed()], top)
        unseen = self._unmoved(jacobian, [*added, *others.hidden()], top)
        grown = others.sizes(sites.values())
        sizes = self._unmoved(jacobian, [*grown.values()], top)
        parts = [groups[unsound <= SOUND], idle, shifts, unseen, scaled, sizes]
        ranks = [len(_basis(torch.cat(parts[: number + 1]))) for number in range(len(parts))]
        claimed = _basis(torch.cat(parts))
        missing = null - (null @ claimed.T) @ claimed
        share = missing.square().sum(0)
        return Completeness(
            parameters=self.count,
            nullity=len(null),
            claimed=ranks[-1],
            of_groups=ranks[0],
            unreached=ranks[1] - ranks[0],
            of_shifts=ranks[2] - ranks[1],
            unseen=ranks[3] - ranks[2],
            of_gains=ranks[4] - ranks[3],
            of_scales=ranks[5] - ranks[4],
            scales=tuple(
                (name, float((jacobian @ along).norm() / (top * along.norm())))
                for name, along in grown.items()
            ),
            missing=self._named(share) if len(null) > ranks[-1] else (),
            near=tuple(sorted((near / top).tolist())),
            largest_stray=float(unsound.max()) if len(unsound) else 0.0,
        )

    # --- the Jacobian -----------------------------------------------------------------------------

    def _jacobian(self) -> Tensor:
        """[rows, parameters]: derivatives of random sums of outputs, on many inputs."""
        model = self.prover.weights.model
        wanted = [self.prover.weights.now(name) for name in self.names]
        before = [tensor.requires_grad for tensor in wanted]
        rows: list[Tensor] = []
        generator = torch.Generator().manual_seed(self.prover.seed)
        total = self.count + _SPARE
        try:
            for tensor in wanted:
                tensor.requires_grad_(True)
            number, pieces = 0, 1
            while number < pieces:
                batch = _other(self.prover.batch, number, self._tokens())
                with torch.enable_grad(), in_double(), _Padded():
                    returned = self.prover.subject.call(batch)
                outputs = torch.cat(
                    [t.flatten() for t in tensors_in(returned) if t.is_floating_point()]
                )
                # Enough inputs that what all of them leave alone is left alone by every one.
                pieces = min(max(8, -(-_OUTPUTS * self.count // len(outputs))), _BATCHES)
                most = -(-total // pieces)
                draws = torch.randn(most, len(outputs), generator=generator, dtype=torch.float64)
                rows.append(_pulled_back(outputs, wanted, draws.to(outputs) / most**0.5))
                number += 1
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise Unproved(f"the model cannot be differentiated in float64: {reason}") from error
        finally:
            for tensor, given in zip(wanted, before, strict=True):
                tensor.requires_grad_(given)
            model.zero_grad(set_to_none=True)
        return torch.cat(rows)

    def _tokens(self) -> int | None:
        """How many tokens there are, by the tables that the input picks rows of."""
        trace, sizes = self.facts.graph.trace, list[int]()
        for vertex in self.facts.graph.vertices.values():
            node = trace.node(vertex.node)
            if vertex.kind is Kind.EMBEDDING and any(
                trace.node(i).op == "input" for i in node.inputs
            ):
                table = next(fixed_in((node.args, node.kwargs)), None)
                sizes += [] if table is None else [table.tensor.shape[0]]
        return min(sizes, default=None)

    # --- what is claimed --------------------------------------------------------------------------

    def _claims(self, sites: dict[str, Site]) -> list[tuple[Site, Group]]:
        """One site of every stream for which a group is claimed, with the group."""
        found: dict[int, tuple[Site, Group]] = {}
        for site in sites.values():
            vertex = self.facts.vertex(site)
            if vertex is not None and self.facts.stream_of[vertex.node] not in found:
                group = self.action.derivation.symmetry(site).group
                if not isinstance(group, Unknown):
                    found[self.facts.stream_of[vertex.node]] = site, group
        return [*found.values()]

    def _fold(self, claims: list[tuple[Site, Group]]) -> None:
        """Puts the gains of norms into the linear maps behind them, once and for all.

        The function stays; what an element near the identity does is then a small step from here.
        """
        for site, group in claims:
            directions = [*tangents(group)]
            # An element that turns, and then its inverse: the identity itself folds nothing.
            whole = (
                0.3 * torch.stack(directions).sum(0)
                if directions
                else torch.zeros(0, 0, dtype=torch.float64)
            )
            whole = whole / max(1.0, float(whole.norm()) if len(whole) else 1.0)
            for sign in (1.0, -1.0) if directions else ():
                try:
                    self.action.move(site, group.element(torch.matrix_exp(sign * whole)))
                    self._keep_statistics()
                except WeightError:
                    self.prover.weights.restore()
                    break
                self.prover.weights.settle()

    def _of_groups(self, claims: list[tuple[Site, Group]]) -> Tensor:
        """[directions, parameters]: what the claimed groups do to the parameters, linearised."""
        found: list[Tensor] = []
        for site, group in claims:
            for direction in tangents(group):
                try:
                    ahead, back = (
                        self._after(site, group.element(torch.matrix_exp(sign * _STEP * direction)))
                        for sign in (1.0, -1.0)
                    )
                except WeightError:
                    break
                found.append((ahead - back) / (2 * _STEP))
        return torch.stack(found) if found else torch.zeros(0, self.count, dtype=torch.float64)

    def _after(self, site: Site, element: object) -> Tensor:
        weights = self.prover.weights
        try:
            self.action.move(site, element)  # pyright: ignore[reportArgumentType]
            self._keep_statistics()
            return torch.cat([weights.now(n).detach().flatten() for n in self.names])
        finally:
            weights.restore()

    def _keep_statistics(self) -> None:
        """Hands what an action did to statistics of batches on to the gains and shifts."""
        weights = self.prover.weights
        for path, module in weights.model.named_modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
                continue
            stem = f"{path}." if path else ""
            changed = set(weights.changed) & {f"{stem}running_mean", f"{stem}running_var"}
            if not changed or not module.affine or not module.track_running_stats:
                continue
            now = [weights.now(stem + n) for n in ("running_mean", "running_var", "weight", "bias")]
            mean, variance, gain, shift = (tensor.detach().double() for tensor in now)
            factor = gain / (variance + module.eps).sqrt()
            kept = {n: self._given[stem + n] for n in ("running_mean", "running_var")}
            whole = factor * (kept["running_var"] + module.eps).sqrt()
            weights.set(Slot(f"{stem}weight"), whole)
            weights.set(Slot(f"{stem}bias"), shift + (kept["running_mean"] - mean) * factor)

    @property
    def _given(self) -> dict[str, Tensor]:
        return {
            name: tensor.detach().double()
            for name, tensor in held(self.prover.model)
            if not isinstance(tensor, nn.Parameter)
        }

    def _unmoved(self, jacobian: Tensor, candidates: list[Tensor], top: float) -> Tensor:
        """[directions, parameters]: the sums of some directions that leave the function alone."""
        if not candidates:
            return torch.zeros(0, self.count, dtype=torch.float64)
        basis = _basis(torch.stack(candidates))
        _, values, right = torch.linalg.svd(jacobian @ basis.T, full_matrices=True)
        values = torch.cat([values, values.new_zeros(len(right) - len(values))])
        return right[values <= ZERO * top] @ basis

    def _named(self, share: Tensor) -> tuple[tuple[str, float], ...]:
        """The parameters that hold most of what is missing, with their shares."""
        sums = {name: float(share[place].sum()) for name, place in self.places.items()}
        whole = sum(sums.values())
        ordered = sorted(sums.items(), key=lambda entry: -entry[1])
        return tuple((name, value / whole) for name, value in ordered[:8] if value > 0.01 * whole)


class _Padded(TorchFunctionMode):
    """Differentiates by the row of a table that stands for padding too.

    Such a row reaches the outputs as every other does; torch only keeps training from moving it.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is nn.functional.embedding:
            given["padding_idx"], args = None, args[:2]
        return func(*args, **given)


def _decomposed(matrix: Tensor, *, whole: bool = True) -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors, all of them where the whole basis is asked."""
    try:
        _, values, right = torch.linalg.svd(matrix, full_matrices=whole)
    except RuntimeError:  # The class of this error has no public name.
        # Where many values are equal, a triangle may be decomposed although the whole was not.
        triangle = torch.linalg.qr(matrix, mode="r").R
        _, values, right = torch.linalg.svd(triangle, full_matrices=whole)
    return values, right


def _basis(rows: Tensor) -> Tensor:
    """[rank, parameters]: an orthonormal basis of what some directions span."""
    if not len(rows):
        return rows
    sizes = rows.norm(dim=1)
    unit = rows[sizes > 0] / sizes[sizes > 0, None]
    if not len(unit):
        return unit
    values, right = _decomposed(unit, whole=False)
    return right[: len(values)][values > 1e-6 * values[0]]


def _pulled_back(outputs: Tensor, wanted: list[Tensor], weights: Tensor) -> Tensor:
    """[rows, parameters]: the derivative of each of several sums of outputs."""

    def flat(grads: tuple[Tensor | None, ...]) -> Tensor:
        return torch.cat(
            [
                torch.zeros(t.numel(), dtype=torch.float64) if g is None else g.double().flatten()
                for g, t in zip(grads, wanted, strict=True)
            ]
        )

    rows: list[Tensor] = []
    for row in weights:
        grads = torch.autograd.grad(
            outputs, wanted, grad_outputs=row, retain_graph=True, allow_unused=True
        )
        rows.append(flat(grads))
    return torch.stack(rows)


def _other(batch: Batch, number: int, tokens: int | None) -> Batch:
    """A batch of the same form with other examples: normal numbers, or other tokens."""
    generator = torch.Generator().manual_seed(number)
    given = batch.inputs
    if given.is_floating_point():
        drawn = torch.randn(given.shape, generator=generator, dtype=torch.float64)
    elif tokens is not None:
        drawn = torch.randint(tokens, given.shape, generator=generator)
    else:
        flat = given.flatten().cpu()
        drawn = flat[torch.randint(len(flat), given.shape, generator=generator)]
    drawn = drawn.to(given)
    return batch.mapped(lambda value: drawn if value is given else value)
