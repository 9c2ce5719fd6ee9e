"""Meshes of eight devices: the same run whatever the mesh, and leaves that really are in pieces."""

import dataclasses
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from vlm_jax import config as configs
from vlm_jax.data.pipeline import dataset
from vlm_jax.data.processor import Processor
from vlm_jax.data.tokenizer import train
from vlm_jax.models.model import abstract_params
from vlm_jax.models.vit import ViT
from vlm_jax.objectives.contrastive import ContrastiveConfig
from vlm_jax.objectives.registry import make_objective
from vlm_jax.training import sharding
from vlm_jax.training.rules import flatten, unflatten
from vlm_jax.training.sharding import (
    MeshConfig, check_batch, host_rows, leaf_spec, make_mesh, put_batch, state_shardings)
from vlm_jax.training.state import fresh_state, sharded
from vlm_jax.training.step import compile_step

SMOKE = str(pathlib.Path(__file__).parents[2] / "configs/smoke.py")
LOWERED = 2**9  # values; the tiny model has no leaf as large as SMALLEST_SHARDED
MESHES = [dict(data=8), dict(data=1, fsdp=8), dict(data=2, fsdp=2, tensor=2)]


@pytest.fixture
def small_leaves_too(monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", LOWERED)


def mesh_of(**axes):
    return make_mesh(MeshConfig(**axes), jax.devices()[:math.prod(axes.values())])


def single():
    return mesh_of(data=1)


# Meshes.


def test_a_mesh_takes_all_devices_along_data_unless_told_otherwise():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1, "context": 1}
    assert make_mesh(MeshConfig(data=2, fsdp=-1)).shape["fsdp"] == 4
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1
    assert make_mesh(MeshConfig(fsdp=8)).shape["data"] == 1


@pytest.mark.parametrize("axes", [
    dict(data=3), dict(data=4), dict(data=16), dict(fsdp=3), dict(data=0), dict(fsdp=0), dict(data=-2),
    dict(fsdp=-2)])
def test_axes_that_do_not_multiply_to_the_devices(axes):
    with pytest.raises(ValueError, match="change config.mesh"):
        make_mesh(MeshConfig(**axes))


def test_only_one_axis_takes_what_is_left():
    with pytest.raises(ValueError, match="Only one mesh axis may be -1"):
        make_mesh(MeshConfig(data=-1, fsdp=-1))


def test_a_batch_must_divide():
    mesh = mesh_of(data=2, fsdp=2, tensor=2)  # split over data and fsdp, repeated over tensor
    for size in (4, 8, 12):
        check_batch(size, mesh)
    with pytest.raises(ValueError, match="batch of 6 does not divide by the 4 devices.*a multiple of 4"):
        check_batch(6, mesh)


# Where a leaf lives.


def test_leaf_spec(small_leaves_too):
    mesh = mesh_of(data=1, fsdp=8)
    assert leaf_spec((4, 64, 128), mesh) == P(None, None, "fsdp")  # the largest dimension
    assert leaf_spec((4, 128, 64), mesh) == P(None, "fsdp")
    assert leaf_spec((64, 64), mesh) == P("fsdp")  # of equals the first
    assert leaf_spec((8, 131), mesh) == P("fsdp")  # the largest that divides
    assert leaf_spec((LOWERED - 1,), mesh) == leaf_spec((), mesh) == P()  # too small to be worth it
    assert leaf_spec((64, 128), mesh_of(data=8)) == P()  # nothing to split over
    with pytest.raises(ValueError, match=r"No dimension .* shape \(9, 131\) divides by fsdp=8"):
        leaf_spec((9, 131), mesh)


def test_small_leaves_stay_whole():
    mesh = mesh_of(data=1, fsdp=8)
    assert leaf_spec((512, 511), mesh) == P()
    assert leaf_spec((512, 512), mesh) == P("fsdp")  # 2^18 values


def test_a_batch_is_split_along_its_examples():
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    assert host_rows(8, mesh) == list(range(8))  # one process holds every device
    batch = put_batch({"x": np.arange(24, dtype=np.int32).reshape(8, 3)}, mesh)
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2, 3)}
    assert np.array_equal(batch["x"], np.arange(24).reshape(8, 3))


# A run on any mesh.


@functools.cache
def tiny(stage_name):
    """The parts of the smoke model that a stage needs, all of them trained; its step's parts; three batches.

    Plain gradient descent, so that parameters compare gradients; Adam would divide their rounding by itself.
    """
    stage = f"--config.stages.{stage_name}"
    overrides = [f"{stage}.data.batch=8", f"{stage}.data.source.conversations=2"]
    config = configs.resolve(configs.load(SMOKE, overrides))
    model, stage = config.model, config.stages[stage_name]
    processor = Processor(config.processor, train(["a red 3"], 300), model.vision, model.text.context)
    batches = dataset(stage.data, processor, 0)
    if stage_name == "contrastive":
        model = dataclasses.replace(model, decoder=None, connector=None)
        objective = make_objective(ContrastiveConfig(positives="same_text"), model)
    else:
        model = dataclasses.replace(model, text=None, contrast=None)
        objective = make_objective(stage.objective, model)
    shapes = flatten(abstract_params(model))
    rng = np.random.default_rng(0)
    params = {path: np.ones(leaf.shape, np.float32) if path.endswith("scale") else
              rng.normal(scale=0.05, size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    static = dict(objective=objective, tx=optax.sgd(0.1), paths=list(shapes), seed=0)
    return unflatten(params), static, [batches[i] for i in range(3)]


def run(mesh, stage_name, steps=3):
    params, static, batches = tiny(stage_name)
    with jax.set_mesh(mesh):
        state = sharded(lambda p: fresh_state(p, static["tx"], static["paths"]), mesh, params)
        step = compile_step(state, mesh, **static)
        losses = []
        for batch in batches[:steps]:
            state, metrics = step(state, put_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
    return state, losses


on_one_device = functools.cache(lambda stage_name: run(single(), stage_name))


@pytest.mark.parametrize("stage_name, axes", [
    ("contrastive", MESHES[0]), ("contrastive", MESHES[2]), ("instruct", MESHES[1]), ("instruct", MESHES[2]),
    pytest.param("contrastive", MESHES[1], marks=pytest.mark.long),
    pytest.param("instruct", MESHES[0], marks=pytest.mark.long)], ids=str)
def test_three_steps_do_not_depend_on_the_mesh(stage_name, axes, small_leaves_too):
    state, losses = run(mesh_of(**axes), stage_name)
    alone, expected = on_one_device(stage_name)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert losses[0] != losses[2]
    lives = state_shardings(jax.eval_shape(lambda: state), mesh_of(**axes))  # still where it was born
    kept = jax.tree.map(lambda leaf, wanted: leaf.sharding.is_equivalent_to(wanted, leaf.ndim), state, lives)
    assert all(jax.tree.leaves(kept))
    split = 0
    for path, leaf in flatten(state.params).items():
        np.testing.assert_allclose(leaf, flatten(alone.params)[path], rtol=1e-4, atol=2e-6, err_msg=path)
        shard = leaf.addressable_shards[0].data
        pieces = axes.get("fsdp", 1) if leaf.size >= LOWERED else 1
        assert shard.size * pieces == leaf.size, path
        split += pieces > 1
    assert split > 15 or "fsdp" not in axes


def test_a_state_is_born_in_pieces_with_the_same_bits(small_leaves_too):
    """Moments included: nothing is made whole first and cut up later."""
    vision = configs.resolve(configs.load(SMOKE)).model.vision
    tx = optax.adam(1e-3)

    def make():
        params = ViT(vision).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
        return fresh_state(params, tx, list(flatten(params)))

    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    whole, pieces = sharded(make, single()), sharded(make, mesh)
    jax.tree.map(np.testing.assert_array_equal, whole, pieces)
    expected = state_shardings(jax.eval_shape(make), mesh)
    for leaf, wanted in zip(jax.tree.leaves(pieces), jax.tree.leaves(expected)):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
        assert leaf.addressable_shards[0].data.size * (2 if leaf.size >= LOWERED else 1) == leaf.size


def test_an_odd_parameter_is_refused_before_anything_is_computed(small_leaves_too):
    with pytest.raises(ValueError, match="change config.mesh.fsdp"):
        sharded(lambda: {"odd": jnp.zeros((27, 27))}, mesh_of(data=1, fsdp=8))
