"""The encoder stack that CLIP's and SigLIP's towers are written as: its sizes and its rows, both ways."""

from __future__ import annotations

from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.weights.huggingface.family import HfConfig
from vlm_jax.weights.huggingface.table import Weight, linear, norm

ACTIVATIONS = {  # their name -> ours; of several names the first is written
    "gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "silu": "silu", "swish": "silu"}


def activation(theirs: str) -> str:
    """Our name of an activation; raises ValueError for one that no tower of ours computes."""
    if theirs not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"config.json asks for the activation '{theirs}'; known are {known}.")
    return ACTIVATIONS[theirs]


def hf_activation(ours: str) -> str:
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)


def transformer(hf: HfConfig) -> TransformerConfig:
    """Sizes of a tower from its part of config.json, class defaults filled in."""
    return TransformerConfig(
        layers=hf["num_hidden_layers"], width=hf["hidden_size"], heads=hf["num_attention_heads"],
        mlp_width=hf["intermediate_size"], norm_eps=hf["layer_norm_eps"],
        activation=activation(hf["hidden_act"]))


def hf_transformer(config: TransformerConfig) -> HfConfig:
    return {"num_hidden_layers": config.layers, "hidden_size": config.width,
            "num_attention_heads": config.heads, "intermediate_size": config.mlp_width, "layer_norm_eps": config.norm_eps,
            "hidden_act": hf_activation(config.activation)}


def attention(ours: str, theirs: str) -> list[Weight]:
    """The rows of an attention with four projections of its own."""
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    return [row for name, hf_name in names.items() for row in linear(f"{ours}/{name}", f"{theirs}.{hf_name}")]


def mlp(ours: str, theirs: str) -> list[Weight]:
    return linear(f"{ours}/up", f"{theirs}.fc1") + linear(f"{ours}/down", f"{theirs}.fc2")


def blocks(ours: str, theirs: str) -> list[Weight]:
    """The rows of a stack of pre-norm blocks, `theirs` up to and without `.encoder`."""
    ours, layer = f"{ours}/blocks", f"{theirs}.encoder.layers.{{}}"
    return [*norm(f"{ours}/norm1", f"{layer}.layer_norm1"), *attention(f"{ours}/attn", f"{layer}.self_attn"),
            *norm(f"{ours}/norm2", f"{layer}.layer_norm2"), *mlp(f"{ours}/mlp", f"{layer}.mlp")]


def checked_channels(hf: HfConfig) -> int:
    """num_channels; raises ValueError unless it is 3, all that our image processors make."""
    if hf["num_channels"] != 3:
        raise ValueError(f"config.json asks for images of {hf['num_channels']} channels; only 3 are supported.")
    return 3


def passed_over(name: str) -> str | None:
    """Family.rename: older files also hold the buffer of running position numbers."""
    return None if name.endswith(".position_ids") else name
