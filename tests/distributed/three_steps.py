"""python three_steps.py OUT NAME... : three steps of each of these objectives in this launch, written by process 0."""

import importlib.util
import pathlib
import sys

import jax
import numpy as np

from vlm_jax import cli
from vlm_jax.inference.hosts import fetch
from vlm_jax.training import sharding
from vlm_jax.training.mesh import host_rows, put_batch
from vlm_jax.training.rules import flatten

MESH = (2, 2, 1, 1)


def objectives():
    path = pathlib.Path(__file__).parents[1] / "training/conftest.py"
    spec = importlib.util.spec_from_file_location("objectives", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    tools = objectives()
    sharding.SMALLEST_SHARDED = tools.LOWERED
    out, *names = sys.argv[1:]
    mesh = tools.mesh_of(*MESH)
    rows = host_rows(tools.BATCH, mesh)
    assert len(rows) * jax.process_count() == tools.BATCH
    found = {}
    for name in names:
        task = tools.task(name)
        state, step = tools.start(task, mesh)
        with jax.set_mesh(mesh):
            for i, batch in enumerate(task.batches):
                state, metrics = step(state, put_batch({key: value[rows] for key, value in batch.items()}, mesh))
                found[f"{name} loss {i}"] = fetch(metrics["loss"])
                if i == 0:
                    found |= {f"{name} gradient {path}": fetch(leaf) for path, leaf in state.opt_state[0].trace.items()}
            found |= {f"{name} parameter {path}": fetch(leaf) for path, leaf in flatten(state.params).items()}
        split = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.is_fully_replicated]
        assert split and not any(leaf.is_fully_addressable for leaf in split)  # no process has all of a parameter
    if jax.process_index() == 0:
        np.savez(out, **found)


if __name__ == "__main__":
    cli.main(main)
