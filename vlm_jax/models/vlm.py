"""The VLM assembly: visual tokens take their places among the text tokens, and one decoder reads them all."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.models.connectors import ConnectorConfig, connector
from vlm_jax.models.decoder import Decoder, DecoderConfig, KVCache
from vlm_jax.models.encoders import EncoderConfig, encoder
from vlm_jax.models.mask import SequenceInfo
from vlm_jax.models.reducers import reduce


def splice(
    text: Float[Array, "b t d"], visual: Float[Array, "b m d"], image_index: Int[Array, "b t *k"],
    image_weight: Float[Array, "b t k"] | None = None,
) -> Float[Array, "b t d"]:
    """Puts visual token `image_index` of its row where the index is 0 or more, and leaves text where it is -1.

    In front, interleaved and between delimiters are all this: the row's layout is in the index, not in the shapes.
    With `image_weight`, a token is the weighted sum of k visual tokens, and text where the first of its k indices is
    -1: so that a grid of tokens can be resized (LLaVA-OneVision) before it is read.
    """
    pick = lambda index: jnp.take_along_axis(visual, jnp.maximum(index, 0)[..., None], axis=1)
    if image_weight is None:
        shown, picked = image_index >= 0, pick(image_index)
    else:  # one neighbour after the other: never k times the tokens at once
        shown, weight = image_index[..., 0] >= 0, image_weight[..., None].astype(visual.dtype)
        picked = sum(pick(image_index[..., i]) * weight[:, :, i] for i in range(image_index.shape[2]))
    return jnp.where(shown[..., None], picked.astype(text.dtype), text)


class VLM(nn.Module):
    """Rows have a static number of image slots; a text-only row leaves them unused, or the batch has none at all.

    Without eyes (no vision and connector config) it is the language model alone. `newline` adds one learned visual
    token that ends a row of patches (LLaVA-NeXT).
    """

    vision_config: EncoderConfig | None
    connector_config: ConnectorConfig | None
    decoder_config: DecoderConfig
    newline: bool = False

    def setup(self):
        if self.vision_config is not None:
            width = self.decoder_config.transformer.width
            self.vision = encoder(self.vision_config)
            self.connector = connector(self.connector_config, width)
            if self.newline:
                self.image_newline = self.param("image_newline", nn.initializers.normal(width**-0.5), (width,))
        self.decoder = Decoder(self.decoder_config)

    def visual_tokens(self, images: Float[Array, "b n h w 3"]) -> Float[Array, "b m d"]:
        """Visual tokens of the n image slots of each row, joined: token j of slot i has index i * V + j.

        `images` is what the encoder takes, each array with [b, n] in front. The last of the m tokens is the newline
        where the model has one. On the way `vision_states` (the encoder's last states) and `projector` (tokens of each slot)
        are sown as intermediates.
        """
        b, n = jax.tree.leaves(images)[0].shape[:2]
        out = self.vision(jax.tree.map(lambda x: x.reshape(b * n, *x.shape[2:]), images))
        c = self.connector_config
        tokens = self.connector(reduce(c.reducer, c.factor, out.patches))
        self.sow("intermediates", "vision_states", out.last)
        self.sow("intermediates", "projector", tokens)
        tokens = tokens.reshape(b, n * tokens.shape[1], tokens.shape[2])
        if self.newline:
            newline = jnp.broadcast_to(self.image_newline, (b, 1, tokens.shape[2])).astype(tokens.dtype)
            tokens = jnp.concatenate([tokens, newline], axis=1)
        return tokens

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        info: SequenceInfo,
        visual: Float[Array, "b m d"] | None = None,
        image_index: Int[Array, "b t *k"] | None = None,
        cache: KVCache | None = None,
        image_weight: Float[Array, "b t k"] | None = None,
    ) -> tuple[Float[Array, "b t d"], KVCache | None]:
        """Final hidden states; without visual tokens this is the plain language model."""
        x = self.decoder.embed(tokens)
        if visual is not None:
            x = splice(x, visual, image_index, image_weight)
        return self.decoder.hidden(x, info, cache)

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t vocab"]:
        return self.decoder.logits(hidden)

    def __call__(self, tokens, info, images=None, image_index=None):
        """Next-token logits [b, t, vocab] of whole rows; images [b, n, h, w, 3]."""
        visual = None if images is None else self.visual_tokens(images)
        hidden, _ = self.hidden(tokens, info, visual, image_index)
        return self.logits(hidden)
