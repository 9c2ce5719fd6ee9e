"""A run whose workdir and data are not on this machine's disk: trained, stopped, gone on with, evaluated, reported."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 60
OVERRIDES = [
    *(f"model.{part}.transformer.{size}" for part in ("vision", "text")
      for size in ("layers=1", "width=16", "heads=2", "mlp_width=16")),
    f"stages.contrastive.steps={STEPS}", "stages.contrastive.data.batch=8", "processor.vocab_size=270",
    "loop.log_every=1", "loop.checkpoint_every=50", "evals.examples=8", "evals.batch=8"]


@pytest.fixture
def buckets(tmp_path):
    """The folder that holds two buckets: runs, and photos of two kinds with their captions."""
    photos = tmp_path / "buckets/photos/set"
    photos.mkdir(parents=True)
    (tmp_path / "buckets/runs").mkdir()
    lines = []
    for i in range(120):
        kind = ("dark", "light")[i % 2]
        pixels = np.random.default_rng(i).integers(0, 90, (32, 32, 3)) + 160 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(photos / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": f"a {kind} photo"}))
    (photos / "captions.jsonl").write_text("\n".join(lines))
    return tmp_path / "buckets"


def start(buckets, elsewhere):
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests/bucket.py"), str(buckets),
               "--config", f"{ROOT}/configs/clip_folder.py:bucket://photos/set", "--workdir", "bucket://runs/clip",
               *(f"--config.{override}" for override in OVERRIDES)]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=elsewhere, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_run_in_a_bucket(buckets, tmp_path):
    elsewhere = tmp_path / "here"
    elsewhere.mkdir()
    workdir = buckets / "runs/clip"
    first, metrics = start(buckets, elsewhere), workdir / "metrics.jsonl"
    try:
        while first.poll() is None and not (metrics.exists() and '"step": 4,' in metrics.read_text()):
            time.sleep(0.01)
        first.send_signal(signal.SIGTERM)
        _, words = first.communicate(timeout=120)
    finally:
        first.kill()
    assert first.returncode == 75, words
    saved, = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 4 <= saved < 50 and not (workdir / "summary.json").exists()

    second = start(buckets, elsewhere)
    try:
        _, words = second.communicate(timeout=240)
    finally:
        second.kill()
    assert second.returncode == 0, words
    assert "report: bucket://runs/clip/report.html" in words
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert {"zero_shot_top1", "params_sha256"} <= set(json.loads((workdir / "summary.json").read_text()))
    assert {path.name for path in workdir.iterdir()} == {
        "config.json", "tokenizer.json", "metrics.jsonl", "checkpoints", "eval", "report.html", "summary.json"}
    assert list(elsewhere.iterdir()) == []  # nothing took bucket:// for a folder of this disk
