"""What PaliGemma and Gemma 3 have in common: SigLIP's eyes, read after their final norm, before a Gemma."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Mapping

from vlm_jax.models.model import ModelConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.weights.huggingface.families import decoder, siglip
from vlm_jax.weights.huggingface.families.llava import rename
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import Weight

TOWER = "siglip_vision_model"


@dataclasses.dataclass(frozen=True)
class SiglipGemma:
    """A class of the kind. `languages` by model_type, the first where text_config names none; `parts` stands for a
    vision_config or text_config that is missing altogether, `image_token` for image_token_index. `mask` and
    `first_position` are the decoder's.

    `unread` are keys of text_config that the class does not heed. `join` gives the connector, of config.json, the eyes
    and the decoder's width; `said` what config.json says beside its parts; `connector` the connector's weights.
    """

    architecture: str
    model_type: str
    languages: tuple[decoder.Language, ...]
    image_token: int
    mask: str
    join: Callable[[HfConfig, ViTConfig, int], Any]
    said: Callable[[ModelConfig], HfConfig]
    connector: tuple[Weight, ...]
    first_position: int = 0
    parts: Mapping[str, HfConfig] = dataclasses.field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def _part(self, hf: HfConfig, name: str) -> HfConfig:
        return hf[name] if hf.get(name) is not None else dict(self.parts.get(name, {}))

    def _language(self, part: HfConfig) -> decoder.Language:
        known = {language.model_type: language for language in self.languages}
        kind = part.get("model_type", self.languages[0].model_type)
        if kind not in known:
            raise ValueError(f"text_config.model_type is '{kind}'; {self.architecture} takes {', '.join(known)}.")
        return known[kind]

    def text(self, hf: HfConfig) -> HfConfig:
        part = self._part(hf, "text_config")
        return {"image_token_index": self.image_token, **self._language(part).fill(part)}

    def config(self, hf: HfConfig) -> ModelConfig:
        """The sizes in config.json; raises ValueError for options that we cannot honour."""
        eyes, text = self._part(hf, "vision_config"), self._part(hf, "text_config")
        if eyes.get("model_type", TOWER) != TOWER:
            raise ValueError(f"vision_config.model_type is '{eyes['model_type']}'; only '{TOWER}' is supported.")
        vision = dataclasses.replace(siglip.vision_config(eyes), feature_layer=-1, feature_norm=True)
        # The tying of the whole is said at the top alone.
        part = text | dict.fromkeys(self.unread) | {"tie_word_embeddings": hf.get("tie_word_embeddings", True)}
        language = dataclasses.replace(
            self._language(text).config(part), mask=self.mask, first_position=self.first_position)
        connector = self.join(hf, vision, language.transformer.width)
        return ModelConfig(vision=vision, connector=connector, decoder=language)

    def hf_config(self, config: ModelConfig) -> HfConfig:
        """The keys of config.json but for token ids; raises ValueError for a model that this class cannot be."""
        if config.vision is None or config.connector is None:
            raise ValueError(f"{self.architecture} has eyes and a connector; this model has none.")
        plain = dataclasses.replace(config.decoder, mask="causal", first_position=0)
        hf = {"architectures": [self.architecture], "model_type": self.model_type,
              "tie_word_embeddings": config.decoder.tie_embeddings,
              "vision_config": siglip.vision_hf_config(config.vision), **self.said(config),
              "text_config": decoder.hf_config_of(self.languages, plain)}
        if _canonical(self.config(hf)) != _canonical(config):
            raise ValueError(f"The model has options that {self.architecture} of transformers lacks: {config}.")
        return hf

    def table(self, config: ModelConfig) -> list[Weight]:
        """In the names of the hub's files."""
        return [*siglip.vision_table(config.vision, theirs="vision_tower.vision_model"), *self.connector,
                *decoder.table(config.decoder, "language_model.model", "language_model.lm_head")]

    def family(self) -> Family:
        return Family(self.architecture, self.config, self.hf_config, self.table, rename, self.text)


def _canonical(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, decoder=decoder.canonical(config.decoder))
