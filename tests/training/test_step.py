"""The one train step, on a straight line first (two numbers, one of them frozen), then on the real model."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlm_jax import config as configs
from vlm_jax.data.pipeline import dataset
from vlm_jax.data.processor import Processor
from vlm_jax.data.tokenizer import train
from vlm_jax.models.model import init_params
from vlm_jax.objectives.registry import make_objective
from vlm_jax.training.optimizer import make_optimizer, trainable_paths
from vlm_jax.training.mesh import MeshConfig, make_mesh, put_batch
from vlm_jax.training.rules import flatten
from vlm_jax.training.state import fresh_state, sharded
from vlm_jax.training.step import compile_step, train_step

SMOKE = str(pathlib.Path(__file__).parents[2] / "configs/smoke.py")
X = np.linspace(-1, 1, 16, dtype=np.float32)
LINE = {"x": X, "y": 3 * X + 1}  # what `Line` has to find


class Line:
    """y = slope * x + offset. Reports the size of the slope and a random number, and trains on neither."""

    terms = {"squares": 0.5, "offset": 0.1}

    def __call__(self, params, batch, rng):
        slope, offset = params["slope"]["kernel"], params["offset"]["bias"]
        error = slope * batch["x"] + offset - batch["y"]
        n = jnp.float32(len(batch["x"]))
        random = jax.random.uniform(rng)
        sums = dict(squares=(error**2).sum(), offset=offset**2, slope=1e6 * slope, random=random)
        return sums, dict(squares=n, offset=1.0, slope=1.0, random=1.0)


def line_params(slope=0.5, offset=2.0):
    return {"slope": {"kernel": jnp.float32(slope)}, "offset": {"bias": jnp.float32(offset)}}


def line_step(paths=("offset/bias", "slope/kernel"), tx=optax.sgd(0.1), seed=0, objective=Line()):
    static = dict(objective=objective, tx=tx, paths=list(paths), seed=seed)
    return fresh_state(line_params(), tx, list(paths)), functools.partial(train_step, **static), static


# By hand.


def test_one_step_by_hand():
    state, step, _ = line_step()
    error = 0.5 * X + 2.0 - LINE["y"]
    new, metrics = step(state, LINE)
    assert metrics["loss"] == pytest.approx(0.5 * (error**2).mean() + 0.1 * 4.0)
    gradient = {"slope": (error * X).mean(), "offset": error.mean() + 0.1 * 2 * 2.0}
    assert new.params["slope"]["kernel"] == pytest.approx(0.5 - 0.1 * gradient["slope"])
    assert new.params["offset"]["bias"] == pytest.approx(2.0 - 0.1 * gradient["offset"])
    assert metrics["grad_norm"] == pytest.approx(np.hypot(*gradient.values()))
    assert new.step == 1


def test_metrics_are_the_loss_its_named_terms_and_whatever_else_is_reported():
    state, step, _ = line_step()
    _, metrics = step(state, LINE)
    assert set(metrics) == {"loss", "grad_norm", "squares", "offset", "slope", "random"}
    assert metrics["loss"] == pytest.approx(0.5 * metrics["squares"] + 0.1 * metrics["offset"])
    assert metrics["slope"] == 0.5e6


def test_the_loss_falls():
    state, step, _ = line_step()
    losses = []
    for _ in range(100):
        state, metrics = jax.jit(step)(state, LINE)
        losses.append(float(metrics["squares"]))
    assert losses[-1] < 0.05 * losses[0]
    assert state.params["slope"]["kernel"] == pytest.approx(3, abs=0.15)


# Randomness is a function of (seed, step).


def test_every_step_has_randomness_of_its_own():
    def drawn(seed):
        state, step, _ = line_step(seed=seed)
        values = []
        for _ in range(3):
            state, metrics = step(state, LINE)
            values.append(float(metrics["random"]))
        return values

    assert len(set(drawn(0))) == 3
    assert drawn(0) == drawn(0) and drawn(0)[0] != drawn(1)[0]
    state, step, _ = line_step()
    resumed = step(state.replace(step=jnp.int32(2)), LINE)[1]
    assert float(resumed["random"]) == drawn(0)[2]


# Frozen parameters.


def test_frozen_parameters_are_constants():
    state, step, _ = line_step(paths=["slope/kernel"], tx=optax.adam(0.1))
    assert set(state.opt_state[0].mu) == {"slope/kernel"}
    for _ in range(3):
        state, metrics = step(state, LINE)
    assert state.params["offset"]["bias"] == 2.0 and state.params["slope"]["kernel"] != 0.5


def test_a_frozen_parameter_without_a_gradient_does_no_harm():
    """The root's slope at 0 is infinite: were it taken, the norm would be lost, and all by clipping."""
    class Root(Line):
        terms = {"squares": 1.0}

        def __call__(self, params, batch, rng):
            root = jnp.sqrt(params["offset"]["bias"] - 2.0)
            error = params["slope"]["kernel"] * batch["x"] + root - batch["y"]
            return {"squares": (error**2).sum()}, {"squares": jnp.float32(len(error))}

    state, step, _ = line_step(paths=["slope/kernel"], objective=Root(),
                               tx=optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)))
    new, metrics = step(state, LINE)
    assert np.isfinite(metrics["grad_norm"]) and np.isfinite(new.params["slope"]["kernel"])


def test_a_batch_without_anything_to_learn_changes_nothing():
    """Every answer cut off: the weight is 0, the loss is 0 and not 0/0."""
    class Empty(Line):
        terms = {"squares": 1.0}

        def __call__(self, params, batch, rng):
            weight = jnp.zeros_like(batch["x"])
            error = params["slope"]["kernel"] * batch["x"] - batch["y"]
            return {"squares": (weight * error**2).sum()}, {"squares": weight.sum()}

    state, step, _ = line_step(paths=["slope/kernel"], objective=Empty())
    new, metrics = step(state, LINE)
    assert metrics["loss"] == 0.0 and metrics["grad_norm"] == 0.0
    assert new.params["slope"]["kernel"] == 0.5


# Compiled, on the real model.


@pytest.fixture(scope="module")
def trained():
    """Four steps of `instruct` on the smoke model: the state before and after, and what else was made."""
    options = ["data.batch=8", "data.source.conversations=2"]
    overrides = [f"--config.stages.instruct.{option}" for option in options]
    config = configs.resolve(configs.load(SMOKE, overrides))
    stage, model = config.stages["instruct"], config.model
    data = dataset(stage.data, Processor(config.processor, train(["a red 3"], 300), model.vision, 24), 0)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
        paths = list(flatten(params))
        trainable = trainable_paths(stage.trainable, paths)
        tx = make_optimizer(stage.optimizer, stage.trainable, paths, 4)
        first = sharded(lambda p: fresh_state(p, tx, trainable), mesh, params)
        before = jax.tree.map(lambda leaf: np.array(leaf, copy=True), first)
        objective = make_objective(stage.objective, model)
        step = compile_step(first, mesh, objective=objective, tx=tx, paths=trainable, seed=0)
        state, history = first, []
        for i in range(4):
            state, metrics = step(state, put_batch(data[i], mesh))
            history.append({name: float(value) for name, value in metrics.items()})
    return dict(first=first, before=before, after=state, trainable=trainable, step=step, history=history)


def test_frozen_leaves_stay_bit_identical_and_all_others_move(trained):
    before, after = flatten(trained["before"].params), flatten(trained["after"].params)
    assert list(before) == list(after)
    for path in before:
        kept = before[path].tobytes() == np.asarray(after[path]).tobytes()
        assert kept == (path not in trained["trainable"]), path
    assert {path.split("/")[0] for path in trained["trainable"]} == {"connector", "decoder"}


def test_only_trained_leaves_own_optimizer_state(trained):
    flat = flatten(trained["after"].params)
    slots = jax.tree_util.tree_leaves_with_path(trained["after"].opt_state)
    owners = [path[-1].key for path, _ in slots if isinstance(path[-1], jax.tree_util.DictKey)]
    assert sorted(owners) == sorted(2 * trained["trainable"])  # Adam's two moments
    values = sum(flat[path].size for path in trained["trainable"])
    assert sum(leaf.size for _, leaf in slots) == 2 * values + 2  # and two counters


def test_the_step_is_compiled_once(trained):
    assert trained["step"]._cache_size() == 1
    assert trained["after"].step == 4


def test_the_states_buffers_are_given_away(trained):
    """Two copies of the parameters and moments would need twice the memory."""
    kept = [leaf.shape for leaf in jax.tree.leaves(trained["first"]) if not leaf.is_deleted()]
    assert kept == []


def test_the_objectives_terms_are_in_the_metrics(trained):
    for metrics in trained["history"]:
        assert set(metrics) == {"loss", "next_token", "accuracy", "grad_norm"}
        assert metrics["loss"] == metrics["next_token"] and 0 <= metrics["accuracy"] <= 1
    assert trained["history"][0]["loss"] == pytest.approx(np.log(512), abs=1)  # nothing learnt yet
    assert trained["history"][3]["loss"] < trained["history"][0]["loss"]
