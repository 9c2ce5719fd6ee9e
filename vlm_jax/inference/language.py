"""What language models and vision-language models answer to inputs under Hugging Face's names."""

from __future__ import annotations

import functools
from typing import Any, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.data.token_ids import TokenIds
from vlm_jax.inference import generate as generation
from vlm_jax.inference.samplers import Sampler
from vlm_jax.models.mask import PADDING, describe
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.tokens import num_visual_tokens
from vlm_jax.models.vlm import VLM, splice

INPUTS = ("input_ids", "attention_mask", "position_ids", "pixel_values")
Arrays = dict[str, np.ndarray]


def outputs(config: ModelConfig, params: Any, inputs: Mapping[str, np.ndarray], ids: TokenIds) -> Arrays:
    """Every output of the model, float32.

    In: `input_ids` [b, t]; perhaps `attention_mask` [b, t] (padding on either side), `position_ids` [b, t] (else real
    tokens are counted), and with eyes `pixel_values` [n, 3, h, w], all images of the batch in reading order.
    Out: `logits` [b, t, vocab] and `hidden_states` [layers + 1, b, t, d] (embeddings first, the last after the final
    norm), zero at padding; with images `vision` [n, patches, f] (the last block's output, class token in front),
    `projector` [n, v, d] and `image_features` [n v, d].
    Raises ValueError for inputs that do not fit the model or each other.
    """
    prompt, images = arrange(config, inputs, ids)
    with jax.default_matmul_precision("float32"):
        out = _outputs(config.vlm(), params, prompt, images)
    out = {name: np.asarray(value, np.float32) for name, value in out.items()}
    if images is not None:
        used = _used_slots(config, prompt["image_index"]).ravel()
        out |= {name: out[name][used] for name in ("vision", "projector")}
        out["image_features"] = out["projector"].reshape(-1, out["projector"].shape[-1])
    return out


def generate(
    config: ModelConfig, params: Any, inputs: Mapping[str, np.ndarray], ids: TokenIds, *, max_new_tokens: int,
    sampler: Sampler = Sampler(), seed: int = 0,
) -> np.ndarray:
    """New tokens only, int32 [b, max_new_tokens], of the inputs that `outputs` takes.

    A row ends with one of `ids.eos` and is filled with `ids.pad` (the first end token where there is none).
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; ask for 1 or more.")
    prompt, images = arrange(config, inputs, ids)
    pad = next((i for i in (ids.pad, *ids.eos) if i is not None), 0)
    with jax.default_matmul_precision("float32"):
        new = generation.generate(
            config.vlm(), params, prompt, images, max_new_tokens=max_new_tokens, eos_ids=ids.eos, pad_id=pad,
            banned=ids.banned, sampler=sampler, rng=jax.random.key(seed))
    return np.asarray(new)


def arrange(config: ModelConfig, inputs: Mapping[str, np.ndarray], ids: TokenIds) -> tuple[Arrays, np.ndarray | None]:
    """(prompt, images) as `generate` takes them: int32 [b, t] each, and images [b, slots, h, w, 3] or None."""
    if unknown := sorted(set(inputs) - set(INPUTS)):
        raise ValueError(f"The model does not take {', '.join(unknown)}; it takes {', '.join(INPUTS)}.")
    if inputs.get("input_ids") is None:
        raise ValueError("input_ids are missing; give int [batch, tokens].")
    tokens = np.asarray(inputs["input_ids"], np.int32)
    mask, positions = (inputs.get(name) for name in ("attention_mask", "position_ids"))
    real = np.ones_like(tokens, bool) if mask is None else np.asarray(mask) > 0
    if positions is None:
        positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    positions = np.asarray(positions)
    if not tokens.ndim == 2 or not real.shape == positions.shape == tokens.shape:
        raise ValueError(f"input_ids {tokens.shape}, attention_mask {real.shape} and position_ids {positions.shape} "
                         f"must all be [batch, tokens].")
    if tokens.size and not 0 <= tokens[real].min(initial=0) <= tokens[real].max(initial=0) < config.decoder.vocab_size:
        raise ValueError(f"input_ids must be 0 to {config.decoder.vocab_size - 1}; tokenize with the model's tokenizer.")
    is_image = real & (tokens == ids.image) if config.vision is not None and ids.image is not None else real & False
    index = np.where(is_image, np.cumsum(is_image, axis=1) - 1, -1)
    prompt = {"tokens": np.where(real, tokens, 0), "segment_ids": np.where(real, 0, PADDING),
              "positions": np.where(real, positions, 0), "image_index": index}
    prompt = {name: value.astype(np.int32) for name, value in prompt.items()}
    return prompt, _slots(config, prompt["image_index"], inputs.get("pixel_values"))


def _slots(config: ModelConfig, image_index: np.ndarray, pixels: np.ndarray | None) -> np.ndarray | None:
    """Images of a batch dealt out to its rows; rows with fewer than the others get black ones, which no token shows."""
    if config.vision is None:
        if pixels is not None:
            raise ValueError("This is a language model; it takes no pixel_values.")
        return None
    if pixels is None:
        if (image_index >= 0).any():
            raise ValueError("input_ids have image tokens, but there are no pixel_values.")
        return None
    used, pixels = _used_slots(config, image_index), np.asarray(pixels, np.float32)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or len(pixels) != used.sum():
        raise ValueError(f"pixel_values are {pixels.shape}; input_ids have places for {used.sum()} images, "
                         f"[{used.sum()}, 3, height, width].")
    images = np.zeros((*used.shape, *pixels.shape[2:], 3), np.float32)
    images[used] = pixels.transpose(0, 2, 3, 1)
    return images


def _used_slots(config: ModelConfig, image_index: np.ndarray) -> np.ndarray:
    """bool [b, slots]: which image slots of each row its tokens show."""
    each, count = num_visual_tokens(config, 1, 1), (image_index >= 0).sum(axis=1)
    for row in np.flatnonzero(count % each):
        raise ValueError(f"Row {row} has {count[row]} image tokens; an image takes {each}.")
    slots = count // each
    return np.arange(max(slots.max(initial=0), 1)) < slots[:, None]


@functools.partial(jax.jit, static_argnames="model")
def _outputs(model: VLM, params, prompt, images):
    return model.apply({"params": params}, prompt, images, method=_apply)


def _apply(model: VLM, prompt, images):
    info, out = describe(prompt["segment_ids"], positions=prompt["positions"]), {}
    x = model.decoder.embed(prompt["tokens"])
    if images is not None:
        images = images.astype(x.dtype)
        visual, flat = model.visual_tokens(images), images.reshape(-1, *images.shape[2:])
        x = splice(x, visual, prompt["image_index"])
        out["vision"] = model.vision.states(flat)[-1]  # what visual_tokens computed already: XLA merges the two
        out["projector"] = visual.reshape(len(flat), -1, visual.shape[-1])
    states = model.decoder.states(x, info)
    real = (prompt["segment_ids"] != PADDING)[..., None]
    out["logits"] = jnp.where(real, model.decoder.logits(states[-1]), 0)
    out["hidden_states"] = jnp.where(real, jnp.stack(states), 0)
    return out
