"""Adapters: nothing at first, then A B beside the kernel, and after merging the kernel alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.layers import Linear
from vlm_jax.models.lora import adapters, is_adapter, merge
from vlm_jax.models.mask import describe
from vlm_jax.models.transformer import TransformerConfig, apply_blocks, init_blocks

CONFIG = TransformerConfig(layers=2, width=16, heads=2, mlp_width=24, rope_theta=1e4)
Q, UP = "blocks/attn/q/kernel", "blocks/mlp/up/kernel"


def tree():
    shapes, rng = jax.eval_shape(lambda: init_blocks(jax.random.key(0), CONFIG)), np.random.default_rng(0)
    return {"blocks": jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes)}


def put(params, fresh, fill=None):
    """The tree with adapters, their values drawn anew by `fill`."""
    for path, leaf in fresh.items():
        *parents, name = path.split("/")
        node = params
        for parent in parents:
            node = node[parent]
        node[name] = leaf if fill is None else fill(leaf)
    return params


def run(params):
    x = np.random.default_rng(1).normal(size=(2, 5, 16)).astype(np.float32)
    info = describe(np.zeros((2, 5), np.int32))
    return jax.jit(lambda p: apply_blocks(CONFIG, p["blocks"], x, info)[0][-1])(params)


def test_adapters_are_small_and_change_nothing_at_first():
    fresh = adapters(tree(), {Q: 3, UP: 2}, jax.random.key(1, impl="rbg"))  # compiles faster
    assert {path: leaf.shape for path, leaf in fresh.items()} == {
        "blocks/attn/q/lora_a": (2, 16, 3), "blocks/attn/q/lora_b": (2, 3, 16),
        "blocks/mlp/up/lora_a": (2, 16, 2), "blocks/mlp/up/lora_b": (2, 2, 24)}
    assert all(is_adapter(path) for path in fresh) and not is_adapter(Q)
    assert float(jnp.std(fresh["blocks/attn/q/lora_a"])) == pytest.approx(0.25, rel=0.3)
    np.testing.assert_array_equal(run(put(tree(), fresh)), run(tree()))


def test_a_layer_adds_a_b_and_merging_keeps_the_answer():
    rng = np.random.default_rng(2)
    x, w, a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 6), (6, 5), (6, 2), (2, 5)))
    y = Linear(5, use_bias=False).apply({"params": {"kernel": w, "lora_a": a, "lora_b": b}}, x)
    np.testing.assert_allclose(y, x @ w + (x @ a) @ b, rtol=1e-4, atol=1e-5)
    fresh = adapters(tree(), {Q: 3, UP: 2}, jax.random.key(1, impl="rbg"))
    params = put(tree(), fresh, lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32))
    merged = merge(params)
    assert jax.tree.structure(merged) == jax.tree.structure(tree())
    np.testing.assert_allclose(run(merged), run(params), rtol=1e-3, atol=1e-3)
    assert np.abs(np.asarray(run(params) - run(tree()))).max() > 0.1


def test_only_dense_layers_have_adapters():
    with pytest.raises(ValueError, match="'blocks/norm1/scale' is not the kernel of one; change the stage's lora"):
        adapters(tree(), {"blocks/norm1/scale": 2}, jax.random.key(0))
