"""Qwen3 (arXiv 2505.09388): Llama with an RMSNorm on each head's queries and keys."""

from vlm_jax.weights.huggingface.families.decoder import Language, family

LANGUAGE = Language("qwen3", dict(
    vocab_size=151936, intermediate_size=22016, num_key_value_heads=32, head_dim=128, max_position_embeddings=32768,
    attention_bias=False, use_sliding_window=False, sliding_window=4096, max_window_layers=28, layer_types=None),
    fixed=dict(qk_norm="head"))

FAMILY = family("Qwen3ForCausalLM", LANGUAGE)
