"""Contrastive losses of all pairs at once: softmax (CLIP, arXiv 2103.00020) and sigmoid (SigLIP, arXiv 2303.15343)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def pair_logits(zimg: Float[Array, "n e"], ztxt: Float[Array, "m e"], scale, bias) -> Float[Array, "n m"]:
    """scale * <image, text> + bias, float32."""
    return scale * jnp.matmul(zimg, ztxt.T, preferred_element_type=jnp.float32) + bias


def softmax_loss(
    zimg: Float[Array, "n e"],
    ztxt: Float[Array, "n e"],
    scale: Float[Array, ""],
    positives: Bool[Array, "n n"] | None = None,
    valid: Bool[Array, "n"] | None = None,
) -> Float[Array, ""]:
    """Sum over pairs of the mean of both cross-entropies, image to texts and text to images.

    Row i of each side is a pair. `positives` marks further texts that are right for an image (identical captions):
    the target is then uniform over them. `valid` false leaves a pair out of rows and columns. Random features of a
    batch of N give N ln N.
    """
    n = zimg.shape[0]
    positives = jnp.eye(n, dtype=bool) if positives is None else positives
    valid = jnp.ones(n, bool) if valid is None else valid
    logits = jnp.where(valid[:, None] & valid, pair_logits(zimg, ztxt, scale, 0.0), jnp.finfo(jnp.float32).min)
    target = (positives & valid[:, None] & valid).astype(jnp.float32)
    target = target / jnp.maximum(target.sum(1, keepdims=True), 1)  # positives are symmetric: rows serve columns too
    rows = -(target * jax.nn.log_softmax(logits, axis=1)).sum(1)
    columns = -(target * jax.nn.log_softmax(logits.T, axis=1)).sum(1)
    return (jnp.where(valid, rows + columns, 0.0) / 2).sum()


def sigmoid_loss(
    zimg: Float[Array, "n e"],
    ztxt: Float[Array, "n e"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    positives: Bool[Array, "n n"] | None = None,
) -> Float[Array, ""]:
    """Sum over all n^2 pairs of softplus(-y (scale <x, t> + bias)), y = 1 for positives and -1 for the rest.

    SigLIP divides this by n, not by n^2: about softplus(10) + (n - 1) softplus(-10) at scale 10 and bias -10.
    """
    positives = jnp.eye(zimg.shape[0], dtype=bool) if positives is None else positives
    logits = pair_logits(zimg, ztxt, scale, bias)
    return jax.nn.softplus(jnp.where(positives, -logits, logits)).sum()


def same_text(tokens: Int[Array, "n t"], others: Int[Array, "m t"] | None = None) -> Bool[Array, "n m"]:
    """Pairs of rows whose texts are equal, token for token; of `tokens` with each other unless others are given."""
    others = tokens if others is None else others
    return (tokens[:, None] == others[None]).all(-1)
