"""How models take their images, by the class of `ModelConfig.layout`. A new layout is a module and a line in INPUTS.

Each module has NAMES, the Hugging Face inputs it takes; `arrange(config, inputs, is_image)`, which makes of them
`image_index` (and what else of `mask.describe` it decides) and the images as `VLM.visual_tokens` takes them, dealt out
to the rows; and `shown(config, prompt, images, seen)`, which turns what was seen on the way into Hugging Face's outputs:
sown intermediates by name, and `embedded` [b, t, d], tokens and images as the decoder reads them.
"""

from __future__ import annotations

from types import ModuleType

from vlm_jax.inference.inputs import anyres, fixed, native, row_columns
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.tokens import AnyRes, AspectTiles, Fixed, Native, PanAndScan, RowColumns

INPUTS: dict[type, ModuleType] = {
    type(None): fixed, Fixed: fixed, AspectTiles: fixed, PanAndScan: fixed, AnyRes: anyres, Native: native,
    RowColumns: row_columns}


def inputs_of(config: ModelConfig) -> ModuleType:
    return INPUTS[type(config.layout)]
