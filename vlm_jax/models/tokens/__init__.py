"""How many visual tokens an image costs, and where they lie: what data, models and cost estimates all ask.

Plain integers and NumPy, no JAX, so that a data worker can import it.
"""

from __future__ import annotations

import difflib
from typing import Any

from vlm_jax.models.tokens.anyres import AnyRes
from vlm_jax.models.tokens.aspect_tiles import AspectTiles
from vlm_jax.models.tokens.fixed import Fixed
from vlm_jax.models.tokens.layout import Layout
from vlm_jax.models.tokens.naflex import NaFlex
from vlm_jax.models.tokens.names import NAMES
from vlm_jax.models.tokens.native import Native
from vlm_jax.models.tokens.pan_and_scan import PanAndScan
from vlm_jax.models.tokens.row_columns import RowColumns

# What `ModelConfig.layout` may be. A new layout is a module and a name here.
LayoutConfig = Fixed | AnyRes | AspectTiles | Native | RowColumns | PanAndScan | NaFlex


def patch_grid(image_size: int, patch_size: int, drop_remainder: bool = False) -> tuple[int, int]:
    """(rows, columns) of patches of a square image.

    Where they do not tile it, the pixels left over at the right and bottom are dropped if asked for, else it raises.
    """
    if image_size % patch_size and not drop_remainder:
        raise ValueError(
            f"image_size {image_size} is not divisible by patch_size {patch_size}; "
            f"use {image_size // patch_size * patch_size} or {(image_size // patch_size + 1) * patch_size} pixels."
        )
    return image_size // patch_size, image_size // patch_size


def num_visual_tokens(model: Any, width: int, height: int) -> int:
    """Visual tokens that an image of `width` x `height` pixels takes in the decoder's row, without marks around them.

    `model` is a name in NAMES ("llava-next"), a layout, a loaded model, a model config or a vision config. Without a
    layout an encoder resizes every image to its own `image_size`, so that V = (image_size / patch_size)^2 whatever the
    image: 576 at 336/14, 196 at 224/16. A connector with a reducer leaves `factor` times fewer rows and columns of
    them: 256 at 896/14 with 4; one with a Q-Former gives its queries. Raises ValueError for an unknown name and for an
    image without pixels.
    """
    if width < 1 or height < 1:
        raise ValueError(f"An image of {width} x {height} pixels has no tokens; width and height must be positive.")
    if isinstance(model, str):
        model = _named(model)
    model = getattr(model, "config", model)  # a loaded model holds a config, a model config the vision config
    vision, connector = getattr(model, "vision", model), getattr(model, "connector", None)
    for layout in (model, getattr(model, "layout", None), getattr(vision, "layout", None)):
        if isinstance(layout, Layout):
            return layout.count(width, height)
    if getattr(connector, "qformer", None):
        return connector.qformer.queries
    rows, columns = patch_grid(vision.image_size, vision.patch_size, getattr(vision, "drop_remainder", False))
    factor = 1 if connector is None else connector.factor
    return (rows // factor) * (columns // factor) + getattr(vision, "extra_features", 0)


def tokens_per_tile(config: Any) -> int:
    """Visual tokens that each image of the encoder's gives, where a model's layout counts such tiles or is None."""
    return config.layout.tokens if hasattr(config.layout, "tokens") else num_visual_tokens(config, 1, 1)


def _named(name: str) -> Layout:
    """Spellings of a name that differ in case and punctuation are the same: Qwen2_5-VL."""
    plain = lambda name: "".join(filter(str.isalnum, name.lower()))
    found = next((layout for known, layout in NAMES.items() if plain(known) == plain(name)), None)
    if found is None:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean '{close[0]}'? Known" if close else "known"
        raise ValueError(f"No model is called '{name}'; {hint} are {', '.join(NAMES)}.")
    return found
