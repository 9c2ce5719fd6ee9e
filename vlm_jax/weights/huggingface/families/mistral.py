"""Mistral 7B (arXiv 2310.06825): Llama with grouped queries and, in its first version, a sliding window."""

from vlm_jax.weights.huggingface.families.decoder import Language, family

LANGUAGE = Language("mistral", dict(
    vocab_size=32000, intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=4096 * 32,
    sliding_window=4096, bos_token_id=1, eos_token_id=2))

FAMILY = family("MistralForCausalLM", LANGUAGE)
