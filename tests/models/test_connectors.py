"""Connectors: plain matrix products on the features, into the decoder's width."""

import math

import jax
import numpy as np
import pytest

from vlm_jax.models.connectors import CONNECTORS, ConnectorConfig, connector
from vlm_jax.models.qformer import QFormerConfig
from vlm_jax.models.vit import Features

X = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
FEATURES = Features(X, positions=np.zeros((2, 4, 2), np.int32), mask=np.ones((2, 4), bool))


def parameters(module):
    tree = jax.eval_shape(module.init, jax.random.key(0), FEATURES)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def test_linear():
    module = connector(ConnectorConfig("linear"), 8)
    params = parameters(module)
    assert list(params) == ["linear_1"]
    assert np.allclose(module.apply({"params": params}, FEATURES), dense(params["linear_1"], X), atol=1e-5)


def test_mlp_with_exact_gelu_between_two_layers():
    module = connector(ConnectorConfig(), 8)
    params = parameters(module)
    shapes = {name: leaf["kernel"].shape for name, leaf in params.items()}
    assert shapes == {"linear_1": (6, 8), "linear_2": (8, 8)}
    gelu = np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))))
    expected = dense(params["linear_2"], gelu(dense(params["linear_1"], X)))
    assert np.allclose(module.apply({"params": params}, FEATURES), expected, atol=1e-4)


def test_norm_linear_multiplies_by_one_plus_the_scale_and_adds_no_bias():
    module = connector(ConnectorConfig("norm_linear", norm_eps=0.1), 8)
    params = parameters(module)
    assert {name: list(leaf) for name, leaf in params.items()} == {"norm": ["scale"], "linear_1": ["kernel"]}
    normed = X / np.sqrt((X**2).mean(-1, keepdims=True) + 0.1) * (1 + params["norm"]["scale"])
    assert np.allclose(module.apply({"params": params}, FEATURES), normed @ params["linear_1"]["kernel"], atol=1e-5)


def test_norm_mlp_begins_with_a_layer_norm():
    module = connector(ConnectorConfig("norm_mlp", activation="relu", norm_eps=0.1), 8)
    params = parameters(module)
    centred = X - X.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.1)
    normed = normed * params["norm"]["scale"] + params["norm"]["bias"]
    expected = dense(params["linear_2"], np.maximum(dense(params["linear_1"], normed), 0))
    assert np.allclose(module.apply({"params": params}, FEATURES), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_biases_can_be_left_out(kind):
    tree = parameters(connector(ConnectorConfig(kind, bias=False), 8))
    assert all(list(layer) == ["kernel"] for layer in tree.values())


@pytest.mark.parametrize("kind", CONNECTORS)
def test_every_connector_maps_into_the_decoders_width(kind):
    queries = QFormerConfig(4, layers=1, width=4, heads=2, mlp_width=4) if kind == "qformer" else None
    module = connector(ConnectorConfig(kind, qformer=queries), 8)
    out, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), FEATURES)
    assert out.shape == (2, 4, 8)


def test_an_unknown_connector_names_the_known_ones():
    with pytest.raises(ValueError, match="'resampler' is unknown; choose one of linear, mlp"):
        ConnectorConfig("resampler")
