"""How far changes of a layer change what a network says, example by example."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from basis_probe.concepts.turned_neurons import Turned, run
from basis_probe.errors import DataError
from basis_probe.model.batches import Batch
from basis_probe.model.losses import Loss
from basis_probe.model.network import Subject
from basis_probe.model.trace import tensors_in

Measure = Literal["kl", "error"]

_AT_ONCE = 2**22


class Cost:
    """What versions cost in the output, example by example.

    Args:
        loss: the user's; None for a divergence or an error.
        measure: which of them; None for the one that the output calls for.
    """

    def __init__(self, loss: Loss | None, measure: Measure | None) -> None:
        self.loss, self.measure = loss, measure
        self.costs: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.count, nothing = 0, torch.zeros((), dtype=torch.float32)
        self.total, self.squares = nothing, nothing

    def see(self, subject: Subject, batch: Batch, turned: Turned) -> None:
        """Runs every version on a batch."""
        output = subject.call(batch)
        change = self._against(output, batch)
        versions = [v for several in turned.versions for v in several if v.angle > 0]
        found = [change(run(subject, batch, turned, version)) for version in (*versions, None)]
        self.costs.append(torch.stack(found).double())
        ones = torch.ones(self.costs[-1].shape[1], dtype=torch.float64)
        self.weights.append(ones * batch.size if self.loss is not None else ones)

    def _against(self, output: Any, batch: Batch) -> Callable[[Any], Tensor]:
        """What another output costs, for every example or for all of the batch."""
        loss = self.loss
        if loss is not None:
            before = _number(loss(output, batch.raw))
            if not math.isfinite(before):
                raise DataError(
                    f"the loss is {before} for the model as it is on a batch: give data and a loss "
                    "that are finite"
                )
            return lambda other: torch.tensor(
                [_number(loss(other, batch.raw)) - before], dtype=torch.float32
            )
        own = _told(output)
        self.measure = self.measure or ("kl" if _is_logits(output, own) else "error")
        rows, mask = _rows_of(own, batch)
        if self.measure == "kl" and rows.shape[-1] < 2:
            raise ValueError(
                "measure='kl' compares the softmax of an output, which has one entry here and is "
                "always 1: ask for measure='error'"
            )
        self._add_moments(rows, mask)
        return lambda other: self._change(rows, _rows_of(_told(other), batch)[0], mask)

    def _add_moments(self, rows: Tensor, mask: Tensor) -> None:
        some = rows[mask].double().cpu()
        self.count += len(some)
        self.total = self.total + some.sum(0)
        self.squares = self.squares + some.square().sum(0)

    def _change(self, own: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        """[examples], the mean over the positions that count."""
        many = max(1, _AT_ONCE // max(1, own.shape[1] * own.shape[2]))
        parts: list[Tensor] = []
        for a, b, counts in zip(own.split(many), other.split(many), mask.split(many), strict=True):
            a, b = a.double(), b.double()
            if self.measure == "kl":
                log = a.log_softmax(-1)
                each = (log.exp() * (log - b.log_softmax(-1))).nansum(-1).clamp(min=0)
            else:
                each = (b - a).square().sum(-1)
            parts.append((each * counts).sum(1) / counts.sum(1).clamp(min=1))
        return torch.cat(parts).cpu()

    @property
    def scale(self) -> float:
        """By what squared changes are divided."""
        if self.loss is not None or self.measure != "error":
            return 1.0
        return float((self.squares / self.count - (self.total / self.count).square()).sum())

    @property
    def words(self) -> str:
        """What the cost is."""
        if self.loss is not None:
            return "loss: the mean of the loss that was given, less that of the model as it is"
        if self.measure == "kl":
            return "KL: nats from the model's output to the changed one's, softmax of both"
        return "error: the squared change of the output over its variance"


def _number(loss: Any) -> float:
    """A loss as one number: the mean of one for every example."""
    return float(loss.double().mean()) if isinstance(loss, Tensor) else float(loss)


def _told(output: Any) -> Tensor:
    """What the model says: its logits, or the first tensor that it returns."""
    logits = getattr(output, "logits", None)
    found = logits if isinstance(logits, Tensor) else None
    if found is None:
        floating = (t for t in tensors_in(output) if t.is_floating_point() and t.ndim)
        found = next(floating, None)
    if found is None:
        raise DataError(
            "the model returns no tensor of numbers to compare: give loss=, a function of "
            "(output, batch)"
        )
    return found


def _is_logits(output: Any, told: Tensor) -> bool:
    width = told.shape[1] if told.ndim > 3 else told.shape[-1]
    known = told is output or told is getattr(output, "logits", None)
    return known and told.ndim >= 2 and width >= 2


def _rows_of(told: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """[examples, positions, entries], and which positions count."""
    size = batch.size
    if told.ndim < 1 or len(told) != size:
        told = told.reshape(1, -1, told.shape[-1]) if told.ndim > 1 else told.reshape(1, 1, -1)
    elif told.ndim > 3:
        # Channels of maps come before their places.
        told = told.movedim(1, -1).flatten(1, -2)
    elif told.ndim < 3:
        told = told.reshape(len(told), 1, -1)
    counts = torch.ones(told.shape[:2], dtype=torch.bool, device=told.device)
    if batch.mask is not None and batch.mask.shape == counts.shape:
        counts = batch.mask.to(counts)
    return told, counts
