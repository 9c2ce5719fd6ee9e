"""Generation against the slowest honest way: read everything again for every token, one row at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.inference.generate import generate
from vlm_jax.inference.samplers import Sampler
from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.mask import describe
from vlm_jax.models.model import ModelConfig, abstract_params
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.vit import ViTConfig

CONFIG = ModelConfig(
    ViTConfig(8, 4, TransformerConfig(layers=1, width=16, heads=2, mlp_width=32), feature_layer=-1),
    connector=ConnectorConfig("linear"),
    decoder=DecoderConfig(24, TransformerConfig(
        layers=1, width=16, heads=4, kv_heads=2, mlp_width=24, norm="rms", activation="silu", gated_mlp=True,
        attention_bias=False, mlp_bias=False, rope_theta=1e4)))
MODEL, SHAPES = CONFIG.vlm(), abstract_params(CONFIG)
PAD, ENDS, BANNED, STEPS, LENGTH, SEEDS = 0, (2, 9, 17), (0, 1, 5), 6, 9, range(6)
OPTIONS = dict(max_new_tokens=STEPS, eos_ids=ENDS, pad_id=PAD, banned=BANNED)

# Three prompts of 9, 6 and 3 tokens: an image in the middle, an image in front, text alone.
PROMPTS = [([3, 4, 20, 20, 20, 20, 6, 7, 8], [-1, -1, 0, 1, 2, 3, -1, -1, -1]),
           ([20, 20, 20, 20, 11, 12], [0, 1, 2, 3, -1, -1]),
           ([13, 14, 15], [-1, -1, -1])]
IMAGES = np.random.default_rng(0).normal(size=(3, 1, 8, 8, 3)).astype(np.float32)


def random_params(seed):
    """Large weights: margins between tokens are far above rounding, and answers differ from row to row."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.6, leaf.shape), jnp.float32), SHAPES)


def padded(prompts, side, length=LENGTH):
    def pad(values, fill):
        values, space = np.array(values, np.int32), np.full(length - len(values), fill, np.int32)
        return np.concatenate([space, values] if side == "left" else [values, space])
    return dict(tokens=np.stack([pad(tokens, PAD) for tokens, _ in prompts]),
                segment_ids=np.stack([pad([0] * len(tokens), -1) for tokens, _ in prompts]),
                image_index=np.stack([pad(index, -1) for _, index in prompts]))


@jax.jit
def read_again(params, tokens, segments, index, images):
    return MODEL.apply({"params": params}, tokens, describe(segments), images, index)


def naive(params, prompt, images, banned=BANNED):
    """Greedy: for every new token the whole row is read again from its first token; no cache, no batch."""
    tokens, index = list(prompt[0]), list(prompt[1])
    new = []
    while len(new) < STEPS and not (new and new[-1] in ENDS):
        row = padded([(tokens, index)], "right", LENGTH + STEPS)
        logits = read_again(params, row["tokens"], row["segment_ids"], row["image_index"], images[None])
        line = np.array(logits[0, len(tokens) - 1])
        line[list(banned)] = -np.inf
        new.append(int(line.argmax()))
        tokens, index = tokens + new[-1:], index + [-1]
    return new + [PAD] * (STEPS - len(new))


@pytest.fixture(scope="module")
def truth():
    """seed -> the naive answers of all three prompts."""
    return {seed: [naive(random_params(seed), *row) for row in zip(PROMPTS, IMAGES)] for seed in SEEDS}


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_uneven_prompts_equals_the_naive_loop_token_for_token(truth, side):
    for seed in SEEDS:
        out = generate(MODEL, random_params(seed), padded(PROMPTS, side), IMAGES, **OPTIONS)
        assert out.dtype == jnp.int32 and np.asarray(out).tolist() == truth[seed], seed


def test_a_row_alone_without_padding_gives_the_same(truth):
    tokens, index = PROMPTS[1]
    prompt = padded([(tokens, index)], "left", len(tokens))
    for seed in SEEDS:
        out = generate(MODEL, random_params(seed), prompt, IMAGES[1:2], **OPTIONS)
        assert np.asarray(out).tolist() == [truth[seed][1]], seed


def test_the_rows_above_are_worth_comparing(truth):
    """Some end early and some do not, not all at the same step, and answers are not all alike."""
    answers = [tuple(row) for rows in truth.values() for row in rows]
    ended = [next((i for i, token in enumerate(row) if token in ENDS), None) for row in answers]
    assert None in ended and len({i for i in ended if i is not None}) > 1
    assert len(set(answers)) > len(answers) // 2


def test_an_end_token_is_kept_and_padding_follows():
    prompts, met = padded(PROMPTS, "left"), 0
    for seed in SEEDS:
        for row in generate(MODEL, random_params(seed), prompts, IMAGES, **OPTIONS).tolist():
            end = next((i for i, token in enumerate(row) if token in ENDS), None)
            if end is not None:
                met += 1
                assert row[end + 1:] == [PAD] * (STEPS - end - 1)
    assert met


def test_banned_tokens_never_appear_though_they_would(truth):
    free = [naive(random_params(seed), *row, banned=()) for seed in SEEDS for row in zip(PROMPTS, IMAGES)]
    assert any(token in (1, 5) for row in free for token in row)
    for rows in truth.values():
        for row in rows:
            end = next((i for i, token in enumerate(row) if token in ENDS), STEPS)
            assert not set(row[:end]) & set(BANNED)


def test_the_image_matters():
    params, other = random_params(0), IMAGES + 2.0
    ours = [generate(MODEL, params, padded(PROMPTS, "left"), i, **OPTIONS).tolist() for i in (IMAGES, other)]
    assert ours[0][:2] != ours[1][:2] and ours[0][2] == ours[1][2]


def test_a_drawn_answer_is_a_function_of_the_key_and_not_of_the_padding():
    params, options = random_params(1), dict(OPTIONS, sampler=Sampler(temperature=1.5))
    draw = lambda side, seed: generate(
        MODEL, params, padded(PROMPTS, side), IMAGES, rng=jax.random.key(seed), **options).tolist()
    assert draw("left", 0) == draw("left", 0) == draw("right", 0)
    assert draw("left", 0) != draw("left", 1)


def test_one_token():
    """And text alone: no images need to be given."""
    params = random_params(0)
    one = generate(MODEL, params, padded(PROMPTS[2:], "left", 3), **dict(OPTIONS, max_new_tokens=1))
    assert one.tolist() == [naive(params, PROMPTS[2], IMAGES[2])[:1]]
