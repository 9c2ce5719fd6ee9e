"""Scanned, rematerialised, in bfloat16: other programs for the same blocks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.execution import REMAT, Execution, current, executing
from vlm_jax.models.mask import describe
from vlm_jax.models.transformer import TransformerConfig, apply_blocks, init_blocks

GEMMA = TransformerConfig(  # a cycle of two, twice, and one layer more
    layers=5, width=16, heads=2, kv_heads=1, mlp_width=32, norm="rms_offset", gated_mlp=True, attention_bias=False,
    mlp_bias=False, rope_theta=1e5, local_rope_theta=1e3, window=(2, None), post_norm=True)
SEGMENTS = np.array([[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, -1, -1, -1]], np.int32)


def filled(config, seed=0):
    shapes, rng = jax.eval_shape(lambda key: init_blocks(key, config), jax.random.key(0)), np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)


@functools.cache
def inputs():
    x = np.random.default_rng(1).normal(size=(*SEGMENTS.shape, GEMMA.width)).astype(np.float32)
    return filled(GEMMA), x, describe(SEGMENTS)


def both(params, x, info, config=GEMMA):
    """(all states, gradient of the last and of one in the middle)"""
    def loss(params):
        states = apply_blocks(config, params, x, info)[0]
        return jnp.sin(states[-1].astype(jnp.float32)).sum() + states[2].astype(jnp.float32).sum(), states
    gradient, states = jax.grad(loss, has_aux=True)(params)
    return states, gradient


def run(**execution):
    with executing(Execution(**execution)):
        return jax.jit(both)(*inputs())


unrolled = functools.cache(lambda: run())


def same(found, expected):
    """Within 1e-5 of the largest value of each array."""
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-3))
    jax.tree.map(close, found, expected)


def test_a_scan_over_cycles_gives_the_states_and_gradients_of_the_blocks_one_by_one():
    scanned = run(layers="scan")
    assert len(scanned[0]) == GEMMA.layers + 1
    same(scanned, unrolled())


def test_a_scan_compiles_one_cycle():
    def blocks(execution):
        with executing(execution):
            text = jax.jit(lambda *args: apply_blocks(GEMMA, *args)[0][-1]).lower(*inputs()).as_text()
        return text.count("stablehlo.rsqrt") / 4  # one in each norm
    assert blocks(Execution()) == 5
    assert blocks(Execution(layers="scan")) == 3  # the cycle of two, and the one that is left


def test_layers_that_see_their_own_descriptions():
    """Two layers of windows, one that sees all (as in Qwen2.5-VL): a cycle by what is seen, not by the config."""
    config = dataclasses.replace(GEMMA, window=None, local_rope_theta=None)
    params, x, whole = inputs()
    branches = whole.replace(subsegment_ids=1 + np.arange(7, dtype=np.int32)[None] // 3 + 0 * whole.subsegment_ids)
    infos = tuple(whole if i % 3 == 2 else branches for i in range(5))
    states = []
    for layers in ("unrolled", "scan"):
        with executing(Execution(layers=layers)):
            states.append(jax.jit(lambda p, x: apply_blocks(config, p, x, infos)[0])(params, x))
    same(*states)


@pytest.mark.parametrize("layers, remat", [
    ("scan", "dots"), pytest.param("unrolled", "full", marks=pytest.mark.long)])
def test_remat_changes_no_value(layers, remat):
    found = run(layers=layers, remat=remat)
    same(found, unrolled())


def test_remat_lowers_temporaries():
    """Of 12 layers whose attention and hidden units dwarf their inputs: keeping the dense layers' results alone takes
    less than half of keeping everything, keeping inputs alone less than a sixth."""
    config = TransformerConfig(layers=12, width=64, heads=8, mlp_width=256)
    params = jax.eval_shape(lambda key: init_blocks(key, config), jax.random.key(0))
    x = jax.ShapeDtypeStruct((4, 128, 64), jnp.float32)

    def temporaries(remat):
        with executing(Execution(layers="scan", remat=remat)):
            loss = lambda params, x: jnp.sin(apply_blocks(config, params, x)[0][-1]).sum()
            return jax.jit(jax.grad(loss)).lower(params, x).compile().memory_analysis().temp_size_in_bytes

    none, dots, full = (temporaries(name) for name in ("none", "dots", "full"))
    assert dots < none / 2 and full < none / 6


def test_bfloat16_multiplies_in_bfloat16_and_keeps_float32_weights():
    params, x, info = inputs()
    with executing(Execution(dtype="bfloat16")):
        lowered = jax.jit(both).lower(params, x, info)
        states, gradient = lowered.compile()(params, x, info)
    assert states[-1].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    dots = [line for line in lowered.as_text().splitlines() if "stablehlo.dot_general" in line]
    dense = [line for line in dots if "batching_dims" not in line]  # the others are attention's float32 scores
    assert dense and all("bf16" in line.split(" : ")[-1].split("->")[0] for line in dense)
    expected = np.asarray(unrolled()[0][-1])
    error = np.abs(np.asarray(states[-1], np.float32) - expected)[SEGMENTS >= 0]
    assert error.max() < 0.1 * np.abs(expected).max()


def test_unknown_names_raise():
    for option in ("layers", "remat", "dtype", "attention"):
        with pytest.raises(ValueError, match=f"execution.{option} 'everything' is unknown; choose one of"):
            Execution(**{option: "everything"})
    assert set(REMAT) == {"none", "dots", "full"}


def test_an_execution_is_in_force_inside_alone_and_part_of_the_jit_cache():
    seen = []
    function = jax.jit(lambda x: seen.append(current().remat) or x)
    function(1.0)
    with executing(Execution(remat="full")):
        function(1.0), function(1.0)
    function(1.0)
    assert seen == ["none", "full"]
