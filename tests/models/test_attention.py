"""Attention against loops over batch, head, query and key, and against JAX's own function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models import attention as module
from vlm_jax.models import mask as masks

describe, build_mask = jax.jit(masks.describe), jax.jit(masks.build_mask, static_argnums=2)
attention = jax.jit(module.attention, static_argnames="window")
attention_weights = jax.jit(module.attention_weights)
BATCH, TARGETS, SOURCES, HEADS, GROUPS, DIM = 2, 5, 5, 6, 2, 4


def draw(seed=0, targets=TARGETS, sources=SOURCES):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return (normal(BATCH, targets, HEADS, DIM), normal(BATCH, sources, GROUPS, DIM),
            normal(BATCH, sources, GROUPS, DIM))


def brute_force(q, k, v, mask):
    """softmax(q k / sqrt(d)) v in float64; head h reads group h // (HEADS / GROUPS). Blind rows are 0."""
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        for h in range(HEADS):
            group = h // (HEADS // GROUPS)
            for t in range(q.shape[1]):
                seen = np.flatnonzero(mask[b, t])
                if not len(seen):
                    continue
                scores = np.array([q[b, t, h].astype(float) @ k[b, s, group] for s in seen]) / np.sqrt(DIM)
                weights = np.exp(scores - scores.max())
                out[b, t, h] = (weights / weights.sum()) @ v[b, seen, group]
    return out


def test_one_query_two_keys_by_hand():
    # Scores 0 and ln 3 (times sqrt(d) = 1): weights 1/4 and 3/4.
    q, k = np.ones((1, 1, 1, 1), np.float32), np.array([0, np.log(3)], np.float32).reshape(1, 2, 1, 1)
    v = np.array([4, 8], np.float32).reshape(1, 2, 1, 1)
    assert np.allclose(attention_weights(q, k).ravel(), [0.25, 0.75])
    assert np.allclose(attention(q, k, v).ravel(), [7.0])


def test_without_a_description_everything_is_seen():
    q, k, v = draw()
    everything = np.ones((BATCH, TARGETS, SOURCES), bool)
    assert np.allclose(attention(q, k, v), brute_force(q, k, v, everything), atol=1e-5)


@pytest.mark.parametrize("window", [None, 2])
def test_grouped_heads_masks_and_windows(window):
    q, k, v = draw(1)
    segments = np.array([[0, 0, 0, 1, 1], [-1, 0, 0, 0, -1]], np.int32)
    info = describe(segments, subsegment_ids=np.array([[0, 1, 2, 0, 0]] * 2))
    mask = np.asarray(build_mask(info, info, window))
    out = np.asarray(attention(q, k, v, info, info, window=window))
    sees = mask.any(-1)
    assert np.array_equal(sees, segments != -1)
    assert np.allclose(out[sees], brute_force(q, k, v, mask)[sees], atol=1e-5)


def test_fewer_queries_than_keys():
    """A cache: the last two tokens of five ask, with descriptions of their own."""
    q, k, v = draw(2, targets=2)
    keys = describe(np.zeros((BATCH, SOURCES), np.int32))
    queries = jax.tree.map(lambda field: field[:, -2:], keys)
    mask = np.tile(np.tri(SOURCES, dtype=bool)[-2:], (BATCH, 1, 1))
    assert np.allclose(attention(q, k, v, queries, keys), brute_force(q, k, v, mask), atol=1e-5)


def test_weights_are_those_of_the_output_and_exactly_zero_where_masked():
    q, k, v = draw(3)
    info = describe(np.zeros((BATCH, TARGETS), np.int32))
    weights = np.asarray(attention_weights(q, k, info, info))
    assert weights.shape == (BATCH, GROUPS, HEADS // GROUPS, TARGETS, SOURCES) and weights.dtype == np.float32
    assert np.allclose(weights.sum(-1), 1, atol=1e-6)
    assert (weights[..., ~np.tri(TARGETS, dtype=bool)] == 0).all()
    out = np.einsum("bgrts,bsgd->btgrd", weights, v).reshape(BATCH, TARGETS, HEADS, DIM)
    assert np.allclose(attention(q, k, v, info, info), out, atol=1e-5)


def test_rows_that_see_nothing_stay_finite_and_give_finite_gradients():
    q, k, v = draw(4)
    info = describe(np.array([[-1] * 5, [0, 0, 0, 0, -1]], np.int32))

    @jax.jit
    def loss(q, k, v):
        real = (info.segment_ids >= 0)[..., None, None]
        return jnp.where(real, attention(q, k, v, info, info), 0).sum()

    out, gradients = attention(q, k, v, info, info), jax.grad(loss, argnums=(0, 1, 2))(q, k, v)
    assert np.isfinite(out).all()
    assert all(np.isfinite(g).all() for g in gradients)
    assert all((g[0] == 0).all() for g in gradients)  # nothing flows into the row of padding
    assert all((np.asarray(g)[1, :4] != 0).any() for g in gradients)


def test_causal_equals_jax():
    q, k, v = draw(5)
    info = describe(np.zeros((BATCH, TARGETS), np.int32))
    expected = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    assert np.allclose(attention(q, k, v, info, info), expected, atol=1e-5)


def test_half_precision_keeps_its_dtype_and_softmax_in_float32():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in draw(6))
    info = describe(np.zeros((BATCH, TARGETS), np.int32))
    assert attention_weights(q, k, info, info).dtype == jnp.float32
    out = attention(q, k, v, info, info)
    assert out.dtype == jnp.bfloat16
    mask = np.tile(np.tri(TARGETS, dtype=bool), (BATCH, 1, 1))
    expected = brute_force(*(np.asarray(x, np.float32) for x in (q, k, v)), mask)
    assert np.allclose(np.asarray(out, np.float32), expected, atol=0.05)
