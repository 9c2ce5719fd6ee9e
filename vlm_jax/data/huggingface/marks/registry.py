"""How published models write images into prompts, by model type or processor class. A new way is a module and a line."""

from __future__ import annotations

from typing import Callable

from vlm_jax.data.huggingface.marks import (
    blip2, gemma3, idefics3, internvl, llava, llava_next, llava_onevision, paligemma, qwen_vl)
from vlm_jax.data.huggingface.marks.marks import Files, Marks

MARKS: dict[str, Callable[[Files], Marks]] = {
    "llava": llava.marks,
    "llavanext": llava_next.marks,
    "llavaonevision": llava_onevision.marks,
    "internvl": internvl.marks,
    "gemma3": gemma3.marks,
    "paligemma": paligemma.marks,
    "qwen2vl": qwen_vl.marks,
    "qwen25vl": qwen_vl.marks,
    "idefics3": idefics3.marks,
    "smolvlm": idefics3.marks,
    "blip2": blip2.marks,
}
