"""What Llama-style language models have in common: one mapping of configs, one weight table.

A family of them is a `Language`: the class defaults of its configuration in transformers, and what its code fixes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Mapping, Sequence

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
    "dynamic": {"factor": "factor"},
    "llama3": {**_LENGTH, "low_freq_factor": "low_freq", "high_freq_factor": "high_freq"},
    "yarn": {**_LENGTH, "beta_fast": "beta_fast", "beta_slow": "beta_slow", "attention_factor": "attention_factor",
             "truncate": "truncate"}}
LAYERS = ("full_attention", "sliding_attention")  # the types of layer_types


@dataclasses.dataclass(frozen=True)
class Language:
    """`defaults` holds every key that the configuration class knows and its code reads, `fixed` options of
    TransformerConfig that no key changes.

    `activation` is the key that names the activation, `legacy` what old files call it. `embed_scaled` multiplies text
    embeddings by sqrt(width). `global_every` n says that, where neither layer_types nor sliding_window_pattern does,
    every n-th layer sees all and the others a window.
    """

    model_type: str
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    activation: str = "hidden_act"
    legacy: Mapping[str, str] = dataclasses.field(default_factory=dict)
    embed_scaled: bool = False
    global_every: int | None = None

    def without(self, key: str) -> Language:
        """The same for a class that does not heed `key`."""
        return dataclasses.replace(self, defaults={k: v for k, v in self.defaults.items() if k != key})

    def fill(self, hf: HfConfig) -> HfConfig:
        """The keys that the class knows, its defaults where config.json is silent; others it does not read either."""
        return {key: hf.get(key, default) for key, default in {**DEFAULTS, **self.defaults}.items()}

    def config(self, hf: HfConfig) -> DecoderConfig:
        """Sizes and options in a config.json of this family; raises ValueError for one that we cannot honour."""
        hf = self.fill(hf)
        if hf.get("use_bidirectional_attention"):
            raise ValueError("config.json has use_bidirectional_attention; only language models that read from left to "
                             "right are supported.")
        theta, scaling, local_theta = rope(hf)
        name, scalar = hf[self.activation], hf.get("query_pre_attn_scalar")
        options = dict(
            layers=hf["num_hidden_layers"], width=hf["hidden_size"], heads=hf["num_attention_heads"],
            kv_heads=hf["num_key_value_heads"], head_dim=hf["head_dim"], mlp_width=hf["intermediate_size"],
            norm="rms", norm_eps=hf["rms_norm_eps"], activation=activation(self.legacy.get(name, name)), gated_mlp=True,
            attention_bias=hf.get("attention_bias", False), mlp_bias=hf.get("mlp_bias", False),
            attention_scale=None if scalar is None else scalar**-0.5,
            attention_softcap=hf.get("attn_logit_softcapping"), rope_theta=theta, rope_scaling=scaling,
            local_rope_theta=local_theta, window=window(hf, self.global_every))
        blocks = TransformerConfig(**{**options, **self.fixed})
        return DecoderConfig(
            hf["vocab_size"], blocks, hf["tie_word_embeddings"], logit_softcap=hf.get("final_logit_softcapping"),
            embed_scale=blocks.width**0.5 if self.embed_scaled else None)

    def hf_config(self, config: DecoderConfig) -> HfConfig:
        """The keys of config.json that say `config`; raises ValueError where this family has no words for it."""
        t = config.transformer
        hf = {"model_type": self.model_type, "vocab_size": config.vocab_size, "num_hidden_layers": t.layers,
              "hidden_size": t.width, "num_attention_heads": t.heads, "num_key_value_heads": t.groups,
              "head_dim": t.dim, "intermediate_size": t.mlp_width, self.activation: hf_activation(t.activation),
              "rms_norm_eps": t.norm_eps, "attention_bias": t.attention_bias, "mlp_bias": t.mlp_bias,
              "query_pre_attn_scalar": round((t.attention_scale or t.dim**-0.5) ** -2),
              "attn_logit_softcapping": t.attention_softcap, "final_logit_softcapping": config.logit_softcap,
              "tie_word_embeddings": config.tie_embeddings, **_hf_rope(t), **_hf_window(t, self.global_every)}
        known = {"model_type", *DEFAULTS, *self.defaults}
        hf = {key: value for key, value in hf.items() if key in known}
        if canonical(self.config(hf)) != canonical(config):
            raise ValueError(f"The decoder has options that '{self.model_type}' models of transformers lack: {config}.")
        return hf


def rope(hf: HfConfig) -> tuple[float, RopeScaling | None, float | None]:
    """(theta, stretching, theta of the layers with a window where it differs) in either spelling.

    That is rope_parameters, or rope_theta, rope_scaling and rope_local_base_freq; a class that knows the last has
    rope_parameters for each type of layer. Raises ValueError for what our rotary positions cannot do.
    """
    if "rope_local_base_freq" not in hf:
        return *_rope(hf, hf["rope_parameters"] or hf["rope_scaling"] or {}, hf["rope_theta"]), None
    parts = hf["rope_parameters"] or {}
    if unknown := sorted(set(parts) - set(LAYERS)):
        raise ValueError(f"config.json has rope_parameters {', '.join(unknown)}; this family takes those of "
                         f"{' and '.join(LAYERS)}.")
    whole, local = ({} if parts.get(kind) is None else parts[kind] for kind in LAYERS)
    theta, scaling = _rope(hf, whole | (hf["rope_scaling"] or {}), hf["rope_theta"])
    local_theta, stretched = _rope(hf, local, hf["rope_local_base_freq"])
    if stretched:
        raise ValueError("config.json stretches the rotary positions of layers with a window, which is not supported.")
    return theta, scaling, local_theta


def _rope(hf: HfConfig, values: HfConfig, default: float) -> tuple[float, RopeScaling | None]:
    theta = values.get("rope_theta", default)
    kind = values.get("rope_type", values.get("type", "default"))
    if kind not in STRETCH:
        raise ValueError(f"config.json asks for rotary positions of type '{kind}'; known are {', '.join(STRETCH)}.")
    known = {"rope_theta", "rope_type", "type", "mscale", "mscale_all_dim"}.union(*STRETCH.values())
    neutral = {"partial_rotary_factor": 1.0}  # what leaving these out says
    if unknown := [key for key, value in values.items() if key not in known and value not in (None, neutral.get(key))]:
        raise ValueError(f"config.json asks for rotary positions with {', '.join(unknown)}, which are not supported.")
    if kind == "default":
        return theta, None
    given = {ours: values[theirs] for theirs, ours in STRETCH[kind].items() if values.get(theirs) is not None}
    if "factor" not in given:
        raise ValueError(f"config.json asks for rotary positions of type '{kind}' without a factor.")
    if kind != "linear":
        given.setdefault("original_length", hf["max_position_embeddings"])
    if kind == "yarn" and "attention_factor" not in given and values.get("mscale") and values.get("mscale_all_dim"):
        growth = 0.1 * math.log(max(given["factor"], 1))
        given["attention_factor"] = (growth * values["mscale"] + 1) / (growth * values["mscale_all_dim"] + 1)
    return theta, RopeScaling(kind, **given)


def _hf_rope(t: TransformerConfig) -> HfConfig:
    """Written in the older spelling too, which readers before transformers 5 and other servers know."""
    scaling = None
    if t.rope_scaling is not None:
        kind = t.rope_scaling.kind
        said = {theirs: getattr(t.rope_scaling, ours) for theirs, ours in STRETCH[kind].items()}
        scaling = {"rope_type": kind, **{key: value for key, value in said.items() if value is not None}}
    new = {"rope_type": "default", "rope_theta": t.rope_theta, **(scaling or {})}
    old = {"rope_theta": t.rope_theta, "rope_scaling": scaling}
    if scaling is not None and kind == "dynamic":  # which has no other word for its length
        old["max_position_embeddings"] = t.rope_scaling.original_length
    if t.local_rope_theta is None:
        return {"rope_parameters": new, **old}
    local = {"rope_type": "default", "rope_theta": t.local_rope_theta}
    return {"rope_parameters": dict(zip(LAYERS, (new, local))), **old, "rope_local_base_freq": t.local_rope_theta}


def window(hf: HfConfig, global_every: int | None = None) -> int | tuple[int | None, ...] | None:
    """How far each layer sees: `layer_types`, else Gemma's rule (every n-th layer sees all) or Qwen's (the layers from
    max_window_layers on have a window)."""
    size = hf.get("sliding_window") if hf.get("use_sliding_window", True) else None
    first, every = hf.get("max_window_layers", 0), hf.get("sliding_window_pattern") or global_every
    local = (lambda i: (i + 1) % every > 0) if every else (lambda i: size and i >= first)
    types = hf.get("layer_types") or [LAYERS[bool(local(i))] for i in range(hf["num_hidden_layers"])]
    if unknown := sorted(set(types) - set(LAYERS)):
        raise ValueError(f"config.json has layers of type {', '.join(unknown)}; known are {' and '.join(LAYERS)}.")
    if len(types) != hf["num_hidden_layers"] or (LAYERS[1] in types and not size):
        raise ValueError("config.json contradicts itself in layer_types, num_hidden_layers and sliding_window.")
    windows = tuple(size if kind == LAYERS[1] else None for kind in types)
    return windows[0] if len(set(windows)) == 1 else windows


def _hf_window(t: TransformerConfig, global_every: int | None) -> HfConfig:
    """Also as the pattern that readers without layer_types go by, where there is one."""
    windows = [t.of_layer(i).window for i in range(t.layers)]
    size = next(filter(None, windows), None)
    hf = {"use_sliding_window": size is not None, "layer_types": [LAYERS[w is not None] for w in windows]}
    if size is not None or global_every is None:  # a class with a pattern wants a size even where no layer uses it
        hf["sliding_window"] = size
    follow = lambda n: all((w is None) == ((i + 1) % n == 0) for i, w in enumerate(windows))
    every = next(filter(follow, range(1, t.layers + 2)), None)
    return hf if every is None else hf | {"sliding_window_pattern": every}


def hf_config_of(languages: Sequence[Language], config: DecoderConfig) -> HfConfig:
    """In the words of the first language that can say `config`; raises the first one's ValueError where none can."""
    wrong = []
    for language in languages:
        try:
            return language.hf_config(config)
        except ValueError as error:
            wrong.append(error)
    raise wrong[0]


def canonical(config: DecoderConfig) -> DecoderConfig:
    """With every default of TransformerConfig written out, so that equal models compare equal."""
    t = config.transformer
    t = dataclasses.replace(
        t, kv_heads=t.groups, head_dim=t.dim, out_bias=t.attention_bias if t.out_bias is None else t.out_bias,
        attention_scale=t.attention_scale or t.dim**-0.5, window=tuple(t.of_layer(i).window for i in range(t.layers)))
    return dataclasses.replace(config, transformer=t)


def table(config: DecoderConfig, theirs: str = "model", head: str = "lm_head") -> list[Weight]:
    """The rows of `decoder/`: `theirs` up to and without `.layers`, `head` the output layer (none where tied)."""
    t, blocks, layer = config.transformer, "decoder/blocks", f"{theirs}.layers.{{}}"
    out_bias = t.attention_bias if t.out_bias is None else t.out_bias
    norms = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
    if t.post_norm:  # here that name is true: Llama's stands before the MLP
        norms = {"norm1": "input_layernorm", "norm1_post": "post_attention_layernorm",
                 "norm2": "pre_feedforward_layernorm", "norm2_post": "post_feedforward_layernorm"}
    again = f"{head}.weight" if config.tie_embeddings else None
    rows = [Weight("decoder/embedding", f"{theirs}.embed_tokens.weight", copy=again)]
    for ours, name in norms.items():
        rows += norm(f"{blocks}/{ours}", f"{layer}.{name}", bias=False)
    for name in "qkvo":
        bias = out_bias if name == "o" else t.attention_bias
        rows += linear(f"{blocks}/attn/{name}", f"{layer}.self_attn.{name}_proj", bias)
    if t.qk_norm:
        for name in "qk":
            rows += norm(f"{blocks}/attn/{name}_norm", f"{layer}.self_attn.{name}_norm", bias=False)
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
