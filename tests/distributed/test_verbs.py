"""What two processes do besides training: they start from another run's weights, and evaluate as one process does."""

import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SIZES = ("layers=1", "width=16", "heads=2", "mlp_width=16")
TINY = [f"--config.{override}" for override in [
    *(f"model.{part}.transformer.{size}" for part in ("vision", "text", "decoder") for size in SIZES),
    "stages.contrastive.steps=3", "stages.instruct.steps=3", "stages.contrastive.data.batch=8",
    "stages.instruct.data.batch=8", "evals.examples=12", "evals.batch=8"]]


@pytest.mark.long
def test_two_processes_evaluate_as_one_and_start_from_its_weights(launch, tmp_path):
    def train(name, processes, *overrides):
        command = ["-m", "vlm_jax.train", "--config", "configs/smoke.py", "--workdir", tmp_path / name, *TINY,
                   *(f"--config.{override}" for override in overrides)]
        started = launch(f"train-{name}", command, processes, devices=2)
        assert set(started.wait()) == {0}, started.words()
        return json.loads((tmp_path / name / "summary.json").read_text())

    def evaluate(task, processes):
        command = ["-m", "vlm_jax.evaluate", "--model", tmp_path / "one", "--task", task, "--json"]
        started = launch(f"{task}-{processes}", command, processes, devices=2)
        assert set(started.wait()) == {0}, started.words()
        lines = [line for i in range(processes) for line in started.words(i).splitlines() if line.startswith("{")]
        records = (tmp_path / f"one/eval/{task}.jsonl").read_text()
        line, = lines  # one process speaks
        return json.loads(line)["metrics"], records

    figures = train("one", 1, "run=contrastive,instruct", "evals.tasks=zero_shot,vqa")
    for task in ("zero_shot", "vqa"):
        metrics, records = evaluate(task, 1)
        assert (metrics, records) == evaluate(task, 2)
        assert metrics.items() <= figures.items()
    again = train("two", 2, "run=instruct", "stages.instruct.steps=0", "evals.tasks=zero_shot",
                  f"stages.instruct.init_from={tmp_path}/one", f"processor.tokenizer={tmp_path}/one")
    assert again["params_sha256"] == figures["params_sha256"]
    parts = train("parts", 2, "run=instruct", "stages.instruct.steps=0", "evals.tasks=()",
                  f"stages.instruct.init_from={tmp_path}/one:vision,text", f"processor.tokenizer={tmp_path}/one")
    assert parts["params_sha256"] != figures["params_sha256"]


@pytest.mark.parametrize("how, process", [
    ("alone", 1), *(pytest.param(how, process, marks=pytest.mark.long)
                    for how, process in (("alone", 0), ("together", 0), ("together", 1)))])
def test_a_mistake_of_one_ends_all(launch, how, process):
    """With exit code 2, which is not to be tried again, on the one that made it, and on all that heard of it."""
    started = launch("mistaken", [ROOT / "tests/distributed/mistaken.py", how, process], processes=2, devices=1)
    codes = started.wait(100)
    assert codes[process] == 2 and "error: image size must be" in started.words(process)
    if how == "together":
        assert codes[1 - process] == 2
        assert f"error: Process {process} of this launch stopped: image size must be" in started.words(1 - process)
    else:
        assert codes[1 - process] not in (0, 75)
