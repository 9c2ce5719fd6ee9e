"""Regions: the area that patches share with a box, and boxes that are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.model import ModelConfig, abstract_params
from vlm_jax.models.text import TextConfig
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.two_tower import ContrastConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.objectives import regions
from vlm_jax.objectives.base import total
from vlm_jax.objectives.contrastive import ContrastiveConfig
from vlm_jax.objectives.regions import RegionsConfig
from vlm_jax.objectives.registry import make_objective

box_weights = jax.jit(regions.box_weights, static_argnums=(1, 2))


def boxes(*rows):
    return np.array([rows], np.float32)


@pytest.mark.parametrize("box, weights", [
    ((0, 0, 1, 1), [[0.25, 0.25], [0.25, 0.25]]),
    ((0, 0, 0.5, 0.5), [[1, 0], [0, 0]]),
    ((0.5, 0, 1, 1), [[0, 0.5], [0, 0.5]]),  # left, top, right, bottom: the right half
    ((0.25, 0, 1, 0.5), [[1 / 3, 2 / 3], [0, 0]]),
    ((-1, -1, 0.5, 2), [[0.5, 0], [0.5, 0]]),  # what lies outside the image does not count
    ((0.3, 0.3, 0.3, 0.8), [[0, 0], [0, 0]]),  # no area
    ((0, 0, 0, 0), [[0, 0], [0, 0]]),
])
def test_on_a_grid_of_two_by_two(box, weights):
    assert np.allclose(box_weights(boxes(box), 2, 2), np.reshape(weights, (1, 1, 4)), atol=1e-6)


def test_random_boxes_against_a_count_of_small_cells():
    """Each patch cut into 20 x 20 cells; boxes on cell borders, so that counting is exact."""
    rows, columns, fine = 3, 4, 20
    rng = np.random.default_rng(0)
    drawn, expected = [], []
    for _ in range(8):
        top, bottom = sorted(rng.choice(rows * fine + 1, 2, replace=False))
        left, right = sorted(rng.choice(columns * fine + 1, 2, replace=False))
        drawn.append(np.array([left, top, right, bottom]) / fine / (columns, rows, columns, rows))
        cells = np.zeros((rows * fine, columns * fine))
        cells[top:bottom, left:right] = 1
        share = cells.reshape(rows, fine, columns, fine).sum((1, 3)).ravel()
        expected.append(share / share.sum())
    weights = np.asarray(box_weights(np.array([drawn[:4], drawn[4:]], np.float32), rows, columns))
    assert weights.shape == (2, 4, 12)
    assert np.allclose(weights.reshape(8, 12), expected, atol=1e-5)


# The objective on a model.

BLOCKS = TransformerConfig(layers=1, width=16, heads=2, mlp_width=32)
MODEL = ModelConfig(
    ViTConfig(8, 4, BLOCKS, feature_layer=-1), TextConfig(20, 4, 2, BLOCKS), ContrastConfig(embed_dim=16))


def batch():
    """Two images of two boxes each; the last box has no area. Boxes 0 and 2 have the same phrase."""
    rng = np.random.default_rng(1)
    return dict(images=rng.normal(size=(2, 8, 8, 3)).astype(np.float32),
                text=np.array([[1, 3, 4, 2], [1, 5, 6, 2]], np.int32),
                boxes=np.array([[[0, 0, 0.5, 0.5], [0.25, 0.5, 1, 1]],
                                [[0.5, 0, 1, 1], [0, 0, 0, 0]]], np.float32),
                box_text=np.array([[[1, 7, 2, 0], [1, 8, 2, 0]], [[1, 7, 2, 0], [0, 0, 0, 0]]], np.int32))


@pytest.fixture(scope="module")
def objective():
    """(objective, parameters, the objective with its gradient, compiled)."""
    config = RegionsConfig(weight=0.5, contrastive=ContrastiveConfig(positives="same_text"))
    made, rng = make_objective(config, MODEL), np.random.default_rng(2)
    fill = lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32)
    params = jax.tree.map(fill, abstract_params(MODEL))

    def run(params, batch):
        def loss(params):
            sums, weights = made(params, batch, None)
            return total(made.terms, sums), (sums, weights)
        gradient, (sums, weights) = jax.grad(loss, has_aux=True)(params)
        return sums, weights, gradient

    run = jax.jit(run)
    return made, params, lambda batch: jax.tree.map(np.asarray, run(params, batch))


def test_terms_are_the_contrastive_loss_and_the_weighted_region_loss(objective):
    assert objective[0].terms == {"contrastive": 1.0, "regions": 0.5}


def test_the_region_loss_against_a_loop(objective):
    """Features averaged over each box, normed and projected, against phrases: three regions, two phrases."""
    _, params, run = objective
    given, tower = batch(), MODEL.two_tower()

    @jax.jit
    def outputs(params):
        features = tower.apply({"params": params}, given["images"], method="encode_image")[1].patches.features
        pooled = box_weights(given["boxes"], 2, 2) @ features
        z = [tower.apply({"params": params}, x, method=method) for x, method in (
            (pooled.reshape(4, -1), "embed_features"), (given["box_text"].reshape(4, 4), "encode_text"))]
        return *z, jnp.exp(jnp.minimum(params["logit_scale"], jnp.log(100.0)))

    zbox, ztext, scale = (np.asarray(x, float) for x in outputs(params))
    logits, phrases, loss = scale * zbox[:3] @ ztext[:3].T, "xyx", 0.0
    for i in range(3):
        right = [j for j in range(3) if phrases[j] == phrases[i]]
        for line in (logits[i], logits[:, i]):
            loss += (np.log(np.exp(line).sum()) - line[right].mean()) / 2
    sums, weights, _ = run(given)
    assert weights == {"contrastive": 2, "accuracy": 2, "scale": 2, "regions": 3}
    assert sums["regions"] == pytest.approx(loss, rel=1e-4)


def test_a_box_without_area_is_no_region(objective):
    _, _, run = objective
    other = batch()
    other["box_text"][1, 1] = [1, 7, 2, 0]
    other["boxes"][1, 1] = [0.7, 0.2, 0.7, 0.9]
    (sums, weights, gradient), (theirs, _, gradient2) = run(batch()), run(other)
    assert weights["regions"] == 3
    assert sums["regions"] == pytest.approx(theirs["regions"], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradient, gradient2)


def test_a_batch_without_any_region_has_loss_and_weight_zero(objective):
    _, _, run = objective
    none = batch()
    none["boxes"][:] = 0
    sums, weights, gradient = run(none)
    assert sums["regions"] == 0 and weights["regions"] == 0 and sums["contrastive"] > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_box_outside_the_image_is_no_region_either(objective):
    _, _, run = objective
    outside = batch()
    outside["boxes"][1, 1] = [1.1, 0.0, 1.5, 1.0]
    outside["box_text"][1, 1] = [1, 9, 2, 0]
    assert run(outside)[1]["regions"] == 3


def test_every_parameter_of_both_towers_learns(objective):
    for path, leaf in jax.tree_util.tree_leaves_with_path(objective[2](batch())[2]):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        assert "['k']['bias']" in name or np.abs(leaf).max() > 0, name  # softmax ignores what all keys share
