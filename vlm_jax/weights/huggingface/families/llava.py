"""LLaVA 1.5 (arXiv 2310.03744): CLIP's eyes, an MLP connector and a Llama-style language model."""

from __future__ import annotations

import dataclasses
import re

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.model import ModelConfig
from vlm_jax.weights.huggingface.families import clip, decoder, llama, mistral, qwen2, qwen3
from vlm_jax.weights.huggingface.families.encoder import activation, hf_activation
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import Weight, linear

LANGUAGES = {module.LANGUAGE.model_type: module.LANGUAGE for module in (llama, mistral, qwen2, qwen3)}

# What transformers' class fills in where config.json is silent: without a vision_config it means CLIP L/14@336.
DEFAULTS = dict(
    projector_hidden_act="gelu", vision_feature_select_strategy="default", vision_feature_layer=-2,
    multimodal_projector_bias=True, text_config={}, vision_config=dict(
        intermediate_size=4096, hidden_size=1024, patch_size=14, image_size=336, num_hidden_layers=24,
        num_attention_heads=16))
# What the class always has one value for here; another value asks for a model that we cannot build.
SUPPORTED = dict(vision_feature_select_strategy="default", multimodal_projector_bias=True)


def _fill(hf: HfConfig) -> HfConfig:
    given = {key: value for key, value in hf.items() if value is not None}
    return DEFAULTS | {"tie_word_embeddings": given.get("text_config", {}).get("tie_word_embeddings", False)} | given


def _language(text: HfConfig) -> decoder.Language:
    kind = text.get("model_type", "llama")
    if kind not in LANGUAGES:
        raise ValueError(f"text_config.model_type is '{kind}'; known language models are {', '.join(LANGUAGES)}.")
    return LANGUAGES[kind]


def text(hf: HfConfig) -> HfConfig:
    part = _fill(hf)["text_config"]
    return _language(part).fill(part)


def config(hf: HfConfig) -> ModelConfig:
    """The sizes in a LlavaConfig; raises ValueError for options that we cannot honour."""
    hf = _fill(hf)
    for key, value in SUPPORTED.items():
        if hf[key] != value:
            raise ValueError(f"config.json has {key} {hf[key]!r}; only {value!r} is supported.")
    vision, layer = hf["vision_config"], hf["vision_feature_layer"]
    if vision.get("model_type", "clip_vision_model") != "clip_vision_model" or not isinstance(layer, int):
        raise ValueError(f"config.json asks for {vision.get('model_type')} with vision_feature_layer {layer}; only one "
                         f"layer of a clip_vision_model is supported.")
    # The tying of the whole is said at the top; what text_config says of it counts only where the top is silent.
    part = hf["text_config"] | {"tie_word_embeddings": hf["tie_word_embeddings"]}
    return ModelConfig(
        vision=dataclasses.replace(clip.vision_config(vision), feature_layer=layer),
        connector=ConnectorConfig("mlp", activation(hf["projector_hidden_act"])),
        decoder=_language(part).config(part))


def hf_config(config: ModelConfig) -> HfConfig:
    """The keys of config.json but for token ids; raises ValueError for a model that LLaVA's class cannot be."""
    if config.connector is None or config.connector.kind != "mlp" or config.vision.pool != "cls":
        raise ValueError("LlavaForConditionalGeneration has eyes with a class token and an 'mlp' connector; this model "
                         "has others.")
    rows, columns = config.vision.grid
    return {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", **SUPPORTED,
        "projector_hidden_act": hf_activation(config.connector.activation),
        "vision_feature_layer": config.vision.feature_layer, "image_seq_length": rows * columns,
        "tie_word_embeddings": config.decoder.tie_embeddings, "vision_config": clip.vision_hf_config(config.vision),
        "text_config": llama.LANGUAGE.hf_config(config.decoder)}


def table(config: ModelConfig) -> list[Weight]:
    """In the names of the hub's files."""
    return [*clip.vision_table(config.vision, theirs="vision_tower.vision_model"),
            *linear("connector/linear_1", "multi_modal_projector.linear_1"),
            *linear("connector/linear_2", "multi_modal_projector.linear_2"),
            *decoder.table(config.decoder, "language_model.model", "language_model.lm_head")]


# Of each generation of names to the hub's, all applied in this order.
RENAMES = [(re.compile(pattern), name) for pattern, name in (
    (r"^model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),  # the original code
    (r"^model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
    (r"^model\.vision_tower\.vision_tower\.", "vision_tower."),
    (r"^model\.(layers|embed_tokens|norm)\.", r"language_model.model.\1."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.language_model\.", "language_model.model."),  # transformers 4.52 and later, in memory
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),  # saved by transformers 5
)]


def rename(name: str) -> str | None:
    for pattern, hub in RENAMES:
        name = pattern.sub(hub, name)
    return clip.FAMILY.rename(name) and decoder.rename(name)


FAMILY = Family("LlavaForConditionalGeneration", config, hf_config, table, rename, text)
