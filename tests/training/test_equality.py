"""The same run whatever the mesh and however a batch is taken: losses, gradients and parameters after three steps."""

import functools

import jax
import numpy as np
import pytest

from vlm_jax.models.execution import Execution, executing
from vlm_jax.training.rules import flatten
from vlm_jax.training.sharding import state_shardings
from vlm_jax.weights.checkpoints import Checkpoints

ONE, MESHES = (1, 1, 1, 1), [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (2, 1, 2, 2)]
TASKS = ["softmax", "sigmoid", "align", "instruct"]
DEFAULT = {("softmax", (2, 2, 2, 1)), ("sigmoid", (8, 1, 1, 1)), ("align", (1, 8, 1, 1)), ("instruct", (2, 1, 2, 2))}
CASES = [pytest.param(name, mesh, marks=() if (name, mesh) in DEFAULT else pytest.mark.long)
         for name in TASKS for mesh in MESHES]


@pytest.fixture(scope="module")
def alone(on_meshes):
    """The run on one device, by task; computed once."""
    return functools.cache(lambda name: on_meshes.run(on_meshes.task(name), on_meshes.mesh_of(*ONE)))


def close(found, expected):
    """Within 1e-5 of the leaf's largest value; of a key bias, whose gradient is truly zero, of the query bias's."""
    sizes = {path: np.abs(np.asarray(leaf)).max() for path, leaf in expected.items()}
    for path, leaf in expected.items():
        size = max(sizes[path], sizes[path.replace("/k/bias", "/q/bias")])
        np.testing.assert_allclose(found[path], leaf, rtol=0, atol=1e-5 * size, err_msg=path)


def same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5)
    close(found[1], expected[1])
    close(flatten(found[2].params), flatten(expected[2].params))


@pytest.mark.parametrize("name, sizes", CASES)
def test_three_steps_do_not_depend_on_the_mesh(name, sizes, on_meshes, alone, small_leaves_too):
    mesh = on_meshes.mesh_of(*sizes)
    found, expected = on_meshes.run(on_meshes.task(name), mesh), alone(name)
    same(found, expected)
    assert expected[0][0] != expected[0][2]
    for path, leaf in flatten(found[2].params).items():  # still where it was born, and really in pieces
        wanted = flatten(state_shardings(found[2].params, mesh))[path]
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), path
        if path.endswith("mlp/up/kernel"):
            assert leaf.addressable_shards[0].data.size * sizes[1] * sizes[2] == leaf.size, path


@pytest.mark.parametrize("name, microbatches", [
    pytest.param(name, parts, marks=() if (name, parts) in {("sigmoid", 4), ("instruct", 2)} else pytest.mark.long)
    for name in TASKS for parts in (2, 4)])
def test_three_steps_do_not_depend_on_microbatches(name, microbatches, on_meshes, alone):
    task = on_meshes.task(name)
    if name in ("align", "instruct"):  # a mean of means would be another loss
        weights = task.batches[0]["loss_weights"].sum(1)
        assert len({weights[i::microbatches].sum() for i in range(microbatches)}) > 1
    same(on_meshes.run(task.with_(microbatches=microbatches), on_meshes.mesh_of(*ONE)), alone(name))


@pytest.mark.long
@pytest.mark.parametrize("name", TASKS)
def test_scanned_and_rematerialised_on_a_mesh(name, on_meshes, alone, small_leaves_too):
    with executing(Execution(layers="scan", remat="dots")):
        found = on_meshes.run(on_meshes.task(name), on_meshes.mesh_of(2, 2, 2, 1))
    same(found, alone(name))


def test_a_checkpoint_goes_on_on_another_mesh(on_meshes, tmp_path, small_leaves_too):
    """Saved in eight pieces, read in two by two, on one device, and in eight along another axis: the same bits."""
    state, _ = on_meshes.start(on_meshes.task("align"), on_meshes.mesh_of(1, 8, 1, 1))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state.params, state.opt_state, {"stage": "align", "step": 1})
        checkpoints.wait()
        for sizes in [(2, 2, 2, 1), ONE, (8, 1, 1, 1), (1, 4, 1, 1)]:
            lives = state_shardings(state, on_meshes.mesh_of(*sizes))
            wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, lives)
            params = checkpoints.params(1, wanted.params)
            moments = checkpoints.opt_state(1, wanted.opt_state)
            for found, leaf, place in zip(*map(jax.tree.leaves, (
                    (params, moments), (state.params, state.opt_state), (lives.params, lives.opt_state))), strict=True):
                assert found.sharding.is_equivalent_to(place, leaf.ndim)
                np.testing.assert_array_equal(found, leaf)


@pytest.mark.long
@pytest.mark.parametrize("name", TASKS)
def test_microbatches_on_a_mesh(name, on_meshes, alone, small_leaves_too):
    task = on_meshes.task(name).with_(microbatches=2)
    same(on_meshes.run(task, on_meshes.mesh_of(2, 2, 2, 1)), alone(name))
