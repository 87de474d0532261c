"""Bases as encoders and decoders in files that tools for sparse autoencoders read."""

import json
import pathlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from basis_probe.arguments import flag, one_of, path, texts
from basis_probe.arrays import matrix
from basis_probe.brief import described
from basis_probe.devices import on_own_device
from basis_probe.files import replace_text, replacing, require_writable
from basis_probe.model.roles import layer_number

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
VECTORS = "vectors.json"


@on_own_device
def export_basis(
    directions: Float[Tensor, "dim directions"],
    folder: str | pathlib.Path,
    *,
    hook_name: str,
    model_name: str,
    two_sided: bool = True,
    layout: str = "sae",
    **more: Any,
) -> pathlib.Path:
    """The folder with the directions, as SAELens or SAEDashboard lays them out.

    As a sparse autoencoder it holds `cfg.json` and `sae_weights.safetensors` of SAELens, as vectors
    `vectors.json`, which `VectorSet.load` of SAEDashboard reads to draw a page of each.

    The encoder of the former reads every direction through a ReLU, so that what such tools do with
    features works for axes and for rotated directions alike. With `two_sided` each direction gives
    two features, one for each sign, and an orthonormal basis reconstructs its input exactly.

    Args:
        directions: one in each column, of unit length for an exact reconstruction; the identity for
            the axes themselves, a rotation for its directions.
        folder: is made if it is not there.
        hook_name: the site, as the tool calls it.
        model_name: the model, as the tool calls it.
        two_sided: False for activations that are never negative; vectors have one side.
        layout: "sae" for a sparse autoencoder, "vectors" for vectors.
        more: further entries of the configuration, such as context_size.

    Raises:
        ValueError, TypeError: for directions that are no matrix of finite numbers, and names or
            entries that cannot be written.
        OSError: if the folder cannot be made or written in.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = export_basis(torch.eye(4), folder, hook_name="mlp", model_name="demo")
        ...     sorted(path.name for path in made.iterdir())
        ['cfg.json', 'sae_weights.safetensors']
    """
    from safetensors.torch import save

    directions = matrix("directions", directions)
    one_of("layout", layout, ("sae", "vectors"))
    two_sided = bool(flag("two_sided", two_sided))
    for name, value in (("hook_name", hook_name), ("model_name", model_name)):
        texts(name, (value,), "its name")
    try:
        json.dumps(more)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the further entries {described(more)} cannot be written as JSON: {error}"
        ) from error
    folder = pathlib.Path(path("folder", folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OSError(
            f"the folder {described(str(folder))} cannot be made: {error.args[-1]}"
        ) from error
    if layout == "vectors":
        text = _vectors(directions, hook_name, model_name, more)
        replace_text(require_writable(folder / VECTORS), text)
        return folder
    read = torch.cat([directions, -directions], 1) if two_sided else directions
    encoder = read.detach().cpu().float().contiguous()
    dim, features = encoder.shape
    weights = {
        "W_enc": encoder,
        "b_enc": torch.zeros(features, dtype=torch.float32),
        "W_dec": encoder.T.contiguous(),
        "b_dec": torch.zeros(dim, dtype=torch.float32),
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


def _vectors(
    directions: Float[Tensor, "dim directions"],
    hook_name: str,
    model_name: str,
    more: dict[str, Any],
) -> str:
    """The directions as a set of vectors that SAEDashboard saves."""
    rows = directions.detach().cpu().float().T
    layer = layer_number(hook_name)
    config: dict[str, Any] = {
        "d_in": rows.shape[1],
        "d_vectors": len(rows),
        "vector_names": [str(number) for number in range(len(rows))],
        "model_name": model_name,
        "hook_name": hook_name,
        "hook_layer": 0 if layer is None else layer,
        "hook_head_index": None,
        "prepend_bos": True,
        "context_size": 128,
        "dataset_path": "",
        "dtype": "float32",
        "device": "cpu",
        "model_from_pretrained_kwargs": {},
    }
    return json.dumps({"vectors": rows.tolist(), "config": config | more})
