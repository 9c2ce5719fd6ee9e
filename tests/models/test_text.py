"""The text tower: pooled at the end token, blind to what follows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.mask import describe
from vlm_jax.models.text import TextConfig, TextTower
from vlm_jax.models.transformer import TransformerConfig, apply_blocks

END, PAD = 2, 0
BLOCKS = TransformerConfig(layers=1, width=16, heads=2, mlp_width=32, activation="quick_gelu")
CONFIG = TextConfig(vocab_size=20, context=6, end_id=END, transformer=BLOCKS)


@pytest.fixture(scope="module")
def tower():
    """(parameters, the tower as a function of tokens)."""
    tree = jax.eval_shape(TextTower(CONFIG).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), tree)
    run = jax.jit(TextTower(CONFIG).apply)
    return params, lambda tokens: np.asarray(run({"params": params}, tokens))


def rows(*values):
    return np.array(values, np.int32)


def test_pooled_is_the_final_norm_of_the_end_tokens_state(tower):
    params, run = tower
    tokens = rows([1, 5, END, PAD, PAD, PAD], [1, 7, 8, 9, 4, END])
    x = params["token_embedding"][tokens] + params["position_embedding"]
    causal = describe(np.zeros((2, 6)))
    hidden = jax.jit(lambda blocks: apply_blocks(BLOCKS, blocks, x, causal)[0])(params["blocks"])
    last = np.asarray(hidden[-1])
    state = np.stack([last[0, 2], last[1, 5]])
    state = state - state.mean(-1, keepdims=True)
    norm = params["norm_post"]
    expected = state / np.sqrt((state**2).mean(-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]
    assert np.allclose(run(tokens), expected, atol=1e-4)


def test_what_follows_the_end_token_does_not_matter(tower):
    _, run = tower
    pooled = run(rows([1, 5, END, PAD, PAD, PAD], [1, 5, END, END, 9, 3]))
    assert np.array_equal(pooled[0], pooled[1])  # not even a second end token


def test_what_precedes_it_does(tower):
    _, run = tower
    pooled = run(rows([1, 5, END, PAD, PAD, PAD], [5, 1, END, PAD, PAD, PAD]))
    assert np.abs(pooled[0] - pooled[1]).max() > 1e-2


def test_short_rows_give_what_padded_rows_give(tower):
    _, run = tower
    padded = run(rows([1, 5, END, PAD, PAD, PAD], [1] * 5 + [END]))
    assert np.allclose(run(rows([1, 5, END]))[0], padded[0], atol=1e-5)


def test_the_tree(tower):
    params, _ = tower
    assert sorted(params) == ["blocks", "norm_post", "position_embedding", "token_embedding"]
    assert params["token_embedding"].shape == (20, 16) and params["position_embedding"].shape == (6, 16)
