"""vlm_jax: one vision-language model through its whole life in JAX.

    import vlm_jax
    pt = vlm_jax.load_pretrained("runs/quickstart")
    pt.model, pt.params, pt.config, pt.processor
    vlm_jax.num_visual_tokens(pt, 640, 480)
"""

from vlm_jax.models.tokens import num_visual_tokens
from vlm_jax.pretrained import Pretrained, load_pretrained

__all__ = ["Pretrained", "load_pretrained", "num_visual_tokens"]
