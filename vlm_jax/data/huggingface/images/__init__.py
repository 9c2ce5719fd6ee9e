"""Image processors of published checkpoints, read from preprocessor_config.json."""

from vlm_jax.data.huggingface.images.base import HfImageProcessor, size
from vlm_jax.data.huggingface.images.registry import from_config
