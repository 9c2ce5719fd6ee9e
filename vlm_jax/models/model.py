"""The model tree: every part that the stages of one run train, under the names that rules and checkpoints use.

    vision  text  vision_projection  text_projection  logit_scale [logit_bias]   (the two towers)
    vision  connector  decoder                                                   (the VLM: the same eyes)
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.mask import describe
from vlm_jax.models.text import TextConfig
from vlm_jax.models.transformer import Params
from vlm_jax.models.two_tower import ContrastConfig, TwoTower
from vlm_jax.models.vit import ViTConfig
from vlm_jax.models.vlm import VLM


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Parts that are None are left out: eyes and text for contrast, eyes, connector and decoder for talking."""

    vision: ViTConfig
    text: TextConfig | None = None
    contrast: ContrastConfig | None = None
    connector: ConnectorConfig | None = None
    decoder: DecoderConfig | None = None

    def __post_init__(self):
        for first, second in (("text", "contrast"), ("connector", "decoder")):
            if (getattr(self, first) is None) != (getattr(self, second) is None):
                raise ValueError(f"model.{first} and model.{second} belong together; give both or neither.")

    def two_tower(self) -> TwoTower:
        if self.text is None:
            raise ValueError("This model has no text tower; set model.text and model.contrast to compare with text.")
        return TwoTower(self.vision, self.text, self.contrast)

    def vlm(self) -> VLM:
        if self.decoder is None:
            raise ValueError("This model has no decoder; set model.connector and model.decoder to generate text.")
        return VLM(self.vision, self.connector, self.decoder)


def init_params(config: ModelConfig, rng: Array) -> Params:
    """Fresh float32 parameters of all parts. Both assemblies draw the same eyes: Linen's keys follow the path."""
    size = config.vision.image_size
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = {}
    if config.text is not None:
        params |= config.two_tower().init(rng, jnp.zeros((1, size, size, 3)), tokens)["params"]
    if config.decoder is not None:
        images = jnp.zeros((1, 1, size, size, 3))
        params |= config.vlm().init(rng, tokens, describe(tokens), images, tokens)["params"]
    return params


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of `init_params`, without computing anything."""
    return jax.eval_shape(lambda rng: init_params(config, rng), jax.random.key(0))
