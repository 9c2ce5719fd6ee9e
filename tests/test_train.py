"""The training verb: what a workdir holds, that a run may be killed at any time, that a mistake costs nothing.

Runs are processes of their own, on one device, as a user's are. What JAX compiles is kept between them.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from vlm_jax import cli, config as configs, load_pretrained, train
from vlm_jax.training import loop
from vlm_jax.training.rules import flatten
from vlm_jax.weights.init_from import load_into

ROOT = pathlib.Path(__file__).parents[1]
STAGES, STEPS = ("contrastive", "instruct"), 6
LOGGED = [(stage, step) for stage in STAGES for step in range(1, STEPS + 1)]
SIZES = ("layers=1", "width=16", "heads=2", "mlp_width=16")


def tiny(*overrides):
    """The smoke config cut to two stages of a model as small as they come; a checkpoint every other step."""
    parts = [f"model.{part}.transformer.{size}" for part in ("vision", "text", "decoder") for size in SIZES]
    data = [f"stages.{name}.{value}" for name in STAGES
            for value in (f"steps={STEPS}", "data.batch=8", "data.source.size=40")]
    rest = [f"run={','.join(STAGES)}", "loop.log_every=1", "loop.checkpoint_every=2", "evals.tasks=()",
            "stages.contrastive.data.format.regions=0", "stages.instruct.data.source.conversations=2"]
    arguments = [f"--config.{override}" for override in [*parts, *data, *rest, *overrides]]
    values = configs.load(str(ROOT / "configs/smoke.py"), arguments)
    values["stages"]["contrastive"]["objective"] = {"kind": "contrastive"}
    return configs.plain(configs.resolve(values))


def write_config(folder, values):
    """A config file that says what `values` say."""
    path = folder / "tiny.py"
    path.write_text("import json, ml_collections\n\ndef get_config():\n"
                    f"    return ml_collections.ConfigDict(json.loads({json.dumps(values)!r}))\n")
    return path


def command(config, workdir, *arguments):
    return [sys.executable, "-W", "ignore", "-m", "vlm_jax.train", "--config", str(config),
            "--workdir", str(workdir), *arguments]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"), tiny())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, config, environment):
    """A workdir trained to its end in one go; tests that change it take a `copy`."""
    workdir = tmp_path_factory.mktemp("unbroken") / "deep" / "run"
    done = subprocess.run(command(config, workdir), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (workdir.parent / "stdout").write_text(done.stdout)
    (workdir.parent / "stderr").write_text(done.stderr)
    return workdir


@pytest.fixture
def copy(unbroken, tmp_path):
    return pathlib.Path(shutil.copytree(unbroken, tmp_path / "copy"))


def snapshot(folder):
    """Every file below a folder but the lock: name -> (bytes, time of last change)."""
    files = (path for path in pathlib.Path(folder).rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def lines(workdir):
    """Records of metrics.jsonl; a half line would not parse."""
    text = (workdir / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def sha(workdir):
    return json.loads((workdir / "summary.json").read_text())["params_sha256"]


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, standard error). For runs that compute nothing."""
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
        try:
            cli.main(train.main)
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        return code, capsys.readouterr().err
    return run


def refused(result, *says):
    """Exit code 2 and one sentence that has all these words."""
    code, error = result
    *noise, sentence = error.splitlines()
    assert code == 2 and sentence.startswith("error: "), error
    for words in says:
        assert words in sentence
    assert not noise, "more than one line"


# A finished workdir.


def test_a_workdir_holds_the_whole_run(unbroken):
    names = {path.name for path in unbroken.iterdir()} - {".lock"}
    assert names == {
        "config.json", "tokenizer.json", "metrics.jsonl", "checkpoints", "report.html", "summary.json"}
    assert json.loads((unbroken / "config.json").read_text()) == tiny()
    assert sorted(int(path.name) for path in (unbroken / "checkpoints").iterdir()) == [10, 12]
    assert len(sha(unbroken)) == 64


def test_every_logged_step_is_one_line(unbroken):
    records = lines(unbroken)
    assert [(record["stage"], record["step"]) for record in records] == LOGGED
    for record in records:
        assert {"loss", "grad_norm", "learning_rate", "examples_per_s", "step_s", "data_wait"} <= set(record)
    assert {"contrastive", "accuracy", "scale"} <= set(records[0])
    assert {"next_token", "accuracy"} <= set(records[-1])


def test_the_terminal_shows_one_line_a_stage_and_one_a_logged_step(unbroken):
    """And none of the libraries' remarks."""
    shown = (unbroken.parent / "stderr").read_text().splitlines()
    expected = [f"{name}: 6 steps of 8, trains " if step == 0 else f"{name} {step}/6  loss "
                for name in STAGES for step in range(STEPS + 1)] + ["done: ", "report: "]
    assert [line[:len(start)] for line, start in zip(shown, expected)] == expected
    assert len(shown) == len(expected)
    assert (unbroken.parent / "stdout").read_text() == ""  # progress is no result


def test_what_is_loaded_is_what_was_trained(unbroken):
    assert train.params_sha256(load_pretrained(unbroken).params) == sha(unbroken)


def test_the_hash_is_over_names_shapes_types_and_bits():
    kernel, zeros = jnp.ones((2, 3)), jnp.zeros(3)
    first, *others = [train.params_sha256(tree) for tree in (
        {"a": {"kernel": kernel}, "b": zeros}, {"b": zeros, "a": {"kernel": kernel}},
        {"a": {"bias": kernel}, "b": zeros}, {"a": {"kernel": kernel.T}, "b": zeros},
        {"a": {"kernel": kernel}, "b": zeros.astype(int)}, {"a": {"kernel": kernel}, "b": -zeros})]
    assert others[0] == first and len({first, *others}) == 5


def test_on_a_finished_workdir_the_same_command_changes_nothing(copy, config, run_here):
    before, locked = snapshot(copy), (copy / ".lock").stat().st_mtime_ns
    code, error = run_here("--config", config, "--workdir", copy)
    assert code == 0 and "is finished" in error
    assert snapshot(copy) == before and (copy / ".lock").stat().st_mtime_ns == locked


def test_another_run_starts_from_its_weights(unbroken):
    trained = load_pretrained(unbroken).params
    zeros = jax.tree.map(jnp.zeros_like, trained)
    assert train.params_sha256(load_into(zeros, str(unbroken))) == sha(unbroken)
    eyes = load_into(zeros, f"{unbroken}:vision")
    for path, leaf in flatten(eyes).items():
        wanted = flatten(trained if path.startswith("vision/") else zeros)[path]
        assert (leaf == wanted).all(), path


# Stopped and started again.


def start(config, workdir, environment):
    return subprocess.Popen(command(config, workdir), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def kill_when(process, condition, limit=120):
    """Kills the process, and not gently, as soon as `condition()`."""
    deadline = time.monotonic() + limit
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def test_killed_twice_it_ends_with_the_same_bits(unbroken, config, environment, tmp_path):
    workdir, metrics = tmp_path / "run", tmp_path / "run/metrics.jsonl"
    for stage, step in (("contrastive", 3), ("instruct", 4)):  # the step before is just being saved
        reached = lambda: metrics.exists() and f'"stage": "{stage}", "step": {step},' in metrics.read_text()
        process = start(config, workdir, environment)
        assert kill_when(process, reached) and reached()
        assert not (workdir / "summary.json").exists()
        with open(metrics, "a") as file:  # as if it had been killed in the middle of a line
            file.write('{"stage": "instruct", "st')
    subprocess.run(command(config, workdir), cwd=ROOT, env=environment, check=True, capture_output=True)
    assert sha(workdir) == sha(unbroken)
    assert [(record["stage"], record["step"]) for record in lines(workdir)] == LOGGED
    assert [record["loss"] for record in lines(workdir)] == [record["loss"] for record in lines(unbroken)]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_it_ends_with_the_same_bits(unbroken, config, environment, tmp_path, seed):
    rng, workdir, killed = random.Random(seed), tmp_path / "run", 0
    for _ in range(12):
        process = start(config, workdir, environment)
        end = time.monotonic() + rng.uniform(2, 7)
        killed += kill_when(process, lambda: time.monotonic() > end)
        if process.returncode == 0:
            break
    subprocess.run(command(config, workdir), cwd=ROOT, env=environment, check=True, capture_output=True)
    assert killed and sha(workdir) == sha(unbroken)
    assert [(record["stage"], record["step"]) for record in lines(workdir)] == LOGGED


def damage(workdir):
    """Cuts every file of the newest checkpoint in half, as a full disk would."""
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (workdir / "summary.json").unlink()
    return newest


def test_a_truncated_checkpoint_is_named_and_kept_and_the_run_goes_on_from_the_one_before(
        copy, unbroken, config, environment):
    newest = damage(copy)
    before = snapshot(newest)
    done = subprocess.run(command(config, copy), cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    warning, = (line for line in done.stderr.splitlines() if line.startswith("warning: "))
    aside = copy / "unreadable-checkpoints/12-0"
    assert f"the checkpoint {newest} cannot be read" in warning and f"it is now {aside}" in warning
    assert warning.endswith("goes on from checkpoint 10.") and snapshot(aside) == before
    assert sha(copy) == sha(unbroken)
    assert [(record["stage"], record["step"]) for record in lines(copy)] == LOGGED


def test_where_no_checkpoint_can_be_read_all_stay_where_they_are(copy, config, run_here):
    shutil.rmtree(copy / "checkpoints/10")
    newest = damage(copy)
    before = snapshot(copy)
    refused(run_here("--config", config, "--workdir", copy),
            f"The checkpoint {newest} cannot be read", "move that folder away")
    assert snapshot(copy) == before


# One workdir, one run.


def test_a_second_process_is_sent_away(copy, config, run_here):
    (copy / "summary.json").unlink()
    with train.claimed(epath.Path(copy), tiny()):
        before = snapshot(copy)
        refused(run_here("--config", config, "--workdir", copy), f"Another process is training in {copy}")
        assert snapshot(copy) == before


def test_a_lock_that_a_killed_process_left_does_not_block(tmp_path):
    (tmp_path / ".lock").write_text("12345")
    for _ in range(2):
        with train.claimed(epath.Path(tmp_path), tiny()):
            pass


def test_another_config_is_refused_and_the_key_named(copy, config, run_here):
    before = snapshot(copy)
    refused(run_here("--config", config, "--workdir", copy, "--config.stages.instruct.steps=7"),
            f"{copy}/config.json holds another config", "config.stages.instruct.steps was 6, now 7")
    assert snapshot(copy) == before


def test_the_first_difference_in_words():
    difference = lambda old, new: train.first_difference(old, new, "config")
    old = {"a": 1, "b": {"c": [1, 2]}}
    assert difference(old, {"b": {"c": [1, 2]}, "a": 1}) == ""
    assert difference(old, {"a": 1, "b": {"c": [1, 3]}}) == "config.b.c was [1, 2], now [1, 3]"
    assert difference({"a": 1}, {"a": 1, "b": 2}) == "config.b was None, now 2"
    assert difference({"z": 1, "a": {"x": 1}}, {"z": 2, "a": 3}) == "config.a was {'x': 1}, now 3"


# Mistakes cost a sentence, and nothing else.


@pytest.mark.parametrize("argument, says", [
    ("--config.stages.instruct.stesp=3", "key 'stesp' in config.stages.instruct; did you mean 'steps'?"),
    ("--config.run=contrastive,instrct", "did you mean 'instruct'?"),
    ("--config.model.vision.image_size=60", "image_size 60 is not divisible by patch_size 16"),
    ("--config.seed=many", "config.seed is "), ("--config.model=3", "config.model is a group"),
    ("--resume", "Unknown argument '--resume'"), ("--confg.seed=3", "Unknown argument '--confg.seed=3'"),
    ("now", "Unknown argument 'now'")])
def test_a_mistake_on_the_command_line_leaves_no_trace(config, tmp_path, run_here, argument, says):
    refused(run_here("--config", config, "--workdir", tmp_path / "run", argument), says)
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_not_there(tmp_path, run_here):
    absent = tmp_path / "absent.py"
    refused(run_here("--config", absent, "--workdir", tmp_path / "run"), f"no config file {absent}")


def test_a_mistake_as_a_shell_sees_it(config, environment, tmp_path):
    done = subprocess.run(command(config, tmp_path / "run", "--config.stages.instruct.stesp=3"), cwd=ROOT,
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: Unknown config key 'stesp'") and done.stderr.count("\n") == 1


def test_arguments_that_are_missing(tmp_path, run_here):
    code, error = run_here("--workdir", tmp_path / "run")
    assert code == 2 and "--config" in error


def test_a_workdir_that_cannot_be_one(config, tmp_path, run_here):
    (tmp_path / "file").write_text("mine")
    refused(run_here("--config", config, "--workdir", tmp_path / "file"), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


class Computed(Exception):
    """A step was about to be compiled: too late for a sentence about the config."""


@pytest.mark.parametrize("overrides, says", [
    (["stages.instruct.trainable=[('conector/.*', 1e-3), ('.*', None)]"], "'conector/.*' matches no"),
    (["stages.instruct.trainable=[('connector/.*', 1e-3)]"], "No rule covers the parameter"),
    (["stages.instruct.data.batch=9"], "A batch of 9 does not divide by the 8 devices"),
    (["stages.instruct.init_from=absent:vision"], "absent has no checkpoints/"),
    (["evals.tasks=zero_shoot"], "zero_shoot")], ids=lambda value: value if isinstance(value, str) else "")
def test_a_mistake_in_a_late_stage_is_found_before_the_first_step(
        tmp_path, run_here, monkeypatch, overrides, says):
    def compile_step(*args, **static):
        raise Computed

    monkeypatch.setattr(loop, "compile_step", compile_step)
    config = write_config(tmp_path, tiny(*overrides))
    refused(run_here("--config", config, "--workdir", tmp_path / "run"), says)


def test_after_an_early_mistake_the_corrected_config_may_use_the_same_workdir(tmp_path, run_here, monkeypatch):
    """Nothing was trained, so nothing can be lost."""
    def run_stages(*args):
        raise Computed

    wrong = write_config(tmp_path, tiny("stages.contrastive.trainable=[('conector/.*', 1e-3), ('.*', None)]"))
    refused(run_here("--config", wrong, "--workdir", tmp_path / "run"), "'conector/.*' matches no parameter")
    monkeypatch.setattr(train, "run_stages", run_stages)
    with pytest.raises(Computed):
        run_here("--config", write_config(tmp_path, tiny()), "--workdir", tmp_path / "run")
