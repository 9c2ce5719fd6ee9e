"""Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299): SigLIP's eyes over tiles, pixel shuffle, one linear layer and
a language model."""

from __future__ import annotations

import dataclasses

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.masked_vit import MaskedViTConfig
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.tokens import RowColumns
from vlm_jax.weights.huggingface.families import decoder, encoder, siglip
from vlm_jax.weights.huggingface.families.llava import language, language_hf_config
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import Weight, linear

# What transformers' classes fill in where config.json is silent; only without a text_config is its eps another.
VISION = dict(siglip.STACK, hidden_size=1152, num_attention_heads=16, num_channels=3, image_size=224, patch_size=32)
DEFAULTS = dict(image_token_id=128257, tie_word_embeddings=False, scale_factor=2, vision_config={},
                text_config={"rms_norm_eps": 1e-5})
SPLIT = 4  # tiles along the longer side, where no preprocessor_config.json says it


def _fill(hf: HfConfig) -> HfConfig:
    return DEFAULTS | {key: value for key, value in hf.items() if value is not None}


def text(hf: HfConfig) -> HfConfig:
    hf = _fill(hf)
    return language(hf["text_config"]).fill(hf["text_config"]) | {"image_token_id": hf["image_token_id"]}


def config(hf: HfConfig) -> ModelConfig:
    """The sizes in an Idefics3Config or a SmolVLMConfig; raises ValueError for options that we cannot honour."""
    hf = _fill(hf)
    part = VISION | hf["vision_config"]
    vision = MaskedViTConfig(
        **encoder.image_sizes(part), transformer=encoder.transformer(part), pool="mean", pre_norm=False, patch_bias=True,
        final_norm="all", feature_layer=-1, feature_norm=True)
    factor = hf["scale_factor"]
    connector = ConnectorConfig("linear", bias=False, reducer="pixel_shuffle", factor=factor)
    layout = RowColumns(vision.image_size, SPLIT * vision.image_size, (vision.grid[0] // factor) ** 2)
    words = hf["text_config"] | {"tie_word_embeddings": hf["tie_word_embeddings"]}
    return ModelConfig(vision=vision, connector=connector, decoder=language(words).config(words), layout=layout)


def table(config: ModelConfig) -> list[Weight]:
    """In the names of the hub's files."""
    return [*siglip.vision_table(config.vision, theirs="model.vision_model"),
            *linear("connector/linear_1", "model.connector.modality_projection.proj", bias=False),
            *decoder.table(config.decoder, "model.text_model", "lm_head")]


def rename(name: str) -> str | None:
    return encoder.passed_over(name) and decoder.rename(name)


def family(architecture: str, model_type: str) -> Family:
    def hf_config(config: ModelConfig) -> HfConfig:
        """The keys of config.json but for token ids."""
        vision = {"model_type": f"{model_type}_vision", **encoder.hf_transformer(config.vision.transformer),
                  **encoder.hf_image_sizes(config.vision)}
        return {"architectures": [architecture], "model_type": model_type, "scale_factor": config.connector.factor,
                "tie_word_embeddings": config.decoder.tie_embeddings, "vision_config": vision,
                "text_config": language_hf_config(config.decoder)}

    return Family(architecture, config, hf_config, table, rename, text)


FAMILY = family("Idefics3ForConditionalGeneration", "idefics3")
SMOLVLM = family("SmolVLMForConditionalGeneration", "smolvlm")
