"""One backward pass for all sites: the derivatives of a loss by what passes through them."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from basis_probe.model.batches import Batch
from basis_probe.model.losses import Loss, loss_of
from basis_probe.model.network import Subject
from basis_probe.model.places import Address

HELD_EXAMPLES = 512
"""So many of the first examples are kept, for untrained twins to be run on."""
HELD_NUMBERS = 2**21
"""And no more of them than hold so many numbers."""


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
    with torch.no_grad():
        loss_of(subject.call(batch), batch, loss)
