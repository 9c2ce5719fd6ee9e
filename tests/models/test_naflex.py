"""SigLIP 2's NaFlex encoder: each image as if it were alone, in its own grid."""

import jax
import numpy as np
import pytest

from vlm_jax.models import positions
from vlm_jax.models.naflex import NaFlex, NaFlexConfig
from vlm_jax.models.transformer import TransformerConfig

CONFIG = NaFlexConfig(9, 2, TransformerConfig(layers=2, width=8, heads=2, mlp_width=12), feature_layer=-1)
MEAN = NaFlexConfig(9, 2, CONFIG.transformer, pool="mean")
SHAPES = np.array([[2, 4], [3, 1]])
MASK = np.arange(8) < SHAPES.prod(axis=1)[:, None]
PATCHES = np.random.default_rng(0).normal(size=(2, 8, 12)).astype(np.float32)


def parameters(config):
    tree = jax.eval_shape(NaFlex(config).init, jax.random.key(0), config.blank())["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), tree)


PARAMS = parameters(CONFIG)
resized = jax.jit(positions.resized, static_argnums=(1, 2, 3))
run = jax.jit(lambda config, params, patches, shapes, mask: NaFlex(config).apply(
    {"params": params}, {"patches": patches, "shapes": shapes, "mask": mask}), static_argnums=0)


def test_patches_have_the_positions_of_their_own_grid():
    images = {"patches": PATCHES, "shapes": SHAPES, "mask": MASK}
    first = jax.jit(lambda *args: NaFlex(CONFIG).apply(*args, method="states")[0])({"params": PARAMS}, images)
    projected = PATCHES @ PARAMS["patch_embed"]["kernel"] + PARAMS["patch_embed"]["bias"]
    table = PARAMS["position_embedding"].reshape(3, 3, 8)
    for i, (rows, columns) in enumerate(SHAPES.tolist()):
        places = np.asarray(resized(table, rows, columns, "bilinear_antialias")).reshape(-1, 8)
        places = np.concatenate([places, np.repeat(places[:1], 8 - len(places), axis=0)])  # padding has the first one's
        np.testing.assert_allclose(first[i], projected[i] + places, atol=1e-4)


@pytest.mark.parametrize("config", [CONFIG, MEAN])
def test_an_image_is_what_it_is_without_padding_and_neighbours(config):
    params = parameters(config)
    both = run(config, params, PATCHES, SHAPES, MASK)
    assert not np.asarray(both.last)[1, 3:].any() and both.patches.mask.tolist() == MASK.tolist()
    assert both.patches.positions[0].tolist() == [[r, c] for r in range(2) for c in range(4)]
    alone = run(config, params, PATCHES[1:, :3], SHAPES[1:], MASK[1:, :3])
    np.testing.assert_allclose(both.last[1, :3], alone.last[0], atol=1e-4)
    np.testing.assert_allclose(both.pooled[1], alone.pooled[0], atol=1e-4)
    np.testing.assert_allclose(both.patches.features[1, :3], alone.patches.features[0], atol=1e-4)


def test_mean_pooling_is_over_real_patches():
    out = run(MEAN, parameters(MEAN), PATCHES, SHAPES, MASK)
    np.testing.assert_allclose(out.pooled[1], np.asarray(out.last)[1, :3].mean(axis=0), atol=1e-5)


def test_configs_that_cannot_be_honoured():
    with pytest.raises(ValueError, match="num_patches 10 is no square; use 9 or 16"):
        NaFlexConfig(10, 2, CONFIG.transformer)
    with pytest.raises(ValueError, match="pool 'cls' is unknown"):
        NaFlexConfig(9, 2, CONFIG.transformer, pool="cls")
