"""What the compiled step does, read from the program itself: which collectives, which buffers, how often."""

import functools

import jax
import numpy as np
import pytest

from vlm_jax.models.execution import Execution, executing
from vlm_jax.models.transformer import TransformerConfig, apply_blocks, init_blocks
from vlm_jax.training.mesh import batch_sharding, put_batch
from vlm_jax.training.rules import flatten
from vlm_jax.training.sharding import state_shardings


@pytest.fixture(scope="module")
def compiled(on_meshes):
    """(state, compiled step) of a task on a mesh."""
    @functools.cache
    def build(name, sizes):
        mesh = on_meshes.mesh_of(*sizes)
        task = on_meshes.task(name)
        state, step = on_meshes.start(task, mesh)
        with jax.set_mesh(mesh):
            return state, step.lower(state, put_batch(task.batches[0], mesh)).compile()
    return build


def size(leaves):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def test_frozen_parameters_have_no_gradient_to_sum(on_meshes, compiled):
    """align trains the connector alone: what devices sum is its gradient and a few scalars. Trained as a whole (softmax),
    every parameter is summed: the count would see it."""
    for name in ("align", "softmax"):
        task = on_meshes.task(name)
        _, step = compiled(name, (8, 1, 1, 1))
        trained = size(task.params[path] for path in task.static["paths"])
        summed = sum(n for operation, n in on_meshes.collectives(step) if operation in ("all-reduce", "reduce-scatter"))
        assert trained <= summed < trained + 1000, name
    assert {path.split("/")[0] for path in on_meshes.task("align").static["paths"]} == {"connector"}


@pytest.mark.parametrize("name, sizes", [("align", (8, 1, 1, 1)), ("instruct", (1, 8, 1, 1))])
def test_every_leaf_of_the_state_is_donated(name, sizes, compiled, small_leaves_too):
    """Each output of the state takes an input's buffer: the step holds one copy of parameters and moments."""
    state, step = compiled(name, sizes)
    aliases = step.as_text().split("input_output_alias={")[1].split("entry_computation_layout")[0]
    leaves = jax.tree.leaves(state)
    assert aliases.count("may-alias") + aliases.count("must-alias") == len(leaves)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    assert step.memory_analysis().alias_size_in_bytes == held


def test_fsdp_gathers_what_it_must_and_no_more(on_meshes, compiled, small_leaves_too):
    """Parameters in pieces are gathered where they are used, once forwards and at most once more backwards, a layer's
    kernel at a time at most; gradients of the trained ones come back in pieces."""
    task = on_meshes.task("instruct")
    _, step = compiled("instruct", (1, 8, 1, 1))
    split = [leaf for path, leaf in task.params.items()
             if leaf.nbytes >= on_meshes.LOWERED and leaf.ndim > 1 and not path.startswith("text")]
    gathered = [n for operation, n in on_meshes.collectives(step) if operation == "all-gather"]
    assert 0.5 * size(split) < sum(gathered) < 2.2 * size(split)
    largest = max(leaf.nbytes for leaf in split)
    assert max(gathered) <= largest


@pytest.mark.parametrize("layers, times, bodies", [("unrolled", 1, 4), ("scan", 2, 1)])
def test_blocks_are_gathered_kernel_by_kernel(layers, times, bodies, on_meshes, small_leaves_too):
    """Of four layers in pieces every byte is gathered once where all is kept for the backward pass, and twice in a scan,
    which gathers a layer in the loop there and in the loop back; never a stack of layers, and no activations."""
    config, mesh = TransformerConfig(layers=4, width=64, heads=4, mlp_width=256), on_meshes.mesh_of(1, 8, 1, 1)
    shapes = jax.eval_shape(lambda: {"decoder": {"blocks": init_blocks(jax.random.key(0), config)}})
    lives = state_shardings(shapes, mesh)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, lives)
    x = jax.ShapeDtypeStruct((16, 32, 64), np.float32, sharding=batch_sharding(mesh))
    loss = lambda params, x: (apply_blocks(config, params["decoder"]["blocks"], x)[0][-1] * x).sum()
    with jax.set_mesh(mesh), executing(Execution(layers=layers)):
        step = jax.jit(jax.grad(loss), out_shardings=lives).lower(params, x).compile()
    gathered = [n for operation, n in on_meshes.collectives(step) if operation == "all-gather"]
    layer = 4 * (4 * 64 * 64 + 2 * 64 * 256)
    assert sum(gathered) == times * bodies * layer and max(gathered) == 4 * 64 * 256


def test_a_state_in_pieces_takes_a_share_of_the_memory(compiled, small_leaves_too):
    """Arguments of the step (parameters and moments) on one of eight devices against all of them on one."""
    whole, pieces = (compiled("instruct", sizes)[1].memory_analysis() for sizes in ((8, 1, 1, 1), (1, 8, 1, 1)))
    assert pieces.alias_size_in_bytes < whole.alias_size_in_bytes / 5  # biases and norms stay whole


def test_twenty_steps_of_mixed_batches_compile_once(on_meshes):
    """Rows with images and rows of text alone, in every mixture."""
    task, mesh = on_meshes.task("instruct"), on_meshes.mesh_of(2, 1, 1, 1)
    state, step = on_meshes.start(task, mesh)
    rng = np.random.default_rng(0)
    with jax.set_mesh(mesh):
        for i in range(20):
            batch = dict(task.batches[i % 3])
            alone = rng.random(on_meshes.BATCH) < i / 19
            batch["image_index"] = np.where(alone[:, None], -1, batch["image_index"])
            batch["images"] = np.where(alone[:, None, None, None, None], 0, batch["images"])
            state, metrics = step(state, put_batch(batch, mesh))
    assert step._cache_size() == 1 and int(state.step) == 20 and np.isfinite(float(metrics["loss"]))
    assert flatten(state.params)["connector/linear_1/kernel"].dtype == np.float32


@pytest.mark.parametrize("name, memory, flops", [
    ("instruct", 1 / 3, 1 / 4), pytest.param("softmax", 3 / 4, (1 + 1 / 3) / 4, marks=pytest.mark.long)])
def test_microbatches_take_the_memory_of_one(name, memory, flops, on_meshes):
    """Temporaries of a batch in four parts; and that nothing is computed but the parts (a loop's body is counted once):
    the weights of the whole batch cost no forward pass, the features of contrast one more of each part."""
    mesh, measured = on_meshes.mesh_of(1, 1, 1, 1), []
    for microbatches in (1, 4):
        task = on_meshes.task(name).with_(microbatches=microbatches)
        state, step = on_meshes.start(task, mesh)
        with jax.set_mesh(mesh):
            compiled = step.lower(state, put_batch(task.batches[0], mesh)).compile()
        measured.append((compiled.memory_analysis().temp_size_in_bytes, compiled.cost_analysis()["flops"]))
    (whole, work), (part, part_work) = measured
    assert part < memory * whole
    assert part_work < 1.15 * flops * work
