"""Layouts of published models by name, at their published sizes."""

from __future__ import annotations

from vlm_jax.models.tokens.anyres import AnyRes
from vlm_jax.models.tokens.aspect_tiles import AspectTiles
from vlm_jax.models.tokens.fixed import Fixed
from vlm_jax.models.tokens.layout import Layout
from vlm_jax.models.tokens.naflex import NaFlex
from vlm_jax.models.tokens.native import Native
from vlm_jax.models.tokens.pan_and_scan import PanAndScan
from vlm_jax.models.tokens.row_columns import RowColumns

_NEXT = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
_ONEVISION = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))

NAMES: dict[str, Layout] = {
    "llava-1.0": Fixed(256),
    "llava-1.5": Fixed(576),
    "llava-next": AnyRes(336, 24, _NEXT),
    "llava-onevision": AnyRes(384, 27, _ONEVISION, max_tiles=9),
    "internvl": AspectTiles((448, 448), 256),
    "qwen2-vl": Native(14),
    "qwen2-vl-16384": Native(14, max_pixels=28 * 28 * 16384),
    "qwen2.5-vl": Native(14),
    "qwen2.5-vl-16384": Native(14, max_pixels=28 * 28 * 16384),
    "gemma-3": Fixed(256),
    "gemma-3-pan-and-scan": PanAndScan(256, 256, 4, 1.2),
    "paligemma": Fixed(256),
    "paligemma-448": Fixed(1024),
    "paligemma-896": Fixed(4096),
    "paligemma-2": Fixed(256),
    "blip-2": Fixed(32),
    "minigpt-4": Fixed(32),
    "flamingo": Fixed(64),
    "idefics3": RowColumns(364, 4 * 364, 169),
    "smolvlm": RowColumns(384, 4 * 384, 81),
    "smolvlm2": RowColumns(512, 4 * 512, 64),
    "nanovlm": RowColumns(512, 2048, 64),
    "moondream": Fixed(729),
    "clip": Fixed(256),
    "clip-336": Fixed(576),
    "siglip": Fixed(196),
    "siglip-384": Fixed(729),
    "siglip2-naflex": NaFlex(16, 256),
}
