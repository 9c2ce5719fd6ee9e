"""Gemma (arXiv 2403.08295): Llama with norms that multiply by 1 + weight, gated gelu and scaled embeddings."""

from vlm_jax.weights.huggingface.families.decoder import Language, family

# What the configurations of all Gemmas know.
DEFAULTS = dict(
    vocab_size=256000, head_dim=256, rms_norm_eps=1e-6, max_position_embeddings=8192, attention_bias=False,
    tie_word_embeddings=True, use_bidirectional_attention=None, bos_token_id=2, eos_token_id=1, pad_token_id=0)
FIXED = dict(norm="rms_offset")

LANGUAGE = Language("gemma", dict(
    DEFAULTS, hidden_size=3072, intermediate_size=24576, num_hidden_layers=28, num_attention_heads=16,
    num_key_value_heads=16, hidden_act="gelu_pytorch_tanh"),
    FIXED, legacy={"gelu": "gelu_pytorch_tanh"}, embed_scaled=True)  # the first files say gelu and mean the other

FAMILY = family("GemmaForCausalLM", LANGUAGE)
