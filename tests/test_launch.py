"""The launch recipes: each parses, and what it starts on every host is our verb with the user's arguments.

The tools of clouds and clusters are replaced by programs that write down how they were called.
"""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import pytest
import yaml

from vlm_jax.training.cluster import EXPLICIT

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "experiments/launch"
ARGUMENTS = ["--config", "configs/my config.py", "--workdir", "gs://bucket/run", "--config.run=('align',)"]


@pytest.fixture
def run(tmp_path):
    """Runs a recipe with programs of these names replaced: (exit code, [words of each call], their environments).

    A replaced program ends with the first of `codes`, the second the next time, and then with 0.
    """
    def run(script, *arguments, replaced, codes=(), **environment):
        calls, programs = tmp_path / "calls", tmp_path / "programs"
        programs.mkdir(exist_ok=True)
        for name in replaced:
            code = f"""#!{sys.executable}
import fcntl, json, os, sys
with open({str(calls)!r}, "a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.seek(0)
    number = len(file.readlines())
    file.write(json.dumps([[{name!r}, *sys.argv[1:]], dict(os.environ)]) + "\\n")
sys.exit(dict(enumerate({list(codes)})).get(number, 0))
"""
            (programs / name).write_text(code)
            (programs / name).chmod(0o755)
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PAUSE": "0", **environment}
        done = subprocess.run(["bash", str(FOLDER / script), *arguments], cwd=ROOT, env=environment, timeout=60,
                              capture_output=True, text=True)
        lines = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        return done.returncode, [words for words, _ in lines], [known for _, known in lines]
    return run


def test_every_recipe_is_known_here_and_every_script_parses():
    assert {path.name for path in FOLDER.iterdir()} == {
        "local.sh", "keep_going.sh", "tpu_vm.sh", "xpk.sh", "slurm.sh", "gke_jobset.yaml", "gke_jobset_gpu.yaml"}
    for path in FOLDER.glob("*.sh"):
        assert subprocess.run(["bash", "-n", path]).returncode == 0, path


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda script: script.name)
def test_a_script_runs_as_the_readme_writes_it(script):
    """By its name: a clone keeps the permission, or nothing starts."""
    assert os.access(script, os.X_OK) and script.read_text().startswith("#!")


def test_local_processes_know_of_each_other(run):
    code, calls, known = run("local.sh", "3", *ARGUMENTS, replaced=["python"])
    assert code == 0 and calls == [["python", "-m", "vlm_jax.train", *ARGUMENTS]] * 3
    assert sorted(one["JAX_PROCESS_ID"] for one in known) == ["0", "1", "2"]
    assert {one["JAX_NUM_PROCESSES"] for one in known} == {"3"} and {one["JAX_PLATFORMS"] for one in known} == {"cpu"}
    assert len({one["JAX_COORDINATOR_ADDRESS"] for one in known}) == 1


@pytest.mark.parametrize("codes, expected", [((0, 75), 75), ((2, 2), 2), ((1, 0), 1)])
def test_local_processes_pass_on_how_they_ended(run, codes, expected):
    assert run("local.sh", "2", *ARGUMENTS, replaced=["python"], codes=codes)[0] == expected


@pytest.mark.parametrize("codes, starts, expected", [((75, 1, 0), 3, 0), ((137, 2), 2, 2), ((75,) * 9, 4, 75)])
def test_it_is_started_again_until_it_is_done_or_was_wrong(run, codes, starts, expected):
    code, calls, _ = run("keep_going.sh", *ARGUMENTS, replaced=["python"], codes=codes, ATTEMPTS="4")
    assert code == expected and calls == [["python", "-m", "vlm_jax.train", *ARGUMENTS]] * starts


def test_tpu_vm(run):
    code, calls, _ = run("tpu_vm.sh", "train", "pod", "zone-a", *ARGUMENTS, replaced=["gcloud"])
    (*words, command), = calls
    assert code == 0 and {"pod", "--zone=zone-a", "--worker=all"} <= set(words)
    started = shlex.split(command.removeprefix("--command="))
    assert started[-len(ARGUMENTS) - 2:] == ["bash", "experiments/launch/keep_going.sh", *ARGUMENTS]


def test_tpu_vm_install_and_a_wrong_word(run):
    code, calls, _ = run("tpu_vm.sh", "install", "pod", "zone-a", replaced=["gcloud"])
    assert code == 0 and ["scp" in call for call in calls] == [True, False]
    assert calls[1][-1] == "--command=cd vlm_jax && make install EXTRAS=tpu"
    assert run("tpu_vm.sh", "start", "pod", "zone-a", replaced=["gcloud"])[0] == 2


def test_xpk(run):
    code, calls, _ = run("xpk.sh", "cluster", "name", "v5litepod-64", "2", *ARGUMENTS, replaced=["xpk"], IMAGE="image")
    (*words, command), = calls
    assert code == 0 and {"--num-slices=2", "--tpu-type=v5litepod-64", "--restart-on-exit-codes=1,75"} <= set(words)
    assert shlex.split(command.removeprefix("--command=")) == ["python", "-m", "vlm_jax.train", *ARGUMENTS]


@pytest.mark.parametrize("code, queued", [(0, False), (1, False), (2, False), (75, True)])
def test_slurm(run, code, queued):
    ended, calls, _ = run("slurm.sh", *ARGUMENTS, replaced=["srun", "scontrol"], codes=[code], SLURM_JOB_ID="7")
    assert ended == code
    assert calls[0] == ["srun", "--kill-on-bad-exit=1", ".venv/bin/python", "-m", "vlm_jax.train", *ARGUMENTS]
    assert calls[1:] == [["scontrol", "requeue", "7"]] * queued


@pytest.mark.parametrize("file", ["gke_jobset.yaml", "gke_jobset_gpu.yaml"])
def test_job_sets(file):
    whole = yaml.safe_load((FOLDER / file).read_text())
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    hosts, = whole["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    pod = job["template"]["spec"]
    container, = pod["containers"]
    assert container["command"] + container["args"][:2] == [
        "python", "-m", "vlm_jax.train", "--config", "configs/quickstart.py"]
    assert (ROOT / container["args"][1]).exists() and "://" in container["args"][3]
    assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    rule, = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    assert whole["spec"]["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    if "gpu" in file:
        given = {one["name"]: one.get("value") for one in container["env"]}
        assert tuple(given) == EXPLICIT and given["JAX_NUM_PROCESSES"] == str(job["completions"])
        first = f"{whole['metadata']['name']}-{hosts['name']}-0-0.{whole['metadata']['name']}"
        assert given["JAX_COORDINATOR_ADDRESS"].split(":")[0] == first
        assert "job-completion-index" in container["env"][2]["valueFrom"]["fieldRef"]["fieldPath"]


def test_two_local_processes_train_and_evaluate(tmp_path):
    """The recipe as it is, with the smoke config cut to what is quick."""
    sizes = [f"--config.model.{part}.transformer.{size}" for part in ("vision", "text", "decoder")
             for size in ("width=16", "mlp_width=16")]
    few = ["--config.run=contrastive", "--config.stages.contrastive.steps=2",
           "--config.stages.contrastive.data.batch=8",
           "--config.evals.tasks=zero_shot", "--config.evals.examples=8", "--config.evals.batch=8"]
    started = subprocess.Popen(
        ["bash", str(FOLDER / "local.sh"), "2", "--config", "configs/smoke.py", "--workdir", str(tmp_path / "run"),
         *sizes, *few], cwd=ROOT, env={**os.environ, "PYTHON": sys.executable, "DEVICES": "1"}, text=True,
        stderr=subprocess.PIPE, start_new_session=True)
    try:
        _, said = started.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)  # the script and what it started
    assert started.returncode == 0, said
    assert said.count("report: ") == 1  # one of them speaks
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert (tmp_path / "run/eval/zero_shot.json").exists() and (tmp_path / "run/report.html").exists()
