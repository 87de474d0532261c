"""Models of which the shape is known and the weights are not, with weights that take no memory.

A matrix [out, in] is a window on a random vector of 2 out + in numbers: its rows differ, it has
full rank, and it holds as many numbers as the model's own.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from basis_probe.model.windows import drawn_window

_OWN_CODE = (
    "its repository brings the code of the model, which is not run; where you trust it, build the "
    "model yourself on the meta device and give that"
)

_MANY = 2**18
"""A matrix of fewer numbers is made as the model says."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def is_config(value: object) -> bool:
    """True for a configuration of Hugging Face."""
    named = isinstance(getattr(value, "model_type", None), str)
    return named and callable(getattr(value, "to_dict", None)) and not isinstance(value, type)


def is_empty(model: nn.Module) -> bool:
    """True if all weights of a model are on the meta device, and nothing fetches them."""
    weights = [*model.parameters()]
    fetched = any(hasattr(module, "_hf_hook") for module in model.modules())
    return bool(weights) and all(weight.is_meta for weight in weights) and not fetched


def from_config(config: Any) -> nn.Module:
    """A model of Hugging Face with drawn weights, as large as the configuration says.

    Args:
        config: the configuration, its dictionary, the name of a repository on the hub, or a folder.

    Returns:
        The model in evaluation mode and float32. A matrix takes as much memory as a few rows of it,
        and so does a stack of matrices.

    Raises:
        ValueError: if there is no such configuration, or no model can be built from it.
    """
    import transformers

    from basis_probe.model.load import quiet, refuse_path

    what = repr(config) if isinstance(config, str) else type(config).__name__
    with quiet():
        try:
            if isinstance(config, str):
                path = pathlib.Path(config).expanduser()
                if not config or not path.exists():
                    refuse_path(config, path)
                elif path.is_dir() and not (path / "config.json").is_file():
                    raise FileNotFoundError("it holds no config.json")
                else:
                    config = str(path)
                config = transformers.AutoConfig.from_pretrained(config, trust_remote_code=False)
            elif isinstance(config, Mapping):
                if not isinstance(config.get("model_type"), str):
                    raise ValueError("it has no model_type")
                config = transformers.AutoConfig.for_model(**config)
            with torch.random.fork_rng(devices=[]), _Empty(stacks=True):
                model = _built(transformers, config)
        except Exception as error:
            said = " ".join(str(error).split())
            if "trust_remote_code" in said:
                said = _OWN_CODE
            raise ValueError(
                f"no model can be built from {what[:100]} ({type(error).__name__}: {said[:240]}): "
                "give a configuration of Hugging Face, its dictionary, the name of a repository on "
                "the hub, or a folder that holds config.json"
            ) from error
    return with_weights(model)


def _built(transformers: Any, config: Any) -> nn.Module:
    config = type(config).from_dict(config.to_dict())
    config.dtype = torch.float32
    named = getattr(config, "architectures", None) or ()
    for name in [named] if isinstance(named, str) else named:
        kind = getattr(transformers, str(name), None)
        # A configuration is a file of somebody else: it names models of its own kind, or nothing.
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            known: Any = kind
            if isinstance(known.config_class, type) and isinstance(config, known.config_class):
                return known(config)
    own = getattr(config, "auto_map", None) or {}
    if any(str(name).startswith("AutoModel") for name in own):
        raise ValueError(_OWN_CODE)
    try:
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError:
        return transformers.AutoModel.from_config(config, trust_remote_code=False)


class _Empty(TorchFunctionMode):
    """Within it what is made to be filled later takes no memory.

    Args:
        stacks: whether that is also said of large stacks of matrices that are made of one number,
            or of random ones.
    """

    def __init__(self, *, stacks: bool = False) -> None:
        super().__init__()
        self._stacks = stacks

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        later = func is torch.empty or (self._stacks and func in _FILLED and _is_stack(args, given))
        if later and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


_FILLED = (torch.zeros, torch.ones, torch.randn, torch.rand)


def _is_stack(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """True if several large matrices of floating-point numbers are asked for."""
    size = kwargs.get("size", args)
    shape = size[0] if len(size) == 1 and isinstance(size[0], tuple | list) else size
    dtype = kwargs.get("dtype") or torch.float32
    if len(shape) != 3 or not all(isinstance(n, int) for n in shape):
        return False
    return shape[0] > 1 and shape[1] * shape[2] >= _MANY and dtype.is_floating_point


def with_weights(model: nn.Module) -> nn.Module:
    """The model with drawn weights in place of those that are on the meta device.

    Gains and biases are generic: none is one, none is zero. Other weights move from where they are.

    Raises:
        ValueError: if it has buffers without numbers of which it is not known what they are.
    """
    config = getattr(model, "config", None)
    if is_config(config) and any(buffer.is_meta for buffer in model.buffers()):
        # What it computes for itself, as frequencies of positions, it computes when it is built.
        with torch.random.fork_rng(devices=[]), _Empty():
            model = type(model)(config)
    generator = torch.Generator().manual_seed(0)
    mixed = _mixed(model)
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            if not parameter.is_floating_point():
                raise ValueError(
                    f"the parameter {name} of a {type(module).__name__} holds {parameter.dtype}: "
                    "give a model or a configuration that is not quantised"
                )
            if id(parameter) not in made:
                # A window that is cast later takes the memory of the whole matrix.
                dtype = torch.float32 if mixed else parameter.dtype
                numbers = _drawn(parameter, name, dtype, generator)
                made[id(parameter)] = nn.Parameter(numbers, requires_grad=False)
            setattr(module, name, made[id(parameter)])
        for name, buffer in [*module.named_buffers(recurse=False)]:
            if buffer.is_meta:
                if name not in _STATISTICS:
                    raise ValueError(
                        f"the buffer {name} of a {type(module).__name__} is on the meta device, "
                        "and what it holds is not known: build the model with its buffers on the "
                        "CPU, or give its configuration"
                    )
                setattr(module, name, _statistic(buffer, name, generator))
    return model.float().eval() if mixed else model.eval()


def _mixed(model: nn.Module) -> bool:
    return len({p.dtype for p in model.parameters() if p.is_floating_point()}) > 1


def _drawn(parameter: Tensor, name: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Numbers for a parameter; for a matrix a window on a vector."""
    shape = parameter.shape
    if not parameter.is_meta:
        return parameter.detach() + 0.3 * torch.randn(
            shape, generator=generator, dtype=torch.float32
        ).to(dtype)
    if len(shape) < 2:
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        return (0.3 * noise if "bias" in name else 1.0 + 0.3 * noise).to(dtype)
    return drawn_window(shape, dtype, generator)


def _statistic(buffer: Tensor, name: str, generator: torch.Generator) -> Tensor:
    if not buffer.is_floating_point():
        return torch.zeros(buffer.shape, dtype=buffer.dtype)
    noise = torch.randn(buffer.shape, generator=generator, dtype=buffer.dtype)
    return 0.5 + noise.abs() if name == "running_var" else noise
