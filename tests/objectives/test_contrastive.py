"""Contrastive losses: numbers that can be worked out by hand, golden values, and loops over pairs."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.model import ModelConfig, abstract_params, init_params
from vlm_jax.models.text import TextConfig
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.two_tower import ContrastConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.objectives import pairs as losses
from vlm_jax.objectives.base import means, total
from vlm_jax.objectives.contrastive import Contrastive, ContrastiveConfig
from vlm_jax.objectives.pairs import same_text
from vlm_jax.objectives.registry import make_objective

softmax_loss, sigmoid_loss = jax.jit(losses.softmax_loss), jax.jit(losses.sigmoid_loss)


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def pairs(n, width=16, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(unit(rng.normal(size=(n, width))).astype(np.float32) for _ in range(2))


def golden():
    n = np.arange(128).reshape(8, 16)
    return unit(np.sin(1 + n)).astype(np.float32), unit(np.cos(0.5 + 0.7 * n)).astype(np.float32)


def brute_softmax(zimg, ztxt, scale, positives, valid):
    """Mean over both directions of -sum_j target_j log p_j in float64, summed over valid rows."""
    logits, loss = scale * zimg.astype(float) @ ztxt.T.astype(float), 0.0
    kept = np.flatnonzero(valid)
    for i in kept:
        right = [j for j in kept if positives[i, j]]
        for line in (logits[i], logits[:, i]):
            log_sum = math.log(sum(math.exp(line[j]) for j in kept))
            loss -= sum(line[j] - log_sum for j in right) / len(right) / 2
    return loss


# Golden values and closed forms.


def test_golden_values():
    """Worked out in float64 NumPy for rows made of sines; both are means over N = 8."""
    x, y = golden()
    assert float(x[0] @ y[0]) == pytest.approx(0.1836335200, abs=1e-6)
    assert float(softmax_loss(x, y, 1 / 0.07)) / 8 == pytest.approx(4.1608030487, abs=1e-5)
    assert float(sigmoid_loss(x, y, 10.0, -10.0)) / 8 == pytest.approx(9.8511709993, abs=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1 / 0.07])
def test_softmax_of_matched_orthonormal_pairs(scale):
    """Every right pair has cosine 1 and every wrong one 0: ln(1 + (N - 1) e^-scale)."""
    x = np.eye(8, dtype=np.float32)
    assert float(softmax_loss(x, x, scale)) / 8 == pytest.approx(math.log1p(7 * math.exp(-scale)), abs=1e-6)


@pytest.mark.parametrize("n, sigmoid", [(8, 0.6934650), (1024, 0.7395903)])
def test_sigmoid_of_matched_orthonormal_pairs(n, sigmoid):
    x = np.eye(n, dtype=np.float32)
    assert sigmoid == pytest.approx(math.log(2) + (n - 1) * softplus(-10), abs=1e-6)
    assert float(sigmoid_loss(x, x, 10.0, -10.0)) / n == pytest.approx(sigmoid, abs=1e-5)


@pytest.mark.parametrize("n, softmax, sigmoid", [(8, 2.0794415, 10.0003632), (1024, 6.9314718, 10.0464885)])
def test_features_of_zero_know_nothing(n, softmax, sigmoid):
    """ln N, and softplus(10) + (N - 1) softplus(-10)."""
    x = np.zeros((n, 4), np.float32)
    assert float(softmax_loss(x, x, 1 / 0.07)) / n == pytest.approx(softmax, rel=1e-6)
    assert float(sigmoid_loss(x, x, 10.0, -10.0)) / n == pytest.approx(sigmoid, rel=1e-6)


def test_random_features_start_where_theory_says():
    """Random directions in d dimensions have cosines of variance 1/d: ln N + scale^2 / 2d; softplus(10)."""
    x, y = pairs(256, width=512)
    theory = math.log(256) + 0.07**-2 / (2 * 512)
    assert float(softmax_loss(x, y, 1 / 0.07)) / 256 == pytest.approx(theory, abs=0.1)
    assert float(sigmoid_loss(x, y, 10.0, -10.0)) / 256 == pytest.approx(softplus(10), abs=0.1)


# Several right texts, and rows left out.


def test_a_text_that_two_images_share():
    """Two images with one caption: the target is half and half, and no features do better than ln 2."""
    x = np.ones((2, 1), np.float32)
    both = np.ones((2, 2), bool)
    assert float(softmax_loss(x, x, 5.0, both)) / 2 == pytest.approx(math.log(2), abs=1e-6)
    tilted = np.array([[1.0], [-1.0]], np.float32)
    assert float(softmax_loss(x, tilted, 1.0, both)) / 2 > math.log(2)


def test_several_positives_against_a_loop():
    x, y = pairs(6)
    tokens = np.array([[1, 2], [1, 3], [1, 2], [4, 4], [1, 3], [1, 2]])
    positives = np.asarray(same_text(tokens))
    assert np.array_equal(positives, [[a == b for b in "xyxzyx"] for a in "xyxzyx"])
    everyone = np.ones(6, bool)
    assert float(softmax_loss(x, y, 4.0, positives)) == pytest.approx(
        brute_softmax(x, y, 4.0, positives, everyone), rel=1e-5)
    assert float(softmax_loss(x, y, 4.0)) == pytest.approx(
        brute_softmax(x, y, 4.0, np.eye(6, dtype=bool), everyone), rel=1e-5)


def test_rows_that_are_not_valid_might_as_well_not_be_there():
    x, y = pairs(6, seed=1)
    positives = np.asarray(same_text(np.array([[1], [2], [1], [3], [2], [1]])))
    valid = np.array([True, False, True, True, True, False])
    loss = float(softmax_loss(x, y, 4.0, positives, valid))
    assert loss == pytest.approx(brute_softmax(x, y, 4.0, positives, valid), rel=1e-5)
    kept = np.ix_(valid, valid)
    assert loss == pytest.approx(float(softmax_loss(x[valid], y[valid], 4.0, positives[kept])), rel=1e-5)


def test_gradients_stop_at_rows_that_are_not_valid_and_are_finite_when_none_is():
    x, y = pairs(4, seed=2)
    gradient = jax.jit(jax.grad(lambda x, valid: softmax_loss(x, y, 4.0, valid=valid)))
    some = np.asarray(gradient(x, np.array([True, True, False, True])))
    assert np.isfinite(some).all() and (some[2] == 0).all() and (some[[0, 1, 3]] != 0).any(axis=1).all()
    none = np.zeros(4, bool)
    assert float(softmax_loss(x, y, 4.0, valid=none)) == 0 and (np.asarray(gradient(x, none)) == 0).all()


def test_sigmoid_labels_are_plus_one_for_positives_and_minus_one_for_the_rest():
    x, y = pairs(5, seed=3)
    positives = np.asarray(same_text(np.array([[1], [2], [1], [3], [2]])))
    logits = 3.0 * x.astype(float) @ y.T.astype(float) - 1.0
    for given, labels in ((None, np.eye(5, dtype=bool)), (positives, positives)):
        signed = np.where(labels, -logits, logits).ravel()
        expected = sum(softplus(z) for z in signed)
        assert float(sigmoid_loss(x, y, 3.0, -1.0, given)) == pytest.approx(expected, rel=1e-5)


def test_extreme_logits_stay_finite():
    x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], np.float32)
    for loss in (lambda x: softmax_loss(x, -x, 100.0), lambda x: sigmoid_loss(x, -x, 100.0, -10.0)):
        value, gradient = jax.jit(jax.value_and_grad(loss))(x)
        assert np.isfinite(value) and np.isfinite(gradient).all() and value > 100


# The objective on a model.

BLOCKS = TransformerConfig(layers=1, width=16, heads=2, mlp_width=32)


def model(contrast):
    return ModelConfig(ViTConfig(8, 4, BLOCKS), TextConfig(20, 4, 2, BLOCKS), contrast)


CLIP, SIGLIP = model(ContrastConfig(16)), model(ContrastConfig(16, scale=10.0, bias=-10.0))
BATCH = dict(images=np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32),
             text=np.array([[1, 3 + i, 3 + (5 * i) % 16, 2] for i in range(16)], np.int32))


def test_fresh_towers_start_where_theory_says():
    """About ln 16 for softmax and softplus(10) for sigmoid: fresh embeddings are not quite orthogonal."""
    blocks = TransformerConfig(layers=1, width=64, heads=2, mlp_width=64)
    contrast = dataclasses.replace(SIGLIP.contrast, embed_dim=256)
    config = ModelConfig(ViTConfig(8, 4, blocks), TextConfig(20, 4, 2, blocks), contrast)

    @jax.jit
    def start(rng):
        params = init_params(config, rng)
        zimg, ztxt, scale, bias = config.two_tower().apply({"params": params}, BATCH["images"], BATCH["text"])
        return softmax_loss(zimg, ztxt, 1 / 0.07) / 16, sigmoid_loss(zimg, ztxt, scale, bias) / 16

    softmax, sigmoid = start(jax.random.key(0, impl="rbg"))  # compiles faster than the default generator
    assert math.log(16) - 0.1 < softmax < math.log(16) + 1
    assert softplus(10) - 1 < sigmoid < softplus(10) + 2


def test_sums_are_the_loss_of_the_towers_and_weights_the_number_of_pairs():
    objective, rng = make_objective(ContrastiveConfig(loss="sigmoid"), SIGLIP), np.random.default_rng(1)
    fill = lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32)
    params = jax.tree.map(fill, abstract_params(SIGLIP))

    @jax.jit
    def run(params):
        towers = SIGLIP.two_tower().apply({"params": params}, BATCH["images"], BATCH["text"])
        return objective(params, BATCH, None), towers

    (sums, weights), (zimg, ztxt, scale, bias) = run(params)
    assert objective.terms == {"contrastive": 1.0}
    assert float(sums["contrastive"]) == pytest.approx(float(sigmoid_loss(zimg, ztxt, scale, bias)), rel=1e-5)
    assert weights == {"contrastive": 16, "accuracy": 16, "scale": 16}
    assert float(sums["scale"]) / 16 == pytest.approx(math.exp(params["logit_scale"]), rel=1e-5)
    best = (np.asarray(zimg) @ np.asarray(ztxt).T).argmax(1)
    assert sums["accuracy"] == (best == np.arange(16)).sum()


def test_accuracy_counts_a_repeated_caption_as_right():
    tokens, x = np.array([[1, 5], [1, 6], [1, 5]]), np.eye(3, dtype=np.float32)
    best = x[[2, 1, 1]]  # the text nearest to image 0 is 2, which has its caption; to image 2 a wrong one
    params, features = {"logit_scale": jnp.float32(0)}, {"zimg": best, "ztxt": x}
    compare = lambda positives: Contrastive(ContrastiveConfig(positives=positives), CLIP).compare(
        params, features, {"text": tokens})[0]["accuracy"]
    assert compare("diagonal") == 1 and compare("same_text") == 2


def test_means_are_taken_once_and_an_absent_loss_is_zero():
    sums, weights = {"a": jnp.float32(6), "b": jnp.float32(0)}, {"a": jnp.float32(4), "b": jnp.float32(0)}
    values = means(sums, weights)
    assert float(values["a"]) == 1.5 and float(values["b"]) == 0
    assert float(total({"a": 2.0, "b": 5.0}, values)) == 3.0


def test_settings_that_cannot_be_honoured():
    with pytest.raises(ValueError, match="loss 'infonce' is unknown; choose 'softmax' or 'sigmoid'"):
        ContrastiveConfig(loss="infonce")
    with pytest.raises(ValueError, match="positives 'all' is unknown; choose 'diagonal' or 'same_text'"):
        ContrastiveConfig(positives="all")
    with pytest.raises(ValueError, match="sigmoid loss needs a bias; set model.contrast.bias"):
        make_objective(ContrastiveConfig(loss="sigmoid"), CLIP)
    with pytest.raises(ValueError, match="no text tower"):
        make_objective(ContrastiveConfig(), ModelConfig(
            CLIP.vision, connector=ConnectorConfig(), decoder=DecoderConfig(20, BLOCKS)))
