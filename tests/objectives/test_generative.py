"""Next-token prediction: weights that say where to learn, and sums that do not care how a batch is cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.mask import describe
from vlm_jax.models.model import ModelConfig, abstract_params
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.objectives import generative
from vlm_jax.objectives.base import means, total
from vlm_jax.objectives.generative import NextToken, NextTokenConfig, in_chunks
from vlm_jax.objectives.registry import make_objective

BLOCKS = TransformerConfig(layers=1, width=16, heads=2, mlp_width=32)
MODEL = ModelConfig(ViTConfig(8, 4, BLOCKS, feature_layer=-1), connector=ConnectorConfig("linear"),
                    decoder=DecoderConfig(24, TransformerConfig(
                        layers=1, width=16, heads=4, kv_heads=2, mlp_width=24, norm="rms", activation="silu",
                        gated_mlp=True, attention_bias=False, mlp_bias=False, rope_theta=1e4)))
TOKENS, VOCAB = 9, 24
next_token_loss = jax.jit(generative.next_token_loss)


def batch():
    """Two rows: an image and one answer, and text alone with two branches and padding; uneven weights."""
    rng = np.random.default_rng(0)
    draw = lambda: rng.integers(0, VOCAB, (2, TOKENS)).astype(np.int32)
    rows = lambda *values: np.array(values, np.int32)
    return dict(
        tokens=draw(), targets=draw(), images=rng.normal(size=(2, 1, 8, 8, 3)).astype(np.float32),
        loss_weights=np.array([[0, 0, 0, 0, 1, 0.5, 2, 0, 0], [0, 1, 1, 0, 0.25, 0, 0, 0, 0]], np.float32),
        positions=rows([*range(9)], [0, 1, 2, 3, 2, 3, 4, 0, 0]),
        segment_ids=rows([0] * 9, [0] * 7 + [-1] * 2),
        subsegment_ids=rows([0] * 9, [0, 0, 1, 1, 2, 2, 2, 0, 0]),
        image_index=rows([0, 1, 2, 3, -1, -1, -1, -1, -1], [-1] * 9))


@pytest.fixture(scope="module")
def objective():
    return make_objective(NextTokenConfig(), MODEL)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(1)
    fill = lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32)
    return jax.tree.map(fill, abstract_params(MODEL))


@pytest.fixture(scope="module")
def run(objective, params):
    """batch (and other parameters) -> (sums, weights, gradient of the summed loss)."""
    def both(params, batch):
        def loss(params):
            sums, weights = objective(params, batch, None)
            return sums["next_token"], (sums, weights)
        gradient, aux = jax.grad(loss, has_aux=True)(params)
        return *aux, gradient

    both = jax.jit(both)
    return lambda batch, params=params: jax.tree.map(np.asarray, both(params, batch))


def test_the_loss_of_a_position_by_hand():
    """Logits ln 1, ln 2, ln 5: probabilities 1/8, 1/4, 5/8."""
    logits, targets = np.log(np.array([[[1, 2, 5]] * 3], np.float32)), np.array([[0, 1, 2]])
    assert np.allclose(next_token_loss(logits, targets), np.log([[8, 4, 8 / 5]]), atol=1e-6)
    assert np.isfinite(next_token_loss(1e4 * logits, targets)).all()
    assert next_token_loss(jnp.asarray(logits, jnp.bfloat16), targets).dtype == jnp.float32


def test_uneven_weights_against_a_loop(objective, params, run):
    given = batch()
    segments, positions, branches = (given[n] for n in ("segment_ids", "positions", "subsegment_ids"))
    info = describe(segments, positions=positions, subsegment_ids=branches)
    logits = np.asarray(jax.jit(MODEL.vlm().apply)(
        {"params": params}, given["tokens"], info, given["images"], given["image_index"]), float)
    loss = right = weight = 0.0
    for row in range(2):
        for place in range(TOKENS):
            line, target = logits[row, place], given["targets"][row, place]
            w = given["loss_weights"][row, place]
            loss += w * (np.log(np.exp(line - line.max()).sum()) + line.max() - line[target])
            right += w * (line.argmax() == target)
            weight += w
    sums, weights, _ = run(given)
    assert objective.terms == {"next_token": 1.0}
    assert weights == {"next_token": weight, "accuracy": weight} and weight == 5.75
    assert sums["next_token"] == pytest.approx(loss, rel=1e-5) and sums["accuracy"] == pytest.approx(right)
    assert float(total(objective.terms, means(sums, weights))) == pytest.approx(loss / weight, rel=1e-5)


def test_a_batch_cut_in_two_adds_up_to_the_same_loss_and_gradient(run):
    """The second row is learnt from at fewer places: a mean of two means would come out differently."""
    given, empty = batch(), np.zeros(TOKENS, np.float32)
    parts = []
    for row in range(2):
        part = {name: np.stack([values[row], values[row]]) for name, values in given.items()}
        part["loss_weights"][1] = empty
        parts.append(run(part))
    whole, halves = run(given), jax.tree.map(lambda a, b: a + b, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), whole, halves)
    mean_of_means = sum(p[0]["next_token"] / p[1]["next_token"] for p in parts) / 2
    assert abs(mean_of_means - whole[0]["next_token"] / whole[1]["next_token"]) > 1e-2


def test_what_carries_no_weight_does_not_matter(run):
    given, other = batch(), batch()
    silent = other["loss_weights"] == 0
    other["targets"][silent] = 7
    other["tokens"][0, 7:], other["tokens"][1, 6:] = 3, 3  # tokens behind the last one that is learnt from
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), run(given)[0], run(other)[0])


def test_weights_depend_on_the_batch_alone(params, run):
    assert run(batch(), jax.tree.map(jnp.zeros_like, params))[1] == run(batch())[1]


def test_gradients_reach_the_eyes_the_connector_and_the_decoder(run):
    _, _, gradient = run(batch())
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
    size = lambda tree: sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))
    assert all(size(gradient["vision"][part]) > 0 for part in ("patch_embed", "position_embedding", "blocks"))
    assert size(gradient["connector"]) > 0 and size(gradient["decoder"]) > 0
    assert size(gradient["vision"]["norm_post"]) == 0  # the pooled output's, which nothing reads here


def test_text_alone_needs_no_images(objective, params):
    text = {name: values[1:] for name, values in batch().items() if name != "images"}
    sums, weights = jax.jit(lambda p: objective(p, text, None))(params)
    assert float(weights["next_token"]) == 2.25 and np.isfinite(sums["next_token"])


def test_rows_without_branches(objective, params):
    given = {name: values[:1] for name, values in batch().items()}
    silent = {name: values for name, values in given.items() if name != "subsegment_ids"}
    both = jax.jit(lambda p, one, other: (objective(p, one, None)[0], objective(p, other, None)[0]))
    found = both(params, given, silent)
    assert float(found[0]["next_token"]) == pytest.approx(float(found[1]["next_token"]), rel=1e-6)


# In chunks.


@pytest.mark.parametrize("chunks", [3, 9])
def test_chunks_change_nothing(chunks, params):
    """Sums, weights and gradients, of rows whose weights are uneven."""
    def both(params, chunks):
        def loss(params):
            sums, weights = NextToken(NextTokenConfig(chunks), MODEL)(params, batch(), None)
            return sums["next_token"], (sums, weights)
        return jax.value_and_grad(loss, has_aux=True)(params)

    whole, parts = (jax.jit(both, static_argnums=1)(params, n) for n in (1, chunks))
    for found, expected in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_chunks_must_divide_the_tokens(params):
    with pytest.raises(ValueError, match=f"Rows of {TOKENS} tokens do not divide into 7 chunks; change objective.chunks"):
        jax.eval_shape(lambda p: NextToken(NextTokenConfig(7), MODEL)(p, batch(), None), params)
    with pytest.raises(ValueError, match="chunks is 0"):
        NextTokenConfig(0)


def test_logits_of_all_tokens_never_exist_and_temporaries_fall():
    """A vocabulary of 16,384 on 256 tokens: 16 MB of logits, of which eight chunks keep an eighth."""
    vocabulary, tokens, width = 16384, 256, 16
    table = jax.ShapeDtypeStruct((vocabulary, width), jnp.float32)
    states = jax.ShapeDtypeStruct((1, tokens, width), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

    def compiled(chunks):
        score = lambda table: lambda hidden, targets: (next_token_loss(hidden @ table.T, targets).sum(), jnp.zeros(()))
        loss = lambda table, hidden, targets: in_chunks(score(table), chunks, hidden, targets)[0]
        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(table, states, targets).compile()

    whole, parts = compiled(1), compiled(8)
    assert f"[1,{tokens},{vocabulary}]" in whole.as_text() or f"[{tokens},{vocabulary}]" in whole.as_text()
    assert f"{tokens},{vocabulary}]" not in parts.as_text()
    assert parts.memory_analysis().temp_size_in_bytes < whole.memory_analysis().temp_size_in_bytes / 4


@pytest.mark.parametrize("mask", ["prefix", "image_blocks"])
def test_a_mask_that_training_would_ignore_is_refused(mask):
    model = dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, mask=mask))
    with pytest.raises(ValueError, match=f"decoder.mask is '{mask}', make it 'causal'"):
        NextToken(NextTokenConfig(), model)
