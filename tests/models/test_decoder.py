"""The decoder: however its tokens arrive (packed, branched, padded, in pieces through the cache), a token's
logits are those it has in its own example alone.

One compiled function reads a batch of rows that say the same in different layouts; the first row is plain.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.decoder import Decoder, DecoderConfig, init_cache, unstack_decoder
from vlm_jax.models.mask import describe
from vlm_jax.models.transformer import TransformerConfig

LLAMA = TransformerConfig(
    layers=2, width=16, heads=4, kv_heads=2, mlp_width=24, norm="rms", activation="silu", gated_mlp=True,
    attention_bias=False, mlp_bias=False, rope_theta=1e4)
CONFIG = DecoderConfig(vocab_size=24, transformer=LLAMA)
LENGTH, PAD = 10, 0
TEXT = np.array([5, 9, 3, 17, 22, 8, 5, 11, 9, 4], np.int32)


def layouts():
    """name -> (tokens, segments, branches, positions, [(slice of the row, slice of TEXT to agree with)])."""
    zeros, count = np.zeros(LENGTH, int), np.arange(LENGTH)
    pad = lambda left, right: np.r_[[-1] * left, [0] * (LENGTH - left - right), [-1] * right]
    return {
        "plain": (TEXT, zeros, zeros, count, []),
        "left padded": (np.r_[[PAD] * 4, TEXT[:6]], pad(4, 0), zeros, np.r_[[0] * 4, count[:6]],
                        [(slice(4, 10), slice(0, 6))]),
        "right padded": (np.r_[TEXT[:6], [PAD] * 4], pad(0, 4), zeros, np.r_[count[:6], [0] * 4],
                         [(slice(0, 6), slice(0, 6))]),
        "two packed": (np.r_[TEXT[:6], TEXT[:4]], np.r_[[0] * 6, [1] * 4], zeros, np.r_[count[:6], count[:4]],
                       [(slice(0, 6), slice(0, 6)), (slice(6, 10), slice(0, 4))]),
        # Prefix of two; two other answers come before the one that goes on as TEXT does.
        "branched": (np.r_[TEXT[:2], [7, 7, 7], [1], TEXT[2:6]], zeros, np.r_[0, 0, 1, 1, 1, 2, 3, 3, 3, 3],
                     np.r_[0, 1, 2, 3, 4, 2, 2, 3, 4, 5],
                     [(slice(0, 2), slice(0, 2)), (slice(6, 10), slice(2, 6))]),
    }


@pytest.fixture(scope="module")
def params():
    tree = jax.eval_shape(Decoder(CONFIG).init, jax.random.key(0), *plain(1))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), tree)


def plain(tokens):
    return jnp.zeros((1, tokens), jnp.int32), describe(jnp.zeros((1, tokens), jnp.int32))


@pytest.fixture(scope="module")
def batch():
    """(tokens, description) of all layouts, a row each."""
    tokens, segments, branches, positions, _ = (list(column) for column in zip(*layouts().values()))
    tokens, segments, branches, positions = (np.stack(x) for x in (tokens, segments, branches, positions))
    return tokens.astype(np.int32), describe(segments, positions=positions, subsegment_ids=branches)


@pytest.fixture(scope="module")
def full(params, batch):
    """Logits of all rows at once, without a cache."""
    logits, cache = jax.jit(Decoder(CONFIG).apply)({"params": params}, *batch)
    assert cache is None and logits.dtype == jnp.float32
    return np.asarray(logits)


def in_pieces(params, batch, size, slots=12):
    """Logits of the rows read through a cache, `size` tokens at a time, and the cache."""
    tokens, info = batch
    cache, pieces = init_cache(CONFIG, len(tokens), slots), []
    for start in range(0, LENGTH, size):
        part = slice(start, start + size)
        described = jax.tree.map(lambda x: x[:, part], info)
        logits, cache = _read({"params": params}, tokens[:, part], described, cache)
        pieces.append(np.asarray(logits))
    return np.concatenate(pieces, axis=1), cache


_read = jax.jit(Decoder(CONFIG).apply)


@pytest.mark.parametrize("name", layouts())
def test_a_token_has_the_logits_of_its_own_example_alone(full, name):
    row = list(layouts()).index(name)
    for here, there in layouts()[name][-1]:
        assert np.allclose(full[row, here], full[0, there], atol=1e-4), name


def test_the_logits_do_depend_on_what_came_before(full):
    """TEXT has 5 at places 0 and 6 and 9 at 1 and 8: the same token in another context."""
    assert np.abs(full[0, 0] - full[0, 6]).max() > 0.1 and np.abs(full[0, 1] - full[0, 8]).max() > 0.1


def test_the_future_does_not_matter(full, params, batch):
    tokens, info = batch
    changed = tokens.copy()
    changed[0, 7:] = 1
    logits = np.asarray(_read({"params": params}, changed, info)[0])
    assert np.array_equal(logits[0, :7], full[0, :7])
    assert not np.allclose(logits[0, 7:], full[0, 7:], atol=1e-2)


@pytest.mark.parametrize("size", [5, 1])
def test_reading_through_the_cache_equals_reading_at_once(params, batch, full, size):
    """Two pieces of five, then token by token with unstacked parameters, as a decoding loop does it."""
    real = np.asarray(batch[1].segment_ids) >= 0
    logits, cache = in_pieces(unstack_decoder(params, CONFIG) if size == 1 else params, batch, size)
    assert np.allclose(logits[real], full[real], atol=1e-4)
    assert int(cache.length) == LENGTH


def test_the_cache_describes_its_slots(params, batch):
    fresh = init_cache(CONFIG, 5, 12)
    assert len(fresh.layers) == 2 and fresh.layers[0][0].shape == (5, 12, 2, 4)  # two heads of keys, not four
    assert (np.asarray(fresh.info.segment_ids) == -1).all() and int(fresh.length) == 0
    _, cache = in_pieces(params, batch, 5)
    for name in ("positions", "segment_ids", "subsegment_ids", "order"):
        written = np.asarray(getattr(cache.info, name))
        assert np.array_equal(written[:, :LENGTH], getattr(batch[1], name))
        assert np.array_equal(written[:, LENGTH:], np.asarray(getattr(fresh.info, name))[:, LENGTH:])
    assert (np.asarray(cache.layers[1][0])[:, LENGTH:] == 0).all()


def test_a_fresh_cache_can_be_given_away(params):
    """Every leaf is a buffer of its own: a program that reuses them refuses one that it gets twice."""
    give = jax.jit(lambda cache: jax.tree.map(lambda leaf: leaf + 1, cache), donate_argnums=0)
    assert int(give(init_cache(CONFIG, 1, 4)).length) == 1


def test_untied_and_tied_heads():
    hidden = np.full((1, 1, 16), 2.0, np.float32)
    embedding = np.arange(24 * 16, dtype=np.float32).reshape(24, 16) / 99

    def head(config, params):
        return np.asarray(Decoder(config).apply({"params": params}, hidden, method="logits"))

    untied = head(CONFIG, {"embedding": embedding, "lm_head": {"kernel": embedding[::-1].T}, "blocks": {}})
    tied = head(dataclasses.replace(CONFIG, tie_embeddings=True), {"embedding": embedding, "blocks": {}})
    assert np.allclose(tied[0, 0], embedding.sum(1) * 2, rtol=1e-5)
    assert np.allclose(untied[0, 0], embedding[::-1].sum(1) * 2, rtol=1e-5)


def test_the_tree(params):
    assert sorted(params) == ["blocks", "embedding", "lm_head", "norm_post"]
    assert params["embedding"].shape == (24, 16) and params["lm_head"]["kernel"].shape == (16, 24)
    tied = Decoder(dataclasses.replace(CONFIG, tie_embeddings=True))
    tree = jax.eval_shape(tied.init, jax.random.key(0), *plain(1))["params"]
    assert sorted(tree) == ["blocks", "embedding", "norm_post"]
