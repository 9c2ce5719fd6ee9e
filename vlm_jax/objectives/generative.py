"""Next-token prediction on the tokens that carry a loss weight: the objective of language, align and instruct."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.models.mask import describe
from vlm_jax.models.model import ModelConfig
from vlm_jax.objectives.base import Batch, Sums


def next_token_loss(logits: Float[Array, "b t v"], targets: Int[Array, "b t"]) -> Float[Array, "b t"]:
    """-log p(target) of each position, float32."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


@dataclasses.dataclass(frozen=True)
class NextTokenConfig:
    kind: ClassVar[str] = "next_token"


class NextToken:
    """Batch, all [b, t] int32 unless said otherwise: tokens, targets (the token each position predicts), loss_weights
    (float32), positions, segment_ids, subsegment_ids, image_index; images [b, n, h, w, 3] float32 unless the stage is
    text alone."""

    def __init__(self, config: NextTokenConfig, model: ModelConfig):
        self.model = model.vlm()
        self.terms = {"next_token": 1.0}

    def __call__(self, params, batch: Batch, rng: Array) -> tuple[Sums, Sums]:
        info = describe(batch["segment_ids"], positions=batch["positions"], subsegment_ids=batch["subsegment_ids"])
        logits = self.model.apply(
            {"params": params}, batch["tokens"], info, batch.get("images"), batch["image_index"])
        loss, weight = next_token_loss(logits, batch["targets"]), batch["loss_weights"]
        right = (jnp.argmax(logits, axis=-1) == batch["targets"]).astype(jnp.float32)
        n = weight.sum()
        return ({"next_token": (loss * weight).sum(), "accuracy": (right * weight).sum()},
                {"next_token": n, "accuracy": n})
