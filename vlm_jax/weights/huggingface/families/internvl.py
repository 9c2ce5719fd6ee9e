"""InternVL 1.5 to 3.5 (arXiv 2404.16821, 2504.10479) in Hugging Face layout: InternViT, pixel shuffle and an MLP before a
language model. An image is tiles, each of which counts as an image of its own."""

from __future__ import annotations

import dataclasses
import re

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.tokens import AspectTiles, num_visual_tokens
from vlm_jax.models.vit import ViTConfig
from vlm_jax.weights.huggingface.families import decoder, encoder, vit
from vlm_jax.weights.huggingface.families.encoder import activation, hf_activation
from vlm_jax.weights.huggingface.families.llava import language, language_hf_config
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import Weight, linear, norm

# What transformers' classes fill in where config.json is silent.
VISION = dict(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, attention_bias=False, use_qk_norm=False,
    intermediate_size=4096, hidden_act="gelu", norm_type="layer_norm", layer_norm_eps=1e-6, image_size=448,
    patch_size=14, num_channels=3, use_mask_token=False, use_absolute_position_embeddings=True,
    layer_scale_init_value=0.1, use_mean_pooling=True)
DEFAULTS = dict(downsample_ratio=0.5, projector_hidden_act="gelu", vision_feature_layer=-1,
                vision_feature_select_strategy="default", vision_config={}, text_config={})
DEFAULT = "qwen2"  # the language model of a text_config that names none
NORMS = {"layer_norm": "layer", "rms_norm": "rms"}
QK_NORM_EPS, PROJECTOR_EPS = 1e-6, 1e-5  # fixed in its code, whatever config.json says


def _fill(hf: HfConfig) -> HfConfig:
    """Files before transformers 5 say nothing of tying at the top; then what text_config says counts."""
    hf = DEFAULTS | {key: value for key, value in hf.items() if value is not None}
    return {"tie_word_embeddings": hf["text_config"].get("tie_word_embeddings", False)} | hf


def text(hf: HfConfig) -> HfConfig:
    part = _fill(hf)["text_config"]
    return language(part, DEFAULT).fill(part)


def vision_config(hf: HfConfig, layer: int = -1) -> ViTConfig:
    """The sizes in an InternVLVisionConfig; without mean pooling the last layer's features pass a final norm.

    Raises ValueError for options that we cannot honour.
    """
    hf = VISION | hf
    mean, kind = hf["use_mean_pooling"], hf["norm_type"]
    if kind not in NORMS or kind == "rms_norm" and not mean:
        raise ValueError(f"config.json has norm_type '{kind}' with use_mean_pooling {mean}; supported are layer_norm, "
                         f"and rms_norm with mean pooling.")
    if not hf["use_absolute_position_embeddings"]:
        raise ValueError("config.json has use_absolute_position_embeddings false; only eyes with them are supported.")
    blocks = encoder.transformer(
        hf, norm=NORMS[kind], attention_bias=hf["attention_bias"], out_bias=True,
        qk_norm="all" if hf["use_qk_norm"] else None, qk_norm_eps=QK_NORM_EPS, layer_scale=hf["layer_scale_init_value"])
    return ViTConfig(
        **encoder.image_sizes(hf), transformer=blocks, pool="mean" if mean else "cls", class_token=True, pre_norm=False,
        patch_bias=True, mask_token=hf["use_mask_token"], final_norm=None if mean else "all", feature_layer=layer,
        feature_norm=not mean and layer == -1)


def vision_hf_config(config: ViTConfig) -> HfConfig:
    t, sizes = config.transformer, encoder.hf_image_sizes(config)
    return {"model_type": "internvl_vision", **encoder.hf_transformer(t), **sizes,
            "image_size": [config.image_size] * 2, "patch_size": [config.patch_size] * 2,
            "norm_type": next(theirs for theirs, ours in NORMS.items() if ours == t.norm),
            "attention_bias": t.attention_bias, "use_qk_norm": t.qk_norm == "all", "use_mask_token": config.mask_token,
            "layer_scale_init_value": t.layer_scale, "use_mean_pooling": config.pool == "mean"}


def config(hf: HfConfig) -> ModelConfig:
    """The sizes in an InternVLConfig; raises ValueError for options that we cannot honour."""
    hf = _fill(hf)
    layer, select = hf["vision_feature_layer"], hf["vision_feature_select_strategy"]
    if not isinstance(layer, int) or select != "default":
        raise ValueError(f"config.json has vision_feature_layer {layer} and vision_feature_select_strategy '{select}'; "
                         f"only one layer and 'default' are supported.")
    eyes = vision_config(hf["vision_config"], layer)
    connector = ConnectorConfig("norm_mlp", activation(hf["projector_hidden_act"]), norm_eps=PROJECTOR_EPS,
                                reducer="pixel_shuffle", factor=round(1 / hf["downsample_ratio"]))
    part = hf["text_config"] | {"tie_word_embeddings": hf["tie_word_embeddings"]}
    whole = ModelConfig(vision=eyes, connector=connector, decoder=language(part, DEFAULT).config(part))
    tiles = AspectTiles((eyes.image_size,) * 2, num_visual_tokens(whole, eyes.image_size, eyes.image_size))
    return dataclasses.replace(whole, layout=tiles)


def hf_config(config: ModelConfig) -> HfConfig:
    """The keys of config.json but for token ids."""
    return {
        "architectures": ["InternVLForConditionalGeneration"], "model_type": "internvl",
        "downsample_ratio": 1 / config.connector.factor,
        "projector_hidden_act": hf_activation(config.connector.activation),
        "vision_feature_layer": config.vision.feature_layer, "vision_feature_select_strategy": "default",
        "image_seq_length": config.layout.tokens, "tie_word_embeddings": config.decoder.tie_embeddings,
        "vision_config": vision_hf_config(config.vision), "text_config": language_hf_config(config.decoder)}


def vision_table(config: ViTConfig, ours: str = "vision", theirs: str = "vision_tower") -> list[Weight]:
    t, blocks, layer = config.transformer, f"{ours}/blocks", f"{theirs}.encoder.layer.{{}}"
    rows = vit.embeddings(config, ours, f"{theirs}.embeddings", mask_token=(1, 1, t.width))
    for name in "qkv":
        rows += linear(f"{blocks}/attn/{name}", f"{layer}.attention.{name}_proj", t.attention_bias)
    for name in "qk" if t.qk_norm else "":
        rows += norm(f"{blocks}/attn/{name}_norm", f"{layer}.attention.{name}_norm", bias=False)
    rows += linear(f"{blocks}/attn/o", f"{layer}.attention.projection_layer")
    for i, name in (1, "before"), (2, "after"):
        rows += norm(f"{blocks}/norm{i}", f"{layer}.layernorm_{name}", bias=t.norm == "layer")
        rows.append(Weight(f"{blocks}/scale{i}", f"{layer}.lambda_{i}"))
    rows += encoder.mlp(f"{blocks}/mlp", f"{layer}.mlp")
    return rows + norm(f"{ours}/norm_post", f"{theirs}.layernorm") if config.final_norm else rows


def table(config: ModelConfig) -> list[Weight]:
    """In the names of the hub's files."""
    projector = "multi_modal_projector"
    return [*vision_table(config.vision), *norm("connector/norm", f"{projector}.layer_norm"),
            *linear("connector/linear_1", f"{projector}.linear_1"),
            *linear("connector/linear_2", f"{projector}.linear_2"),
            *decoder.table(config.decoder, "language_model.model", "language_model.lm_head")]


RENAMES = [(re.compile(pattern), name) for pattern, name in (
    (r"^lm_head\.", "language_model.lm_head."),  # transformers 4.52 and later, in memory
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
)]


def rename(name: str) -> str | None:
    for pattern, hub in RENAMES:
        name = pattern.sub(hub, name)
    return decoder.rename(name)


FAMILY = Family("InternVLForConditionalGeneration", config, hf_config, table, rename, text)
