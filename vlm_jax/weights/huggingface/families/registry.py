"""Every family of published checkpoints that can be read and written, by the class of transformers that owns it."""

from __future__ import annotations

from vlm_jax.weights.huggingface.families import (
    blip2,
    clip,
    dinov2,
    gemma,
    gemma2,
    gemma3,
    gemma3_text,
    idefics3,
    internvl,
    llama,
    llava,
    llava_next,
    llava_onevision,
    llava_original,
    mistral,
    opt,
    paligemma,
    qwen2,
    qwen2_5_vl,
    qwen2_vl,
    qwen3,
    siglip,
    siglip2,
    vit,
)
from vlm_jax.weights.huggingface.family import Family, HfConfig

FAMILIES: dict[str, Family] = {family.architecture: family for family in (
    blip2.FAMILY,
    clip.FAMILY,
    clip.VISION_FAMILY,
    dinov2.FAMILY,
    dinov2.FAMILY_WITH_REGISTERS,
    gemma.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    gemma3_text.FAMILY,
    idefics3.FAMILY,
    idefics3.SMOLVLM,
    internvl.FAMILY,
    llama.FAMILY,
    llava.FAMILY,
    llava_next.FAMILY,
    llava_onevision.FAMILY,
    llava_original.FAMILY,
    llava_original.MISTRAL,
    mistral.FAMILY,
    opt.FAMILY,
    paligemma.FAMILY,
    qwen2.FAMILY,
    qwen2_5_vl.FAMILY,
    qwen2_vl.FAMILY,
    qwen3.FAMILY,
    siglip.FAMILY,
    siglip.VISION_FAMILY,
    siglip2.FAMILY,
    siglip2.VISION_FAMILY,
    vit.FAMILY,
)}
ELSEWHERE = {  # layouts of their own of models that are published in a layout above as well
    "InternVLChatModel": "take the one in Hugging Face layout, whose name ends in -hf",
}


def family_of(hf: HfConfig) -> Family:
    """The family of a config.json; raises ValueError for one that is unknown, and for quantised weights."""
    names = hf.get("architectures") or [f"model_type '{hf.get('model_type')}'"]
    if names[0] in ELSEWHERE:
        raise ValueError(f"Checkpoints of {names[0]} are not supported; {ELSEWHERE[names[0]]}.")
    if names[0] not in FAMILIES:
        raise ValueError(f"Checkpoints of {names[0]} are not supported; known are {', '.join(FAMILIES)}.")
    if hf.get("quantization_config"):
        raise ValueError("The weights are quantised (quantization_config); take a checkpoint in bfloat16 or float32.")
    return FAMILIES[names[0]]
