"""What Llama-style language models have in common: one mapping of configs, one weight table.

A family of them is a `Language`: the class defaults of its configuration in transformers, and what its code fixes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping

from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.rope import RopeScaling
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.weights.huggingface.families.encoder import activation, hf_activation
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import Weight, linear, norm

DEFAULTS = {  # of every configuration class here; None means that another key decides
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "head_dim": None, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_parameters": None, "rope_scaling": None,
    "rope_theta": 10_000.0, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_LENGTH = {"factor": "factor", "original_max_position_embeddings": "original_length"}
STRETCH = {  # of each type of rotary positions, their name of what stretches them -> ours
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {**_LENGTH, "low_freq_factor": "low_freq", "high_freq_factor": "high_freq"},
    "yarn": {**_LENGTH, "beta_fast": "beta_fast", "beta_slow": "beta_slow", "attention_factor": "attention_factor"}}


@dataclasses.dataclass(frozen=True)
class Language:
    """`defaults` holds every key that the configuration class knows, `fixed` options that no key changes."""

    model_type: str
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def fill(self, hf: HfConfig) -> HfConfig:
        """The keys that the class knows, its defaults where config.json is silent; others it does not read either."""
        return {key: hf.get(key, default) for key, default in {**DEFAULTS, **self.defaults}.items()}

    def config(self, hf: HfConfig) -> DecoderConfig:
        """Sizes and options in a config.json of this family; raises ValueError for one that we cannot honour."""
        hf = self.fill(hf)
        theta, scaling = rope(hf)
        options = dict(
            layers=hf["num_hidden_layers"], width=hf["hidden_size"], heads=hf["num_attention_heads"],
            kv_heads=hf["num_key_value_heads"], head_dim=hf["head_dim"], mlp_width=hf["intermediate_size"],
            norm="rms", norm_eps=hf["rms_norm_eps"], activation=activation(hf["hidden_act"]), gated_mlp=True,
            attention_bias=hf.get("attention_bias", False), mlp_bias=hf.get("mlp_bias", False),
            rope_theta=theta, rope_scaling=scaling, window=window(hf))
        blocks = TransformerConfig(**{**options, **self.fixed})
        return DecoderConfig(hf["vocab_size"], blocks, hf["tie_word_embeddings"])

    def hf_config(self, config: DecoderConfig) -> HfConfig:
        """The keys of config.json that say `config`; raises ValueError where this family has no words for it."""
        t = config.transformer
        hf = {"model_type": self.model_type, "vocab_size": config.vocab_size, "num_hidden_layers": t.layers,
              "hidden_size": t.width, "num_attention_heads": t.heads, "num_key_value_heads": t.groups,
              "head_dim": t.dim, "intermediate_size": t.mlp_width, "hidden_act": hf_activation(t.activation),
              "rms_norm_eps": t.norm_eps, "attention_bias": t.attention_bias, "mlp_bias": t.mlp_bias,
              "tie_word_embeddings": config.tie_embeddings, **_hf_rope(t), **_hf_window(t)}
        known = {"model_type", *DEFAULTS, *self.defaults}
        hf = {key: value for key, value in hf.items() if key in known}
        if _canonical(self.config(hf)) != _canonical(config):
            raise ValueError(f"The decoder has options that '{self.model_type}' models of transformers lack: {config}.")
        return hf


def rope(hf: HfConfig) -> tuple[float, RopeScaling | None]:
    """(theta, stretching) in either spelling: rope_parameters, or rope_theta beside rope_scaling."""
    values = hf["rope_parameters"] or hf["rope_scaling"] or {}
    theta = values.get("rope_theta", hf["rope_theta"])
    kind = values.get("rope_type", values.get("type", "default"))
    if kind not in STRETCH:
        raise ValueError(f"config.json asks for rotary positions of type '{kind}'; known are {', '.join(STRETCH)}.")
    known = {"rope_theta", "rope_type", "type"}.union(*STRETCH.values())
    neutral = {"partial_rotary_factor": 1.0, "truncate": True}  # what leaving these out says
    if unknown := [key for key, value in values.items() if key not in known and value not in (None, neutral.get(key))]:
        raise ValueError(f"config.json asks for rotary positions with {', '.join(unknown)}, which are not supported.")
    if kind == "default":
        return theta, None
    given = {ours: values[theirs] for theirs, ours in STRETCH[kind].items() if values.get(theirs) is not None}
    if "factor" not in given:
        raise ValueError(f"config.json asks for rotary positions of type '{kind}' without a factor.")
    if kind != "linear":
        given.setdefault("original_length", hf["max_position_embeddings"])
    return theta, RopeScaling(kind, **given)


def _hf_rope(t: TransformerConfig) -> HfConfig:
    """Written in the older spelling too, which readers before transformers 5 and other servers know."""
    scaling = None
    if t.rope_scaling is not None:
        kind = t.rope_scaling.kind
        said = {theirs: getattr(t.rope_scaling, ours) for theirs, ours in STRETCH[kind].items()}
        scaling = {"rope_type": kind, **{key: value for key, value in said.items() if value is not None}}
    new = {"rope_type": "default", "rope_theta": t.rope_theta, **(scaling or {})}
    return {"rope_parameters": new, "rope_theta": t.rope_theta, "rope_scaling": scaling}


def window(hf: HfConfig) -> int | tuple[int | None, ...] | None:
    """How far each layer sees: `layer_types`, else Qwen's rule (the layers from max_window_layers on)."""
    size = hf.get("sliding_window") if hf.get("use_sliding_window", True) else None
    first = hf.get("max_window_layers", 0)
    types = hf.get("layer_types") or [
        "sliding_attention" if size and i >= first else "full_attention" for i in range(hf["num_hidden_layers"])]
    if unknown := sorted(set(types) - {"full_attention", "sliding_attention"}):
        raise ValueError(f"config.json has layers of type {', '.join(unknown)}; known are full_attention and "
                         f"sliding_attention.")
    if len(types) != hf["num_hidden_layers"] or ("sliding_attention" in types and not size):
        raise ValueError("config.json contradicts itself in layer_types, num_hidden_layers and sliding_window.")
    windows = tuple(size if kind == "sliding_attention" else None for kind in types)
    return windows[0] if len(set(windows)) == 1 else windows


def _hf_window(t: TransformerConfig) -> HfConfig:
    windows = [t.of_layer(i).window for i in range(t.layers)]
    size = next(filter(None, windows), None)
    return {"sliding_window": size, "use_sliding_window": size is not None,
            "layer_types": ["sliding_attention" if w else "full_attention" for w in windows]}


def _canonical(config: DecoderConfig) -> DecoderConfig:
    """With every default of TransformerConfig written out, so that equal models compare equal."""
    t = config.transformer
    t = dataclasses.replace(
        t, kv_heads=t.groups, head_dim=t.dim, out_bias=t.attention_bias if t.out_bias is None else t.out_bias,
        window=tuple(t.of_layer(i).window for i in range(t.layers)))
    return dataclasses.replace(config, transformer=t)


def table(config: DecoderConfig, theirs: str = "model", head: str = "lm_head") -> list[Weight]:
    """The rows of `decoder/`: `theirs` up to and without `.layers`, `head` the output layer (none where tied)."""
    t, blocks, layer = config.transformer, "decoder/blocks", f"{theirs}.layers.{{}}"
    out_bias = t.attention_bias if t.out_bias is None else t.out_bias
    rows = [Weight("decoder/embedding", f"{theirs}.embed_tokens.weight"),
            *norm(f"{blocks}/norm1", f"{layer}.input_layernorm", bias=False)]
    for name in "qkvo":
        bias = out_bias if name == "o" else t.attention_bias
        rows += linear(f"{blocks}/attn/{name}", f"{layer}.self_attn.{name}_proj", bias)
    if t.qk_norm:
        for name in "qk":
            rows += norm(f"{blocks}/attn/{name}_norm", f"{layer}.self_attn.{name}_norm", bias=False)
    rows += norm(f"{blocks}/norm2", f"{layer}.post_attention_layernorm", bias=False)
    for name in ("gate", "up", "down"):
        rows += linear(f"{blocks}/mlp/{name}", f"{layer}.mlp.{name}_proj", t.mlp_bias)
    rows += norm("decoder/norm_post", f"{theirs}.norm", bias=False)
    return rows if config.tie_embeddings else rows + linear("decoder/lm_head", head, bias=False)


def rename(name: str) -> str | None:
    """Older files also hold the rotary frequencies as a buffer."""
    return None if name.endswith("rotary_emb.inv_freq") else name


def family(architecture: str, language: Language) -> Family:
    """The language model alone."""
    return Family(
        architecture, config=lambda hf: ModelConfig(decoder=language.config(hf)),
        hf_config=lambda config: {"architectures": [architecture], **language.hf_config(config.decoder)},
        table=lambda config: table(config.decoder), rename=rename, text=language.fill)
