"""LLaVA-NeXT, or 1.6 (2024): LLaVA with tiles of any resolution, their padding taken away and a newline after each row."""

from __future__ import annotations

from vlm_jax.models.tokens import AnyRes
from vlm_jax.models.vit import ViTConfig
from vlm_jax.weights.huggingface.families.llava import Llava
from vlm_jax.weights.huggingface.family import HfConfig

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def layout(hf: HfConfig, vision: ViTConfig, max_tiles: int | None = None) -> AnyRes:
    """The tiling of eyes that give a square grid of features; raises ValueError for others."""
    rows, _ = vision.grid
    if vision.extra_features:
        raise ValueError(f"vision_feature_select_strategy '{hf['vision_feature_select_strategy']}' does not leave a grid of "
                         f"{rows} x {rows} patches, which tiles are put together from; choose the other.")
    return AnyRes(vision.image_size, rows, tuple((h, w) for h, w in hf["image_grid_pinpoints"]), max_tiles)


def hf_layout(layout: AnyRes) -> HfConfig:
    return {"image_grid_pinpoints": [list(point) for point in layout.pinpoints]}


FAMILY = Llava("LlavaNextForConditionalGeneration", "llava_next", dict(image_grid_pinpoints=PINPOINTS),
               tied_by_text=False, layout=layout, hf_layout=hf_layout).family()
