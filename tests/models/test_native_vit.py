"""Images of any size on one canvas: who sees whom, held against loops, and no image that feels its neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.mask import build_mask
from vlm_jax.models.native_vit import NativeViT, NativeViTConfig
from vlm_jax.models.transformer import TransformerConfig

BLOCKS = TransformerConfig(layers=2, width=16, heads=2, mlp_width=24, norm="rms", gated_mlp=True, activation="silu",
                           rope_theta=100.0, rope_sections=(2, 2), rope_axial=True)
CONFIG = NativeViTConfig(patch_size=2, temporal_patch_size=1, merge=2, transformer=BLOCKS, window=4, full_layers=(1,))
GRIDS = [(1, 6, 4), (2, 2, 10)]  # frames, rows and columns


def places(grids):
    """(frame, row, column) of every patch, written out: cell by cell of 2 x 2, frames counted over all images."""
    out, first = [], 0
    for frames, rows, columns in grids:
        for frame in range(frames):
            for row in range(0, rows, 2):
                for column in range(0, columns, 2):
                    out += [(first + frame, row + i, column + j) for i in range(2) for j in range(2)]
        first += frames
    return np.array(out)


def canvas(grids, seed=0, padding=0):
    """One canvas of random patches with `padding` empty places behind them."""
    where = places(grids)
    patches = np.random.default_rng(seed).normal(size=(len(where), CONFIG.patch_values)).astype(np.float32)
    pad = lambda x, value: np.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1), constant_values=value)[None]
    return {"patches": pad(patches, 7), "positions": pad(where[:, 1:], 0).astype(np.int32),
            "frames": pad(where[:, 0], -1).astype(np.int32)}


@pytest.fixture(scope="module")
def params():
    return jax.jit(NativeViT(CONFIG).init)(jax.random.key(1), CONFIG.blank())["params"]


@jax.jit
def encode(params, images):
    return NativeViT(CONFIG).apply({"params": params}, images)


def test_a_layer_sees_a_frame_or_a_window_of_it():
    images, where = canvas(GRIDS, padding=4), places(GRIDS)
    windowed, whole = (np.asarray(build_mask(info, info))[0] for info in NativeViT(CONFIG).descriptions(
        jnp.asarray(images["positions"]), jnp.asarray(images["frames"])))
    for q, (frame, row, column) in enumerate(where):
        for k, (other, y, x) in enumerate(where):
            assert whole[q, k] == (frame == other)
            assert windowed[q, k] == (frame == other and row // 4 == y // 4 and column // 4 == x // 4)
    assert not whole[:, len(where):].any() and not windowed[:, len(where):].any()
    assert windowed[0].sum() == 16 and windowed[16].sum() == 8  # the second row of windows is cut off at row 6


def test_an_image_has_the_same_features_alone_and_beside_others(params):
    images = canvas(GRIDS, padding=8)
    together = encode(params, images)
    assert together.patches.features.shape == (1, 18, 64)
    assert together.patches.mask[0].tolist() == [True] * 16 + [False] * 2
    for grid, part in zip(GRIDS, (slice(0, 24), slice(24, 64))):
        alone = {name: value[:, part] for name, value in images.items()}
        alone["frames"] = alone["frames"] - alone["frames"].min()
        features = encode(params, alone).patches.features
        cells = slice(part.start // 4, part.stop // 4)
        np.testing.assert_allclose(together.patches.features[:, cells], features, atol=1e-5)


def test_features_depend_on_where_a_patch_lies(params):
    """Moved as a whole, an image looks the same (rotary positions are relative); two patches swapped do not."""
    images = canvas([(1, 4, 4)])
    before = encode(params, images).patches.features
    moved = encode(params, images | {"positions": images["positions"] + np.array([4, 8])}).patches.features
    np.testing.assert_allclose(moved, before, atol=1e-5)
    swapped = encode(params, images | {"positions": images["positions"][..., ::-1]}).patches.features
    assert np.abs(swapped - before).max() > 1e-2


def test_the_patches_of_a_cell_are_joined_in_order(params):
    """The features of a cell are its patches' last states side by side, and it lies where its patches lie."""
    out = encode(params, canvas([(1, 4, 6)]))
    np.testing.assert_array_equal(out.patches.features.reshape(1, 24, 16), out.last)
    assert out.patches.positions[0].tolist() == [[row, column] for row in range(2) for column in range(3)]


def test_pooled_is_the_mean_of_the_real_patches(params):
    out = encode(params, canvas([(1, 2, 4)], padding=4))
    np.testing.assert_allclose(out.pooled[0], np.asarray(out.last)[0, :8].mean(0), atol=1e-6)
