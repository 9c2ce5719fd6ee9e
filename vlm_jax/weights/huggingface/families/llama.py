"""Llama 1 to 3 (arXiv 2302.13971, 2307.09288, 2407.21783) and what is built like them, Vicuna first of all."""

from vlm_jax.weights.huggingface.families.decoder import Language, family

LANGUAGE = Language("llama", dict(
    vocab_size=32000, intermediate_size=11008, num_key_value_heads=None, max_position_embeddings=2048,
    attention_bias=False, mlp_bias=False, bos_token_id=1, eos_token_id=2))

FAMILY = family("LlamaForCausalLM", LANGUAGE)
