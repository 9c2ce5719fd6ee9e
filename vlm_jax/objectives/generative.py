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
    """`chunks` is the number of parts a row's tokens are taken in when hidden states become logits: with more than one
    the logits of a whole batch [b, t, vocab] never exist, forwards or backwards."""

    kind: ClassVar[str] = "next_token"
    chunks: int = 1

    def __post_init__(self):
        if self.chunks < 1:
            raise ValueError(f"chunks is {self.chunks}; use 1 or more.")


class NextToken:
    """Batch, all [b, t] int32 unless said otherwise: tokens, targets (the token each position predicts), loss_weights
    (float32), positions, segment_ids, image_index; subsegment_ids unless rows have no branches; images [b, n, h, w, 3]
    float32 unless the stage is text alone."""

    def __init__(self, config: NextTokenConfig, model: ModelConfig):
        self.config, self.model = config, model.vlm()
        if model.decoder.mask != "causal":
            raise ValueError(f"The objective 'next_token' trains decoders that read from left to right; "
                             f"config.model.decoder.mask is '{model.decoder.mask}', make it 'causal'.")
        self.terms = {"next_token": 1.0}

    def __call__(self, params, batch: Batch, rng: Array) -> tuple[Sums, Sums]:
        info = describe(batch["segment_ids"], positions=batch["positions"], subsegment_ids=batch.get("subsegment_ids"))
        apply = lambda method, *args: self.model.apply({"params": params}, *args, method=method)
        visual = apply("visual_tokens", batch["images"]) if "images" in batch else None
        hidden, _ = apply("hidden", batch["tokens"], info, visual, batch["image_index"])

        def score(hidden, targets, weight):
            logits = apply("logits", hidden)
            right = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
            return (next_token_loss(logits, targets) * weight).sum(), (right * weight).sum()

        loss, right = in_chunks(score, self.config.chunks, hidden, batch["targets"], batch["loss_weights"])
        n = batch["loss_weights"].sum()
        return {"next_token": loss, "accuracy": right}, {"next_token": n, "accuracy": n}


def in_chunks(score, chunks: int, *tokenwise: Array) -> tuple[Array, ...]:
    """Sums of score(*part) over `chunks` parts of arrays [b, t, ...], one after the other; each is computed again in the
    backward pass, so that nothing of it is kept.

    A part takes every chunks-th token: where rows are split along their tokens (mesh axis context), every device has
    its share of each part. Raises ValueError where chunks does not divide the tokens.
    """
    if chunks == 1:
        return score(*tokenwise)
    length = tokenwise[0].shape[1]
    if length % chunks:
        raise ValueError(f"Rows of {length} tokens do not divide into {chunks} chunks; change objective.chunks.")
    parts = [jnp.moveaxis(x.reshape(x.shape[0], length // chunks, chunks, *x.shape[2:]), 2, 0) for x in tokenwise]
    total = lambda sums, part: (jax.tree.map(jnp.add, sums, jax.checkpoint(score)(*part)), None)
    return jax.lax.scan(total, (jnp.zeros(()), jnp.zeros(())), tuple(parts))[0]
