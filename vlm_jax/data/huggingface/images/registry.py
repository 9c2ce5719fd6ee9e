"""Image processors by `image_processor_type`. A new kind is a module here and a line in MODULES.

Each module has DEFAULTS, what transformers' classes of the kind fill in where a preprocessor_config.json is silent, and
`build(name, config)`, the processor of a filled config.
"""

from __future__ import annotations

from typing import Any, Mapping

from vlm_jax.data.huggingface.images import anyres, aspect_tiles, fixed, naflex, native, pan_and_scan, row_columns
from vlm_jax.data.huggingface.images.base import HfImageProcessor

MODULES = {name: module
           for module in (fixed, anyres, aspect_tiles, native, row_columns, pan_and_scan, naflex)
           for name in module.DEFAULTS}


def from_config(config: Mapping[str, Any]) -> HfImageProcessor:
    """The processor that a preprocessor_config.json describes; raises ValueError for one of an unknown kind."""
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIPImageProcessor"
    name = kind
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(ending)
    if name not in MODULES:
        raise ValueError(f"The image processor {kind} is not supported; known are {', '.join(MODULES)}.")
    given = {key: value for key, value in config.items() if value is not None}
    return MODULES[name].build(name, {**MODULES[name].DEFAULTS[name], **given})
