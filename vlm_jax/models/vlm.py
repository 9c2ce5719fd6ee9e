"""The VLM assembly: visual tokens take their places among the text tokens, and one decoder reads them all."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.models.connectors import ConnectorConfig, connector
from vlm_jax.models.decoder import Decoder, DecoderConfig, KVCache
from vlm_jax.models.mask import SequenceInfo
from vlm_jax.models.vit import ViT, ViTConfig


def splice(
    text: Float[Array, "b t d"], visual: Float[Array, "b m d"], image_index: Int[Array, "b t"]
) -> Float[Array, "b t d"]:
    """Puts visual token `image_index` of its row where the index is 0 or more, and leaves text where it is -1.

    In front, interleaved and between delimiters are all this: the row's layout is in the index, not in the shapes.
    """
    picked = jnp.take_along_axis(visual, jnp.maximum(image_index, 0)[..., None], axis=1)
    return jnp.where((image_index >= 0)[..., None], picked.astype(text.dtype), text)


class VLM(nn.Module):
    """Rows have a static number of image slots; a text-only row leaves them unused, or the batch has none at all.

    Without eyes (no vision and connector config) it is the language model alone.
    """

    vision_config: ViTConfig | None
    connector_config: ConnectorConfig | None
    decoder_config: DecoderConfig

    def setup(self):
        if self.vision_config is not None:
            self.vision = ViT(self.vision_config)
            self.connector = connector(self.connector_config, self.decoder_config.transformer.width)
        self.decoder = Decoder(self.decoder_config)

    def visual_tokens(self, images: Float[Array, "b n h w 3"]) -> Float[Array, "b nv d"]:
        """Visual tokens of the n image slots of each row, joined: token j of slot i has index i * V + j."""
        b, n = images.shape[:2]
        out = self.vision(images.reshape(b * n, *images.shape[2:]))
        tokens = self.connector(out.patches)
        return tokens.reshape(b, n * tokens.shape[1], tokens.shape[2])

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        info: SequenceInfo,
        visual: Float[Array, "b m d"] | None = None,
        image_index: Int[Array, "b t"] | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "b t d"], KVCache | None]:
        """Final hidden states; without visual tokens this is the plain language model."""
        x = self.decoder.embed(tokens)
        if visual is not None:
            x = splice(x, visual, image_index)
        return self.decoder.hidden(x, info, cache)

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t vocab"]:
        return self.decoder.logits(hidden)

    def __call__(self, tokens, info, images=None, image_index=None):
        """Next-token logits [b, t, vocab] of whole rows; images [b, n, h, w, 3]."""
        visual = None if images is None else self.visual_tokens(images)
        hidden, _ = self.hidden(tokens, info, visual, image_index)
        return self.logits(hidden)
