"""python -m vlm_jax.train --config configs/quickstart.py --workdir DIR [--config.path.to.key=value ...]

Trains the stages of a config, evaluates, and writes a report. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import json
from typing import Any, Iterator

import jax
import numpy as np
from etils import epath

from vlm_jax import cli, config as configs
from vlm_jax.data import tokenizer as tokenizers
from vlm_jax.data.files import read_json, write_atomically
from vlm_jax.data.pipeline import RowsConfig, texts
from vlm_jax.data.processor import Processor
from vlm_jax.data.registry import open_source
from vlm_jax.data.templates import template
from vlm_jax.models.execution import executing
from vlm_jax.models.model import abstract_params, init_params
from vlm_jax.evaluate import check_task, evaluate
from vlm_jax.inference.hosts import fetch
from vlm_jax.objectives.registry import make_objective
from vlm_jax.pretrained import processor_for
from vlm_jax.reports.report import write_report
from vlm_jax.training.cluster import on_all, on_first, say
from vlm_jax.training.guards import Notice
from vlm_jax.training.loop import Run, run_stage
from vlm_jax.training.mesh import check_batch, check_rows, make_mesh
from vlm_jax.training.metrics import MetricsLog
from vlm_jax.training.optimizer import trainable_paths
from vlm_jax.training.resume import from_newest, read_together
from vlm_jax.training.rules import flatten
from vlm_jax.training.sharding import state_shardings
from vlm_jax.training.state import adapted, sharded
from vlm_jax.weights.checkpoints import Checkpoints
from vlm_jax.weights.init_from import check as check_init

TOKENIZER_RECORDS = 2000  # what a run's own tokenizer is trained on


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vlm_jax.train", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="a Python file with get_config()")
    parser.add_argument("--workdir", required=True, help="where checkpoints, metrics and the report go")
    args, overrides = parser.parse_known_args()
    train(configs.load(args.config, overrides), epath.Path(args.workdir))


def train(values: dict[str, Any], workdir: epath.Path) -> None:
    """Runs a resolved config to its end in a workdir, which all processes share; a finished one is left as it is."""
    config = configs.resolve(values)
    for task in config.evals.tasks:
        check_task(task)
    finished = lambda: on_first((workdir / "summary.json").exists)
    if not finished():
        on_all(lambda: check(config))
    with claimed(workdir, values):
        if finished():
            say(f"{workdir} is finished; nothing to do.")
            return
        mesh = make_mesh(config.mesh)
        with jax.set_mesh(mesh):
            with executing(config.execution), Checkpoints(workdir) as checkpoints, Notice() as notice:
                run = functools.partial(run_stages, config, workdir, mesh, checkpoints, notice)
                params = from_newest(checkpoints, run)
            finish(config, workdir, params)


def check(config: configs.RunConfig) -> None:
    """Raises for what a late stage would only stumble over once the stages before it are trained."""
    if not config.run:
        raise ValueError("config.run names no stage; give one or several.")
    mesh, params = make_mesh(config.mesh), abstract_params(config.model)
    state_shardings(params, mesh)
    for stage in (config.stages[name] for name in config.run):
        check_batch(stage.data.batch, mesh, stage.microbatches)
        if isinstance(stage.data.format, RowsConfig):
            check_rows(stage.data.format.length, mesh)
        trained = adapted(params, stage.lora, jax.random.key(config.seed), mesh) if stage.lora else params
        trainable_paths(stage.trainable, list(flatten(trained)))
        make_objective(stage.objective, config.model)
        stage.data.open()
        taken = check_init(params, stage.init_from) if stage.init_from else []
        if {"text", "decoder"} & set(taken) and not config.processor.tokenizer:
            raise ValueError(f"init_from '{stage.init_from}' brings weights that read the tokens of another run; set "
                             f"config.processor.tokenizer to that run's workdir.")
    if config.evals.tasks and config.evals.source is None:
        raise ValueError("config.evals.tasks need data; set config.evals.source.")


@contextlib.contextmanager
def claimed(workdir: epath.Path, values: dict[str, Any]) -> Iterator[None]:
    """Makes the workdir this launch's: its config.json must be the same, and no other launch may be in it.

    The lock is the kernel's, on an open file: a killed process leaves nothing that blocks.
    """
    with contextlib.ExitStack() as stack:
        on_first(lambda: _claim(workdir, values, stack))
        yield


def _claim(workdir: epath.Path, values: dict[str, Any], stack: contextlib.ExitStack) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"The workdir {workdir} is a file; give another --workdir.")
    workdir.mkdir(parents=True, exist_ok=True)
    if "://" not in str(workdir):  # a bucket has no locks
        lock = stack.enter_context((workdir / ".lock").open("a"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"Another process is training in {workdir}; wait for it or give another "
                             f"--workdir.") from error
    path = workdir / "config.json"
    if path.exists():
        difference = first_difference(read_json(path), values, "config")
        if difference:
            raise ValueError(f"{path} holds another config ({difference}); give another --workdir, or the config "
                             f"it was started with.")
    else:
        write_atomically(path, json.dumps(values, indent=1, sort_keys=True) + "\n")


def first_difference(old: Any, new: Any, where: str) -> str:
    """The first key in which two configs differ, in words; empty where they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            found = first_difference(old.get(key), new.get(key), f"{where}.{key}")
            if found:
                return found
        return ""
    return "" if old == new else f"{where} was {old!r}, now {new!r}"


def run_stages(
    config: configs.RunConfig, workdir: epath.Path, mesh: jax.sharding.Mesh, checkpoints: Checkpoints, notice: Notice,
    number: int | None,
) -> Any:
    """All stages in order, from a checkpoint on if there is one; returns the final parameters."""
    meta = {"stage": config.run[0], "step": 0}
    if number is not None:
        meta = read_together(lambda: checkpoints.meta(number))
    reached = (config.run.index(meta["stage"]), meta["step"])
    log = MetricsLog(workdir / "metrics.jsonl", lambda r: (config.run.index(r["stage"]), r["step"]) <= reached)
    run = Run(config.model, make_processor(config, workdir), mesh, config.seed, log, checkpoints, config.loop, notice)
    if number is None:
        params = sharded(lambda: init_params(config.model, jax.random.key(config.seed)), mesh)
    else:
        params = abstract_params(config.model)
    offset = 0
    for i, name in enumerate(config.run):
        stage = config.stages[name]
        if i >= reached[0]:
            resume = number if i == reached[0] else None
            params = run_stage(run, name, stage, params, offset=offset, resume=resume)
        offset += stage.steps
    return params


def make_processor(config: configs.RunConfig, workdir: epath.Path) -> Processor:
    """The run's processor; its tokenizer is the workdir's, else the config's, else trained on the run's own text."""
    path = workdir / "tokenizer.json"

    def write() -> None:
        if not path.exists():
            write_atomically(path, make_tokenizer(config).to_json())

    on_first(write)
    return processor_for(config, tokenizers.load(path))


def make_tokenizer(config: configs.RunConfig) -> tokenizers.Tokenizer:
    if config.processor.tokenizer:
        return tokenizers.load(config.processor.tokenizer)
    stages = [config.stages[name].data for name in config.run]
    once = [data for n, data in enumerate(stages) if data.source not in [other.source for other in stages[:n]]]
    chat = template(config.processor.template)
    said = (text for data in once for source in data.records() for text in texts(source, TOKENIZER_RECORDS, chat))
    return tokenizers.train(said, config.processor.vocab_size, chat.own_tokens())


def params_sha256(params: Any) -> str:
    """One hash over all parameters: path, shape, dtype and bytes of each leaf, in path order, one leaf on the host at
    a time."""
    digest = hashlib.sha256()
    for path, leaf in flatten(params).items():
        value = fetch(leaf)
        digest.update(f"{path} {value.shape} {value.dtype}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def finish(config: configs.RunConfig, workdir: epath.Path, params: Any) -> None:
    """Evaluates, writes the report, and last the summary: its presence says that the run is complete."""
    figures = {}
    processor, evals = make_processor(config, workdir), config.evals
    for task in evals.tasks:
        figures |= evaluate(config.model, params, processor, task, open_source(evals.source), workdir / "eval",
                            evals.examples, evals.batch)
    figures["params_sha256"] = params_sha256(params)
    report = on_first(lambda: str(write_report(workdir)))
    on_first(lambda: write_atomically(workdir / "summary.json", json.dumps(figures, indent=1) + "\n"))
    shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if isinstance(value, float) and
                      "/" not in name)
    say(f"done: {shown or 'nothing was evaluated'}\nreport: {report}")


if __name__ == "__main__":
    cli.main(main)
