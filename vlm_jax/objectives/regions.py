"""Contrast of whole images plus contrast of regions: features pooled over an object's box must match its phrase.

The second term tells patch features, not only the pooled vector, what they show. It needs boxes, which the embedded
scenes know exactly; it is what lets a tiny encoder leave chance within minutes. It adds no parameters: a region goes
through the same final norm and projection as the pooled output (cf. RegionCLIP, arXiv 2112.09106).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.models.model import ModelConfig
from vlm_jax.models.tokens import patch_grid
from vlm_jax.objectives.base import Batch, Sums
from vlm_jax.objectives.contrastive import Contrastive, ContrastiveConfig, same_text, softmax_loss


def box_weights(boxes: Float[Array, "b r 4"], rows: int, columns: int) -> Float[Array, "b r v"]:
    """Share of a box (left, top, right, bottom as fractions) that lies in each patch: sums to 1, or to 0 for a box
    without area in the image."""

    def overlap(low, high, cells):
        edges = jnp.arange(cells, dtype=jnp.float32)
        reach = jnp.minimum(high[..., None] * cells, edges + 1) - jnp.maximum(low[..., None] * cells, edges)
        return jnp.maximum(reach, 0.0)

    left, top, right, bottom = jnp.moveaxis(boxes, -1, 0)
    area = overlap(top, bottom, rows)[..., :, None] * overlap(left, right, columns)[..., None, :]
    area = area.reshape(*area.shape[:-2], rows * columns)
    return area / jnp.maximum(area.sum(-1, keepdims=True), 1e-6)


@dataclasses.dataclass(frozen=True)
class RegionsConfig:
    """`weight` multiplies the region term; the rest is the contrastive objective's."""

    kind: ClassVar[str] = "contrastive_regions"
    weight: float = 1.0
    contrastive: ContrastiveConfig = ContrastiveConfig()


class ContrastiveRegions:
    """Batch: images [n, h, w, 3], text [n, t], boxes [n, r, 4], box_text [n, r, t]; a box without area is no region."""

    def __init__(self, config: RegionsConfig, model: ModelConfig):
        self.images = Contrastive(config.contrastive, model)
        self.model, self.grid = model.two_tower(), patch_grid(model.vision.image_size, model.vision.patch_size)
        self.terms = {**self.images.terms, "regions": config.weight}

    def __call__(self, params, batch: Batch, rng: Array) -> tuple[Sums, Sums]:
        apply = lambda method, *args: self.model.apply({"params": params}, *args, method=method)
        zimg, out = apply("encode_image", batch["images"])
        boxes, box_text = batch["boxes"], batch["box_text"].reshape(-1, batch["box_text"].shape[-1])
        # One call for captions and phrases: the text tower then runs one large matmul instead of two small ones.
        ztxt = apply("encode_text", jnp.concatenate([batch["text"], box_text]))
        ztxt, zphrase = ztxt[: len(zimg)], ztxt[len(zimg):]
        scale, bias = apply("scale_and_bias")
        sums, weights = self.images.compare(zimg, ztxt, scale, bias, batch["text"])

        shares = box_weights(boxes, *self.grid)
        pooled = shares @ out.patches.features
        zbox = apply("embed_features", pooled).reshape(-1, zimg.shape[-1])
        valid = (shares.sum(-1) > 0).reshape(-1)
        sums["regions"] = softmax_loss(zbox, zphrase, scale, same_text(box_text), valid)
        weights["regions"] = valid.sum().astype(jnp.float32)
        return sums, weights
