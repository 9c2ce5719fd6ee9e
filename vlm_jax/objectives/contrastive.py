"""Contrastive losses over the global batch: softmax (CLIP, arXiv 2103.00020) and sigmoid (SigLIP, arXiv 2303.15343)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.models.model import ModelConfig
from vlm_jax.objectives.base import Batch, Sums


def _logits(zimg, ztxt, scale, bias):
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
    logits = jnp.where(valid[:, None] & valid, _logits(zimg, ztxt, scale, 0.0), jnp.finfo(jnp.float32).min)
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
    logits = _logits(zimg, ztxt, scale, bias)
    return jax.nn.softplus(jnp.where(positives, -logits, logits)).sum()


def same_text(tokens: Int[Array, "n t"]) -> Bool[Array, "n n"]:
    """Pairs of rows whose texts are equal, token for token."""
    return (tokens[:, None] == tokens[None]).all(-1)


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """`loss` is "softmax" or "sigmoid"; `positives` "diagonal", or "same_text" where captions repeat in a batch."""

    kind: ClassVar[str] = "contrastive"
    loss: str = "softmax"
    positives: str = "diagonal"

    def __post_init__(self):
        if self.loss not in ("softmax", "sigmoid"):
            raise ValueError(f"Contrastive loss '{self.loss}' is unknown; choose 'softmax' or 'sigmoid'.")
        if self.positives not in ("diagonal", "same_text"):
            raise ValueError(f"positives '{self.positives}' is unknown; choose 'diagonal' or 'same_text'.")


class Contrastive:
    """Batch: images [n, h, w, 3] float32, text [n, t] int32."""

    def __init__(self, config: ContrastiveConfig, model: ModelConfig):
        self.config, self.model = config, model.two_tower()
        if config.loss == "sigmoid" and model.contrast.bias is None:
            raise ValueError("The sigmoid loss needs a bias; set model.contrast.bias (SigLIP starts at -10).")
        self.terms = {"contrastive": 1.0}

    def __call__(self, params, batch: Batch, rng: Array) -> tuple[Sums, Sums]:
        zimg, ztxt, scale, bias = self.model.apply({"params": params}, batch["images"], batch["text"])
        return self.compare(zimg, ztxt, scale, bias, batch["text"])

    def compare(self, zimg, ztxt, scale, bias, tokens: Int[Array, "n t"]) -> tuple[Sums, Sums]:
        """The loss of already embedded pairs, and how often the best text of an image is a right one."""
        positives = same_text(tokens) if self.config.positives == "same_text" else jnp.eye(len(tokens), dtype=bool)
        if self.config.loss == "softmax":
            loss = softmax_loss(zimg, ztxt, scale, positives)
        else:
            loss = sigmoid_loss(zimg, ztxt, scale, bias, positives)
        best = jnp.argmax(zimg @ ztxt.T, axis=1)
        hits = jnp.take_along_axis(positives, best[:, None], axis=1).sum()
        n = jnp.float32(len(tokens))
        return ({"contrastive": loss, "accuracy": hits.astype(jnp.float32), "scale": scale * n},
                {"contrastive": n, "accuracy": n, "scale": n})
