"""BLIP-2 (arXiv 2301.12597): EVA's eyes, a Q-Former, one linear layer, and OPT or a Llama-style language model.

With Llama behind it this is MiniGPT-4 (arXiv 2304.10592).
"""

from __future__ import annotations

import dataclasses

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.qformer import QFormerConfig
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.weights.huggingface.families import decoder, encoder, llama, mistral, opt, qwen2
from vlm_jax.weights.huggingface.families.encoder import activation, hf_activation
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import FIRST, LINEAR, PATCH, TOKEN, Weight, linear, norm

LLAMAS = {module.LANGUAGE.model_type: module.LANGUAGE for module in (llama, mistral, qwen2)}
VISION = dict(
    hidden_size=1408, intermediate_size=6144, num_hidden_layers=39, num_attention_heads=16, image_size=224,
    patch_size=14, hidden_act="gelu", layer_norm_eps=1e-6, qkv_bias=True)
QFORMER = dict(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, hidden_act="gelu",
    layer_norm_eps=1e-12, cross_attention_frequency=2, use_qformer_text_input=False)
QUERIES = 32


def _part(hf: HfConfig, name: str) -> HfConfig:
    return hf.get(name) or {}


def _is_opt(text: HfConfig) -> bool:
    kind = text.get("model_type", "opt")
    if kind != "opt" and kind not in LLAMAS:
        raise ValueError(f"text_config.model_type is '{kind}'; BLIP-2 is supported with opt, {', '.join(LLAMAS)}.")
    return kind == "opt"


def text(hf: HfConfig) -> HfConfig:
    part = _part(hf, "text_config")
    return opt.fill(part) if _is_opt(part) else LLAMAS[part["model_type"]].fill(part)


def vision_config(hf: HfConfig) -> ViTConfig:
    """All tokens are handed on after the final norm, the class token too."""
    hf = VISION | hf
    blocks = TransformerConfig(
        layers=hf["num_hidden_layers"], width=hf["hidden_size"], heads=hf["num_attention_heads"],
        mlp_width=hf["intermediate_size"], norm_eps=hf["layer_norm_eps"], activation=activation(hf["hidden_act"]),
        attention_bias=hf["qkv_bias"], out_bias=True)
    return ViTConfig(
        image_size=hf["image_size"], patch_size=hf["patch_size"], transformer=blocks, pre_norm=False, patch_bias=True,
        feature_layer=-1, feature_start=0, feature_norm=True, final_norm="all",
        drop_remainder=hf["image_size"] % hf["patch_size"] > 0)


def qformer_config(hf: HfConfig) -> QFormerConfig:
    """Of the whole config.json: the queries are counted at its top."""
    queries, hf = hf.get("num_query_tokens", QUERIES), QFORMER | _part(hf, "qformer_config")
    if hf["use_qformer_text_input"]:
        raise ValueError("config.json asks for a Q-Former that also reads text (use_qformer_text_input), which is not "
                         "supported.")
    return QFormerConfig(
        queries=queries, layers=hf["num_hidden_layers"], width=hf["hidden_size"], heads=hf["num_attention_heads"],
        mlp_width=hf["intermediate_size"], cross_every=hf["cross_attention_frequency"], norm_eps=hf["layer_norm_eps"],
        activation=activation(hf["hidden_act"]))


def config(hf: HfConfig) -> ModelConfig:
    """The sizes in a Blip2Config; raises ValueError for options that we cannot honour (T5 first of all)."""
    part = _part(hf, "text_config")
    language = opt.text_config if _is_opt(part) else LLAMAS[part["model_type"]].config
    return ModelConfig(
        vision=vision_config(_part(hf, "vision_config")), decoder=language(part),
        connector=ConnectorConfig("qformer", qformer=qformer_config(hf)))


def hf_config(config: ModelConfig) -> HfConfig:
    """The keys of config.json but for token ids; raises ValueError for a model that this class cannot be."""
    kind = config.connector and config.connector.kind
    if kind != "qformer" or vision_config(_hf_vision(config)) != config.vision:
        raise ValueError("Blip2ForConditionalGeneration has EVA's eyes and a 'qformer' connector; this model has "
                         "others.")
    q = config.connector.qformer
    qformer = {
        "model_type": "blip_2_qformer", "hidden_size": q.width, "num_hidden_layers": q.layers,
        "num_attention_heads": q.heads, "intermediate_size": q.mlp_width, "hidden_act": hf_activation(q.activation),
        "layer_norm_eps": q.norm_eps, "cross_attention_frequency": q.cross_every,
        "encoder_hidden_size": config.vision.transformer.width}
    return {"architectures": ["Blip2ForConditionalGeneration"], "model_type": "blip-2", "num_query_tokens": q.queries,
            "use_decoder_only_language_model": True, "vision_config": _hf_vision(config), "qformer_config": qformer,
            "text_config": _hf_text(config.decoder)}


def _hf_vision(config: ModelConfig) -> HfConfig:
    v = config.vision
    return {"model_type": "blip_2_vision_model", **encoder.hf_transformer(v.transformer), "image_size": v.image_size,
            "patch_size": v.patch_size, "qkv_bias": v.transformer.attention_bias}


def _hf_text(config: DecoderConfig) -> HfConfig:
    if config.position_table:
        return opt.hf_text_config(config)
    return decoder.hf_config_of(tuple(LLAMAS.values()), config)


def vision_table(config: ViTConfig, ours: str = "vision", theirs: str = "vision_model") -> list[Weight]:
    size, t, embeddings = config.patch_size, config.transformer, f"{theirs}.embeddings"
    block, layer = f"{ours}/blocks", f"{theirs}.encoder.layers.{{}}"
    kinds = [("kernel", "weight", {"form": LINEAR})] + [("bias", "bias", {})] * t.attention_bias
    fused = [Weight(f"{block}/attn/{name}/{kind}", f"{layer}.self_attn.qkv.{hf_kind}", **form, part=(i, 3))
             for kind, hf_kind, form in kinds for i, name in enumerate("qkv")]
    return [
        Weight(f"{ours}/class_token", f"{embeddings}.class_embedding", TOKEN, (1, 1, t.width)),
        Weight(f"{ours}/patch_embed/kernel", f"{embeddings}.patch_embedding.weight", PATCH, (size, size, 3)),
        Weight(f"{ours}/patch_embed/bias", f"{embeddings}.patch_embedding.bias"),
        Weight(f"{ours}/position_embedding", f"{embeddings}.position_embedding", FIRST),
        *norm(f"{block}/norm1", f"{layer}.layer_norm1"), *fused,
        *linear(f"{block}/attn/o", f"{layer}.self_attn.projection"),
        *norm(f"{block}/norm2", f"{layer}.layer_norm2"), *encoder.mlp(f"{block}/mlp", f"{layer}.mlp"),
        *norm(f"{ours}/norm_post", f"{theirs}.post_layernorm")]


def qformer_table(config: QFormerConfig, ours: str = "connector/qformer") -> list[Weight]:
    layer = "qformer.encoder.layer.{}"
    rows = [Weight(f"{ours}/query_tokens", "query_tokens", FIRST), *norm(f"{ours}/norm", "qformer.layernorm"),
            *linear(f"{ours}/feed/mlp/up", f"{layer}.intermediate_query.dense"),
            *linear(f"{ours}/feed/mlp/down", f"{layer}.output_query.dense"),
            *norm(f"{ours}/feed/norm", f"{layer}.output_query.LayerNorm")]
    for name, theirs, step in (("attn", "attention", 1), ("cross", "crossattention", config.cross_every)):
        attend = [row for q, query in (("q", "query"), ("k", "key"), ("v", "value"))
                  for row in linear(f"{ours}/{name}/{q}", f"{layer}.{theirs}.attention.{query}")]
        attend += linear(f"{ours}/{name}/o", f"{layer}.{theirs}.output.dense")
        attend += norm(f"{ours}/{name}/norm", f"{layer}.{theirs}.output.LayerNorm")
        rows += [dataclasses.replace(row, step=step) for row in attend]
    return rows


def table(config: ModelConfig) -> list[Weight]:
    """In the names of the hub's files."""
    language = opt.text_table if config.decoder.position_table else decoder.table
    return [*vision_table(config.vision), *qformer_table(config.connector.qformer),
            *linear("connector/linear_1", "language_projection"),
            *language(config.decoder, "language_model.model", "language_model.lm_head")]


FAMILY = Family("Blip2ForConditionalGeneration", config, hf_config, table, decoder.rename, text)
