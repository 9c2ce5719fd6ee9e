"""The one loop: a stage is (data, objective, trainable rules, init_from), and this runs any of them."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_jax.data.pipeline import Batch, DataConfig, batches, stage_seed
from vlm_jax.data.processor import Processor
from vlm_jax.models.lora import merge
from vlm_jax.models.model import ModelConfig
from vlm_jax.objectives.registry import ObjectiveConfig, make_objective
from vlm_jax.training.clock import Clock
from vlm_jax.training.cluster import say
from vlm_jax.training.flops import step_flops
from vlm_jax.training.guards import RESTART, Finite, Notice, watchdog
from vlm_jax.training.hardware import peak_flops
from vlm_jax.training.mesh import check_batch, host_rows, put_batch
from vlm_jax.training.metrics import MetricsLog
from vlm_jax.training.optimizer import OptimizerConfig, count, make_optimizer, peak_rate, schedule, trainable_paths
from vlm_jax.training.resume import read_together
from vlm_jax.training.rules import Rules, flatten
from vlm_jax.training.sharding import state_shardings
from vlm_jax.training.state import TrainState, adapted, fresh_state, shaped, sharded
from vlm_jax.training.step import compile_step
from vlm_jax.weights.checkpoints import Checkpoints
from vlm_jax.weights.init_from import load_into


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """`trainable`: (path regex, peak learning rate or None to freeze), first match wins, every parameter covered.

    `init_from`: a workdir whose weights replace this run's before the stage, "DIR" or "DIR:vision,connector", or a
    connector in a file, "mm_projector.safetensors"; empty goes on from the stage before. `microbatches`: parts in which
    a batch is taken, one after the other, to save memory; the answer is the same.
    """

    data: DataConfig
    objective: ObjectiveConfig
    trainable: Rules
    steps: int
    optimizer: OptimizerConfig = OptimizerConfig()
    init_from: str = ""
    microbatches: int = 1
    lora: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}; a stage takes 0 or more.")
        if self.microbatches < 1:
            raise ValueError(f"microbatches is {self.microbatches}; use 1 or more.")


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How often to log and to save, in steps; a stage's last step always does both.

    `skip_not_finite`: how many steps in a row may go without an update because their loss or a gradient is not finite;
    the next one stops the run. `hang_seconds`: after so long without a step the process prints its stacks and ends; 0
    waits for ever.
    """

    log_every: int = 20
    checkpoint_every: int = 250
    skip_not_finite: int = 0
    hang_seconds: int = 3600

    def __post_init__(self):
        if min(self.log_every, self.checkpoint_every) < 1:
            raise ValueError(f"log_every is {self.log_every}, checkpoint_every {self.checkpoint_every}; use 1 or more.")
        if min(self.skip_not_finite, self.hang_seconds) < 0:
            raise ValueError(f"skip_not_finite is {self.skip_not_finite}, hang_seconds {self.hang_seconds}; use 0 or "
                             f"more.")


@dataclasses.dataclass
class Run:
    """What all stages of a run share."""

    model: ModelConfig
    processor: Processor
    mesh: Mesh
    seed: int
    log: MetricsLog
    checkpoints: Checkpoints
    config: LoopConfig = LoopConfig()
    notice: Notice = dataclasses.field(default_factory=Notice)


def begin(run: Run, stage: StageConfig, params: Any, resume: int | None) -> tuple[TrainState, dict[str, Any]]:
    """The stage's state (fresh, or from checkpoint number `resume`) and what its step is made of.

    `params` may be abstract when resuming.
    """
    if resume is None and stage.init_from:
        params = load_into(params, stage.init_from)
    if stage.lora:
        params = adapted(params, stage.lora, jax.random.key(run.seed), run.mesh)
    paths = list(flatten(params))
    trainable = trainable_paths(stage.trainable, paths)
    tx = make_optimizer(stage.optimizer, stage.trainable, paths, stage.steps)
    parts = dict(objective=make_objective(stage.objective, run.model), tx=tx, paths=trainable, seed=run.seed,
                 microbatches=stage.microbatches)
    if resume is None:
        return sharded(lambda p: fresh_state(p, tx, trainable), run.mesh, params), parts
    shapes = jax.eval_shape(lambda p: fresh_state(p, tx, trainable), params)
    shapes = jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                          shapes, state_shardings(shapes, run.mesh))
    read = lambda: TrainState(
        jax.device_put(np.asarray(run.checkpoints.meta(resume)["step"], shapes.step.dtype), shapes.step.sharding),
        run.checkpoints.params(resume, shapes.params), run.checkpoints.opt_state(resume, shapes.opt_state))
    return read_together(read), parts


def run_stage(run: Run, name: str, stage: StageConfig, params: Any, *, offset: int, resume: int | None) -> Any:
    """Trains one stage and returns the parameters. `offset` counts the steps of the stages before."""
    check_batch(stage.data.batch, run.mesh, stage.microbatches)
    state, parts = begin(run, stage, params, resume)
    step_fn = compile_step(state, run.mesh, **parts)
    start = int(state.step)
    rate = peak_rate(stage.trainable, list(flatten(state.params)))
    announce(name, stage, state, parts["paths"])
    clock = make_clock(run, stage, state.params, parts["paths"])
    data = batches(stage.data, run.processor, stage_seed(run.seed, name), start, stage.steps,
                   host_rows(stage.data.batch, run.mesh))
    finite = Finite(run.config.skip_not_finite, functools.partial(not_finite, run, name))
    with watchdog(run.config.hang_seconds) as alive:
        for step in range(start + 1, stage.steps + 1):
            batch = put_batch(clock.next(data), run.mesh)
            finite.settle()  # one step in flight: the host prepares while the device computes
            alive()
            state, metrics = step_fn(state, batch)
            finite.watch(step, metrics)
            last, stop = step == stage.steps, run.notice.reached(offset + step)
            if last or step == 1 or step % run.config.log_every == 0:
                finite.settle()
                values = {key: float(value) if np.isfinite(value) else None for key, value in metrics.items()}  # JSON
                shown = float(schedule(stage.optimizer, stage.steps, step - 1)) * rate
                record = {"stage": name, "step": step, **values, "learning_rate": shown, **clock.lap()}
                if run.config.skip_not_finite:
                    record["skipped"] = finite.lap()
                run.log.write(record)
                progress(record, stage.steps)
            if last or stop or step % run.config.checkpoint_every == 0:
                finite.settle()
                run.checkpoints.save(offset + step, state.params, state.opt_state, {"stage": name, "step": step})
            if stop:
                leave(run, name, step)
        run.checkpoints.wait()  # the next stage takes over the buffers that are being written
    return jax.jit(merge, donate_argnums=0)(state.params) if stage.lora else state.params


def leave(run: Run, name: str, step: int) -> NoReturn:
    """Ends the process as it was asked to, with what it did on disk."""
    run.checkpoints.wait()
    say(f"{name}: asked to stop; step {step} is saved, and the same command goes on from there.")
    raise SystemExit(RESTART)


def not_finite(run: Run, name: str, step: int) -> str:
    """What to tell the user of such a step."""
    run.checkpoints.wait()
    good = run.checkpoints.latest()
    saved = "there is no checkpoint yet" if good is None else f"the last good one is {run.checkpoints.path / str(good)}"
    return (f"Stage '{name}', step {step}: the loss or a gradient is not finite, and the update was not applied "
            f"({saved}); train in another --workdir with a lower learning rate (init_from can take this one's "
            f"weights), or with config.loop.skip_not_finite={run.config.skip_not_finite + 10} to go on past a few such "
            f"steps.")


def make_clock(run: Run, stage: StageConfig, params: Any, trained: list[str]) -> Clock:
    """The stage's clock; FLOPs are counted once for each shape of a batch."""
    shapes = shaped(params)
    seen: dict[Any, float] = {}

    def flops(batch: Batch) -> float:
        key = str(jax.tree.map(np.shape, batch))
        if key not in seen:
            seen[key] = step_flops(run.model, shapes, shaped(batch), trained)
        return seen[key]

    peak = peak_flops(run.mesh.devices.flat[0])
    return Clock(stage.data.batch, flops, peak and peak * run.mesh.size, getattr(run.processor, "pad_id", None))


def announce(name: str, stage: StageConfig, state: TrainState, paths: list[str]) -> None:
    """One line on what the stage trains."""
    flat = flatten(state.params)
    trained = count({path: flat[path] for path in paths})
    tops = sorted({path.split("/")[0] for path in paths})
    say(f"{name}: {stage.steps} steps of {stage.data.batch}, trains {trained:,} of {count(flat):,} parameters "
        f"({', '.join(tops)})")


def progress(record: dict[str, Any], steps: int) -> None:
    """The progress line: rewritten in place on a terminal, one line a log step elsewhere."""
    loss = math.nan if record["loss"] is None else record["loss"]
    line = f"{record['stage']} {record['step']}/{steps}  loss {loss:.4f}  "
    if record["step"] == 1:
        line += f"compiled in {record['step_s']:.0f} s"
    else:
        left = (steps - record["step"]) * record["step_s"]
        mfu = "unknown" if record["mfu"] is None else f"{record['mfu']:.0%}"
        line += f"{record['examples_per_s']:.0f} examples/s  MFU {mfu}  "
        line += f"waiting {record['data_wait']:.0%}  {record['memory_gib']:.1f} GiB  ETA {left:.0f} s"
    terminal = sys.stderr.isatty()
    say(f"\r{line:<78}" if terminal else line, end="" if terminal and record["step"] < steps else "\n")
