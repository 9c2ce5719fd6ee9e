"""The VLM: what an image may change and what it may not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import Decoder, DecoderConfig
from vlm_jax.models.mask import describe
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.models.vlm import VLM, splice

EYES = ViTConfig(8, 4, TransformerConfig(layers=1, width=12, heads=2, mlp_width=24), feature_layer=-1)
LLAMA = TransformerConfig(
    layers=1, width=16, heads=4, kv_heads=2, mlp_width=24, norm="rms", activation="silu", gated_mlp=True,
    attention_bias=False, mlp_bias=False, rope_theta=1e4)
MODEL = VLM(EYES, ConnectorConfig(), DecoderConfig(24, LLAMA))
V, IMAGE, START, END = 4, 20, 21, 22

# Rows of 12 tokens and two image slots; t is text. The index of an image's tokens starts at its slot times V.
LAYOUTS = {
    "text": [-1] * 12,
    "front": [0, 1, 2, 3] + [-1] * 8,
    "interleaved": [-1, -1, 0, 1, 2, 3, -1, 4, 5, 6, 7, -1],
    "delimited": [-1, -1, -1, 0, 1, 2, 3, -1, -1, -1, -1, -1],
}
INDEX = np.array(list(LAYOUTS.values()), np.int32)


def rows():
    tokens = np.random.default_rng(0).integers(0, 20, INDEX.shape).astype(np.int32)
    tokens[INDEX >= 0] = IMAGE
    tokens[3, 2], tokens[3, 7] = START, END
    return tokens


TOKENS, INFO = rows(), describe(np.zeros_like(INDEX))
IMAGES = np.random.default_rng(1).normal(size=(4, 2, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    tree = jax.eval_shape(MODEL.init, jax.random.key(0), TOKENS, INFO, IMAGES, INDEX)["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), tree)


apply = jax.jit(MODEL.apply, static_argnames="method")


def run(params, images):
    return np.asarray(apply({"params": params}, TOKENS, INFO, images, INDEX))


@pytest.fixture(scope="module")
def logits(params):
    return run(params, IMAGES)


# Splicing.


def test_splice_a_row_by_hand():
    text, visual = np.arange(4, dtype=np.float32).reshape(1, 4, 1), np.array([[[10], [11]]], np.float32)
    assert np.asarray(splice(text, visual, np.array([[-1, 0, 1, -1]]))).ravel().tolist() == [0, 10, 11, 3]
    assert np.asarray(splice(text, visual, np.array([[1, 1, -1, 0]]))).ravel().tolist() == [11, 11, 2, 10]


def test_splice_random_rows():
    rng = np.random.default_rng(0)
    text, visual, index = rng.normal(size=(3, 9, 2)), rng.normal(size=(3, 5, 2)), rng.integers(-1, 5, (3, 9))
    expected = text.astype(np.float32)
    for b in range(3):
        for t in range(9):
            if index[b, t] >= 0:
                expected[b, t] = visual[b, index[b, t]]
    assert np.array_equal(splice(text.astype(np.float32), visual.astype(np.float32), index), expected)


def test_splice_weighted_sums():
    rng = np.random.default_rng(0)
    text, visual = (rng.normal(size=(2, n, 3)).astype(np.float32) for n in (6, 5))
    index, weight = rng.integers(0, 5, (2, 6, 4)), rng.random((2, 6, 4)).astype(np.float32)
    index[0, 2] = index[1, 5] = -1
    expected = text.copy()
    for b in range(2):
        for t in range(6):
            if index[b, t, 0] >= 0:
                expected[b, t] = sum(weight[b, t, i] * visual[b, index[b, t, i]] for i in range(4))
    assert np.allclose(splice(text, visual, index, weight), expected, atol=1e-5)


def test_every_layout_is_the_decoder_on_embeddings_put_together_by_hand(params, logits):
    visual = np.asarray(apply({"params": params}, IMAGES, method="visual_tokens"))
    assert visual.shape == (4, 2 * V, LLAMA.width)
    x = np.asarray(params["decoder"]["embedding"])[TOKENS]
    for row, index in enumerate(INDEX):
        for place in np.flatnonzero(index >= 0):
            x[row, place] = visual[row, index[place]]

    @jax.jit
    def decode(params, x):
        decoder = Decoder(MODEL.decoder_config)
        hidden, _ = decoder.apply({"params": params}, x, INFO, method="hidden")
        return decoder.apply({"params": params}, hidden, method="logits")

    assert np.allclose(logits, decode(params["decoder"], x), atol=1e-4)


def test_token_j_of_slot_i_has_index_i_v_plus_j(params):
    encode = lambda images: np.asarray(apply({"params": params}, images, method="visual_tokens"))
    ours, swapped = encode(IMAGES), encode(IMAGES[:, ::-1])
    assert np.allclose(ours[:, :V], swapped[:, V:], atol=1e-5)
    assert np.allclose(ours[:, V:], swapped[:, :V], atol=1e-5)
    assert np.abs(ours[:, :V] - ours[:, V:]).max() > 0.1


# What must not change, exactly.


def test_text_alone_is_the_plain_decoder(params):
    vlm = apply({"params": params}, TOKENS, INFO)
    decoder, _ = jax.jit(Decoder(MODEL.decoder_config).apply)({"params": params["decoder"]}, TOKENS, INFO)
    assert np.array_equal(vlm, decoder)


def test_a_text_row_among_rows_with_images_is_the_plain_decoder(params, logits):
    assert np.allclose(logits[0], apply({"params": params}, TOKENS, INFO)[0], atol=1e-4)


def test_slots_that_nothing_points_to_do_not_matter(params, logits):
    """The text row uses no slot; the front and the delimited row use only the first."""
    empty = IMAGES.copy()
    empty[0], empty[1, 1], empty[3, 1] = 0, 0, 0
    assert np.array_equal(run(params, empty), logits)


def test_replacing_an_image_changes_only_what_comes_after_it(params, logits):
    other, rng = IMAGES.copy(), np.random.default_rng(3)
    other[:, 1] = rng.normal(size=other[:, 1].shape)  # the second slot, which only "interleaved" uses
    changed = run(params, other)
    assert np.array_equal(changed[[0, 1, 3]], logits[[0, 1, 3]])
    first = LAYOUTS["interleaved"].index(V)
    assert np.array_equal(changed[2, :first], logits[2, :first])
    assert (np.abs(changed[2, first:] - logits[2, first:]).max(-1) > 1e-3).all()

    other[:, 0] = rng.normal(size=other[:, 0].shape)
    changed = run(params, other)
    assert np.array_equal(changed[0], logits[0])
    for row, layout in enumerate(LAYOUTS.values()):
        if 0 in layout:
            first = layout.index(0)
            assert np.array_equal(changed[row, :first], logits[row, :first])
            assert (np.abs(changed[row, first:] - logits[row, first:]).max(-1) > 1e-3).all()


def test_the_token_under_an_image_does_not_matter(params, logits):
    tokens = np.where(INDEX >= 0, 7, TOKENS)
    assert np.array_equal(apply({"params": params}, tokens, INFO, IMAGES, INDEX), logits)


def test_branches_share_one_image(params):
    """An image, two words and three answers in one row: each answer is as in a row of its own."""
    prefix, answers = [*range(V), -1, -1], ([3, 4], [5], [6, 7, 8])
    tokens, index = np.full((4, 12), 0, np.int32), np.full((4, 12), -1, np.int32)
    positions, branch, segments = np.zeros((4, 12), int), np.zeros((4, 12), int), np.full((4, 12), -1)
    index[:, :6], tokens[:, 4:6], positions[:, :6], segments[:, :6] = prefix, (1, 2), np.arange(6), 0

    def put(row, at, answer, number):
        part = slice(at, at + len(answer))
        tokens[row, part], positions[row, part] = answer, np.arange(6, 6 + len(answer))
        branch[row, part], segments[row, part] = number, 0
        return part

    at, places = 6, []
    for i, answer in enumerate(answers):
        places.append((put(0, at, answer, i + 1), put(i + 1, 6, answer, 0)))
        at += len(answer)
    info = describe(segments, positions=positions, subsegment_ids=branch)
    logits = np.asarray(apply({"params": params}, tokens, info, np.repeat(IMAGES[:1], 4, 0), index))
    for row, (shared, alone) in enumerate(places, start=1):
        assert np.allclose(logits[0, shared], logits[row, alone], atol=1e-4)
        assert np.allclose(logits[0, :6], logits[row, :6], atol=1e-4)
