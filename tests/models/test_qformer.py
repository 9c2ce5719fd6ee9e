"""The Q-Former, held against NumPy, layer by layer and head by head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from vlm_jax.models.connectors import ConnectorConfig, connector
from vlm_jax.models.qformer import QFormer, QFormerConfig
from vlm_jax.models.tokens import num_visual_tokens
from vlm_jax.models.vit import Features

CONFIG = QFormerConfig(queries=3, layers=4, width=8, heads=2, mlp_width=12, cross_every=3, norm_eps=1e-12)


def features(seed=0, tokens=5, mask=None):
    x = np.random.default_rng(seed).normal(size=(2, tokens, 6)).astype(np.float32)
    mask = np.ones((2, tokens), bool) if mask is None else mask
    return Features(jnp.asarray(x), jnp.zeros((2, tokens, 2), jnp.int32), jnp.asarray(mask))


@pytest.fixture(scope="module")
def params():
    """Every value drawn anew, so that biases and norms matter too."""
    tree = jax.jit(QFormer(CONFIG).init)(jax.random.key(0), features())["params"]
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(structure, [rng.normal(0.3, 0.4, leaf.shape).astype(np.float32) for leaf in leaves])


@jax.jit
def run(params, given):
    return QFormer(CONFIG).apply({"params": params}, given)


def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def dense(p, x):
    return x @ p["kernel"].astype(float) + p["bias"]


def attend(p, x, source):
    out = np.zeros_like(x)
    q, k, v = dense(p["q"], x), dense(p["k"], source), dense(p["v"], source)
    for head in (slice(0, 4), slice(4, 8)):
        weights = np.exp(q[:, head] @ k[:, head].T / 2)
        out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head]
    return norm(p["norm"], x + dense(p["o"], out))


def numpy_qformer(params, source):
    """One image [tokens, f]: post-norm layers, of which 0 and 3 also read the image."""
    x = norm(params["norm"], params["query_tokens"].astype(float))
    layer = lambda name, i: jax.tree.map(lambda leaf: leaf[i], params[name])
    for i in range(4):
        x = attend(layer("attn", i), x, x)
        if i in (0, 3):
            x = attend(layer("cross", i // 3), x, source)
        feed = layer("feed", i)
        hidden = dense(feed["mlp"]["up"], x)
        x = norm(feed["norm"], x + dense(feed["mlp"]["down"], hidden * (1 + erf(hidden / 2**0.5)) / 2))
    return x


def test_values_are_those_of_numpy(params):
    given = features()
    wanted = [numpy_qformer(params, np.asarray(source, float)) for source in given.features]
    np.testing.assert_allclose(run(params, given), wanted, atol=1e-4)


def test_only_real_features_are_read(params):
    mask = np.array([[True] * 5, [True] * 3 + [False] * 2])
    out = run(params, features(mask=mask))
    cut = features().features[1, :3]
    np.testing.assert_allclose(out[1], numpy_qformer(params, np.asarray(cut, float)), atol=1e-4)


def test_parameters_are_stacked_over_the_layers_that_have_them(params):
    assert params["attn"]["q"]["kernel"].shape == (4, 8, 8) and params["cross"]["k"]["kernel"].shape == (2, 6, 8)
    assert CONFIG.cross_layers == 2


def test_as_a_connector_it_gives_as_many_tokens_for_every_image():
    config = ConnectorConfig("qformer", qformer=CONFIG)
    for tokens in (5, 9):
        out = jax.eval_shape(lambda x: connector(config, 16).init_with_output(jax.random.key(0), x)[0],
                             features(tokens=tokens))
        assert out.shape == (2, 3, 16)

    class Model:
        vision, connector = None, config

    assert num_visual_tokens(Model, 640, 480) == 3


def test_mistakes_are_one_sentence():
    with pytest.raises(ValueError, match="connector.qformer and the kind 'qformer' belong together"):
        ConnectorConfig("qformer")
    with pytest.raises(ValueError, match="belong together"):
        ConnectorConfig("mlp", qformer=CONFIG)
    with pytest.raises(ValueError, match="width 8 is not divisible by heads 3"):
        QFormerConfig(queries=1, layers=1, width=8, heads=3, mlp_width=8)
