"""vlm_jax: one vision-language model through its whole life in JAX.

    import vlm_jax
    pt = vlm_jax.load_pretrained("runs/quickstart")     # or a folder in Hugging Face layout
    pt.model, pt.params, pt.config, pt.processor
    pt.forward(input_ids=...), pt.generate(input_ids=..., max_new_tokens=16)
    vlm_jax.save_pretrained(pt, "hf_folder")
    vlm_jax.num_visual_tokens(pt, 640, 480)
"""

from vlm_jax.models.tokens import num_visual_tokens
from vlm_jax.pretrained import Pretrained, load_pretrained, save_pretrained

__all__ = ["Pretrained", "load_pretrained", "num_visual_tokens", "save_pretrained"]
