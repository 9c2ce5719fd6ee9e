"""The two towers: unit vectors, a capped temperature, a bias only where the config has one."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.text import TextConfig, TextTower
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.two_tower import ContrastConfig, TwoTower, normalise
from vlm_jax.models.vit import ViT, ViTConfig

EYES = ViTConfig(8, 4, TransformerConfig(layers=1, width=12, heads=2, mlp_width=24))
TEXT = TextConfig(20, 6, 2, TransformerConfig(layers=1, width=8, heads=2, mlp_width=16))
CLIP, SIGLIP = ContrastConfig(10), ContrastConfig(10, scale=10.0, bias=-10.0)
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
FEATURES = np.random.default_rng(2).normal(size=(3, 5, 12)).astype(np.float32)
TOKENS = np.array([[1, 4, 2, 0, 0, 0], [1, 5, 6, 2, 0, 0], [1, 7, 8, 9, 3, 2]], np.int32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def scale_and_bias(config, **params):
    params = {"logit_scale": jnp.float32(math.log(config.scale))} | params
    return TwoTower(EYES, TEXT, config).apply({"params": params}, method="scale_and_bias")


def test_normalise():
    assert np.allclose(normalise(np.array([3.0, 4.0])), [0.6, 0.8])
    assert normalise(jnp.ones(4, jnp.bfloat16)).dtype == jnp.float32
    zero = np.zeros(3, np.float32)
    assert (np.asarray(normalise(zero)) == 0).all()
    assert np.isfinite(jax.jit(jax.grad(lambda x: normalise(x).sum()))(zero)).all()


def test_the_initial_scale_and_bias_are_the_papers():
    def start(config):
        def init(rng):
            params = TwoTower(EYES, TEXT, config).init(rng, IMAGES[:1], TOKENS[:1])["params"]
            return {name: leaf for name, leaf in params.items() if name.startswith("logit")}
        return jax.jit(init)(jax.random.key(0))

    clip, siglip = start(CLIP), start(SIGLIP)
    assert list(clip) == ["logit_scale"]
    assert math.exp(clip["logit_scale"]) == pytest.approx(1 / 0.07, rel=1e-5)
    assert math.exp(siglip["logit_scale"]) == pytest.approx(10, rel=1e-5) and siglip["logit_bias"] == -10


def test_scale_is_the_exponential_of_its_parameter_up_to_the_cap():
    scale = lambda value, config=CLIP: float(scale_and_bias(config, logit_scale=jnp.float32(value))[0])
    assert scale(0.0) == pytest.approx(1) and scale(math.log(50)) == pytest.approx(50, rel=1e-5)
    assert scale(math.log(100)) == pytest.approx(100, rel=1e-5)
    assert scale(9.0) == pytest.approx(100, rel=1e-5)
    assert scale(9.0, dataclasses.replace(CLIP, max_scale=20.0)) == pytest.approx(20, rel=1e-5)


def test_a_scale_at_the_cap_can_come_down_again():
    """CLIP clips the parameter after each step, so that it always has a gradient. One that lost its gradient
    above the cap would stay there for good: nothing decays it."""
    gradient = jax.grad(lambda value: scale_and_bias(CLIP, logit_scale=value)[0])
    assert float(gradient(jnp.float32(math.log(99)))) == pytest.approx(99, rel=1e-4)
    assert float(gradient(jnp.float32(math.log(100) + 0.01))) > 50


def test_the_bias_is_zero_where_the_config_has_none():
    assert float(scale_and_bias(CLIP)[1]) == 0
    assert float(scale_and_bias(SIGLIP, logit_bias=jnp.float32(-3))[1]) == -3


@pytest.fixture(scope="module")
def towers():
    """(parameters, what the assembly gives, what the two towers give alone)."""
    model = TwoTower(EYES, TEXT, SIGLIP)
    tree = jax.eval_shape(model.init, jax.random.key(0), IMAGES, TOKENS)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), tree)

    @jax.jit
    def run(params):
        zimg, ztxt, scale, bias = model.apply({"params": params}, IMAGES, TOKENS)
        ours = dict(zimg=zimg, ztxt=ztxt, scale=scale, bias=bias,
                    features=model.apply({"params": params}, FEATURES, method="embed_features"))
        theirs = (ViT(EYES).apply({"params": params["vision"]}, IMAGES).pooled,
                  TextTower(TEXT).apply({"params": params["text"]}, TOKENS))
        return ours, theirs

    return (params, *jax.tree.map(np.asarray, run(params)))


def test_embeddings_are_the_towers_outputs_projected_and_normalised(towers):
    params, ours, (image, text) = towers
    assert np.allclose(ours["zimg"], unit(image @ params["vision_projection"]["kernel"]), atol=1e-5)
    assert np.allclose(ours["ztxt"], unit(text @ params["text_projection"]["kernel"]), atol=1e-5)
    assert np.allclose(np.linalg.norm(ours["zimg"], axis=-1), 1, atol=1e-5)
    assert ours["scale"] == pytest.approx(math.exp(params["logit_scale"]), rel=1e-5)
    assert ours["bias"] == params["logit_bias"]


def test_features_enter_the_space_through_the_final_norm(towers):
    params, ours, _ = towers
    x, norm = FEATURES - FEATURES.mean(-1, keepdims=True), params["vision"]["norm_post"]
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]
    assert np.allclose(ours["features"], unit(x @ params["vision_projection"]["kernel"]), atol=1e-4)
