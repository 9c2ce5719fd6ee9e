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
from vlm_jax.models.encoders import EncoderConfig, encoder
from vlm_jax.models.execution import current, executing
from vlm_jax.models.mask import describe
from vlm_jax.models.text import TextConfig
from vlm_jax.models.transformer import Params
from vlm_jax.models.tokens import LayoutConfig
from vlm_jax.models.two_tower import ContrastConfig, TwoTower
from vlm_jax.models.vlm import VLM


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Parts that are None are left out: eyes and text for contrast; eyes, connector and decoder for talking; a decoder
    alone is a language model, eyes alone an encoder. `layout` None gives every image the tokens of one fixed grid."""

    vision: EncoderConfig | None = None
    text: TextConfig | None = None
    contrast: ContrastConfig | None = None
    connector: ConnectorConfig | None = None
    decoder: DecoderConfig | None = None
    layout: LayoutConfig | None = None

    def __post_init__(self):
        together = [("text", "contrast")] + [("connector", "decoder")] * (self.vision is not None)
        for first, second in together:
            if (getattr(self, first) is None) != (getattr(self, second) is None):
                raise ValueError(f"model.{first} and model.{second} belong together; give both or neither.")
        if self.vision is None and (self.text or self.connector or not self.decoder):
            raise ValueError("A model without eyes is a language model; give model.decoder alone, or model.vision.")

    def two_tower(self) -> TwoTower:
        if self.text is None:
            raise ValueError("This model has no text tower; set model.text and model.contrast to compare with text.")
        return TwoTower(self.vision, self.text, self.contrast)

    def vlm(self) -> VLM:
        if self.decoder is None:
            raise ValueError("This model has no decoder; set model.connector and model.decoder to generate text.")
        return VLM(self.vision, self.connector, self.decoder, self.layout is not None and self.layout.newline)


def init_params(config: ModelConfig, rng: Array) -> Params:
    """Fresh float32 parameters of all parts. Both assemblies draw the same eyes: Linen's keys follow the path."""
    with executing(dataclasses.replace(current(), layers="scan")):  # what blocks give is dropped: one of a kind is traced
        return _init(config, rng)


def _init(config: ModelConfig, rng: Array) -> Params:
    tokens, images, params = jnp.zeros((1, 1), jnp.int32), None, {}
    if config.vision is not None:
        images = config.vision.blank()
    if config.text is not None:
        params |= config.two_tower().init(rng, images, tokens)["params"]
    if config.decoder is not None:
        images = jax.tree.map(lambda x: x[None], images)
        params |= config.vlm().init(rng, tokens, describe(tokens), images, tokens)["params"]
    return params or {"vision": encoder(config.vision).init(rng, images)["params"]}


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of `init_params`, without computing anything."""
    return jax.eval_shape(lambda rng: init_params(config, rng), jax.random.key(0))
