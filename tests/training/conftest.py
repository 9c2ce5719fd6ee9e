"""Four objectives on the smoke model: what meshes, microbatches and compiled programs are tried on."""

import dataclasses
import functools
import math
import pathlib
import re
from typing import Any

import jax
import numpy as np
import optax
import pytest

from vlm_jax import config as configs
from vlm_jax.data.pipeline import dataset
from vlm_jax.data.processor import Processor
from vlm_jax.data.tokenizer import train
from vlm_jax.models.model import abstract_params
from vlm_jax.models.two_tower import ContrastConfig
from vlm_jax.objectives.contrastive import ContrastiveConfig
from vlm_jax.objectives.registry import make_objective
from vlm_jax.training import sharding
from vlm_jax.training.mesh import MeshConfig, make_mesh, put_batch
from vlm_jax.training.optimizer import trainable_paths
from vlm_jax.training.rules import flatten, unflatten
from vlm_jax.training.state import fresh_state, sharded
from vlm_jax.training.step import compile_step

SMOKE = str(pathlib.Path(__file__).parents[2] / "configs/smoke.py")
LOWERED = 2**11  # bytes; the tiny model has no leaf as large as SMALLEST_SHARDED
BATCH = 16


@dataclasses.dataclass(frozen=True)
class Task:
    """params: NumPy, by path. static: of `train_step`. batches: three, their answers of uneven lengths."""

    params: dict[str, np.ndarray]
    static: dict[str, Any]
    batches: list[dict[str, np.ndarray]]

    def with_(self, **changes):
        return dataclasses.replace(self, static={**self.static, **changes})


def _objective(name, config):
    """(the parts of the model that a stage needs, its objective, its rules)"""
    if name in ("softmax", "sigmoid"):
        contrast = ContrastConfig(32, scale=10.0, bias=-10.0) if name == "sigmoid" else config.model.contrast
        model = dataclasses.replace(config.model, decoder=None, connector=None, contrast=contrast)
        return model, ContrastiveConfig(loss=name, positives="same_text"), [(".*", 1.0)]
    model = dataclasses.replace(config.model, text=None, contrast=None)
    return model, config.stages[name].objective, config.stages[name].trainable


@functools.cache
def task(name: str) -> Task:
    """`name`: softmax, sigmoid, align or instruct. Plain descent with momentum: parameters then compare gradients, and
    Adam would divide their rounding by itself."""
    stage = "contrastive" if name in ("softmax", "sigmoid") else name
    overrides = [f"--config.stages.{stage}.data.batch={BATCH}"]
    if stage == "instruct":
        overrides.append("--config.stages.instruct.data.source.conversations=2")
    config = configs.resolve(configs.load(SMOKE, overrides))
    model, objective, rules = _objective(name, config)
    data = dataset(config.stages[stage].data,
                   Processor(config.processor, train(["a red 3"], 300), model.vision, config.model.text.context), 0)
    shapes, rng = flatten(abstract_params(model)), np.random.default_rng(0)
    params = {path: np.ones(leaf.shape, np.float32) if path.endswith("scale") else
              rng.normal(scale=0.05, size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    static = dict(objective=make_objective(objective, model), tx=optax.sgd(0.1, momentum=0.9),
                  paths=trainable_paths(rules, list(shapes)), seed=0)
    return Task(params, static, [data[i] for i in range(3)])


def mesh_of(*sizes):
    """A mesh of data, fsdp, tensor, context devices."""
    return make_mesh(MeshConfig(*sizes), jax.devices()[:math.prod(sizes)])


def start(task: Task, mesh):
    """(first state, compiled step)"""
    make = lambda params: fresh_state(params, task.static["tx"], task.static["paths"])
    with jax.set_mesh(mesh):
        state = sharded(make, mesh, unflatten(task.params))
        return state, compile_step(state, mesh, **task.static)


def run(task: Task, mesh):
    """(losses, gradients of the first step, final state) of three steps."""
    state, step = start(task, mesh)
    losses, gradients = [], None
    with jax.set_mesh(mesh):
        for batch in task.batches:
            state, metrics = step(state, put_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
            if gradients is None:  # momentum that starts at 0 is the gradient
                gradients = jax.tree.map(np.array, state.opt_state[0].trace)
    return losses, gradients, state


@pytest.fixture
def small_leaves_too(monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", LOWERED)


SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}


def collectives(compiled):
    """[(operation, bytes of its result on one device)] of the compiled program, one for each result."""
    found = []
    for line in compiled.as_text().splitlines():
        match = re.search(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", line)
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", match.group(1)) if match else []:
            found.append((match.group(2), SIZES[kind] * math.prod(int(n) for n in shape.split(",") if n)))
    return found


class Meshes:
    """The functions of this file, for tests."""

    task, mesh_of, start, run, collectives = map(staticmethod, (task, mesh_of, start, run, collectives))
    LOWERED = LOWERED
    BATCH = BATCH


@pytest.fixture(scope="session")
def on_meshes():
    return Meshes
