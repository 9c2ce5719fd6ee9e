"""The mask description: what attention has to know about each token, and the one place that turns it into a mask.

A query token q may attend to a key token k when all of these hold:

    same example      segment[q] == segment[k], and k is not padding (segment -1)
    same branch       subsegment[k] == 0 (the shared prefix), or subsegment[k] == subsegment[q]
    not the future    order[k] <= order[q], or both belong to the same image block (image id > 0)
    near enough       position[q] - position[k] < window, where one is asked for, or order[k] == order[q]

`order` is the running sum of `mask_ar`, the flag "tokens before me must not see me" (the idea is big_vision's, written
for PaliGemma). On one row of four tokens:

    mask_ar 1 1 1 1 -> order 1 2 3 4    causal
    mask_ar 0 0 0 0 -> order 0 0 0 0    bidirectional
    mask_ar 0 0 1 1 -> order 0 0 1 2    prefix-LM: the first two see each other, the rest is causal

A window bounds how far a token looks back, but does not split tokens of equal order: the prefix of PaliGemma 2 sees
itself whole. An image block (Gemma 3) is causal but for looking ahead to its own end, and looks back no further than
the window. Both are what transformers computes; five tokens with a window of 2, a prefix or an image of four:

    order 0 0 0 0 1      image 1 1 1 1 0
        x x x x .            x x x x .
        x x x x .            x x x x .
        x x x x .            . x x x .
        x x x x .            . . x x .
        . . . x x            . . . x x

With subsegments 0 0 1 1 2 2 (a prefix of two tokens and two answers that share it) a causal row gives

        k  0 1 2 3 4 5
    q 0    x . . . . .
      1    x x . . . .
      2    x x x . . .
      3    x x x x . .
      4    x x . . x .
      5    x x . . x x
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Int

PADDING = -1


@struct.dataclass
class SequenceInfo:
    """The description of a batch of rows; every field is int32 of shape [batch, tokens], but for `axes`.

    positions: place of the token in its own example, for rotary embeddings and windows.
    segment_ids: which example of the row the token belongs to; -1 is padding.
    subsegment_ids: 0 for what the whole segment sees, n > 0 for tokens that only branch n sees.
    order: running sum of `mask_ar` along the row.
    image_ids: 0 for text; tokens of one segment with the same positive id see each other both ways.
    axes: positions on several axes [batch, tokens, a] for rotary embeddings that have them, else None; a mask never
        asks for them, and a cache, whose keys are rotated, does not keep them.
    pattern: what is known of the mask before it runs, for kernels that are compiled for one: "causal" or "full" where
        only segments and padding can hide a token besides, else "any".
    counted: whether positions are known to count the tokens of a row.
    """

    positions: Int[Array, "b t"]
    segment_ids: Int[Array, "b t"]
    subsegment_ids: Int[Array, "b t"]
    order: Int[Array, "b t"]
    image_ids: Int[Array, "b t"]
    axes: Int[Array, "b t a"] | None = None
    pattern: str = struct.field(pytree_node=False, default="any")
    counted: bool = struct.field(pytree_node=False, default=False)

    def write(self, new: SequenceInfo, start: Int[Array, ""]) -> SequenceInfo:
        """This description with `new` written over the tokens from `start` on (a cache that grows)."""
        update = lambda old, part: lax.dynamic_update_slice(old, part.astype(old.dtype), (0, start))
        fields = ("positions", "segment_ids", "subsegment_ids", "order", "image_ids")
        return SequenceInfo(**{name: update(getattr(self, name), getattr(new, name)) for name in fields})


def _replace(self: SequenceInfo, **changes) -> SequenceInfo:
    """The description with some fields changed, and nothing more claimed of them than is known."""
    return dataclasses.replace(self, **{"pattern": "any", "counted": False} | changes)


SequenceInfo.replace = _replace  # flax has put its own there


def describe(
    segment_ids: Int[Array, "b t"],
    *,
    mask_ar: Int[Array, "b t"] | int = 1,
    positions: Int[Array, "b t"] | None = None,
    subsegment_ids: Int[Array, "b t"] | None = None,
    image_ids: Int[Array, "b t"] | None = None,
    axes: Int[Array, "b t a"] | None = None,
) -> SequenceInfo:
    """Describes rows, causal unless `mask_ar` says otherwise.

    Without `positions` a row counts as one example and its real tokens are numbered from 0, wherever the padding is.
    """
    known = subsegment_ids is None and image_ids is None and isinstance(mask_ar, int)
    counted, segment_ids = positions is None, jnp.asarray(segment_ids, jnp.int32)
    zeros = lambda: jnp.zeros_like(segment_ids)  # an array of its own for each field: a description may be donated
    if positions is None:
        positions = jnp.maximum(jnp.cumsum(segment_ids != PADDING, axis=1) - 1, 0)
    return SequenceInfo(
        positions=jnp.asarray(positions, jnp.int32),
        segment_ids=segment_ids,
        subsegment_ids=zeros() if subsegment_ids is None else jnp.asarray(subsegment_ids, jnp.int32),
        order=jnp.cumsum(zeros() + mask_ar, axis=1, dtype=jnp.int32),
        image_ids=zeros() if image_ids is None else jnp.asarray(image_ids, jnp.int32),
        axes=None if axes is None else jnp.asarray(axes, jnp.int32),
        pattern={0: "full", 1: "causal"}.get(mask_ar, "any") if known else "any",
        counted=counted,
    )


def empty(batch: int, tokens: int) -> SequenceInfo:
    """Rows of nothing but padding: the description of an unused cache."""
    return describe(jnp.full((batch, tokens), PADDING, jnp.int32), mask_ar=0).replace()  # to be written to


def build_mask(q: SequenceInfo, k: SequenceInfo, window: int | None = None) -> Bool[Array, "b t s"]:
    """The dense mask, true where query t may attend to key s; the formula stands at the top of this file."""
    pair = lambda name: (getattr(q, name)[:, :, None], getattr(k, name)[:, None, :])
    q_segment, k_segment = pair("segment_ids")
    q_branch, k_branch = pair("subsegment_ids")
    q_order, k_order = pair("order")
    q_image, k_image = pair("image_ids")
    same_image = (q_image == k_image) & (k_image > 0)
    mask = (q_segment == k_segment) & (k_segment != PADDING)
    mask &= (k_branch == 0) | (k_branch == q_branch)
    mask &= (k_order <= q_order) | same_image
    if window is not None:
        q_position, k_position = pair("positions")
        mask &= (q_position - k_position < window) | (k_order == q_order)
    return mask
