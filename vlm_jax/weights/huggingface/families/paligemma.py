"""PaliGemma (arXiv 2407.07726) and PaliGemma 2 (arXiv 2412.03555): one linear layer from SigLIP's patches to Gemma or
Gemma 2, which reads image and prompt both ways and writes from left to right."""

from __future__ import annotations

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.weights.huggingface.families import gemma, gemma2
from vlm_jax.weights.huggingface.families.siglip_gemma import TOWER, SiglipGemma
from vlm_jax.weights.huggingface.family import HfConfig
from vlm_jax.weights.huggingface.table import linear


def connector(hf: HfConfig, vision: ViTConfig, width: int) -> ConnectorConfig:
    """Raises ValueError where projection_dim is not the decoder's width, which no checkpoint can mean."""
    if hf.get("projection_dim", 2048) != width:
        raise ValueError(f"config.json has projection_dim {hf.get('projection_dim', 2048)}, but text_config has "
                         f"hidden_size {width}; they must be equal.")
    return ConnectorConfig("linear")


FAMILY = SiglipGemma(
    "PaliGemmaForConditionalGeneration", "paligemma", (gemma.LANGUAGE, gemma2.LANGUAGE), image_token=256000,
    mask="prefix", first_position=1, join=connector,
    connector=tuple(linear("connector/linear_1", "multi_modal_projector.linear")),
    said=lambda config: {"projection_dim": config.decoder.transformer.width,
                         "hidden_size": config.decoder.transformer.width},
    parts={"vision_config": dict(model_type=TOWER, hidden_size=1152, intermediate_size=4096, patch_size=14,
                                 image_size=224, num_hidden_layers=27, num_attention_heads=16, vision_use_head=False),
           "text_config": dict(model_type="gemma", hidden_size=2048, intermediate_size=16384, num_hidden_layers=18,
                               num_attention_heads=8, num_key_value_heads=1, vocab_size=257152)},
    unread=("use_bidirectional_attention",)).family()  # true, but says no more than the prefix
