"""A model too small to be good at anything, whose answers still depend on what it sees and is asked."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from vlm_jax.data import tokenizer
from vlm_jax.data.images import ImageProcessor
from vlm_jax.data.pipeline import texts
from vlm_jax.data.processor import Processor, ProcessorConfig
from vlm_jax.data.scenes import SceneConfig, SceneSource
from vlm_jax.data.templates import template
from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.model import ModelConfig, abstract_params
from vlm_jax.models.text import TextConfig
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.two_tower import ContrastConfig
from vlm_jax.models.vit import ViTConfig

VOCABULARY = 300


class Tiny(NamedTuple):
    config: ModelConfig
    params: Any
    processor: Processor


@pytest.fixture(scope="session")
def scenes() -> SceneSource:
    return SceneSource(SceneConfig(split="test", canvas=32, digit_sizes=(8, 16), grid=8, max_digits=2))


@pytest.fixture(scope="session")
def tiny(scenes) -> Tiny:
    """Parameters so large that every word and pixel tells, and seconds faster than `init_params`."""
    blocks = TransformerConfig(layers=1, width=32, heads=2, mlp_width=32)
    words = TransformerConfig(
        layers=2, width=32, heads=2, mlp_width=32, norm="rms", gated_mlp=True, rope_theta=1e4)
    config = ModelConfig(
        vision=ViTConfig(image_size=32, patch_size=16, feature_layer=-1, transformer=blocks),
        text=TextConfig(vocab_size=VOCABULARY, context=16, end_id=2, transformer=blocks),
        contrast=ContrastConfig(embed_dim=16), connector=ConnectorConfig(kind="mlp"),
        decoder=DecoderConfig(vocab_size=VOCABULARY, transformer=words))
    learnt = tokenizer.train(texts(scenes, 50, template("llava")), VOCABULARY)
    processor = Processor(ProcessorConfig(image=ImageProcessor(size=32)), learnt, config.vision, context=16)
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        if path[-1].key == "scale":  # of a norm
            return np.ones(leaf.shape, np.float32)
        return 0.3 * rng.standard_normal(leaf.shape, np.float32)

    return Tiny(config, jax.tree_util.tree_map_with_path(drawn, abstract_params(config)), processor)
