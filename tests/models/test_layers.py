"""Dense layers, norms, activations and rotary positions against closed forms in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models import rope
from vlm_jax.models.layers import Linear, Mlp, Norm, activation

rotate = jax.jit(rope.rotate, static_argnums=2)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Activations.


def test_activations_at_one():
    value = lambda name: float(activation(name)(jnp.float32(1.0)))
    assert value("gelu") == pytest.approx(0.5 * (1 + math.erf(1 / math.sqrt(2))), abs=1e-6)  # 0.841345
    assert value("gelu_tanh") == pytest.approx(
        0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (1 + 0.044715))), abs=1e-6)  # 0.841192
    assert value("quick_gelu") == pytest.approx(1 / (1 + math.exp(-1.702)), abs=1e-6)  # 0.845796
    assert value("silu") == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-6)


def test_the_three_gelus_are_three_functions():
    x = np.linspace(-4, 4, 81, dtype=np.float32)
    exact, tanh, quick = (np.asarray(activation(name)(x)) for name in ("gelu", "gelu_tanh", "quick_gelu"))
    assert np.allclose(exact, [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x], atol=1e-6)
    assert np.allclose(quick, x / (1 + np.exp(-1.702 * x)), atol=1e-6)
    assert 1e-4 < np.abs(exact - tanh).max() < 1e-3
    assert 1e-2 < np.abs(exact - quick).max() < 3e-2


def test_an_unknown_activation_names_the_known_ones():
    with pytest.raises(ValueError, match="'gleu' is unknown.*gelu, gelu_tanh, quick_gelu, silu"):
        activation("gleu")


# Linear, norms, Mlp.


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 5, 3), (2, 4, 5, 3)])
def test_linear_acts_on_the_last_axis(shape):
    x, kernel, bias = normal(*shape), normal(3, 4, seed=1), normal(4, seed=2)
    y = Linear(4).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    assert y.shape == (*shape[:-1], 4)
    assert np.allclose(y, x @ kernel + bias, atol=1e-5)


def test_linear_starts_at_the_scale_it_is_given():
    x = np.zeros((1, 64), np.float32)
    default = Linear(256).init(jax.random.key(0), x)["params"]
    small = Linear(256, use_bias=False, std=0.01).init(jax.random.key(0), x)["params"]
    assert default["kernel"].std() == pytest.approx(64**-0.5, rel=0.05)
    assert (default["bias"] == 0).all()
    assert small["kernel"].std() == pytest.approx(0.01, rel=0.05) and list(small) == ["kernel"]


def test_norms():
    x, scale, bias = 3 + normal(2, 5, 8), normal(8, seed=1), normal(8, seed=2)
    centred = x - x.mean(-1, keepdims=True)
    layer = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias
    rms = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale
    apply = lambda kind, **params: Norm(kind, 1e-5).apply({"params": params}, x)
    assert np.allclose(apply("layer", scale=scale, bias=bias), layer, atol=1e-5)
    assert np.allclose(apply("rms", scale=scale), rms, atol=1e-5)


def test_norms_have_the_parameters_of_their_kind():
    x = normal(2, 8)
    assert sorted(Norm("layer", 1e-5).init(jax.random.key(0), x)["params"]) == ["bias", "scale"]
    assert sorted(Norm("rms", 1e-5).init(jax.random.key(0), x)["params"]) == ["scale"]
    with pytest.raises(ValueError, match="'batch' is unknown"):
        Norm("batch", 1e-5).init(jax.random.key(0), x)


def test_norms_compute_in_float32():
    """Values near 1,000 with spread 4: a bfloat16 mean of squares would lose the spread."""
    x = jnp.asarray(1000 + 4 * np.arange(8, dtype=np.float32), jnp.bfloat16)
    y = Norm("layer", 1e-5).apply({"params": {"scale": np.ones(8), "bias": np.zeros(8)}}, x)
    exact = np.asarray(x, np.float64)
    assert y.dtype == jnp.bfloat16
    assert np.allclose(np.asarray(y, np.float32), (exact - exact.mean()) / exact.std(), atol=0.02)


@pytest.mark.parametrize("gated", [False, True])
def test_mlp(gated):
    x = normal(2, 3, 8)
    weights = {name: normal(*shape, seed=n) for n, (name, shape) in enumerate(
        dict(up=(8, 16), gate=(8, 16), down=(16, 8)).items(), start=1)}
    names = ("up", "gate", "down") if gated else ("up", "down")
    out = Mlp(16, "silu", gated, False, 0.1).apply({"params": {n: {"kernel": weights[n]} for n in names}}, x)
    silu = lambda z: z / (1 + np.exp(-z))
    inner = silu(x @ weights["gate"]) * (x @ weights["up"]) if gated else silu(x @ weights["up"])
    assert np.allclose(out, inner @ weights["down"], atol=1e-4)


# Rotary positions.


def test_one_radian_by_hand():
    """Two channels are one pair of frequency 1: position 1 turns it by one radian."""
    x = np.array([1.0, 0.0], np.float32).reshape(1, 1, 1, 2)
    assert np.allclose(rotate(x, np.array([[1]]), 10_000.0).ravel(), [math.cos(1), math.sin(1)], atol=1e-6)
    assert np.array_equal(rotate(x, np.array([[0]]), 10_000.0), x)


def test_half_split_pairs_are_complex_numbers():
    """Channels i and i + d/2 are the real and imaginary part of what position p turns by p theta^(-2i/d)."""
    x, theta, d = normal(2, 4, 3, 8), 100.0, 8
    positions = np.array([[0, 1, 5, 40], [3, 3, 2, 1]])
    pairs = x[..., : d // 2] + 1j * x[..., d // 2:]
    for i in range(d // 2):
        pairs[..., i] *= np.exp(1j * positions * theta ** (-2 * i / d))[:, :, None]
    expected = np.concatenate([pairs.real, pairs.imag], axis=-1)
    assert np.allclose(rotate(x, positions, theta), expected, atol=1e-5)


def test_scores_depend_on_the_distance_alone():
    q, k = normal(1, 1, 1, 16), normal(1, 1, 1, 16, seed=1)
    at = lambda x, p: np.asarray(rotate(x, np.array([[p]]), 10_000.0)).ravel()
    scores = {(p, s): at(q, p) @ at(k, s) for p, s in [(7, 4), (3, 0), (103, 100), (4, 7)]}
    assert scores[3, 0] == pytest.approx(scores[7, 4], abs=1e-5)
    assert scores[103, 100] == pytest.approx(scores[7, 4], abs=1e-4)
    assert abs(scores[4, 7] - scores[7, 4]) > 0.1  # and on its sign


def test_rotation_keeps_lengths_and_dtype():
    x = normal(1, 3, 2, 8)
    turned = rotate(x, np.array([[0, 9, 500]]), 10_000.0)
    assert np.allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), atol=1e-5)
    assert rotate(jnp.asarray(x, jnp.bfloat16), np.array([[0, 9, 500]]), 1e4).dtype == jnp.bfloat16
