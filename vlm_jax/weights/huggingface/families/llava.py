"""LLaVA 1.5 (arXiv 2310.03744): eyes, an MLP connector and a language model, and what the classes built like it share.

A class of the kind is a `Llava`: its defaults in transformers, and how it lays out images.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Callable, Mapping

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.tokens import Layout, num_visual_tokens
from vlm_jax.models.vit import ViTConfig
from vlm_jax.weights.huggingface.families import (
    clip, decoder, gemma, gemma2, gemma3_text, llama, mistral, qwen2, qwen3, siglip)
from vlm_jax.weights.huggingface.families.encoder import activation, hf_activation
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import Weight, linear

_LANGUAGES = tuple(module.LANGUAGE for module in (llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text))
# Behind eyes the output layer is the whole model's, which bounds no logits.
LANGUAGES = {language.model_type: language.without("final_logit_softcapping") for language in _LANGUAGES}
TOWERS = {"clip_vision_model": clip, "siglip_vision_model": siglip}

# What all these classes fill in where config.json is silent: without a vision_config LLaVA means CLIP L/14@336.
DEFAULTS = dict(
    projector_hidden_act="gelu", vision_feature_select_strategy="default", vision_feature_layer=-2,
    multimodal_projector_bias=True, tie_word_embeddings=False, image_token_index=32000, text_config={}, vision_config=dict(
        intermediate_size=4096, hidden_size=1024, patch_size=14, image_size=336, num_hidden_layers=24,
        num_attention_heads=16))
SELECT = {"default": 1, "full": 0}  # the first token whose features are used; transformers drops one whatever it is


@dataclasses.dataclass(frozen=True)
class Llava:
    """`defaults` beside DEFAULTS, with the `language` and `tower` of parts that name none. `layout` reads how images are
    laid out, given the eyes; `hf_layout` writes it. `newline`: whether the weights hold one. `tied_by_text`: whether
    text_config alone can tie the embeddings."""

    architecture: str
    model_type: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    language: str = "llama"
    tower: str = "clip_vision_model"
    tied_by_text: bool = True
    layout: Callable[[HfConfig, ViTConfig], Layout | None] = lambda hf, vision: None
    hf_layout: Callable[[Layout | None], HfConfig] = lambda layout: {}

    def fill(self, hf: HfConfig) -> HfConfig:
        given = {key: value for key, value in hf.items() if value is not None}
        hf = DEFAULTS | dict(self.defaults) | given
        tied = hf["tie_word_embeddings"] or self.tied_by_text and hf["text_config"].get("tie_word_embeddings", False)
        return hf | {"tie_word_embeddings": tied}

    def text(self, hf: HfConfig) -> HfConfig:
        hf = self.fill(hf)
        part = language(hf["text_config"], self.language).fill(hf["text_config"])
        return part | {"image_token_index": hf["image_token_index"]}

    def config(self, hf: HfConfig) -> ModelConfig:
        """The sizes in config.json; raises ValueError for options that we cannot honour."""
        hf = self.fill(hf)
        vision = self._vision(hf)
        text = hf["text_config"] | {"tie_word_embeddings": hf["tie_word_embeddings"]}
        connector = ConnectorConfig("mlp", activation(hf["projector_hidden_act"]), hf["multimodal_projector_bias"])
        return ModelConfig(vision=vision, connector=connector, decoder=language(text, self.language).config(text),
                           layout=self.layout(hf, vision))

    def _vision(self, hf: HfConfig) -> ViTConfig:
        kind, select = hf["vision_config"].get("model_type", self.tower), hf["vision_feature_select_strategy"]
        if kind not in TOWERS:
            raise ValueError(f"vision_config.model_type is '{kind}'; known eyes are {', '.join(TOWERS)}.")
        if select not in SELECT:
            raise ValueError(f"vision_feature_select_strategy is '{select}'; known are {', '.join(SELECT)}.")
        tower, layer = TOWERS[kind].vision_config(hf["vision_config"]), hf["vision_feature_layer"]
        return dataclasses.replace(tower, feature_layer=tuple(layer) if isinstance(layer, list) else layer,
                                   feature_start=None if SELECT[select] == tower.prefix else SELECT[select])

    def hf_config(self, config: ModelConfig) -> HfConfig:
        """The keys of config.json but for token ids; raises ValueError for a model that this class cannot be."""
        if config.connector is None or config.connector.kind != "mlp" or config.connector.reducer is not None:
            raise ValueError(f"{self.architecture} has an 'mlp' connector; this model has {config.connector}.")
        vision, layer = config.vision, config.vision.feature_layer
        start = vision.prefix if vision.feature_start is None else vision.feature_start
        return {
            "architectures": [self.architecture], "model_type": self.model_type,
            "projector_hidden_act": hf_activation(config.connector.activation),
            "multimodal_projector_bias": config.connector.bias,
            "vision_feature_select_strategy": next(name for name, first in SELECT.items() if first == start),
            "vision_feature_layer": list(layer) if isinstance(layer, tuple) else layer,
            "image_seq_length": num_visual_tokens(vision, 1, 1), **self.hf_layout(config.layout),
            "tie_word_embeddings": config.decoder.tie_embeddings,
            "vision_config": tower(vision).vision_hf_config(vision), "text_config": language_hf_config(config.decoder)}

    def table(self, config: ModelConfig) -> list[Weight]:
        """In the names of the hub's files."""
        newline = config.layout is not None and config.layout.newline
        return [*tower(config.vision).vision_table(config.vision, theirs="vision_tower.vision_model"),
                *linear("connector/linear_1", "multi_modal_projector.linear_1", config.connector.bias),
                *linear("connector/linear_2", "multi_modal_projector.linear_2", config.connector.bias),
                *[Weight("image_newline", "image_newline")] * newline,
                *decoder.table(config.decoder, "language_model.model", "language_model.lm_head")]

    def family(self) -> Family:
        return Family(self.architecture, self.config, self.hf_config, self.table, rename, self.text)


def tower(vision: ViTConfig) -> Any:
    """The module of TOWERS that writes these eyes; raises ValueError where none can."""
    kinds = {("cls", True, False): clip, ("map", False, True): siglip, ("mean", False, True): siglip}
    kind = (vision.pool, vision.pre_norm, vision.patch_bias)
    if kind not in kinds:
        raise ValueError("transformers has no class for eyes with pool '{}', pre_norm {} and patch_bias {}.".format(*kind))
    return kinds[kind]


def language(text: HfConfig, default: str = "llama") -> decoder.Language:
    """The language model of a text_config, `default` where it names none; raises ValueError for one unknown."""
    kind = text.get("model_type", default)
    if kind not in LANGUAGES:
        raise ValueError(f"text_config.model_type is '{kind}'; known language models are {', '.join(LANGUAGES)}.")
    return LANGUAGES[kind]


def language_hf_config(config: DecoderConfig) -> HfConfig:
    """text_config of the first of LANGUAGES that can say it; raises the first one's ValueError where none can."""
    return decoder.hf_config_of(tuple(LANGUAGES.values()), config)


# Of each generation of names to the hub's, all applied in this order.
RENAMES = [(re.compile(pattern), name) for pattern, name in (
    (r"^model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),  # the original code
    (r"^model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
    (r"^model\.vision_tower\.vision_tower\.", "vision_tower."),
    (r"^model\.(layers|embed_tokens|norm)\.", r"language_model.model.\1."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.language_model\.", "language_model.model."),  # transformers 4.52 and later, in memory
    (r"^model\.(vision_tower\.|multi_modal_projector\.|image_newline$)", r"\1"),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),  # saved by transformers 5
)]


def rename(name: str) -> str | None:
    for pattern, hub in RENAMES:
        name = pattern.sub(hub, name)
    return clip.FAMILY.rename(name) and decoder.rename(name)


LLAVA = Llava("LlavaForConditionalGeneration", "llava")
FAMILY = LLAVA.family()
