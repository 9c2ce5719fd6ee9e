"""Published sizes by name: what config.json of each says beyond its family's defaults. A new size is a line here.

    vlm_jax.list_presets()                                  # ["clip-vit-base-patch16", ...]
    config = vlm_jax.preset("dinov2-large")                 # a ModelConfig
    params = init_params(config, jax.random.key(0))         # random weights of that size (models.model)
"""

from __future__ import annotations

import difflib

from vlm_jax.models.model import ModelConfig
from vlm_jax.weights.huggingface.families.registry import FAMILIES
from vlm_jax.weights.huggingface.family import HfConfig


def _sizes(width: int, mlp: int, layers: int, heads: int, kv_heads: int | None = None, **more) -> HfConfig:
    groups = {} if kv_heads is None else {"num_key_value_heads": kv_heads}
    return {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
            **groups, **more}


def _clip(vision: HfConfig, text: HfConfig, width: int) -> HfConfig:
    return {"vision_config": vision, "text_config": text, "projection_dim": width}


_CLIP_L, _CLIP_L_TEXT = _sizes(1024, 4096, 24, 16, patch_size=14), _sizes(768, 3072, 12, 12)
_SO400M = _sizes(1152, 4304, 27, 16)
_GEMMAS_EYES = _SO400M | {"model_type": "siglip_vision_model", "patch_size": 14, "vision_use_head": False}
_VICUNA_7B = _sizes(4096, 11008, 32, 32, model_type="llama", vocab_size=32064, max_position_embeddings=4096,
                    rms_norm_eps=1e-5)
_VICUNA_13B = _VICUNA_7B | _sizes(5120, 13824, 40, 40)
_OPT_2_7B = dict(model_type="opt", hidden_size=2560, ffn_dim=10240, num_hidden_layers=32, num_attention_heads=32,
                 vocab_size=50304)
_QWEN_7B = _sizes(3584, 18944, 28, 28, 4, rms_norm_eps=1e-6)
_DINOV2_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518,
             "patch_size": 14}
_ROPE_LOCAL = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}

PRESETS: dict[str, tuple[str, HfConfig]] = {  # name: class of transformers, config.json
    "clip-vit-base-patch32": ("CLIPModel", {}),
    "clip-vit-base-patch16": ("CLIPModel", _clip({"patch_size": 16}, {}, 512)),
    "clip-vit-large-patch14": ("CLIPModel", _clip(_CLIP_L, _CLIP_L_TEXT, 768)),
    "clip-vit-large-patch14-336": ("CLIPModel", _clip(_CLIP_L | {"image_size": 336}, _CLIP_L_TEXT, 768)),
    "siglip-base-patch16-224": ("SiglipModel", {}),
    "siglip-so400m-patch14-384": ("SiglipModel", {
        "vision_config": _SO400M | {"image_size": 384, "patch_size": 14}, "text_config": _SO400M}),
    "dinov2-large": ("Dinov2Model", _DINOV2_L),
    "llama-2-7b": ("LlamaForCausalLM", _VICUNA_7B | {"vocab_size": 32000}),
    "llama-2-13b": ("LlamaForCausalLM", _VICUNA_13B | {"vocab_size": 32000}),
    "llama-3-8b": ("LlamaForCausalLM", _sizes(
        4096, 14336, 32, 32, 8, vocab_size=128256, max_position_embeddings=8192, rope_theta=5e5, rms_norm_eps=1e-5)),
    "mistral-7b": ("MistralForCausalLM", _sizes(
        4096, 14336, 32, 32, 8, vocab_size=32000, max_position_embeddings=32768, sliding_window=4096,
        rms_norm_eps=1e-5)),
    "qwen2.5-0.5b": ("Qwen2ForCausalLM", _sizes(
        896, 4864, 24, 14, 2, vocab_size=151936, max_position_embeddings=32768, rope_theta=1e6,
        tie_word_embeddings=True)),
    "qwen2.5-7b": ("Qwen2ForCausalLM", _sizes(
        3584, 18944, 28, 28, 4, vocab_size=152064, max_position_embeddings=131072, rope_theta=1e6)),
    "qwen3-8b": ("Qwen3ForCausalLM", _sizes(
        4096, 12288, 36, 32, 8, head_dim=128, vocab_size=151936, max_position_embeddings=40960, rope_theta=1e6)),
    "gemma-2-2b": ("Gemma2ForCausalLM", _sizes(
        2304, 9216, 26, 8, 4, head_dim=256, vocab_size=256000, query_pre_attn_scalar=256, sliding_window=4096)),
    "gemma-3-4b": ("Gemma3ForConditionalGeneration", {
        "vision_config": _GEMMAS_EYES | {"image_size": 896},
        "text_config": _sizes(2560, 10240, 34, 8, 4, head_dim=256, vocab_size=262208, sliding_window=1024,
                              model_type="gemma3_text", **_ROPE_LOCAL)}),
    "blip2-opt-2.7b": ("Blip2ForConditionalGeneration", {"text_config": _OPT_2_7B}),
    "minigpt-4-7b": ("Blip2ForConditionalGeneration", {"text_config": _VICUNA_7B | {"vocab_size": 32000}}),
    "qwen2-vl-7b": ("Qwen2VLForConditionalGeneration", _QWEN_7B | {"vision_config": {}}),
    "qwen2.5-vl-7b": ("Qwen2_5_VLForConditionalGeneration", _QWEN_7B | {"vision_config": {"hidden_size": 1280}}),
    "llava-1.5-7b": ("LlavaForConditionalGeneration", {"text_config": _VICUNA_7B}),
    "llava-1.5-13b": ("LlavaForConditionalGeneration", {"text_config": _VICUNA_13B}),
    "paligemma-3b-224": ("PaliGemmaForConditionalGeneration", {
        "vision_config": _GEMMAS_EYES | {"image_size": 224},
        "text_config": _sizes(2048, 16384, 18, 8, 1, head_dim=256, vocab_size=257216, model_type="gemma"),
        "projection_dim": 2048}),
}


def list_presets() -> list[str]:
    """The names that `preset` knows."""
    return sorted(PRESETS)


def preset(name: str) -> ModelConfig:
    """The sizes of a published model; raises ValueError for an unknown name, with the nearest known one."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(list_presets())}."
        raise ValueError(f"No published size is called '{name}'; {hint}")
    architecture, hf = PRESETS[name]
    return FAMILIES[architecture].config({"architectures": [architecture], **hf})
