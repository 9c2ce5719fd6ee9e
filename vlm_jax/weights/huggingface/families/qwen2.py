"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): Llama with biases on queries, keys and values."""

from vlm_jax.weights.huggingface.families.decoder import Language, family

LANGUAGE = Language("qwen2", dict(
    vocab_size=151936, intermediate_size=22016, num_key_value_heads=32, max_position_embeddings=32768,
    use_sliding_window=False, sliding_window=4096, max_window_layers=28, layer_types=None),
    fixed=dict(attention_bias=True, out_bias=False))

FAMILY = family("Qwen2ForCausalLM", LANGUAGE)
