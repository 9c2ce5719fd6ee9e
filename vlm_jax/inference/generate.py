"""Generation: one prefill, then one compiled loop over tokens that stops when every row has ended."""

from __future__ import annotations

import functools
from typing import Any, Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.inference.samplers import Sampler
from vlm_jax.models.decoder import KVCache, init_cache, unstack_decoder
from vlm_jax.models.mask import PADDING, SequenceInfo, describe
from vlm_jax.models.transformer import Params
from vlm_jax.models.vlm import VLM


@struct.dataclass
class Decoding:
    """State of a decoding loop over b rows that may write n tokens.

    step: int32 scalar, tokens written so far. tokens: int32 [b, n], what was written, then padding.
    token: int32 [b], the token to feed next. position: int32 [b], its position. order: int32 scalar, its place in the
    causal order. done: bool [b], rows that have ended. cache: every token before `token`.
    """

    step: Int[Array, ""]
    tokens: Int[Array, "b n"]
    token: Int[Array, "b"]
    position: Int[Array, "b"]
    order: Int[Array, ""]
    done: Bool[Array, "b"]
    cache: KVCache


def prefill(
    model: VLM, params: Params, tokens: Int[Array, "b t"], info: SequenceInfo, visual: Float[Array, "b m d"] | None,
    image_index: Int[Array, "b t *k"] | None, cache: KVCache, image_weight: Float[Array, "b t k"] | None = None,
) -> tuple[Float[Array, "b v"], KVCache]:
    """Reads tokens into the cache, behind those it holds; returns the logits after each row's last real token,
    wherever its padding is."""
    info = info.replace(order=info.order + cache.info.order.max())
    hidden, cache = model.apply({"params": params}, tokens, info, visual, image_index, cache, image_weight, method="hidden")
    slots = jnp.arange(tokens.shape[1])
    last = jnp.max(jnp.where(info.segment_ids != PADDING, slots, 0), axis=1)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    return model.apply({"params": params}, hidden, method="logits")[:, 0], cache


def decode(
    model: VLM, params: Params, logits: Float[Array, "b v"], cache: KVCache, position: Int[Array, "b"],
    rng: Array, *, steps: int, sampler: Sampler, eos_ids: Sequence[int], pad_id: int, banned: Sequence[int] = (),
) -> tuple[Int[Array, "b n"], KVCache]:
    """Up to `steps` new tokens a row, and the cache with all of them but the last one written.

    A row ends with its end token, which is kept, and is filled with `pad_id`. `banned` ids are never chosen.
    """
    params = {**params, "decoder": unstack_decoder(params["decoder"], model.decoder_config)}
    rows = logits.shape[0]

    def choose(logits, step, done):
        if banned:
            logits = logits.at[:, jnp.array(banned)].set(-jnp.inf)
        token = sampler(logits, jax.random.fold_in(rng, step)).astype(jnp.int32)
        token = jnp.where(done, pad_id, token)
        return token, done | jnp.isin(token, jnp.array(eos_ids, jnp.int32))

    def body(state: Decoding) -> Decoding:
        info = describe(jnp.zeros((rows, 1), jnp.int32), positions=state.position[:, None])
        info = info.replace(order=jnp.full((rows, 1), state.order))
        hidden, cache = model.apply(
            {"params": params}, state.token[:, None], info, cache=state.cache, method="hidden")
        logits = model.apply({"params": params}, hidden, method="logits")[:, 0]
        token, done = choose(logits, state.step, state.done)
        tokens = state.tokens.at[:, state.step].set(token)
        return Decoding(state.step + 1, tokens, token, state.position + 1, state.order + 1, done, cache)

    none_done = jnp.zeros(rows, bool)
    token, done = choose(logits, 0, none_done)
    tokens = jnp.full((rows, steps), pad_id, jnp.int32).at[:, 0].set(token)
    order = cache.info.order.max() + 1
    state = Decoding(jnp.int32(1), tokens, token, position, order, done, cache)
    state = jax.lax.while_loop(lambda s: (s.step < steps) & ~s.done.all(), body, state)
    return state.tokens, state.cache


def cast(images: Any, dtype: Any) -> Any:
    """The floating point arrays of `images` in `dtype`; sizes and masks as they are."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, images)


def described(prompt: dict[str, Array]) -> SequenceInfo:
    """The mask description of a prompt: causal, and real tokens counted, unless it says otherwise."""
    said = {name: prompt[name] for name in ("positions", "mask_ar", "image_ids", "axes") if name in prompt}
    return describe(prompt["segment_ids"], **said)


@functools.partial(jax.jit, static_argnames=("model", "steps", "sampler", "eos_ids", "pad_id", "banned"))
def _generate(model, params, prompt, images, rng, *, steps, sampler, eos_ids, pad_id, banned):
    tokens, info = prompt["tokens"], described(prompt)
    dtype = params["decoder"]["embedding"].dtype
    cache = init_cache(model.decoder_config, tokens.shape[0], tokens.shape[1] + steps, dtype)
    visual = None
    if images is not None:
        visual = model.apply({"params": params}, cast(images, dtype), method="visual_tokens")
    logits, cache = prefill(model, params, tokens, info, visual, prompt["image_index"], cache, prompt.get("image_weight"))
    position = info.positions.max(axis=1) + 1
    return decode(model, params, logits, cache, position, rng, steps=steps, sampler=sampler, eos_ids=eos_ids,
                  pad_id=pad_id, banned=banned)[0]


def generate(
    model: VLM, params: Params, prompt: dict[str, Array], images: Float[Array, "b n h w 3"] | None = None, *,
    max_new_tokens: int, eos_ids: Sequence[int], pad_id: int, sampler: Sampler = Sampler(),
    banned: Sequence[int] = (), rng: Array | None = None,
) -> Int[Array, "b n"]:
    """New tokens only, int32 [b, max_new_tokens]; greedy unless the sampler says otherwise.

    prompt: tokens, segment_ids (0, or -1 for padding on either side), image_index, int32 [b, t], and perhaps positions,
    mask_ar, image_ids and axes (see `mask.describe`), and image_weight (see `vlm.splice`). images: as
    `VLM.visual_tokens` takes them. The greedy result of a row does not depend on the other rows nor on its padding.
    """
    rng = jax.random.key(0) if rng is None else rng
    return _generate(model, params, prompt, images, rng, steps=max_new_tokens, sampler=sampler,
                     eos_ids=tuple(eos_ids), pad_id=pad_id, banned=tuple(banned))
