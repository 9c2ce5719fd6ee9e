"""Rows `stages/...`: the quickstart's stages as they train: seconds a step, examples a second, and the share of the
wall time spent inside the compiled step."""

from __future__ import annotations

import functools
import pathlib
import statistics
import tempfile
import time

import jax
from etils import epath

from experiments.benchmarks.timing import Row, seconds
from vlm_jax import config as configs
from vlm_jax.data.pipeline import batches
from vlm_jax.models.model import init_params
from vlm_jax.train import make_processor
from vlm_jax.training.loop import Run, begin
from vlm_jax.training.mesh import make_mesh, put_batch
from vlm_jax.training.state import sharded
from vlm_jax.training.step import compile_step

QUICKSTART = str(pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py")
STEPS = 30


@functools.cache
def _run() -> tuple[configs.RunConfig, Run]:
    config = configs.resolve(configs.load(QUICKSTART))
    with tempfile.TemporaryDirectory() as folder:
        processor = make_processor(config, epath.Path(folder))
    return config, Run(config.model, processor, make_mesh(config.mesh), config.seed, log=None, checkpoints=None)


def stage(name: str) -> Row:
    """The loop's work without logging and checkpoints. `ours` is the median time of a step, data included."""
    config, run = _run()
    with jax.set_mesh(run.mesh):
        params = sharded(lambda: init_params(config.model, jax.random.key(0)), run.mesh)
        settings = config.stages[name]
        state, parts = begin(run, settings, params, None)
        step = compile_step(state, run.mesh, **parts)
        laps, inside = [], []
        for batch in batches(settings.data, run.processor, 0, 0, STEPS + 3):
            arrays = put_batch(batch, run.mesh)

            def advance():
                nonlocal state
                state, metrics = step(state, arrays)
                return metrics

            inside.append(seconds(advance))
            laps.append(time.perf_counter())
        whole = [after - before for before, after in zip(laps[2:], laps[3:])]  # the first steps hold the compilation
    median = statistics.median(whole)
    return {"ours": median, "examples_per_s": settings.data.batch / median, "inside_step": sum(inside[3:]) / sum(whole)}


ROWS = {f"stages/{name}": functools.partial(stage, name) for name in ("contrastive", "language", "align", "instruct")}
