"""Gemma 2 (arXiv 2408.00118): norms on both sides of each branch, soft-capped scores and logits, every other layer with
a window."""

from vlm_jax.weights.huggingface.families import gemma
from vlm_jax.weights.huggingface.families.decoder import Language, family

SIZES = dict(gemma.DEFAULTS, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8,
             num_key_value_heads=4, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256,
             sliding_window=4096, layer_types=None)
FIXED = dict(gemma.FIXED, post_norm=True)

LANGUAGE = Language(
    "gemma2", dict(SIZES, attn_logit_softcapping=50.0, final_logit_softcapping=30.0), FIXED,
    activation="hidden_activation", embed_scaled=True, global_every=2)

FAMILY = family("Gemma2ForCausalLM", LANGUAGE)
