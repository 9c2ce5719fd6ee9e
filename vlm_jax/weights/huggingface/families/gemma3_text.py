"""The language model of Gemma 3 (arXiv 2503.19786): Gemma 2 with normalised queries and keys in place of soft-capped
scores, five layers with a window to one without, and rotary positions of their own for each kind."""

from vlm_jax.weights.huggingface.families import gemma2
from vlm_jax.weights.huggingface.families.decoder import Language, family

LANGUAGE = Language("gemma3_text", dict(  # its attention does not read attn_logit_softcapping
    gemma2.SIZES, vocab_size=262208, max_position_embeddings=131072, sliding_window_pattern=None,
    rope_theta=1_000_000.0, rope_local_base_freq=10_000.0, final_logit_softcapping=None),
    dict(gemma2.FIXED, qk_norm="head"), activation="hidden_activation", embed_scaled=True, global_every=6)

FAMILY = family("Gemma3ForCausalLM", LANGUAGE)
