"""The loop around the step, with a straight line for a model: what it logs, what it saves, and that after a stop
it goes on as if there had been none."""

import json
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from vlm_jax.data.pipeline import DataConfig, PairsConfig, stage_seed
from vlm_jax.data.scenes import SceneConfig
from vlm_jax.models.lora import merge
from vlm_jax.objectives.contrastive import ContrastiveConfig
from vlm_jax.training import clock as clocks, loop
from vlm_jax.training.clock import Clock
from vlm_jax.training.guards import Notice
from vlm_jax.training.loop import LoopConfig, Run, StageConfig, progress, run_stage
from vlm_jax.training.mesh import MeshConfig, make_mesh
from vlm_jax.training.metrics import MetricsLog
from vlm_jax.training.optimizer import OptimizerConfig, schedule
from vlm_jax.weights.checkpoints import Checkpoints

SLOPES = 1000  # leaves of 4 MB: a save is still being written while the next steps run
PARAMS = {"slope": {"kernel": np.full((SLOPES, SLOPES), 0.5, np.float32)}, "offset": {"bias": np.float32(2)}}
ABSTRACT = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
RULES = (("slope/.*", 1e-2), (".*", None))


class Line:
    terms = {"squares": 1.0}

    def __call__(self, params, batch, rng):
        slope = params["slope"]["kernel"] * (1 + jax.random.uniform(rng))
        error = slope.mean() * batch["x"] + params["offset"]["bias"] - 3.0
        return {"squares": (error**2).sum()}, {"squares": jnp.float32(len(error))}


def stage(steps=6, rules=RULES, batch=4, **options):
    data = DataConfig(SceneConfig(size=8), batch, PairsConfig())
    return StageConfig(data, ContrastiveConfig(), rules, steps, **options)


TWO = {"a": stage(6), "b": stage(4, (("offset/.*", 1e-2), (".*", None)))}


class Stopped(Exception):
    """Stands in for whatever ends a process."""


@pytest.fixture(scope="module")
def on_a_line():
    """Puts the line in the place of the model and its data; returns which steps' data were asked for."""
    asked = []

    def batches(config, processor, seed, start, stop, rows):
        asked.append((seed, start, stop))
        steps = range(start, stop)
        return ({"x": np.random.default_rng([seed, k]).random(config.batch, np.float32)} for k in steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "batches", batches)
        patch.setattr(loop, "make_objective", lambda config, model: Line())
        patch.setattr(loop, "step_flops", lambda *_: 1e6)
        yield asked


@pytest.fixture
def asked(on_a_line):
    on_a_line.clear()
    return on_a_line


def train(workdir, stages, keep=100, stop_at=None, notice=None, **config):
    """Runs stages {name: stage} as vlm_jax.train does; with `stop_at`, up to where that would be logged."""
    workdir = epath.Path(workdir)
    workdir.mkdir(exist_ok=True)
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    log = MetricsLog(workdir / "metrics.jsonl", lambda record: True)
    if stop_at:
        written = log.write

        def write(record):
            if (record["stage"], record["step"]) == stop_at:
                raise Stopped
            written(record)

        log.write = write
    with Checkpoints(workdir, keep=keep) as checkpoints, jax.set_mesh(mesh):
        number = checkpoints.latest()
        meta = checkpoints.meta(number) if number else {"stage": next(iter(stages)), "step": 0}
        log.lines = [line for line in log.lines if keeps(json.loads(line), meta, list(stages))]
        run = Run(None, None, mesh, 7, log, checkpoints, LoopConfig(**config), notice or Notice())
        params, offset = (PARAMS if number is None else ABSTRACT), 0
        reached = list(stages).index(meta["stage"])
        for i, (name, stage) in enumerate(stages.items()):
            if i >= reached:
                resume = number if i == reached else None
                params = run_stage(run, name, stage, params, offset=offset, resume=resume)
            offset += stage.steps
        return params, [json.loads(line) for line in log.lines]


def keeps(record, meta, names):
    return (names.index(record["stage"]), record["step"]) <= (names.index(meta["stage"]), meta["step"])


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b))


# What is logged and saved.


def test_the_first_step_multiples_and_the_last_are_logged(asked, tmp_path):
    _, lines = train(tmp_path, {"a": stage(7), "b": stage(4)}, log_every=3, checkpoint_every=100)
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("a", 1), ("a", 3), ("a", 6), ("a", 7), ("b", 1), ("b", 3), ("b", 4)]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == lines
    assert set(lines[0]) == {"stage", "step", "loss", "squares", "grad_norm", "learning_rate",
                             "examples_per_s", "step_s", "data_wait", "mfu", "memory_gib"}
    assert all(0 < line["mfu"] < 1 and line["memory_gib"] > 0 for line in lines)


def test_the_learning_rate_that_is_logged_is_the_one_of_the_step(asked, tmp_path):
    rules = (("slope/.*", 1e-3), ("offset/.*", 4e-3))
    config = OptimizerConfig(warmup=0.5)
    _, lines = train(tmp_path, {"a": stage(6, rules, optimizer=config)}, log_every=1, checkpoint_every=100)
    expected = [4e-3 * float(schedule(config, 6, jnp.int32(step))) for step in range(6)]
    np.testing.assert_allclose([line["learning_rate"] for line in lines], expected, rtol=1e-6)
    np.testing.assert_allclose(expected[:3], [4e-3 / 3, 8e-3 / 3, 4e-3], rtol=1e-6)


def test_checkpoints_are_numbered_over_all_stages(asked, tmp_path):
    train(tmp_path, {"a": stage(7), "b": stage(4)}, log_every=100, checkpoint_every=3)
    with Checkpoints(tmp_path) as checkpoints:
        saved = {n: (checkpoints.meta(n)["stage"], checkpoints.meta(n)["step"]) for n in (3, 6, 7, 10, 11)}
        assert saved == {3: ("a", 3), 6: ("a", 6), 7: ("a", 7), 10: ("b", 3), 11: ("b", 4)}
        assert checkpoints.latest() == 11
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [3, 6, 7, 10, 11]


def test_a_checkpoint_holds_its_own_step_not_a_later_one(asked, tmp_path, monkeypatch):
    """It is written in the background, while the next steps reuse the very buffers it is written from."""
    snapshots, compiled = [], loop.compile_step

    def compile_step(*args, **static):
        step = compiled(*args, **static)

        def spy(state, batch):
            state, metrics = step(state, batch)
            snapshots.append(np.array(state.params["slope"]["kernel"], copy=True))
            return state, metrics
        return spy

    monkeypatch.setattr(loop, "compile_step", compile_step)
    train(tmp_path, {"a": stage(8)}, log_every=100, checkpoint_every=2)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with_device = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
    abstract = jax.tree.map(with_device, PARAMS)
    with Checkpoints(tmp_path) as checkpoints:
        for number in (2, 4, 6, 8):
            saved = np.asarray(checkpoints.params(number, abstract)["slope"]["kernel"])
            assert saved.tobytes() == snapshots[number - 1].tobytes()
    assert len({snapshot.tobytes() for snapshot in snapshots}) == 8


def test_data_are_asked_for_by_stage_and_step(asked, tmp_path):
    train(tmp_path, {"a": stage(3), "b": stage(2)}, log_every=100, checkpoint_every=100)
    assert asked == [(stage_seed(7, "a"), 0, 3), (stage_seed(7, "b"), 0, 2)]


# Going on.


@pytest.fixture(scope="module")
def unbroken(on_a_line, tmp_path_factory):
    return train(tmp_path_factory.mktemp("unbroken"), TWO, log_every=1, checkpoint_every=2)


@pytest.mark.parametrize("stop_at, goes_on_from", [
    (("a", 1), ("a", 0)),  # before the first checkpoint
    (("a", 5), ("a", 4)),  # in the middle of a stage
    (("b", 1), ("a", 6)),  # between two stages
    (("b", 4), ("b", 2))])  # in the second
def test_a_stopped_run_goes_on_as_if_it_had_not_been(unbroken, asked, tmp_path, stop_at, goes_on_from):
    config = dict(log_every=1, checkpoint_every=2)
    with pytest.raises(Stopped):
        train(tmp_path, TWO, stop_at=stop_at, **config)
    asked.clear()
    params, lines = train(tmp_path, TWO, **config)
    assert same(params, unbroken[0])
    assert asked[0] == (stage_seed(7, goes_on_from[0]), goes_on_from[1], TWO[goes_on_from[0]].steps)
    repeatable = ("stage", "step", "loss", "grad_norm", "learning_rate")  # times are not
    for again, before in zip(lines, unbroken[1], strict=True):
        assert [again[key] for key in repeatable] == [before[key] for key in repeatable]


def test_a_run_that_reached_its_end_only_reads_its_parameters(asked, tmp_path):
    stages = {"a": stage(4)}
    first, _ = train(tmp_path, stages, log_every=2, checkpoint_every=2)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again, _ = train(tmp_path, stages, log_every=2, checkpoint_every=2)
    assert same(first, again) and (tmp_path / "metrics.jsonl").read_bytes() == before


def test_the_step_is_compiled_once_also_after_going_on(asked, tmp_path, monkeypatch):
    made, compiled = [], loop.compile_step
    keep = lambda *args, **static: made.append(compiled(*args, **static)) or made[-1]
    monkeypatch.setattr(loop, "compile_step", keep)
    stages = {"a": stage(6)}
    with pytest.raises(Stopped):
        train(tmp_path, stages, stop_at=("a", 5), log_every=1, checkpoint_every=2)
    train(tmp_path, stages, log_every=1, checkpoint_every=2)
    assert [step._cache_size() for step in made] == [1, 1]


def test_init_from_is_read_when_a_stage_begins_and_not_when_it_goes_on(asked, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(loop, "load_into", lambda params, path: read.append(path) or params)
    stages = {"a": stage(2), "b": stage(4, init_from="other")}
    with pytest.raises(Stopped):
        train(tmp_path, stages, stop_at=("b", 3), log_every=1, checkpoint_every=2)
    assert read == ["other"]
    train(tmp_path, stages, log_every=1, checkpoint_every=2)
    assert read == ["other"]


# Mistakes, and what a person sees.


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_written(asked, tmp_path):
    with pytest.raises(ValueError, match="A batch of 3 does not divide by the 2 devices"):
        train(tmp_path, {"a": stage(2, batch=3)}, log_every=1, checkpoint_every=1)
    assert (not (tmp_path / "metrics.jsonl").exists()) and asked == []


def test_a_rule_that_leaves_a_parameter_out(asked, tmp_path):
    with pytest.raises(ValueError, match="No rule covers the parameter 'offset/bias'"):
        train(tmp_path, {"a": stage(2, (("slope/.*", 1e-3),))}, log_every=1, checkpoint_every=1)


def test_the_announcement_and_the_progress_lines(asked, tmp_path, capsys):
    train(tmp_path, {"a": stage(4)}, log_every=2, checkpoint_every=100)
    out, err = capsys.readouterr()
    announced, first, *others = err.splitlines()
    assert out == ""
    assert announced == "a: 4 steps of 4, trains 1,000,000 of 1,000,001 parameters (slope)"
    assert re.fullmatch(r"a 1/4  loss \d\.\d{4}  compiled in \d+ s", first)
    pattern = r"a [24]/4  loss \d\.\d{4}  \d+ examples/s  MFU \d+%  waiting \d+%  \d+\.\d GiB  ETA \d+ s"
    assert len(others) == 2 and all(re.fullmatch(pattern, line) for line in others)
    assert others[-1].endswith("ETA 0 s")


def test_on_a_terminal_the_progress_line_is_rewritten_in_place(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    record = {"stage": "a", "loss": 1.0, "examples_per_s": 10.0, "data_wait": 0.25, "step_s": 0.5, "mfu": 0.4,
              "memory_gib": 1.25}
    progress({**record, "step": 2}, 4)
    progress({**record, "step": 4}, 4)
    text = sys.stderr.text
    assert text.startswith("\ra 2/4  loss 1.0000  10 examples/s  MFU 40%  waiting 25%  1.2 GiB  ETA 1 s ")
    assert text.count("\n") == 1 and text.endswith("\n")


class Terminal:
    text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_the_clock_counts_examples_and_the_share_of_waiting(monkeypatch):
    #           made  first batch  second   lap  third    lap
    now = iter([0.0,  0.0, 1.0,    4.0, 5.0, 8.0, 8.0, 8.5, 10.0])
    monkeypatch.setattr(clocks, "time", types.SimpleNamespace(monotonic=lambda: next(now)))
    data, clock = iter([{"x": "a"}, {"x": "b"}, {"x": "c"}]), Clock(batch=16)
    assert (clock.next(data)["x"], clock.next(data)["x"]) == ("a", "b")
    assert clock.lap() == {"examples_per_s": 4.0, "step_s": 4.0, "data_wait": 0.25}
    assert clock.next(data)["x"] == "c"
    assert clock.lap() == {"examples_per_s": 8.0, "step_s": 2.0, "data_wait": 0.25}


def test_the_clock_tells_how_full_the_rows_were():
    rows = [{"segment_ids": np.array([[0, 0, 1, -1], [0, -1, -1, -1]])}, {"segment_ids": np.array([[0, 1, 1, 2]] * 2)}]
    clock, data = Clock(batch=2), iter(rows + rows[:1])
    clock.next(data), clock.next(data)
    assert clock.lap()["utilisation"] == 12 / 16
    clock.next(data)
    assert clock.lap()["utilisation"] == 4 / 8


# What stops it before its end.


class Breaks(Line):
    """A line whose loss is NaN where the batch says so."""

    def __call__(self, params, batch, rng):
        sums, weights = super().__call__(params, batch, rng)
        return {"squares": sums["squares"] + jnp.where(batch["x"][0] < 0, jnp.nan, 0.0)}, weights


@pytest.fixture
def breaks_at(asked, monkeypatch):
    """The data of these steps (from 1 on) make the loss NaN."""
    def at(*steps):
        def batches(config, processor, seed, start, stop, rows):
            rng = lambda k: np.random.default_rng([seed, k]).random(config.batch, np.float32)
            return ({"x": rng(k) - 2 * (k + 1 in steps)} for k in range(start, stop))
        monkeypatch.setattr(loop, "batches", batches)
        monkeypatch.setattr(loop, "make_objective", lambda config, model: Breaks())
    return at


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint_named(breaks_at, tmp_path):
    breaks_at(5)
    with pytest.raises(ValueError) as raised:
        train(tmp_path, {"a": stage(8)}, log_every=100, checkpoint_every=2)
    sentence = str(raised.value)
    assert sentence.startswith("Stage 'a', step 5: the loss or a gradient is not finite, and the update was not")
    assert f"the last good one is {tmp_path}/checkpoints/4" in sentence and "skip_not_finite=10" in sentence
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 4


def test_a_step_that_is_not_finite_is_never_saved(breaks_at, tmp_path):
    breaks_at(4)
    with pytest.raises(ValueError, match="step 4.*checkpoints/2"):
        train(tmp_path, {"a": stage(8)}, log_every=100, checkpoint_every=2)


def test_skipped_steps_change_nothing_and_are_counted(breaks_at, tmp_path):
    """Steps whose data break and steps with a rate of 0 for the same data end alike: nothing of them is left."""
    breaks_at(1, 2)
    rules = (("slope/.*", 1e-2), (".*", None))
    first, lines = train(tmp_path / "a", {"a": stage(2, rules)}, log_every=1, checkpoint_every=9, skip_not_finite=2)
    assert same(first, PARAMS) and [line["skipped"] for line in lines] == [1, 1]
    assert [line["loss"] for line in lines] == [None, None]
    with Checkpoints(tmp_path / "a") as checkpoints:
        zeros = jax.tree.leaves(checkpoints._manager.restore(2)["opt_state"])
    assert all(not np.asarray(leaf).any() for leaf in zeros)
    breaks_at(2)
    second, lines = train(tmp_path / "b", {"a": stage(3, rules)}, log_every=1, checkpoint_every=9, skip_not_finite=1)
    assert [line["skipped"] for line in lines] == [0, 1, 0]
    assert not same(second, PARAMS) and np.isfinite(second["slope"]["kernel"]).all()
    assert np.asarray(second["offset"]["bias"]).tobytes() == PARAMS["offset"]["bias"].tobytes()


def test_a_notice_saves_the_step_it_comes_in_and_ends_with_the_restart_code(asked, unbroken, tmp_path, capsys):
    class Told:
        def reached(self, number):
            return number == 8

    config = dict(log_every=1, checkpoint_every=100)
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, TWO, notice=Told(), **config)
    assert stopped.value.code == 75
    assert "b: asked to stop; step 2 is saved, and the same command goes on" in capsys.readouterr().err
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.meta(checkpoints.latest()) == {"stage": "b", "step": 2}
    assert same(train(tmp_path, TWO, **config)[0], unbroken[0])


# Adapters.


def test_a_lora_stage_trains_adapters_and_ends_with_them_merged(asked, tmp_path, monkeypatch):
    """Stopped in the middle and gone on: the same bits. Its checkpoints hold the adapters, and who asks for a plain tree
    gets them merged."""
    class Adapted(Line):
        def __call__(self, params, batch, rng):
            return super().__call__(merge(params), batch, rng)

    monkeypatch.setattr(loop, "make_objective", lambda config, model: Adapted())
    rules = ((".*/lora_[ab]", 1e-2), (".*", None))
    stages = {"a": stage(4, rules, lora=(("slope/kernel", 2),)), "b": stage(2, RULES)}
    often = dict(log_every=1, checkpoint_every=2)
    whole, _ = train(tmp_path / "whole", stages, **often)
    with pytest.raises(Stopped):
        train(tmp_path / "cut", stages, stop_at=("a", 3), **often)
    found, lines = train(tmp_path / "cut", stages, **often)
    assert same(found, whole) and jax.tree.structure(found) == jax.tree.structure(PARAMS)
    with Checkpoints(tmp_path / "cut") as checkpoints:
        kept = checkpoints.params(4, ABSTRACT)  # the end of stage a
        assert not np.array_equal(kept["slope"]["kernel"], PARAMS["slope"]["kernel"])
        assert jax.tree.map(np.shape, checkpoints.shapes(4)) == jax.tree.map(np.shape, PARAMS)
    assert kept["offset"]["bias"] == PARAMS["offset"]["bias"]
