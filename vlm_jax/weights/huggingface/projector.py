"""A connector in a file of its own: what LLaVA's first stage saves (`mm_projector`), and MiniGPT-4's released projection."""

from __future__ import annotations

import re
from typing import Any

import jax
from etils import epath
from flax import traverse_util

from vlm_jax.weights.huggingface import safetensors
from vlm_jax.weights.huggingface.table import import_params, linear

# Of each way of writing them to linear_1 and linear_2.
RENAMES = [(re.compile(pattern), name) for pattern, name in (
    (r"^(base_model\.model\.)?(model\.)?(mm_projector|llama_proj|multi_modal_projector|connector)\.", ""),
    (r"^(0\.)?(weight|bias)$", r"linear_1.\2"),
    (r"^2\.(weight|bias)$", r"linear_2.\1"),
)]


def is_file(path: str) -> bool:
    """Whether a path is that of one file of weights, and not of a folder."""
    return path.endswith((".safetensors", *safetensors.PICKLES))


def load(file: epath.PathLike, connector: Any) -> Any:
    """The parameters of `connector`, a tree of linear layers, from a safetensors file; cast and placed as they are. A
    Q-Former in front of them, which such a file never holds, stays what it is.

    The file says them as `model.mm_projector.0.weight`, `model.mm_projector.2.weight` (an MLP, whose activation has
    number 1), `model.mm_projector.weight` (one layer), `llama_proj.weight` (MiniGPT-4), each with its bias; `model.` may
    be missing. Raises ValueError, with all names, unless it holds them all and nothing else, in the right shapes.
    """
    kept = {name: part for name, part in connector.items() if name == "qformer"}
    flat = traverse_util.flatten_dict({name: part for name, part in connector.items() if name not in kept}, sep="/")
    layers = sorted({path.split("/")[0] for path in flat})
    if strange := sorted(path for path in flat if not re.fullmatch(r"linear_[12]/(kernel|bias)", path)):
        raise ValueError(f"The connector has {', '.join(strange)}, which no file of a projector holds; take a 'linear' or "
                         f"an 'mlp' connector.")
    rows = [row for layer in layers for row in linear(layer, layer, bias=f"{layer}/bias" in flat)]
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or first)
                for path, leaf in flat.items()}
    with safetensors.Reader(file, _rename) as reader:
        return kept | traverse_util.unflatten_dict(import_params(rows, reader, abstract), sep="/")


def _rename(name: str) -> str:
    """Names of anything else stay as they are, and are found to be unused."""
    short, found = RENAMES[0][0].subn("", name)
    if not found:
        return name
    for pattern, ours in RENAMES[1:]:
        short = pattern.sub(ours, short)
    return short
