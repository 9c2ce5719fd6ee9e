"""What an image encoder alone answers under Hugging Face's names: ViTModel, Dinov2Model, CLIPVisionModel and the like."""

from __future__ import annotations

import functools
from typing import Any, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.models.encoders import EncoderConfig, encoder
from vlm_jax.models.naflex import NaFlexConfig
from vlm_jax.models.transformer import Params


def names(config: EncoderConfig) -> tuple[str, ...]:
    """The Hugging Face inputs that say an image of this encoder."""
    if isinstance(config, NaFlexConfig):
        return "pixel_values", "pixel_attention_mask", "spatial_shapes"
    return ("pixel_values",)


def images(config: EncoderConfig, inputs: Mapping[str, Any]) -> Any:
    """Images as the encoder takes them, of `pixel_values` [n, 3, h, w]; NaFlex: `pixel_values` [n, patches, p p 3],
    `spatial_shapes` [n, 2] and perhaps `pixel_attention_mask` [n, patches].

    Raises ValueError for arrays that do not fit the encoder or each other.
    """
    if "pixel_values" not in inputs:
        raise ValueError("pixel_values are missing; give the images that the model's image processor makes.")
    pixels = jnp.asarray(inputs["pixel_values"])
    if not isinstance(config, NaFlexConfig):
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixel_values are {pixels.shape}; the encoder takes [images, 3, height, width].")
        return pixels.transpose(0, 2, 3, 1)
    size = config.patch_size**2 * 3
    if pixels.ndim != 3 or pixels.shape[2] != size:
        raise ValueError(f"pixel_values are {pixels.shape}; the encoder takes patches [images, patches, {size}].")
    shapes, mask = (inputs.get(name) for name in ("spatial_shapes", "pixel_attention_mask"))
    mask = jnp.ones(pixels.shape[:2], bool) if mask is None else jnp.asarray(mask) > 0
    if np.shape(shapes) != (len(pixels), 2) or mask.shape != pixels.shape[:2]:
        raise ValueError(f"pixel_values {pixels.shape} ask for spatial_shapes [{len(pixels)}, 2] and a "
                         f"pixel_attention_mask [{len(pixels)}, {pixels.shape[1]}].")
    if np.prod(shapes, axis=1).max() > pixels.shape[1] or np.min(shapes) < 1:
        raise ValueError(f"spatial_shapes must be 1 or more rows and columns, at most {pixels.shape[1]} patches an "
                         f"image.")
    return {"patches": pixels, "shapes": jnp.asarray(shapes), "mask": mask}


def noise(config: EncoderConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two images of nothing under Hugging Face's names, of the size that position embeddings were made for."""
    if isinstance(config, NaFlexConfig):
        n, width = config.num_patches, config.patch_size**2 * 3
        return {"pixel_values": rng.normal(size=(2, n, width)).astype(np.float32),
                "pixel_attention_mask": np.ones((2, n), np.int64), "spatial_shapes": np.full((2, 2), config.side)}
    return {"pixel_values": rng.normal(size=(2, 3, config.image_size, config.image_size)).astype(np.float32)}


def outputs(config: EncoderConfig, params: Params, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output of an encoder, float32, of the inputs that `images` takes.

    Out: `last_hidden_state` [n, tokens, d], after the final norm where that is over all tokens; `pooler_output` [n, d],
    what the model pools from it; `hidden_states` [layers + 1, n, tokens, d], the last before the final norm.
    """
    known = names(config)
    if unknown := sorted(set(inputs) - set(known)):
        raise ValueError(f"An image encoder does not take {', '.join(unknown)}; it takes {', '.join(known)}.")
    with jax.default_matmul_precision("float32"):
        out = _run(encoder(config), params["vision"], images(config, inputs))
    return {name: np.asarray(value, np.float32) for name, value in out.items()}


@functools.partial(jax.jit, static_argnums=0)
def _run(model: nn.Module, params: Params, pixels: Any) -> dict[str, jax.Array]:
    return model.apply({"params": params}, pixels, method=_outputs)


def _outputs(model: nn.Module, pixels: Any) -> dict[str, jax.Array]:
    states = model.states(pixels)
    out = model.output(states, pixels)
    return {"last_hidden_state": out.last, "pooler_output": out.pooled, "hidden_states": jnp.stack(states)}
