"""vlm_jax: one vision-language model through its whole life in JAX.

    import vlm_jax
    pt = vlm_jax.load_pretrained("runs/quickstart")     # or a folder in Hugging Face layout
    pt.model, pt.params, pt.config, pt.processor
    pt.forward(input_ids=...), pt.generate(input_ids=..., max_new_tokens=16)
    vlm_jax.save_pretrained(pt, "hf_folder")
    vlm_jax.num_visual_tokens(pt, 640, 480)
    vlm_jax.list_presets(), vlm_jax.preset("dinov2-large")      # published sizes, as model configs
"""

import importlib

_HOMES = {"Pretrained": "pretrained", "load_pretrained": "pretrained", "save_pretrained": "pretrained",
          "load_processor": "pretrained", "num_visual_tokens": "models.tokens",
          "list_presets": "weights.huggingface.presets", "preset": "weights.huggingface.presets"}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """Opens a name's module when it is first asked for, so that a data worker can import its part without JAX."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vlm_jax' has no attribute '{name}'")
    return getattr(importlib.import_module(f"vlm_jax.{_HOMES[name]}"), name)
