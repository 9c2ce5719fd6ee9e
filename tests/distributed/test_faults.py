"""Two processes with two devices each are stopped in every way there is, and go on: on as many devices to the same
bits, on others with the same rows in the same order. (The optimizer is SGD with momentum: Adam divides
rounding by itself.)"""

import json
import os
import pathlib
import signal

import jax
import numpy as np
import pytest

from vlm_jax import load_pretrained

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = pathlib.Path(__file__).with_name("train_noted.py")
STEPS, EVERY, BATCH = 16, 3, 8
SIZES = ("layers=1", "width=16", "heads=2", "mlp_width=16")
OVERRIDES = [
    *(f"model.{part}.transformer.{size}" for part in ("vision", "text", "decoder") for size in SIZES),
    "run=instruct", f"stages.instruct.steps={STEPS}", f"stages.instruct.data.batch={BATCH}",
    "stages.instruct.data.source.size=200", "stages.instruct.data.source.conversations=2", "evals.tasks=()",
    "stages.instruct.optimizer.name=sgd", "stages.instruct.optimizer.b1=0.9",
    "stages.instruct.trainable=[('(connector|decoder)/.*', 0.05), ('.*', None)]",
    "loop.log_every=1", f"loop.checkpoint_every={EVERY}", "mesh.data=1", "mesh.fsdp=-1"]


class Run:
    """A workdir and the launches that trained in it."""

    def __init__(self, folder, launch, cache):
        self.folder, self.launch, self.cache, self.launches = folder, launch, cache, 0
        self.workdir = folder / "run"

    def start(self, processes=2, devices=2, *overrides):
        self.launches += 1
        command = [SCRIPT, self.folder / "rows", "--config", ROOT / "configs/smoke.py", "--workdir", self.workdir,
                   *(f"--config.{override}" for override in [*OVERRIDES, *overrides])]
        return self.launch(f"{self.folder.name}-{self.launches}", command, processes, devices, **self.cache)

    def finish(self, *args):
        started = self.start(*args)
        assert set(started.wait()) == {0}, started.words()
        return self

    def step(self):
        """The newest logged step."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def saved(self):
        return sorted(int(path.name) for path in (self.workdir / "checkpoints").iterdir() if path.name.isdigit())

    def saving(self):
        """Whether a checkpoint is being written."""
        folder = self.workdir / "checkpoints"
        return folder.exists() and any("tmp" in path.name for path in folder.iterdir())

    def sha(self):
        return json.loads((self.workdir / "summary.json").read_text())["params_sha256"]

    def rows(self):
        """{(step, row): digest}; what several launches read must be the same."""
        found = {}
        for line in (self.folder / "rows").read_text().splitlines():
            step, row, digest = json.loads(line)
            assert found.setdefault((step, row), digest) == digest
        return found

    def params(self):
        return jax.tree.map(np.asarray, load_pretrained(self.workdir).params)


@pytest.fixture
def begin(tmp_path, launch, tmp_path_factory):
    """Makes a Run; what is compiled is kept for all launches of this file."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "compiled"),
             "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}

    def make(name):
        (tmp_path / name).mkdir()
        return Run(tmp_path / name, launch, cache)
    return make


_UNBROKEN = []


@pytest.fixture
def unbroken(begin):
    """(its hash, its rows, its parameters), trained once."""
    if not _UNBROKEN:
        run = begin("unbroken").finish()
        _UNBROKEN.append((run.sha(), run.rows(), run.params()))
        assert len(_UNBROKEN[0][1]) == STEPS * BATCH
    return _UNBROKEN[0]


def stopped_by_notice(run):
    """SIGTERM to the second process alone; returns the step that both saved."""
    started = run.start()
    started.wait_until(lambda: run.step() >= 4)
    started.processes[1].send_signal(signal.SIGTERM)
    assert started.wait() == [75, 75], started.words()
    assert "asked to stop" in started.words(0) and "asked to stop" not in started.words(1)
    step = run.saved()[-1]
    assert 4 <= step < STEPS and f"step {step} is saved" in started.words(0)
    return step


def test_a_notice_to_one_stops_both_after_the_same_step_and_the_rest_is_bit_identical(begin, unbroken):
    run = begin("notice")
    stopped_by_notice(run)
    assert not (run.workdir / "summary.json").exists()
    run.finish()
    assert run.sha() == unbroken[0] and run.rows() == unbroken[1]


@pytest.mark.long
@pytest.mark.parametrize("processes, devices", [(1, 1), (1, 4), (4, 1)])
def test_on_another_number_the_rows_are_the_same_and_parameters_agree(begin, unbroken, processes, devices):
    run = begin("elsewhere")
    stopped_by_notice(run)
    run.finish(processes, devices)
    assert run.rows() == unbroken[1]
    for found, expected in zip(jax.tree.leaves(run.params()), jax.tree.leaves(unbroken[2]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1e-3))


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_while_a_checkpoint_is_written(begin, unbroken, victim):
    run = begin("killed")
    started = run.start()
    started.wait_until(lambda: run.step() > EVERY and run.saving())
    started.processes[victim].kill()
    codes = started.wait(200)  # the other one notices by itself, and ends
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, 2, 75), started.words(1 - victim)
    assert run.saved() and not (run.workdir / "summary.json").exists()
    run.finish()
    assert run.sha() == unbroken[0] and run.rows() == unbroken[1]


@pytest.mark.long
def test_when_one_hangs_the_other_prints_its_stacks_and_ends(begin):
    run = begin("hangs")
    started = run.start(2, 2, "loop.hang_seconds=20", "stages.instruct.steps=100000")
    started.wait_until(lambda: run.step() >= 4)
    os.kill(started.processes[1].pid, signal.SIGSTOP)
    assert started.processes[0].wait(100) == 1
    assert "Timeout (0:00:20)!" in started.words(0) and "in run_stage" in started.words(0)


@pytest.mark.long
def test_a_checkpoint_that_one_process_cannot_read_is_left_by_all(begin, unbroken):
    run = begin("damaged")
    stopped_by_notice(run)
    newest, before = run.saved()[-1], run.saved()[-2]
    for file in (run.workdir / "checkpoints" / str(newest)).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    started = run.start()
    assert started.wait() == [0, 0], started.words()
    assert f"goes on from checkpoint {before}" in started.words(0)
    assert (run.workdir / f"unreadable-checkpoints/{newest}-0").is_dir()
    assert run.sha() == unbroken[0] and run.rows() == unbroken[1]
