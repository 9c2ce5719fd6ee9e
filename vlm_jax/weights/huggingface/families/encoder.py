"""The encoder stack that CLIP's and SigLIP's towers are written as: its sizes and its rows, both ways."""

from __future__ import annotations

from typing import Any, Callable

from vlm_jax.models.encoders import EncoderConfig
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import Weight, linear, norm

ACTIVATIONS = {  # their name -> ours; of several names the first is written
    "gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "silu": "silu", "swish": "silu", "relu": "relu",
    "tanh": "tanh"}

RESIZE = "bicubic"  # what `interpolate_pos_encoding` asks for; an encoder that stands alone takes images of other sizes


def activation(theirs: str) -> str:
    """Our name of an activation; raises ValueError for one that no tower of ours computes."""
    if theirs not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"config.json asks for the activation '{theirs}'; known are {known}.")
    return ACTIVATIONS[theirs]


def hf_activation(ours: str) -> str:
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)


def transformer(hf: HfConfig, **options: Any) -> TransformerConfig:
    """Sizes of a tower from its part of config.json, class defaults filled in; `options` are what it says besides."""
    return TransformerConfig(
        layers=hf["num_hidden_layers"], width=hf["hidden_size"], heads=hf["num_attention_heads"],
        mlp_width=hf["intermediate_size"], norm_eps=hf["layer_norm_eps"],
        activation=activation(hf["hidden_act"]), **options)


def hf_transformer(config: TransformerConfig) -> HfConfig:
    return {"num_hidden_layers": config.layers, "hidden_size": config.width,
            "num_attention_heads": config.heads, "intermediate_size": config.mlp_width, "layer_norm_eps": config.norm_eps,
            "hidden_act": hf_activation(config.activation)}


def attention(ours: str, theirs: str, bias: bool = True) -> list[Weight]:
    """The rows of an attention with four projections of its own."""
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    return [row for name, hf_name in names.items() for row in linear(f"{ours}/{name}", f"{theirs}.{hf_name}", bias)]


def mlp(ours: str, theirs: str, bias: bool = True) -> list[Weight]:
    return linear(f"{ours}/up", f"{theirs}.fc1", bias) + linear(f"{ours}/down", f"{theirs}.fc2", bias)


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


def square(hf: HfConfig, key: str) -> int:
    """A size said as one number, or as [height, width]; raises ValueError where these differ."""
    sides = hf[key] if isinstance(hf[key], (list, tuple)) else [hf[key]]
    if len(set(sides)) != 1:
        raise ValueError(f"config.json has {key} {hf[key]}; only squares are supported.")
    return sides[0]


def image_sizes(hf: HfConfig) -> dict[str, Any]:
    """The fields of ViTConfig that say what an image is; raises ValueError for what is not square or not RGB."""
    checked_channels(hf)
    image, patch = square(hf, "image_size"), square(hf, "patch_size")
    return {"image_size": image, "patch_size": patch, "drop_remainder": image % patch > 0}


def hf_image_sizes(config: ViTConfig) -> HfConfig:
    return {"num_channels": 3, "image_size": config.image_size, "patch_size": config.patch_size}


def vision_family(
    architecture: str, config: Callable[[HfConfig], EncoderConfig], hf_config: Callable[[EncoderConfig], HfConfig],
    table: Callable[[EncoderConfig], list[Weight]],
) -> Family:
    """The image tower of a pair as a model of its own, all of its names below `vision_model`."""
    return Family(
        architecture, config=lambda hf: ModelConfig(vision=config(hf)),
        hf_config=lambda whole: {"architectures": [architecture], **hf_config(whole.vision)},
        table=lambda whole: table(whole.vision), rename=_below_vision_model)


def _below_vision_model(name: str) -> str | None:
    """transformers 5 saves such a tower without the first part of the names."""
    return passed_over(name if name.startswith("vision_model.") else f"vision_model.{name}")


def passed_over(name: str) -> str | None:
    """Family.rename: older files also hold the buffer of running position numbers."""
    return None if name.endswith(".position_ids") else name
