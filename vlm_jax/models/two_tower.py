"""The two-tower assembly: image and text in one space, compared by a scaled dot product (CLIP, SigLIP)."""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from vlm_jax.models.encoders import EncoderConfig, encoder
from vlm_jax.models.layers import Linear
from vlm_jax.models.text import TextConfig, TextTower
from vlm_jax.models.vit import VisionOutput


@dataclasses.dataclass(frozen=True)
class ContrastConfig:
    """The shared space. `scale` and `bias` are the initial values of the learnable temperature 1/tau and bias.

    CLIP starts at scale 1/0.07 without a bias, SigLIP at scale 10 and bias -10. The scale is capped at `max_scale`
    (math.inf for no cap). SigLIP has no `image_projection`, its pooling head ends in the shared space already, and
    its text projection has a bias.
    """

    embed_dim: int
    scale: float = 1 / 0.07
    bias: float | None = None
    max_scale: float = 100.0
    image_projection: bool = True
    text_projection_bias: bool = False


def normalise(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """x / |x| in float32, with a gradient that stays finite at 0."""
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


class TwoTower(nn.Module):
    vision_config: EncoderConfig
    text_config: TextConfig
    contrast: ContrastConfig

    def __post_init__(self):
        width = self.vision_config.transformer.width
        if not self.contrast.image_projection and width != self.contrast.embed_dim:
            raise ValueError(f"Without image projection embed_dim is the encoder's width, {width}, not "
                             f"{self.contrast.embed_dim}; change one or set contrast.image_projection.")
        super().__post_init__()

    def setup(self):
        self.vision = encoder(self.vision_config)
        self.text = TextTower(self.text_config)
        if self.contrast.image_projection:
            self.vision_projection = Linear(self.contrast.embed_dim, use_bias=False)
        self.text_projection = Linear(self.contrast.embed_dim, use_bias=self.contrast.text_projection_bias)
        self.log_scale = self.param("logit_scale", nn.initializers.constant(math.log(self.contrast.scale)), ())
        if self.contrast.bias is not None:
            self.logit_bias = self.param("logit_bias", nn.initializers.constant(self.contrast.bias), ())

    def encode_image(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b e"], VisionOutput]:
        """Normalised image embeddings, and all else the encoder saw; `images` is what the encoder takes."""
        out = self.vision(images)
        return normalise(self.project_image(out.pooled)), out

    def project_image(self, pooled: Float[Array, "*b f"]) -> Float[Array, "*b e"]:
        """Pooled image features in the shared space, not yet normalised."""
        return self.vision_projection(pooled) if self.contrast.image_projection else pooled

    def embed_features(self, features: Float[Array, "*b f"]) -> Float[Array, "*b e"]:
        """Patch features (or means of them) in the shared space, by the way the pooled output takes.

        Raises ValueError for eyes that pool by attention: a single patch does not pass through their head.
        """
        if self.vision_config.pool == "map":
            raise ValueError("Patches of an encoder with pool 'map' have no place in the shared space; "
                             "use 'cls' or 'mean'.")
        return normalise(self.project_image(self.vision.normed(features)))

    def encode_text(self, tokens: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """Normalised text embeddings."""
        return normalise(self.text_projection(self.text(tokens)))

    def scale_and_bias(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """logits = scale * <image, text> + bias; the bias is 0 where the config has none."""
        above = jnp.maximum(self.log_scale - math.log(self.contrast.max_scale), 0)
        scale = jnp.exp(self.log_scale - lax.stop_gradient(above))  # capped, but never without a gradient
        return scale, self.logit_bias if self.contrast.bias is not None else jnp.zeros(())

    def __call__(self, images: Float[Array, "b h w 3"], tokens: Int[Array, "b t"]):
        """(image embeddings, text embeddings, scale, bias)."""
        return self.encode_image(images)[0], self.encode_text(tokens), *self.scale_and_bias()
