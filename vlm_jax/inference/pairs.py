"""What a pair of towers answers under Hugging Face's names: the outputs of CLIPModel and SiglipModel."""

from __future__ import annotations

import functools
from typing import Any, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.inference import encoders
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.transformer import Params
from vlm_jax.models.two_tower import TwoTower, normalise


def outputs(config: ModelConfig, params: Params, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output of a pair that `inputs` give rise to, float32.

    In: `pixel_values` [n, 3, h, w] (or what else the eyes take: `encoders.images`), or `input_ids` [m, t] and perhaps
    `attention_mask` [m, t], or both.
    Out: `image_hidden` and `text_hidden`, each token's last state (zero where the mask is 0): with a class token
    (CLIP) the image's stand before the final norm, else after it; `image_features` and `text_features`, in the
    shared space; `image_embeds` and `text_embeds`, the same of length 1; `logits_per_image` [n, m] and
    `logits_per_text`.
    Raises ValueError for images or rows that do not fit the model.
    """
    of_text, of_images = ("input_ids", "attention_mask"), encoders.names(config.vision)
    if unknown := sorted(set(inputs) - {*of_text, *of_images}):
        takes = ", ".join(sorted({*of_text, *of_images}))
        raise ValueError(f"A pair of towers does not take {', '.join(unknown)}; it takes {takes}.")
    given = {name: jnp.asarray(inputs[name]) for name in of_text if name in inputs}
    if set(inputs) & set(of_images):
        given["images"] = encoders.images(config.vision, inputs)
    with jax.default_matmul_precision("float32"):
        return {name: np.asarray(value) for name, value in _run(config, params, given).items()}


@functools.partial(jax.jit, static_argnums=0)
def _run(config: ModelConfig, params: Params, given: dict[str, Any]) -> dict[str, jax.Array]:
    return config.two_tower().apply({"params": params}, given, method=_outputs)


def _outputs(model: TwoTower, given: dict[str, Any]) -> dict[str, jax.Array]:
    out = {}
    if "images" in given:
        seen = model.vision(given["images"])
        out["image_hidden"], out["image_features"] = seen.last, model.project_image(seen.pooled)
        out["image_embeds"] = normalise(out["image_features"])
    if "input_ids" in given:
        tokens = given["input_ids"]
        mask = given.get("attention_mask", jnp.ones_like(tokens)) > 0
        last = model.text.states(tokens, mask)
        out["text_hidden"] = jnp.where(mask[..., None], model.text.norm_post(last), 0)
        out["text_features"] = model.text_projection(model.text.pool(last, tokens))
        out["text_embeds"] = normalise(out["text_features"])
    if len(given.keys() & {"images", "input_ids"}) == 2:
        scale, bias = model.scale_and_bias()
        out["logits_per_image"] = scale * out["image_embeds"] @ out["text_embeds"].T + bias
        out["logits_per_text"] = out["logits_per_image"].T
    return out
