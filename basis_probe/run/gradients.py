"""One backward pass for all sites: the derivatives of a loss by what passes through them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from basis_probe.errors import DataError
from basis_probe.interrupts import stoppable
from basis_probe.model.batches import Batch
from basis_probe.model.losses import Loss, loss_of
from basis_probe.model.network import Subject
from basis_probe.model.places import Address, Site
from basis_probe.model.replace import NotReplaceable, read_alone, replacing
from basis_probe.model.trace import Trace

HELD_EXAMPLES = 512
"""So many of the first examples are kept, for untrained twins to be run on."""
HELD_NUMBERS = 2**21
"""And no more of them than hold so many numbers."""
POINTS = (
    (0.04691007703066800, 0.11846344252809454),
    (0.23076534494715845, 0.23931433524968324),
    (0.5, 0.28444444444444444),
    (0.76923465505284155, 0.23931433524968324),
    (0.95308992296933200, 0.11846344252809454),
)
"""Where on the way from zeros a gradient is taken, and its weight: Gauss and Legendre's rule."""


class Gradients:
    """What a loss would change by, at every site, batch by batch.

    Args:
        subject: the model.
        loss: (output, the batch as the data gave it) -> loss; None for the model's own or the usual
            one.
    """

    def __init__(self, subject: Subject, loss: Loss | None) -> None:
        self.subject, self.loss = subject, loss
        self.held: list[Batch] = []
        self._examples = self._numbers = 0
        self._edges: dict[Address, GradientEdge] = {}
        self._found: dict[Address, Tensor] = {}
        self.trouble = ""

    def hold(self, batch: Batch) -> None:
        """Keeps a batch that is among the first."""
        size = sum(tensor.numel() for tensor in batch.named().values())
        full = self._examples >= HELD_EXAMPLES or self._numbers + size > HELD_NUMBERS
        if self.held and full:
            # Those that follow are not among the first ones any more.
            self._examples = HELD_EXAMPLES
            return
        self.held.append(batch)
        self._examples += batch.size
        self._numbers += size

    def catcher(self, address: Address) -> Callable[[Tensor], None]:
        """What notes the tensor at an address as one to differentiate by."""

        def note(tensor: Tensor) -> None:
            if tensor.requires_grad and address not in self._edges:
                self._edges[address] = get_gradient_edge(tensor)

        return note

    def run(self, batch: Batch) -> Callable[[], None]:
        """What runs the model on a batch and differentiates its loss; for `Stream.look`."""

        def passes() -> None:
            self._edges, self._found = {}, {}
            with (
                torch.inference_mode(False),
                torch.enable_grad(),
                differentiable(self.subject.model),
            ):
                output = self.subject.call(batch)
                value = loss_of(output, batch, self.loss)
                self._differentiate(value)
            self._edges = {}

        return passes

    def _differentiate(self, value: Tensor) -> None:
        if not value.requires_grad:
            self.trouble = self.trouble or (
                "the loss does not depend on the model by operations that torch differentiates"
            )
            return
        if not bool(value.isfinite()):
            self.trouble = self.trouble or "the loss is NaN or infinite in some batches"
            return
        addresses = list(self._edges)
        try:
            made = torch.autograd.grad(
                value, [self._edges[one] for one in addresses], allow_unused=True
            )
        except RuntimeError as error:
            self.trouble = self.trouble or f"the loss could not be differentiated: {error}"
            return
        self._found = {
            address: gradient
            for address, gradient in zip(addresses, made, strict=True)
            if gradient is not None  # pyright: ignore[reportUnnecessaryComparison]
        }

    def at(self, address: Address) -> Tensor | None:
        """The derivatives at an address in the last batch; None where there are none."""
        return self._found.get(address)

    def beside(self, subject: Subject, trace: Trace, sites: Iterable[Site]) -> Gradients:
        """The same of another model, nothing run yet.

        Args:
            subject: the model.
            trace: what was recorded of it.
            sites: its sites.
        """
        return Gradients(subject, self.loss)


class PathGradients(Gradients):
    """Derivatives averaged on the way from a site of zeros to what it holds.

    Every site is scaled by itself, and all that comes behind it is run anew, once for every point.

    Source: M. Sundararajan, A. Taly and Q. Yan, ICML 2017, equation 1, of what a site holds.

    Args:
        subject: the model.
        loss: as of `Gradients`.
        trace: what was recorded of the model.
        sites: its sites.
    """

    def __init__(
        self, subject: Subject, loss: Loss | None, trace: Trace, sites: Iterable[Site]
    ) -> None:
        super().__init__(subject, loss)
        self._alone = frozenset(s.address for s in sites if read_alone(trace, s.address, s.node))
        self._batch: Batch | None = None

    def run(self, batch: Batch) -> Callable[[], None]:
        self._batch = batch
        return super().run(batch)

    def at(self, address: Address) -> Tensor | None:
        plain, batch = super().at(address), self._batch
        if plain is None or batch is None:
            return None
        total = torch.zeros_like(plain)
        for share, weight in POINTS:
            try:
                with stoppable():
                    own = self._scaled(address, batch, share)
            except (NotReplaceable, RuntimeError) as error:
                self.trouble = self.trouble or f"a site could not be scaled: {error}"
                return None
            if own is None:
                self.trouble = self.trouble or "the loss is NaN or infinite on the way from zeros"
                return None
            total += weight * own
        return total

    def _scaled(self, address: Address, batch: Batch, share: float) -> Tensor | None:
        """The derivatives by what an address holds times a share, there; None if not finite."""
        leaves: list[Tensor] = []

        def change(tensor: Tensor) -> Tensor:
            leaves.append((tensor.detach() * share).requires_grad_())
            # What comes behind may write into it.
            return leaves[-1].clone()

        model = self.subject.model
        with torch.inference_mode(False), torch.enable_grad(), differentiable(model):
            with replacing(model, address, change, alone=address in self._alone):
                output = self.subject.call(batch)
            value = loss_of(output, batch, self.loss)
            if not leaves or not bool(value.isfinite()):
                return None
            (found,) = torch.autograd.grad(value, leaves[:1], allow_unused=True)
        return torch.zeros_like(leaves[0]) if found is None else found  # pyright: ignore[reportUnnecessaryComparison]

    def beside(self, subject: Subject, trace: Trace, sites: Iterable[Site]) -> Gradients:
        return PathGradients(subject, self.loss, trace, sites)


@contextmanager
def differentiable(model: nn.Module) -> Generator[None]:
    """Within the context every parameter can be differentiated by, so that all behind it can."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    changed: list[nn.Parameter] = []
    try:
        for parameter in frozen:
            if not parameter.is_inference():
                parameter.requires_grad_(True)
                changed.append(parameter)
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(False)


def require_loss(subject: Subject, batch: Batch, loss: Loss | None) -> None:
    """Nothing; raises DataError where a batch has no loss, before the data are read."""
    made = [name for name, p in subject.model.named_parameters() if p.is_inference()]
    if made:
        raise DataError(
            f"{made[0]} was made in torch.inference_mode(), and nothing behind it can be "
            "differentiated: make or load the model outside of that mode (torch.no_grad() will do)"
        )
    with torch.no_grad():
        loss_of(subject.call(batch), batch, loss)
