"""The contrastive objective: images against texts over the global batch, on one device or split over many."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.models.axes import splitting
from vlm_jax.models.model import ModelConfig
from vlm_jax.objectives.base import Batch, Sums
from vlm_jax.objectives.pairs import same_text, sigmoid_loss, softmax_loss
from vlm_jax.objectives.parallel import Result, sigmoid_ring, softmax_rows


def softmax_pairs(
    zimg: Float[Array, "n e"], ztxt: Float[Array, "n e"], scale: Float[Array, ""], ids: Int[Array, "n k"],
    valid: Bool[Array, "n"] | None = None,
) -> Result:
    """(softmax loss summed over pairs, images whose best text is a right one); rows of equal ids belong together."""
    if splitting("batch"):
        valid = jnp.ones(len(zimg), bool) if valid is None else valid
        return softmax_rows(zimg, ztxt, scale, ids, valid, splitting("batch"))
    positives = same_text(ids)
    return softmax_loss(zimg, ztxt, scale, positives, valid), _hits(zimg, ztxt, positives)


def sigmoid_pairs(
    zimg: Float[Array, "n e"], ztxt: Float[Array, "n e"], scale: Float[Array, ""], bias: Float[Array, ""],
    ids: Int[Array, "n k"],
) -> Result:
    """The same of the sigmoid loss."""
    if splitting("batch"):
        return sigmoid_ring(zimg, ztxt, scale, bias, ids, splitting("batch"))
    positives = same_text(ids)
    return sigmoid_loss(zimg, ztxt, scale, bias, positives), _hits(zimg, ztxt, positives)


def _hits(zimg, ztxt, positives: Bool[Array, "n n"]) -> Float[Array, ""]:
    best = jnp.argmax(zimg @ ztxt.T, axis=1)
    return jnp.take_along_axis(positives, best[:, None], axis=1).sum().astype(jnp.float32)


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
        return self.compare(params, self.embed(params, batch, rng), batch)

    def apply(self, params, method: str, *args) -> Any:
        return self.model.apply({"params": params}, *args, method=method)

    def embed(self, params, batch: Batch, rng: Array) -> dict[str, Float[Array, "n e"]]:
        """The features of both sides: all that pairs know of each other."""
        return {"zimg": self.apply(params, "encode_image", batch["images"])[0],
                "ztxt": self.apply(params, "encode_text", batch["text"])}

    def compare(self, params, features: dict[str, Array], batch: Batch) -> tuple[Sums, Sums]:
        """The loss of already embedded pairs, and how often the best text of an image is a right one."""
        (scale, bias), n = self.apply(params, "scale_and_bias"), len(batch["text"])
        ids = batch["text"] if self.config.positives == "same_text" else jnp.arange(n)[:, None]
        if self.config.loss == "softmax":
            loss, hits = softmax_pairs(features["zimg"], features["ztxt"], scale, ids)
        else:
            loss, hits = sigmoid_pairs(features["zimg"], features["ztxt"], scale, bias, ids)
        n = jnp.float32(n)
        return ({"contrastive": loss, "accuracy": hits, "scale": scale * n},
                {"contrastive": n, "accuracy": n, "scale": n})
