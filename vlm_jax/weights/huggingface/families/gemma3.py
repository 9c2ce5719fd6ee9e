"""Gemma 3 (arXiv 2503.19786): SigLIP's patches averaged to a few tokens an image, which see each other both ways."""

from __future__ import annotations

import math

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.tokens import num_visual_tokens
from vlm_jax.models.vit import ViTConfig
from vlm_jax.weights.huggingface.families import gemma3_text
from vlm_jax.weights.huggingface.families.siglip_gemma import SiglipGemma
from vlm_jax.weights.huggingface.family import HfConfig
from vlm_jax.weights.huggingface.table import Weight, norm


def connector(hf: HfConfig, vision: ViTConfig, width: int) -> ConnectorConfig:
    """The norm takes the eyes' epsilon. Raises ValueError where there are fewer patches than tokens are asked for."""
    tokens, rows = hf.get("mm_tokens_per_image", 256), vision.grid[0]
    if not 1 <= tokens <= rows * rows:
        raise ValueError(f"config.json has mm_tokens_per_image {tokens} for images of {rows * rows} patches.")
    return ConnectorConfig(
        "norm_linear", norm_eps=vision.transformer.norm_eps, reducer="average", factor=rows // math.isqrt(tokens))


PROJECTOR = "multi_modal_projector"

FAMILY = SiglipGemma(
    "Gemma3ForConditionalGeneration", "gemma3", (gemma3_text.LANGUAGE,), image_token=262144, mask="image_blocks",
    join=connector, said=lambda config: {"mm_tokens_per_image": num_visual_tokens(config, 1, 1)},
    connector=(*norm("connector/norm", f"{PROJECTOR}.mm_soft_emb_norm", bias=False),
               Weight("connector/linear_1/kernel", f"{PROJECTOR}.mm_input_projection_weight")),  # [in, out], as ours
    unread=("final_logit_softcapping",)).family()
