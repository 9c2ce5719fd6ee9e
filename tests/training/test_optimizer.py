"""The optimizer equals optax.adamw where both can do the same, and follows the rules where they differ."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlm_jax.training.optimizer import (
    OptimizerConfig, count, make_optimizer, peak_rate, schedule, trainable_paths)

STEPS = 10
SHAPES = {"a/kernel": (4, 3), "a/bias": (3,), "b/kernel": (3, 2), "b/scale": (2,), "embedding": (5, 2)}
STEADY = dict(warmup=0.0, final=1.0)  # the full rate at every step


def normal(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for path, shape in SHAPES.items()}


def run(tx, steps=STEPS, gradient_scale=0.1):
    """Parameters after some steps on a fixed sequence of gradients."""
    params = normal(0)
    state = tx.init(params)
    for step in range(steps):
        updates, state = tx.update(normal(1 + step, gradient_scale), state, params)
        params = optax.apply_updates(params, updates)
    return params


def ours(rules=((".*", 1e-2),), steps=STEPS, **config):
    return make_optimizer(OptimizerConfig(**config), list(rules), list(SHAPES), steps)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7), a, b)


def test_it_is_adamw_with_decay_on_kernels():
    mask = {path: path.endswith("kernel") for path in SHAPES}
    peer = optax.adamw(1e-2, b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.1, mask=mask)
    close(run(ours(weight_decay=0.1, clip=1e9, **STEADY)), run(peer))


def test_it_is_adamw_with_a_schedule_and_clipping():
    config = OptimizerConfig(weight_decay=0.1, clip=0.5, warmup=0.3, final=0.1)
    rate = lambda step: 1e-2 * schedule(config, STEPS, step)
    mask = {path: path.endswith("kernel") for path in SHAPES}
    peer = optax.chain(optax.clip_by_global_norm(0.5),
                       optax.adamw(rate, b2=0.98, weight_decay=0.1, mask=mask))
    close(run(make_optimizer(config, [(".*", 1e-2)], list(SHAPES), STEPS)), run(peer))


def test_each_path_has_its_own_rate():
    rules = [("a/.*", 1e-2), (".*/kernel", 1e-3), (".*", 0.0)]
    params, start = run(ours(rules, clip=1e9, **STEADY)), normal(0)
    for paths, rate in [(["a/kernel", "a/bias"], 1e-2), (["b/kernel"], 1e-3)]:
        alone = run(ours([(".*", rate)], clip=1e9, **STEADY))
        close({p: params[p] for p in paths}, {p: alone[p] for p in paths})
    assert all((params[p] == start[p]).all() for p in ("b/scale", "embedding"))  # a rate of 0 moves nothing


def test_decay_acts_on_kernels_alone_and_is_times_the_rate():
    """Without gradients only decay is left: kernels shrink by (1 - rate * decay) a step."""
    rules = [("a/.*", 1e-2), (".*", 1e-3)]
    params = run(ours(rules, weight_decay=0.5, **STEADY), steps=3, gradient_scale=0.0)
    start = normal(0)
    close(params["a/kernel"], start["a/kernel"] * (1 - 1e-2 * 0.5) ** 3)
    close(params["b/kernel"], start["b/kernel"] * (1 - 1e-3 * 0.5) ** 3)
    for path in ("a/bias", "b/scale", "embedding"):
        assert (params[path] == start[path]).all()


def test_gradients_are_clipped_by_their_global_norm():
    """Adam alone does not care how long a gradient is; how two of them compare shows in the second step."""
    def second_update(scale, clip):
        tx = ours(clip=clip, **STEADY)
        params = normal(0)
        _, state = tx.update(normal(1, 1e-3), tx.init(params), params)
        return tx.update(normal(2, scale), state, params)[0]

    norm = float(optax.tree.norm(normal(2)))
    close(second_update(100.0, 1.0), second_update(1 / norm, 1e9))  # cut to norm 1 ...
    close(second_update(0.5 / norm, 1.0), second_update(0.5 / norm, 1e9))  # ... a shorter one is left alone


def test_schedule_by_hand():
    config = OptimizerConfig(warmup=0.2, final=0.1)  # 2 of 10 steps
    values = [float(schedule(config, 10, jnp.int32(step))) for step in range(12)]
    cosine = lambda t: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t))
    expected = [0.5, 1.0, *(cosine(i / 8) for i in range(8)), 0.1, 0.1]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_schedule_at_its_edges():
    value = lambda steps, step, **config: float(schedule(OptimizerConfig(**config), steps, jnp.int32(step)))
    assert value(1, 0) == 1.0  # one step only: a full one
    assert value(100, 0, warmup=0.0) == 1.0  # no warmup
    assert value(100, 4) == 1.0 and value(100, 5) == 1.0  # 5 steps of 100 rise to the peak, then it falls
    assert value(4, 3, warmup=1.0) == 1.0  # nothing but warmup
    assert value(100, 99) == pytest.approx(0.5 * (1 + math.cos(math.pi * 94 / 95)), abs=1e-6)
    assert all(value(100, step, **STEADY) == 1.0 for step in (0, 50, 99))


def test_frozen_paths_and_the_rate_that_is_shown():
    rules = [("a/.*", 1e-3), ("b/.*", 5e-3), (".*", None)]
    assert trainable_paths(rules, list(SHAPES)) == ["a/kernel", "a/bias", "b/kernel", "b/scale"]
    assert peak_rate(rules, list(SHAPES)) == 5e-3
    assert peak_rate([(".*", None)], list(SHAPES)) == 0.0
    assert peak_rate([("a/.*", 1e-3), (".*", None)], list(SHAPES)) == 1e-3


def test_slots_belong_to_the_paths_that_are_trained():
    trained = {path: leaf for path, leaf in normal(0).items() if path.startswith("a/")}
    state = ours([("a/.*", 1e-3), (".*", None)]).init(trained)
    assert count(state) == 2 * count(trained) + 2  # two moments each, two step counters


# Other optimizers, moments in half precision, decay by path.


def test_decay_by_path():
    """No gradients: what moves is decay, times the rate. A rule comes before the custom of decaying kernels."""
    rules = (("b/kernel", 0.0), ("embedding", 0.5))
    tx, start = ours(weight_decay=0.1, decay=rules, **STEADY), normal(0)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, start), tx.init(start), start)
    share = {"a/kernel": 0.1, "embedding": 0.5}
    close(updates, {path: -1e-2 * share.get(path, 0.0) * value for path, value in start.items()})
    with pytest.raises(ValueError, match="'c/.*' matches no parameter"):
        ours(decay=(("c/.*", 0.1),))


def test_first_moments_in_bfloat16():
    """Half of their memory, and nearly the same parameters; second moments stay float32."""
    state = ours(moments="bfloat16").init(normal(0))[1]
    assert {leaf.dtype for leaf in state.mu.values()} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in state.nu.values()} == {jnp.dtype("float32")}
    whole, half = run(ours(clip=1e9, **STEADY)), run(ours(clip=1e9, moments="bfloat16", **STEADY))
    for path, start in normal(0).items():
        moved = np.abs(np.asarray(whole[path] - start)).max()
        assert 0 < np.abs(np.asarray(half[path] - whole[path])).max() < 0.05 * moved


def test_adafactor_against_its_equations():
    """arXiv 1804.04235, algorithm 4 without relative steps, then a first moment: two steps of a matrix large enough to be
    factored, in float64 NumPy. Its second moment takes a row and a column."""
    rng = np.random.default_rng(0)
    shape, rate, b1 = (160, 130), 1e-2, 0.9
    gradients = [rng.normal(size=shape) for _ in range(2)]
    params = {"a/kernel": jnp.zeros(shape)}
    config = OptimizerConfig(name="adafactor", b1=b1, weight_decay=0.0, clip=1e9, **STEADY)
    tx = make_optimizer(config, [(".*", rate)], ["a/kernel"], STEPS)
    state, x = tx.init(params), np.zeros(shape)
    rows, columns, momentum = np.zeros(160), np.zeros(130), np.zeros(shape)
    for t, g in enumerate(gradients, start=1):
        updates, state = tx.update({"a/kernel": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        keep = 1 - t**-0.8
        rows = keep * rows + (1 - keep) * (g**2 + 1e-30).mean(1)
        columns = keep * columns + (1 - keep) * (g**2 + 1e-30).mean(0)
        u = g / np.sqrt(np.outer(rows, columns) / rows.mean())
        u /= max(1, np.sqrt((u**2).mean()))
        momentum = b1 * momentum + (1 - b1) * u
        x -= rate * momentum
    np.testing.assert_allclose(params["a/kernel"], x, rtol=1e-4, atol=1e-7)
    held = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert held < 160 * 130 + 160 + 130 + 10  # one full moment, where Adam has two


def test_sgd_with_momentum():
    peer = optax.sgd(1e-2, momentum=0.9)
    close(run(ours(name="sgd", weight_decay=0.0, clip=1e9, **STEADY)), run(peer))


def test_unknown_names():
    with pytest.raises(ValueError, match="optimizer.name 'lion' is unknown; choose one of adamw, adafactor, sgd"):
        OptimizerConfig(name="lion")
    with pytest.raises(ValueError, match="optimizer.moments 'int8' is unknown"):
        OptimizerConfig(moments="int8")
