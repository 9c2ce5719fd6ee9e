"""The same run whatever the mesh and however a batch is taken: losses, gradients and parameters after three steps."""

import functools

import numpy as np
import pytest

from vlm_jax.training.rules import flatten
from vlm_jax.training.sharding import state_shardings

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
def test_microbatches_on_a_mesh(name, on_meshes, alone, small_leaves_too):
    task = on_meshes.task(name).with_(microbatches=2)
    same(on_meshes.run(task, on_meshes.mesh_of(2, 2, 2, 1)), alone(name))
