"""What language models and vision-language models answer to inputs under Hugging Face's names."""

from __future__ import annotations

import functools
from typing import Any, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vlm_jax.data.token_ids import TokenIds
from vlm_jax.inference import generate as generation
from vlm_jax.inference.inputs.registry import inputs_of
from vlm_jax.inference.samplers import Sampler
from vlm_jax.models.mask import PADDING
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.vlm import VLM, splice

TEXT = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
Arrays = dict[str, np.ndarray]


def outputs(config: ModelConfig, params: Any, inputs: Mapping[str, np.ndarray], ids: TokenIds) -> Arrays:
    """Every output of the model, float32.

    In: `input_ids` [b, t]; perhaps `attention_mask` [b, t] (padding on either side), `position_ids` [b, t] (else real
    tokens are counted), `token_type_ids` [b, t] where the model's mask asks for them, and with eyes the images of the
    batch in reading order, as the model's layout names them (`inference.inputs`).
    Out: `logits` [b, t, vocab] and `hidden_states` [layers + 1, b, t, d] (embeddings first, the last after the final
    norm), zero at padding; with images `vision` [n, patches, f] (the encoder's last states), `projector` [n, v, d] and
    `image_features` [tokens, d].
    Raises ValueError for inputs that do not fit the model or each other.
    """
    prompt, images = arrange(config, inputs, ids)
    with jax.default_matmul_precision("float32"):
        out, seen = _outputs(config.vlm(), params, prompt, images)
    out, seen = jax.tree.map(lambda value: np.asarray(value, np.float32), (out, seen))
    if images is None:
        return out
    return out | inputs_of(config).shown(config, prompt, images, seen | {"embedded": out["hidden_states"][0]})


def generate(
    config: ModelConfig, params: Any, inputs: Mapping[str, np.ndarray], ids: TokenIds, *, max_new_tokens: int,
    sampler: Sampler = Sampler(), seed: int = 0,
) -> np.ndarray:
    """New tokens only, int32 [b, max_new_tokens], of the inputs that `outputs` takes.

    A row ends with one of `ids.eos` and is filled with `ids.pad` (the first end token where there is none).
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; ask for 1 or more.")
    prompt, images = arrange(config, inputs, ids, read_later=max_new_tokens - 1)  # the last one is never read
    pad = next((i for i in (ids.pad, *ids.eos) if i is not None), 0)
    with jax.default_matmul_precision("float32"):
        new = generation.generate(
            config.vlm(), params, prompt, images, max_new_tokens=max_new_tokens, eos_ids=ids.eos, pad_id=pad,
            banned=ids.banned, sampler=sampler, rng=jax.random.key(seed))
    return np.asarray(new)


def arrange(
    config: ModelConfig, inputs: Mapping[str, np.ndarray], ids: TokenIds, read_later: int = 0,
) -> tuple[Arrays, Any]:
    """(prompt, images) as `generate` takes them: int32 but for image_weight, and the layout's images or None.

    Raises ValueError where they, and `read_later` generated tokens behind them, do not fit the model.
    """
    inputs = {name: value for name, value in inputs.items() if value is not None}
    layout = inputs_of(config)
    known = TEXT + layout.NAMES
    if unknown := sorted(set(inputs) - set(known)):
        raise ValueError(f"The model does not take {', '.join(unknown)}; it takes {', '.join(known)}.")
    prompt, real = _text(config, inputs, None if config.vision is None else ids.image)
    longest, positions = prompt["positions"].max(initial=0) + 1 + read_later, config.decoder.positions
    if positions is not None and longest > positions:
        raise ValueError(f"A row of {longest} tokens is longer than the model's {positions} positions; shorten it.")
    is_image = np.zeros_like(real)
    if config.vision is not None and ids.image is not None:
        is_image = real & (prompt["tokens"] == ids.image)
    prompt |= {"image_index": np.full(real.shape, -1), **_visible(config.decoder.mask, inputs, is_image)}
    images = None
    if "pixel_values" in inputs and config.vision is None:
        raise ValueError("This is a language model; it takes no pixel_values.")
    if "pixel_values" in inputs:
        fields, images = layout.arrange(config, inputs, is_image)
        prompt |= fields
    elif is_image.any():
        raise ValueError("input_ids have image tokens, but there are no pixel_values.")
    kind = lambda name: np.float32 if name == "image_weight" else np.int32
    return {name: value.astype(kind(name)) for name, value in prompt.items()}, images


def _text(config: ModelConfig, inputs: Mapping[str, np.ndarray], image: int | None) -> tuple[Arrays, np.ndarray]:
    """({tokens, segment_ids, positions}, which tokens are real), after a look at whether they fit.

    Only `image`, whose embedding nobody reads, may lie outside the vocabulary.
    """
    if "input_ids" not in inputs:
        raise ValueError("input_ids are missing; give int [batch, tokens].")
    tokens, first = np.asarray(inputs["input_ids"], np.int32), config.decoder.first_position
    real = np.asarray(inputs["attention_mask"]) > 0 if "attention_mask" in inputs else np.ones_like(tokens, bool)
    counted = np.maximum(np.cumsum(real, axis=1) - 1, 0) + first if real.ndim == 2 else real
    positions = np.asarray(inputs.get("position_ids", counted))
    if not tokens.ndim == 2 or not tokens.size or not real.shape == positions.shape == tokens.shape:
        raise ValueError(f"input_ids {tokens.shape}, attention_mask {real.shape} and position_ids {positions.shape} "
                         f"must all be [batch, tokens], and not empty.")
    read = tokens[real & (tokens != image)]
    if not 0 <= read.min(initial=0) <= read.max(initial=0) < config.decoder.vocab_size:
        raise ValueError(f"input_ids must be 0 to {config.decoder.vocab_size - 1}; tokenize with the model's tokenizer.")
    prompt = {"tokens": np.where(real, tokens, 0), "segment_ids": np.where(real, 0, PADDING),
              "positions": np.where(real, positions, 0)}
    return prompt, real


def _visible(mask: str, inputs: Mapping[str, np.ndarray], is_image: np.ndarray) -> Arrays:
    """What a model's mask needs beside the causal order. `token_type_ids`, where given, say it themselves: 1 is an
    image's token for "image_blocks", and the first causal ones for "prefix", whose prompts are all prefix else."""
    kinds = inputs.get("token_type_ids")
    if mask == "causal":
        if kinds is not None and np.any(kinds):
            raise ValueError("This model's mask is causal; it takes no token_type_ids.")
        return {}
    if mask == "prefix":
        return {"mask_ar": np.zeros_like(is_image) if kinds is None else np.asarray(kinds)}
    inside = is_image if kinds is None else np.asarray(kinds) == 1
    starts = inside & ~np.pad(inside, ((0, 0), (1, 0)))[:, :-1]
    return {"image_ids": np.where(inside, np.cumsum(starts, axis=1), 0)}


@functools.partial(jax.jit, static_argnames="model")
def _outputs(model: VLM, params, prompt, images):
    out, state = model.apply({"params": params}, prompt, images, method=_apply, mutable=["intermediates"])
    seen = traverse_util.flatten_dict(state.get("intermediates", {}))
    return out, {path[-1]: value[0] for path, value in seen.items()}


def _apply(model: VLM, prompt, images):
    info = generation.described(prompt)
    x = model.decoder.embed(prompt["tokens"])
    if images is not None:
        visual = model.visual_tokens(generation.cast(images, x.dtype))
        x = splice(x, visual, prompt["image_index"], prompt.get("image_weight"))
    states = model.decoder.states(x, info)
    real = (prompt["segment_ids"] != PADDING)[..., None]
    return {"logits": jnp.where(real, model.decoder.logits(states[-1]), 0),
            "hidden_states": jnp.where(real, jnp.stack(states), 0)}
