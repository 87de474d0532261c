"""Bases as encoders and decoders in files that tools for sparse autoencoders read."""

import json
import pathlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from basis_probe.files import replace_text, replacing, require_writable

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"


def export_basis(
    directions: Float[Tensor, "dim directions"],
    folder: str | pathlib.Path,
    *,
    hook_name: str,
    model_name: str,
    two_sided: bool = True,
    **more: Any,
) -> pathlib.Path:
    """The folder with `cfg.json` and `sae_weights.safetensors`, as SAELens lays them out.

    The encoder reads every direction through a ReLU, so that what such tools do with features works
    for axes and for rotated directions alike. With `two_sided` each direction gives two features,
    one for each sign, and an orthonormal basis reconstructs its input exactly.

    Args:
        directions: one in each column, of unit length for an exact reconstruction; the identity for
            the axes themselves, a rotation for its directions.
        folder: is made if it is not there.
        hook_name: the site, as the tool calls it.
        model_name: the model, as the tool calls it.
        two_sided: False for activations that are never negative.
        more: further entries of the configuration, such as context_size.

    Raises:
        ValueError: if the directions hold NaN or infinite values.
        OSError: if the folder cannot be made or written in.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = export_basis(torch.eye(4), folder, hook_name="mlp", model_name="demo")
        ...     sorted(path.name for path in made.iterdir())
        ['cfg.json', 'sae_weights.safetensors']
    """
    from safetensors.torch import save

    bad = int((~torch.isfinite(directions)).sum())
    if bad:
        raise ValueError(f"the directions hold {bad} values that are NaN or infinite")
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    read = torch.cat([directions, -directions], 1) if two_sided else directions
    encoder = read.detach().cpu().float().contiguous()
    dim, features = encoder.shape
    weights = {
        "W_enc": encoder,
        "b_enc": torch.zeros(features),
        "W_dec": encoder.T.contiguous(),
        "b_dec": torch.zeros(dim),
    }
    config: dict[str, Any] = {
        "architecture": "standard",
        "d_in": dim,
        "d_sae": features,
        "dtype": "float32",
        "device": "cpu",
        "activation_fn": "relu",
        "activation_fn_str": "relu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "finetuning_scaling_factor": False,
        "reshape_activations": "none",
        "prepend_bos": True,
        "hook_name": hook_name,
        "model_name": model_name,
        "metadata": {"hook_name": hook_name, "model_name": model_name},
    }
    text = json.dumps(config | more, indent=1, sort_keys=True)
    for name in (WEIGHTS, CONFIG):
        require_writable(folder / name)
    with replacing(folder / WEIGHTS) as file:
        file.write(save(weights))
    replace_text(folder / CONFIG, text)
    return folder
