"""Decoders rounded to few bits, part by part, on the axes of their stream and in turned bases."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.statistics.quantisation import Turning

from .entry import Settings
from .residual_stream import Stream, twin

READ = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "attn.c_attn", "mlp.c_fc")
WRITE = ("o_proj", "down_proj", "c_proj")

Losses = dict[str, dict[str, list[float]]]
"""Part -> basis -> nats that 4 bits add, one for every model in that basis."""

PARTS = ("what is read", "weights that read", "weights that write", "all three")
BASES = ("axes", "axes, folded", "turned")


def on_line(stream: Stream) -> bool:
    """Whether norms take the mean over axes, so that turns keep the all-ones direction."""
    found = bp.symmetries(stream.model, stream.batches[0])[stream.sites[0]]
    return found.privileged is bp.Privileged.LINE


def _nearest(rows: Tensor, bits: int) -> Tensor:
    """Rows on the nearest step, the largest entry of each on the last."""
    step = rows.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return step * (rows / torch.where(step > 0, step, 1.0)).round()


def _round_weight(module: Any, bits: int) -> None:
    """Every row of a map, which makes one output, on steps of its own."""
    from transformers.pytorch_utils import Conv1D

    stored_across = isinstance(module, Conv1D)
    weight = module.weight.data.T if stored_across else module.weight.data
    rounded = _nearest(weight, bits)
    module.weight.data = rounded.T.contiguous() if stored_across else rounded


def quantised(model: nn.Module, bits: int, part: str) -> nn.Module:
    """The model with that part rounded: tokens one by one, weights output by output."""
    rounded = copy.deepcopy(model)
    for name, module in rounded.named_modules():
        reads, writes = name.endswith(READ), name.endswith(WRITE)
        if (reads and part in (PARTS[1], PARTS[3])) or (writes and part in PARTS[2:]):
            _round_weight(module, bits)
        if reads and part in (PARTS[0], PARTS[3]):
            module.register_forward_pre_hook(lambda _, given: (_nearest(given[0], bits),))
    return rounded


def loss(model: nn.Module, batches: Sequence[Any]) -> float:
    """Nats for the next token, padding left out."""
    total, count = 0.0, 0
    for batch in batches:
        given = batch if isinstance(batch, dict) else {"input_ids": batch}
        with torch.no_grad():
            logits = model(**given).logits[:, :-1]
        told = given.get("attention_mask", torch.ones_like(given["input_ids"]))[:, 1:].bool()
        wanted = given["input_ids"][:, 1:][told]
        total += float(nn.functional.cross_entropy(logits[told], wanted, reduction="sum"))
        count += len(wanted)
    return total / count


def in_bases(stream: Stream, settings: Settings) -> Iterator[tuple[str, nn.Module]]:
    """The model as it is, with gains folded into the weights, and in turned bases."""
    place, example = stream.sites[0], stream.batches[0]
    group: Any = bp.symmetries(stream.model, example)[place].group
    turning = Turning(torch.eye(group.dim), line=on_line(stream))

    def turned(model: nn.Module, turn: Tensor) -> nn.Module:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="embeddings that", category=UserWarning)
            return bp.reparametrize(model, place, turn, example_input=example)

    yield BASES[0], stream.model
    turn = turning.haar(torch.Generator().manual_seed(0))
    # There and back: gains are folded on the way, and the basis is what it was.
    yield BASES[1], turned(turned(stream.model, turn), turn.T)
    for seed in range(settings.of(3, 2)):
        yield BASES[2], turned(stream.model, turning.haar(torch.Generator().manual_seed(seed)))
        yield BASES[2], turned(stream.model, turning.hadamard(torch.Generator().manual_seed(seed)))


def losses(stream: Stream, settings: Settings) -> tuple[float, float, Losses]:
    """The loss, how much 8 bits change it at most, and what 4 bits add to it by part and basis."""
    full = loss(stream.model, stream.batches)
    added: Losses = {part: {basis: [] for basis in BASES} for part in PARTS}
    eight: list[float] = []
    for basis, model in in_bases(stream, settings):
        for part in PARTS:
            added[part][basis].append(loss(quantised(model, 4, part), stream.batches) - full)
        if len(eight) < len(BASES):
            eight.append(loss(quantised(model, 8, PARTS[3]), stream.batches) - full)
    return full, max(map(abs, eight)), added


def caught(model: nn.Module, name: str, batch: Any) -> tuple[Tensor, Tensor]:
    """[tokens, in] and [tokens, out] of a module."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda _, given, out: seen.append((given[0].detach(), out.detach()))
    )
    with torch.no_grad():
        model(**batch) if isinstance(batch, dict) else model(batch)
    handle.remove()
    return seen[0][0].flatten(0, -2).double(), seen[0][1].flatten(0, -2).double()


def gains(stream: Stream) -> float:
    """The correlation of log gain and log size of an axis, median over norms before an MLP."""
    found: list[Tensor] = []
    for name, module in stream.model.named_modules():
        if not name.endswith(("post_attention_layernorm", "ln_2")):
            continue
        gain: Any = module.weight
        into, _ = caught(stream.model, name, stream.batches[0])
        if on_line(stream):
            into = into - into.mean(1, keepdim=True)
        unit = into / into.norm(dim=1, keepdim=True)
        sizes = torch.stack([unit.square().mean(0).sqrt(), gain.detach().abs().double()]).log()
        found.append(torch.corrcoef(sizes)[0, 1])
    return float(torch.stack(found).median())


def written(stream: Stream) -> tuple[float, int, float, float]:
    """Of what the MLP of block 0 writes: axes, width, and its error on axes and in the twin."""
    name = next(
        name for name, _ in stream.model.named_modules()
        if name.endswith(("mlp.down_proj", "mlp.c_proj"))
    )  # fmt: skip
    errors: list[float] = []
    for model in (stream.model, twin(stream)):
        _, out = caught(model, name, stream.batches[0])
        rounded = copy.deepcopy(model)
        _round_weight(rounded.get_submodule(name), 4)
        wrong = caught(rounded, name, stream.batches[0])[1] - out
        errors.append(float(wrong.square().sum() / out.square().sum()))
    _, out = caught(stream.model, name, stream.batches[0])
    size = out.square().mean(0)
    return float(size.sum().square() / size.square().sum()), out.shape[1], errors[0], errors[1]
