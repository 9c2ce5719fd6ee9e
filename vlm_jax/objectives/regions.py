"""Contrast of whole images plus contrast of regions: features pooled over an object's box must match its phrase.

The second term tells patch features, not only the pooled vector, what they show. It needs boxes, which the embedded
scenes know exactly; it is what lets a tiny encoder leave chance within minutes. It adds no parameters: a region goes
through the same final norm and projection as the pooled output (cf. RegionCLIP, arXiv 2112.09106).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.models.model import ModelConfig
from vlm_jax.models.tokens import patch_grid
from vlm_jax.objectives.base import Batch, Sums
from vlm_jax.objectives.contrastive import Contrastive, ContrastiveConfig, softmax_pairs


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
        self.grid = patch_grid(model.vision.image_size, model.vision.patch_size)
        self.terms = {**self.images.terms, "regions": config.weight}

    def __call__(self, params, batch: Batch, rng: Array) -> tuple[Sums, Sums]:
        return self.compare(params, self.embed(params, batch, rng), batch)

    def embed(self, params, batch: Batch, rng: Array) -> dict[str, Array]:
        """Features of images, texts, boxes and phrases, [n, e] and [n, r, e]."""
        apply = functools.partial(self.images.apply, params)
        zimg, out = apply("encode_image", batch["images"])
        n, regions, length = batch["box_text"].shape
        # One call for captions and phrases: the text tower then runs one large matmul instead of two small ones.
        ztxt = apply("encode_text", jnp.concatenate([batch["text"], batch["box_text"].reshape(-1, length)]))
        pooled = box_weights(batch["boxes"], *self.grid) @ out.patches.features
        return {"zimg": zimg, "ztxt": ztxt[:n], "zbox": apply("embed_features", pooled),
                "zphrase": ztxt[n:].reshape(n, regions, -1)}

    def compare(self, params, features: dict[str, Array], batch: Batch) -> tuple[Sums, Sums]:
        """The losses of already embedded images and regions."""
        sums, weights = self.images.compare(params, features, batch)
        flat = lambda x: x.reshape(-1, x.shape[-1])
        valid = (box_weights(batch["boxes"], *self.grid).sum(-1) > 0).reshape(-1)
        scale, _ = self.images.apply(params, "scale_and_bias")
        sums["regions"], _ = softmax_pairs(
            flat(features["zbox"]), flat(features["zphrase"]), scale, flat(batch["box_text"]), valid)
        weights["regions"] = valid.sum().astype(jnp.float32)
        return sums, weights
