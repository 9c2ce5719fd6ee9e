"""metrics.jsonl: whole lines, each (stage, step) once, whatever moment a run was stopped at."""

import json

import pytest
from etils import epath

from vlm_jax.data.files import write_atomically
from vlm_jax.training.metrics import MetricsLog


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path) / "metrics.jsonl"


def line(step, stage="align"):
    return json.dumps({"stage": stage, "step": step, "loss": 1.5}) + "\n"


def steps(path):
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(row)["step"] for row in text.splitlines()]


def test_lines_are_on_disk_at_once(path):
    log = MetricsLog(path, lambda record: True)
    for step in (1, 20, 40):
        log.write({"stage": "align", "step": step, "loss": 1.5})
        assert path.read_text().endswith(line(step))
    assert path.read_text() == line(1) + line(20) + line(40)


def test_a_restart_drops_what_it_will_write_again(path):
    path.write_text(line(1) + line(20) + line(40))
    log = MetricsLog(path, lambda record: record["step"] <= 20)
    assert steps(path) == [1, 20]
    log.write({"stage": "align", "step": 40, "loss": 2.0})
    assert steps(path) == [1, 20, 40]


@pytest.mark.parametrize("torn", [
    '{"stage": "align", "st', '{"stage": "align", "step": 60, "loss": 1.5}', "\x00\x00\x00"])
def test_half_a_line_is_dropped_even_where_it_happens_to_parse(path, torn):
    path.write_text(line(1) + line(20) + torn)
    log = MetricsLog(path, lambda record: True)
    assert steps(path) == [1, 20]
    log.write({"stage": "align", "step": 60, "loss": 2.0})
    assert steps(path) == [1, 20, 60]


@pytest.mark.parametrize("foreign", ["", "\n", "3\n", "[1]\n", "null\n", "not json\n"])
def test_lines_that_are_no_records_are_dropped(path, foreign):
    path.write_text(line(1) + foreign + line(20))
    MetricsLog(path, lambda record: True)
    assert steps(path) == [1, 20]


def test_an_untouched_log_is_not_written(path):
    path.write_text(line(1))
    before = path.stat().mtime
    MetricsLog(path, lambda record: True)
    assert path.stat().mtime == before


def test_in_a_bucket_the_whole_file_is_written(path):
    class Bucket(type(path)):
        def __str__(self):
            return f"bucket://{super().__str__()}"

        def open(self, mode="r", *args, **options):
            assert "a" not in mode
            return super().open(mode, *args, **options)

    log = MetricsLog(Bucket(path), lambda record: True)
    for step in (1, 20):
        log.write({"stage": "align", "step": step, "loss": 1.5})
    assert path.read_text() == line(1) + line(20)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
