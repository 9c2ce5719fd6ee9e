"""The image encoders, by the class of their config. A new one is a module and a line in ENCODERS.

An encoder takes a batch of images (an array, or a dict of arrays that share their first axis) and returns VisionOutput.
"""

from __future__ import annotations

import flax.linen as nn

from vlm_jax.models.masked_vit import MaskedViT, MaskedViTConfig
from vlm_jax.models.naflex import NaFlex, NaFlexConfig
from vlm_jax.models.native_vit import NativeViT, NativeViTConfig
from vlm_jax.models.vit import ViT, ViTConfig

EncoderConfig = ViTConfig | MaskedViTConfig | NaFlexConfig | NativeViTConfig
ENCODERS = {ViTConfig: ViT, MaskedViTConfig: MaskedViT, NaFlexConfig: NaFlex, NativeViTConfig: NativeViT}


def encoder(config: EncoderConfig, **kwargs) -> nn.Module:
    """f_v of this config."""
    return ENCODERS[type(config)](config, **kwargs)
