"""SigLIP 2's NaFlex checkpoints (arXiv 2502.14786): Siglip2Model, and its image tower alone.

Its checkpoints of one fixed image size are SiglipModels.
"""

from __future__ import annotations

from vlm_jax.models.model import ModelConfig
from vlm_jax.models.naflex import NaFlexConfig
from vlm_jax.weights.huggingface.families import encoder, siglip
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import Weight, linear

VISION = siglip.STACK | dict(num_channels=3, num_patches=256, patch_size=16, vision_use_head=True)


def vision_config(hf: HfConfig) -> NaFlexConfig:
    """The sizes in a Siglip2VisionConfig; raises ValueError for options that we cannot honour."""
    hf = VISION | hf
    encoder.checked_channels(hf)
    return NaFlexConfig(num_patches=hf["num_patches"], patch_size=encoder.square(hf, "patch_size"),
                        transformer=encoder.transformer(hf), pool="map" if hf["vision_use_head"] else "mean")


def vision_hf_config(config: NaFlexConfig) -> HfConfig:
    return {"model_type": "siglip2_vision_model", **encoder.hf_transformer(config.transformer), "num_channels": 3,
            "num_patches": config.num_patches, "patch_size": config.patch_size, "vision_use_head": config.pool == "map"}


def config(hf: HfConfig) -> ModelConfig:
    """The sizes in a Siglip2Config."""
    text, contrast = siglip.text_parts(hf)
    return ModelConfig(vision=vision_config(hf.get("vision_config") or {}), text=text, contrast=contrast)


def hf_config(config: ModelConfig) -> HfConfig:
    text = siglip.text_hf_config(config) | {"model_type": "siglip2_text_model"}
    return {"architectures": ["Siglip2Model"], "model_type": "siglip2",
            "vision_config": vision_hf_config(config.vision), "text_config": text}


def vision_table(config: NaFlexConfig) -> list[Weight]:
    """SigLIP's rows, but that patches come cut out and are embedded by a matrix."""
    return [*linear("vision/patch_embed", "vision_model.embeddings.patch_embedding"),
            *siglip.tower_table(config, "vision", "vision_model")]


FAMILY = Family("Siglip2Model", config, hf_config,
                lambda config: [*vision_table(config.vision), *siglip.text_table()], encoder.passed_over)
VISION_FAMILY = encoder.vision_family("Siglip2VisionModel", vision_config, vision_hf_config, vision_table)
