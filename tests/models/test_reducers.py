"""Reducers, held against loops over cells, and the token count, held against what the whole model gives."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.model import ModelConfig, abstract_params
from vlm_jax.models.reducers import REDUCERS, reduce
from vlm_jax.models.tokens import num_visual_tokens
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.vit import Features, ViTConfig

BLOCKS = TransformerConfig(layers=1, width=8, heads=2, mlp_width=8)


def features(side, width=3, batch=2):
    x = np.random.default_rng(0).normal(size=(batch, side * side, width)).astype(np.float32)
    grid = np.broadcast_to(np.stack(np.divmod(np.arange(side * side), side), axis=-1), (batch, side * side, 2))
    return Features(x, grid, np.ones((batch, side * side), bool))


@pytest.mark.parametrize("side, factor", [(4, 2), (6, 3), (5, 2), (3, 1)])
def test_average_is_the_mean_of_each_cell(side, factor):
    given = features(side)
    out = reduce("average", factor, given)
    kept = side // factor
    for cell, (row, column) in enumerate(itertools.product(range(kept), range(kept))):
        members = [(row * factor + i) * side + column * factor + j for i in range(factor) for j in range(factor)]
        assert np.allclose(out.features[:, cell], given.features[:, members].mean(axis=1), atol=1e-6)
        assert np.array_equal(out.positions[:, cell], [[row, column]] * 2)
    assert out.features.shape == (2, kept * kept, 3) and out.mask.all()


@pytest.mark.parametrize("side, factor", [(4, 2), (6, 3), (3, 1)])
def test_pixel_shuffle_puts_the_features_of_a_cell_side_by_side(side, factor):
    """Row by row inside a cell, and the channels of a patch together."""
    given = features(side)
    out = reduce("pixel_shuffle", factor, given).features
    kept = side // factor
    for cell, (row, column) in enumerate(itertools.product(range(kept), range(kept))):
        members = [(row * factor + i) * side + column * factor + j for i in range(factor) for j in range(factor)]
        assert np.array_equal(out[:, cell], np.concatenate([given.features[:, m] for m in members], axis=-1))
    assert out.shape == (2, kept * kept, 3 * factor**2)


def test_a_cell_is_real_where_any_of_its_patches_is():
    given = features(4, batch=1)
    mask = np.zeros((1, 16), bool)
    mask[0, 7] = True  # second row, last column
    out = reduce("average", 2, dataclasses.replace(given, mask=mask))
    assert np.array_equal(out.mask, [[False, True, False, False]])


def test_without_a_reducer_nothing_changes():
    given = features(3)
    assert reduce(None, 1, given) is given


def test_a_grid_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="4 features cannot be reduced by 3"):
        reduce("average", 3, features(2))


def test_a_grid_that_is_not_square_is_refused():
    odd = Features(np.zeros((1, 6, 2), np.float32), np.zeros((1, 6, 2), np.int32), np.ones((1, 6), bool))
    with pytest.raises(ValueError, match="6 features .* square grid"):
        reduce("average", 2, odd)


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("size, patch, factor", [(8, 2, 2), (14, 2, 3)])
def test_the_model_gives_as_many_tokens_as_are_counted(reducer, size, patch, factor):
    config = ModelConfig(
        vision=ViTConfig(size, patch, BLOCKS), connector=ConnectorConfig("linear", reducer=reducer, factor=factor),
        decoder=DecoderConfig(9, BLOCKS))
    images = jax.ShapeDtypeStruct((1, 2, size, size, 3), np.float32)
    tokens = jax.eval_shape(lambda p, x: config.vlm().apply({"params": p}, x, method="visual_tokens"),
                            abstract_params(config), images)
    assert tokens.shape == (1, 2 * num_visual_tokens(config, 640, 480), 8)
    assert num_visual_tokens(config, 640, 480) == (size // patch // factor) ** 2
    assert num_visual_tokens(config.vision, 640, 480) == (size // patch) ** 2


@pytest.mark.parametrize("options, what", [
    (dict(reducer="perceiver"), "'perceiver' is unknown; choose one of average"),
    (dict(factor=2), "factor 2 must be .* 1 where there is no reducer"),
    (dict(reducer="average", factor=0), "factor 0 must be at least 1"),
])
def test_a_reducer_that_cannot_be_is_refused(options, what):
    with pytest.raises(ValueError, match=what):
        ConnectorConfig("linear", **options)
