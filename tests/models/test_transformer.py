"""The stack of blocks: what its tree looks like, and that running it is running the blocks one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.mask import build_mask, describe
from vlm_jax.models.transformer import Block, TransformerConfig, apply_blocks, init_blocks, unstack

LLAMA = TransformerConfig(
    layers=2, width=16, heads=4, kv_heads=2, head_dim=6, mlp_width=24, norm="rms", activation="silu",
    gated_mlp=True, attention_bias=False, mlp_bias=False, rope_theta=1e4)
SEGMENTS = np.array([[0, 0, 0, 0, 1, 1], [-1, 0, 0, 0, 0, -1]], np.int32)


def filled(tree, seed=0, std=0.3):
    """The tree with random values: larger than fresh ones, so that a mistake shows."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, std, leaf.shape).astype(np.float32), tree)


def shapes(config):
    return jax.eval_shape(lambda rng: init_blocks(rng, config), jax.random.key(0))


def one_by_one(layers, x, info):
    """The stack as a loop over separate blocks, each a module of its own."""
    hidden = [x]
    for layer in layers:
        hidden.append(Block(LLAMA).apply({"params": layer}, hidden[-1], info, info)[0])
    return hidden


def trained(run, params, x, info):
    """(hidden states, gradient) of a loss on the real tokens."""
    def loss(params):
        hidden = run(params, x, info)
        return jnp.where((info.segment_ids >= 0)[..., None], jnp.sin(hidden[-1]), 0).sum(), hidden
    gradient, hidden = jax.jit(jax.grad(loss, has_aux=True))(params)
    return hidden, gradient


@pytest.fixture(scope="module")
def stack():
    """(parameters, input, description) of a small Llama stack."""
    x = np.random.default_rng(1).normal(size=(*SEGMENTS.shape, LLAMA.width)).astype(np.float32)
    return filled(shapes(LLAMA)), x, describe(SEGMENTS)


@pytest.fixture(scope="module")
def stacked(stack):
    return trained(lambda params, x, info: apply_blocks(LLAMA, params, x, info)[0], *stack)


@pytest.fixture(scope="module")
def separate(stack):
    params, x, info = stack
    return trained(one_by_one, unstack(params, LLAMA.layers), x, info)


# The tree.


def test_every_leaf_has_a_leading_layer_axis():
    tree = jax.tree.map(lambda leaf: leaf.shape, shapes(LLAMA), is_leaf=lambda leaf: hasattr(leaf, "shape"))
    kernel = lambda *shape: {"kernel": shape}
    assert tree == {
        "attn": dict(q=kernel(2, 16, 24), k=kernel(2, 16, 12), v=kernel(2, 16, 12), o=kernel(2, 24, 16)),
        "mlp": dict(gate=kernel(2, 16, 24), up=kernel(2, 16, 24), down=kernel(2, 24, 16)),
        "norm1": {"scale": (2, 16)}, "norm2": {"scale": (2, 16)}}


def test_biases_are_where_the_config_asks_for_them():
    clip = TransformerConfig(layers=2, width=8, heads=2, mlp_width=16)
    tree = shapes(clip)
    assert tree["attn"]["o"]["bias"].shape == (2, 8) and tree["mlp"]["up"]["bias"].shape == (2, 16)
    assert tree["norm1"]["bias"].shape == (2, 8) and "gate" not in tree["mlp"]


def test_layers_start_different_and_at_the_scale_of_the_clip_paper():
    config = TransformerConfig(layers=8, width=64, heads=1, mlp_width=256)
    params = jax.jit(init_blocks, static_argnums=1)(jax.random.key(0), config)
    stds = {name: np.asarray(params[part][name]["kernel"]).std()
            for part, name in (("attn", "q"), ("attn", "o"), ("mlp", "up"), ("mlp", "down"))}
    assert stds["q"] == pytest.approx(64**-0.5, rel=0.05) and stds["up"] == pytest.approx(64**-0.5, rel=0.05)
    assert stds["o"] == pytest.approx((2 * 8 * 64) ** -0.5, rel=0.05)  # what writes to the residual stream
    assert stds["down"] == pytest.approx(stds["o"], rel=0.05)
    q = np.asarray(params["attn"]["q"]["kernel"])
    assert all((q[0] != q[i]).any() for i in range(1, 8))


# Running it.


def test_a_block_by_hand():
    """One head, one token, an MLP that adds nothing: x + o(v(norm x))."""
    config = dataclasses.replace(LLAMA, layers=1, width=2, heads=1, kv_heads=1, head_dim=2, mlp_width=2,
                                 gated_mlp=False, rope_theta=None)
    eye, none = np.eye(2, dtype=np.float32), np.zeros((2, 2), np.float32)
    linear = lambda kernel: {"kernel": kernel}
    params = {"attn": dict(q=linear(eye), k=linear(eye), v=linear(eye), o=linear(2 * eye)),
              "mlp": dict(up=linear(eye), down=linear(none)),
              "norm1": {"scale": np.ones(2)}, "norm2": {"scale": np.ones(2)}}
    x = np.array([[[3.0, 4.0]]], np.float32)
    y, cache = Block(config).apply({"params": params}, x)
    rms = np.sqrt((9 + 16) / 2)
    assert np.allclose(y, x + 2 * x / rms, atol=1e-4)  # a token alone attends to itself
    assert cache is None


def test_hidden_states_are_the_input_and_the_output_of_each_block(stack, stacked, separate):
    (hidden, _), (expected, _) = stacked, separate
    assert len(hidden) == LLAMA.layers + 1
    assert np.array_equal(hidden[0], stack[1])
    for ours, theirs in zip(hidden, expected, strict=True):
        assert np.allclose(ours, theirs, atol=1e-5)
    assert np.abs(hidden[1] - hidden[0]).max() > 0.1 and np.abs(hidden[2] - hidden[1]).max() > 0.1


def test_gradients_are_those_of_separate_blocks(stacked, separate):
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *separate[1])
    assert jax.tree.structure(stacked[1]) == jax.tree.structure(together)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(together))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), stacked[1], together)


def test_unstacked_parameters_give_the_same(stack, stacked):
    params, x, info = stack
    run = jax.jit(lambda layers: apply_blocks(LLAMA, layers, x, info))
    hidden, caches = run(unstack(params, LLAMA.layers))
    assert np.allclose(hidden[-1], stacked[0][-1], atol=1e-5) and caches is None


def test_a_window_reaches_every_layer(stack):
    """Window 2 and two layers: token 3 hears of 3, 2 and 1; of token 0 only where the window is wider."""
    params, x, _ = stack
    pair = np.stack([x[0, :4], x[0, :4]])
    pair[1, 0] += 1
    info = describe(np.zeros((2, 4), np.int32))

    @jax.jit
    def last(params):
        run = lambda window: apply_blocks(dataclasses.replace(LLAMA, window=window), params, pair, info)[0]
        return run(2)[-1][:, 3], run(3)[-1][:, 3]

    narrow, wide = last(params)
    assert np.array_equal(narrow[0], narrow[1])
    assert np.abs(wide[0] - wide[1]).max() > 1e-4


def test_the_weights_shown_are_the_weights_of_the_mask(stack):
    params, x, info = stack
    show = jax.jit(lambda layer: Block(LLAMA).apply({"params": layer}, x, info, method="weights"))
    weights = np.asarray(show(unstack(params, LLAMA.layers)[0]))
    assert weights.shape == (2, LLAMA.heads, 6, 6)
    assert np.allclose(weights.sum(-1), 1, atol=1e-6)
    seen = np.asarray(build_mask(info, info))[0]
    assert np.array_equal(weights[0] > 0, np.broadcast_to(seen, weights[0].shape))


def test_a_tree_of_another_depth_is_refused(stack):
    """JAX clamps an index that is too large: unchecked, two layers would run as three, the last one twice."""
    params, x, info = stack
    for layers in (1, 3):
        config = dataclasses.replace(LLAMA, layers=layers)
        with pytest.raises(ValueError, match="2.*layers|layers.*2"):
            jax.eval_shape(lambda p: apply_blocks(config, p, x, info), params)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="width 10 is not divisible by heads 4"):
        TransformerConfig(layers=1, width=10, heads=4, mlp_width=8)
    with pytest.raises(ValueError, match="heads 4 is not divisible by kv_heads 3"):
        TransformerConfig(layers=1, width=8, heads=4, kv_heads=3, mlp_width=8)
