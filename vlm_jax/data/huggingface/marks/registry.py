"""How published models write images into prompts, by model type or processor class. A new way is a module and a line
in FAMILIES."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Mapping

from vlm_jax.data.huggingface.marks import (
    blip2, gemma3, idefics3, internvl, llava, llava_next, llava_onevision, paligemma, qwen_vl)
from vlm_jax.data.huggingface.marks.marks import Files, Marks


@dataclasses.dataclass(frozen=True)
class Family:
    """pixels: what the family's prompts ask of the image steps, whatever preprocessor_config.json says."""

    marks: Callable[[Files], Marks]
    pixels: Mapping[str, Any] = dataclasses.field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "llava": Family(llava.marks),
    "llavanext": Family(llava_next.marks),
    "llavaonevision": Family(llava_onevision.marks),
    "internvl": Family(internvl.marks, {"crop_to_patches": True}),
    "gemma3": Family(gemma3.marks),
    "paligemma": Family(paligemma.marks),
    "qwen2vl": Family(qwen_vl.marks),
    "qwen25vl": Family(qwen_vl.marks),
    "idefics3": Family(idefics3.marks),
    "smolvlm": Family(idefics3.marks),
    "blip2": Family(blip2.marks),
}
