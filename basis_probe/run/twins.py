"""The untrained twin of a model: the same architecture with every weight drawn anew.

A network that was never trained has axes too, one-sided and off-centre where its nonlinearities
make them so. What a measure says of the twin is what it says of nothing.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from basis_probe.arguments import instance, seed_of
from basis_probe.devices import on_own_device
from basis_probe.model.offloaded import is_away
from basis_probe.model.state import copied, drawing

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@on_own_device
def reinitialised(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """A copy of a model as if it had not been trained; the model itself is left alone.

    Every matrix, kernel and embedding is drawn from a Gaussian of mean zero and of the tensor's own
    root mean square, so that activations keep their size, and what is exactly zero stays zero, as
    in a layer that was wired sparsely; every vector (gains, biases, slopes) is
    set to its own mean, so that no axis differs from another; running averages of batch
    normalisation start again at mean zero and variance one. A tensor that several modules share
    stays shared.

    Args:
        model: any module whose parameters hold floating-point numbers.
        seed: another seed, another twin.

    Raises:
        ValueError: if a parameter is quantised, or has no numbers, as on the meta device.

    Example:
        >>> model = torch.nn.Linear(30, 20)
        >>> twin = reinitialised(model, seed=1)
        >>> bool(twin.weight.ne(model.weight).all()), twin.bias.unique().numel()
        (True, 1)
    """
    instance("model", model, nn.Module, "a torch.nn.Module")
    seed = seed_of(seed)
    for name, parameter in model.named_parameters():
        if is_away(parameter) or not parameter.is_floating_point():
            raise ValueError(
                f"{name} holds {_held(parameter)}: an untrained twin needs floating-point weights "
                "in memory; load the model without quantisation"
            )
    twin = copied(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in twin.parameters():
            exact = parameter.detach().cpu().double()
            if parameter.ndim >= 2:
                drawn = torch.randn(exact.shape, generator=generator, dtype=torch.float64)
                wired = exact != 0
                size = exact.square().sum() / wired.sum().clamp_min(1)
                new = drawn * size.sqrt() * wired
            else:
                new = exact.mean().expand_as(exact) if exact.numel() else exact
            parameter.copy_(new.to(parameter.dtype))
        for module in normalisations(twin):
            module.reset_running_stats()
    return twin


def _held(parameter: Tensor) -> str:
    """What a parameter holds of which no twin is made."""
    if is_away(parameter) and not parameter.is_meta:
        return f"{parameter.dtype} that is off-loaded"
    return f"{parameter.dtype} on {parameter.device}"


def drawn_anew(model: nn.Module, *, seed: int = 0) -> nn.Module | str:
    """A copy of a model drawn by its modules' own rules, or why there is none.

    The rules are `reset_parameters` of every module, and `_init_weights` of a model, as those of
    transformers have it, for all modules within it. Unlike `reinitialised` it has whatever axes
    these rules have; nothing is known of parameters that are drawn elsewhere. Of a parameter that
    modules share it is not known by whose `reset_parameters` it was drawn.

    Args:
        model: any module; it is left alone.
        seed: another seed, another copy.
    """
    for name, parameter in model.named_parameters():
        if is_away(parameter) or not parameter.is_floating_point():
            return f"{name} holds {_held(parameter)}, which cannot be drawn"
    twin = copied(model)
    ruled = [m for m in twin.modules() if callable(getattr(m, "_init_weights", None))]
    alike = {id(parameter) for module in ruled for parameter in module.parameters()}
    owners = collections.Counter(
        id(parameter) for module in twin.modules() for parameter in module.parameters(recurse=False)
    )
    for name, parameter in twin.named_parameters():
        if owners[id(parameter)] > 1 and id(parameter) not in alike:
            return f"several modules share {name}, and it is not known which of them draws it"
    try:
        _draw(twin, ruled, seed)
    except Exception as error:
        # The rules are code of others, that may want arguments or modules of their own.
        return f"the model's own rules failed ({type(error).__name__}: {error})"
    for name, parameter in twin.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"no rule is known by which {name} was drawn"
    return twin


def _draw(twin: nn.Module, ruled: Sequence[nn.Module], seed: int) -> None:
    """Draws every parameter by the rules; what no rule reaches is NaN."""
    with drawing(seed), torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(torch.nan)
            _forget(parameter)
        for module in twin.modules():
            _forget(module)
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        for module in ruled:
            rule: Any = getattr(module, "_init_weights")  # noqa: B009
            for inner in module.modules():
                rule(inner)
        for module in normalisations(twin):
            module.reset_running_stats()


def _forget(loaded: nn.Module | nn.Parameter) -> None:
    """Takes away the mark by which transformers knows what was loaded and must not be drawn."""
    # Not hasattr: some models answer with what the model inside them has.
    vars(loaded).pop("_is_hf_initialized", None)


def normalisations(model: nn.Module) -> list[Any]:
    """Every normalisation of a model that keeps running averages."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _NORMS) and module.track_running_stats
    ]


def settle(model: nn.Module, runs: Iterable[Callable[[], object]]) -> None:
    """Estimates the running averages of all batch normalisations from some runs of the model.

    Without it a twin's averages belong to no data, and its activations grow or die from layer to
    layer. Every batch counts alike. Nothing is run where there is no batch normalisation.
    """
    norms = normalisations(model)
    if not norms:
        return
    before = [(norm.training, norm.momentum) for norm in norms]
    try:
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None
        with torch.no_grad():
            for run in runs:
                run()
    finally:
        for norm, (training, momentum) in zip(norms, before, strict=True):
            norm.train(training)
            norm.momentum = momentum
