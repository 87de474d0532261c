"""One number of what a model returns for a batch: the user's loss, its own, or the usual one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from basis_probe.errors import DataError
from basis_probe.model.batches import Batch
from basis_probe.model.trace import tensors_in

Loss = Callable[[Any, Any], Tensor]
"""From what the model returns and the batch as the data gave it to one loss."""


def loss_of(output: Any, batch: Batch, loss: Loss | None) -> Tensor:
    """The loss of a batch: the one given, the model's own, or the usual one.

    The usual one is the cross-entropy of the next token; of labels, where the batch is a tuple
    whose second element holds the number of a class for every example.

    Args:
        output: what the model returned.
        batch: what it was called with.
        loss: (output, the batch as the data gave it) -> loss; None for the others.

    Raises:
        DataError: if none can be computed, or what was given returns no number.
    """
    if loss is not None:
        found = loss(output, batch.raw)
        if not isinstance(found, Tensor) or not found.numel():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(
                f"the loss is a {type(found).__name__}: give a function of (output, batch) that "
                "returns a tensor of one number"
            )
        return found.mean() if found.ndim else found
    own = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if isinstance(own, Tensor) and own.is_floating_point():
        return own.mean() if own.ndim else own
    labels = _labels(output, batch)
    if labels is not None:
        return torch.nn.functional.cross_entropy(*labels)
    return next_token(output, batch)


def _labels(output: Any, batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Scores of classes and the class of every example, where the batch came with it."""
    raw: Any = batch.raw
    if not isinstance(raw, tuple | list) or len(raw) < 2 or not isinstance(raw[1], Tensor):  # pyright: ignore[reportUnknownArgumentType]
        return None
    told = getattr(output, "logits", output)
    labels = raw[1]
    whole = not labels.is_floating_point() and labels.dtype is not torch.bool
    fits = isinstance(told, Tensor) and told.ndim == 2 and labels.shape == told.shape[:1]
    if not whole or not fits:
        return None
    # A copy: what was made in inference mode cannot take part in derivatives.
    own = labels.to(told.device).long().clone()
    wrong = own[((own < 0) & (own != -100)) | (own >= told.shape[1])]
    if len(wrong):
        raise DataError(
            f"a batch has the class {int(wrong[0])}, and the model returns scores of "
            f"{told.shape[1]}: give classes from 0 to {told.shape[1] - 1} (-100 for none), or "
            "loss=, a function of (output, batch)"
        )
    return told, own


def next_token(output: Any, batch: Batch) -> Tensor:
    """The mean cross-entropy of every next token that counts.

    Raises:
        DataError: if the model returns no logits of the tokens that it was given.
    """
    logits = getattr(output, "logits", None)
    if logits is None:
        logits = next(iter(tensors_in(output)), None)
    ids = batch.inputs
    if (
        logits is None
        or logits.ndim != 3
        or ids.is_floating_point()
        or ids.ndim != 2
        or logits.shape[:2] != ids.shape
    ):
        what = "nothing that holds a tensor" if logits is None else f"a tensor {[*logits.shape]}"
        raise DataError(
            f"the model returns {what} and no loss, and no next-token loss can be computed from "
            "that: let the second element of every batch, a tuple, be the numbers of its classes, "
            "or give loss=, a function of (output, batch)"
        )
    told = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    if batch.mask is None:
        return -told.mean()
    counts = batch.mask[:, 1:].to(told)
    return -(told * counts).sum() / counts.sum().clamp(min=1)
