"""OPT (arXiv 2205.01068): LayerNorms, biases, ReLU, and learned positions that count real tokens from row 2 on."""

from __future__ import annotations

from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.weights.huggingface.families import encoder
from vlm_jax.weights.huggingface.families.encoder import activation, hf_activation
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import Weight, linear, norm

OFFSET = 2  # of the position table
DEFAULTS = dict(
    vocab_size=50272, hidden_size=768, num_hidden_layers=12, ffn_dim=3072, max_position_embeddings=2048,
    do_layer_norm_before=True, _remove_final_layer_norm=False, word_embed_proj_dim=None, num_attention_heads=12,
    activation_function="relu", enable_bias=True, layer_norm_elementwise_affine=True, tie_word_embeddings=True,
    bos_token_id=2, eos_token_id=2, pad_token_id=1)
# What other sizes or ages of OPT have otherwise (the 350M model first of all).
SUPPORTED = dict(do_layer_norm_before=True, _remove_final_layer_norm=False, layer_norm_elementwise_affine=True)


def fill(hf: HfConfig) -> HfConfig:
    """The keys that the class knows, its defaults where config.json is silent."""
    return {key: hf.get(key, default) for key, default in DEFAULTS.items()}


def text_config(hf: HfConfig) -> DecoderConfig:
    """The sizes in an OPTConfig; raises ValueError for options that we cannot honour."""
    hf = fill(hf)
    wanted = SUPPORTED | {"word_embed_proj_dim": hf["hidden_size"]}
    hf["word_embed_proj_dim"] = hf["word_embed_proj_dim"] or hf["hidden_size"]
    for key, value in wanted.items():
        if hf[key] != value:
            raise ValueError(f"config.json has {key} {hf[key]!r}; only {value!r} is supported in OPT.")
    blocks = TransformerConfig(
        layers=hf["num_hidden_layers"], width=hf["hidden_size"], heads=hf["num_attention_heads"],
        mlp_width=hf["ffn_dim"], activation=activation(hf["activation_function"]),
        attention_bias=hf["enable_bias"], mlp_bias=hf["enable_bias"])
    return DecoderConfig(hf["vocab_size"], blocks, hf["tie_word_embeddings"],
                         position_table=hf["max_position_embeddings"] + OFFSET, position_offset=OFFSET)


def hf_text_config(config: DecoderConfig) -> HfConfig:
    """The keys of config.json that say `config`; raises ValueError where OPT has no words for it."""
    t = config.transformer
    hf = {"model_type": "opt", "vocab_size": config.vocab_size, "hidden_size": t.width, "num_hidden_layers": t.layers,
          "ffn_dim": t.mlp_width, "max_position_embeddings": config.position_table - OFFSET,
          "num_attention_heads": t.heads, "activation_function": hf_activation(t.activation),
          "enable_bias": t.attention_bias, "tie_word_embeddings": config.tie_embeddings, **SUPPORTED,
          "word_embed_proj_dim": t.width}
    if text_config(hf) != config:
        raise ValueError(f"The decoder has options that 'opt' models of transformers lack: {config}.")
    return hf


def text_table(config: DecoderConfig, theirs: str = "model", head: str = "lm_head") -> list[Weight]:
    """The rows of `decoder/`: `theirs` up to and without `.decoder`, `head` the output layer (none where tied)."""
    ours, theirs, bias = "decoder/blocks", f"{theirs}.decoder", config.transformer.attention_bias
    layer, again = f"{theirs}.layers.{{}}", f"{head}.weight" if config.tie_embeddings else None
    rows = [
        Weight("decoder/embedding", f"{theirs}.embed_tokens.weight", copy=again),
        Weight("decoder/position_embedding", f"{theirs}.embed_positions.weight"),
        *norm(f"{ours}/norm1", f"{layer}.self_attn_layer_norm"),
        *encoder.attention(f"{ours}/attn", f"{layer}.self_attn", bias),
        *norm(f"{ours}/norm2", f"{layer}.final_layer_norm"), *encoder.mlp(f"{ours}/mlp", layer, bias),
        *norm("decoder/norm_post", f"{theirs}.final_layer_norm")]
    return rows if config.tie_embeddings else rows + linear("decoder/lm_head", head, bias=False)


def rename(name: str) -> str:
    """Files of the bare OPTModel leave the first name out."""
    return f"model.{name}" if name.startswith("decoder.") else name


FAMILY = Family(
    "OPTForCausalLM", config=lambda hf: ModelConfig(decoder=text_config(hf)),
    hf_config=lambda config: {"architectures": ["OPTForCausalLM"], **hf_text_config(config.decoder)},
    table=lambda config: text_table(config.decoder), rename=rename, text=fill)
