"""Where the patches of Idefics3's tiles stand in the table of positions."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.masked_vit import MaskedViT, MaskedViTConfig, buckets
from vlm_jax.models.transformer import TransformerConfig

BLOCKS = TransformerConfig(layers=2, width=8, heads=2, mlp_width=12)
CONFIG = MaskedViTConfig(8, 2, BLOCKS, pool="mean", pre_norm=False, patch_bias=True, final_norm="all", feature_layer=-1)


@pytest.mark.parametrize("side", [16, 26, 28, 32])
def test_full_images_of_published_sizes_take_the_table_as_it_is(side):
    assert buckets(side, side)[side].tolist() == list(range(side))


def test_smaller_images_are_spread_over_the_table():
    for n in (1, 2, 4, 8, 16):  # powers of two are exact in float32
        assert buckets(16, 16)[n, :n].tolist() == [int(Fraction(k, n) * 16) for k in range(n)]


def test_where_float32_rounds_down_a_patch_takes_the_place_before():
    """As torch 2.13 computes it (arange, bucketize)."""
    before = {19: [12], 25: [5, 9, 10, 11, 12, 13, 15, 18, 20, 23], 31: [17, 21, 25, 29]}
    for side, places in before.items():
        assert buckets(side, side)[side].tolist() == [k - (k in places) for k in range(side)]


def test_padding_is_not_seen():
    rng = np.random.default_rng(0)
    mask = np.zeros((1, 4, 4), bool)
    mask[:, :3, :2] = True
    pixels = rng.normal(size=(1, 8, 8, 3)).astype(np.float32)
    tree = jax.eval_shape(MaskedViT(CONFIG).init, jax.random.key(0), {"pixels": pixels, "mask": mask})["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), tree)
    run = jax.jit(lambda pixels: MaskedViT(CONFIG).apply({"params": params}, {"pixels": pixels, "mask": mask}).patches)
    other = pixels.copy()
    other[:, 6:], other[:, :, 4:] = 9, 9
    one, two = run(pixels), run(other)
    real = mask.reshape(1, -1)
    np.testing.assert_array_equal(one.mask, real)
    np.testing.assert_array_equal(np.asarray(one.features)[real], np.asarray(two.features)[real])
    assert np.abs(np.asarray(one.features) - np.asarray(two.features))[~real].max() > 0.1
