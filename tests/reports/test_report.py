"""The report shows what the files hold, runs nothing that a caption contains and fetches nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_jax.reports import plots
from vlm_jax.reports.report import number, percent, write_report

EVIL = '<script>alert(1)</script> a $5 & $6 "note"'


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _metrics(stage: str, steps: int, start: float) -> list[dict]:
    same = {"learning_rate": 1e-3, "examples_per_s": 812.0, "data_wait": 0.02}
    return [{"stage": stage, "step": step, "loss": start / step} | same for step in range(1, steps + 1)]


def _question(index: int, kind: str, answer: str, truth: str, **more) -> dict:
    asked = {"index": index, "type": kind, "question": f"{kind}, scene {index}?"}
    return asked | {"answer": answer, "truth": truth, "correct": answer == truth} | more


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A finished run of two stages with every evaluation; scene 1 has an image, scene 2 has none."""
    folder = tmp_path / "a_run"
    (folder / "eval" / "gallery").mkdir(parents=True)
    config = {"run": ["contrastive", "instruct"], "seed": 7, "notes": [EVIL], "model": {"depth": 3}}
    (folder / "config.json").write_text(json.dumps(config))
    metrics = _metrics("contrastive", 40, 4.16) + _metrics("instruct", 1234, 1.5)
    _write_lines(folder / "metrics.jsonl", metrics)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "eval" / "gallery" / "1.png")

    results = {
        "vqa": {
            "metrics": {
                "vqa_accuracy": 0.936,
                "vqa_blind_accuracy": 0.21,
                "vqa/count": 0.871,
                "vqa_blind/count": 0.35,
                "vqa/left_of": 1.0,
            }
        },
        "zero_shot": {
            "metrics": {"zero_shot_top1": 0.945},
            "classes": ["three", EVIL],
            "confusion": [[9, 1], [4, 6]],
        },
        "retrieval": {
            "metrics": {"retrieval_i2t_r1": 0.71, "retrieval_t2i_r1": 0.68},
            "similarity": [[0.9, -0.1], [0.2, 0.8]],
            "similarity_texts": ["a red 7", EVIL],
        },
        "caption": {"metrics": {"caption_exact": 0.5, "perplexity": 1234.5}},
    }
    for task, result in results.items():
        (folder / "eval" / f"{task}.json").write_text(json.dumps({"task": task} | result))
    _write_lines(
        folder / "eval" / "vqa.jsonl",
        [
            _question(1, "count", "2", "3", image="gallery/1.png"),
            _question(1, "left_of", "blue", "blue", image="gallery/1.png"),
            _question(2, "count", EVIL, EVIL),
        ],
    )
    caption = {"index": 1, "prediction": EVIL, "truth": "a red 7", "correct": False, "image": "gallery/1.png"}
    _write_lines(folder / "eval" / "caption.jsonl", [caption])
    return folder


def _page(workdir: Path) -> str:
    path = write_report(workdir)
    assert str(path) == str(workdir / "report.html")
    return Path(path).read_text(encoding="utf-8")


def _text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def _section(page: str, heading: str) -> str:
    found = re.search(rf"<h2>{heading}</h2>(.*?)</section>", page, re.DOTALL)
    assert found, f"no section {heading!r}"
    return found[1]


def test_headline_figures(workdir):
    tiles = _text(_page(workdir).split('<section class="grid tiles">')[1].split("</section>")[0])
    for figure in ["94.5% Zero-shot top-1", "71.0% Image → text", "68.0% Text → image", "50.0% Captions"]:
        assert figure in tiles
    assert "93.6% Answers right" in tiles and "21.0% Answers right, blind" in tiles
    assert "1,234 perplexity" in tiles  # a metric it does not know keeps its name and is no percentage
    assert "count" not in tiles


def test_one_panel_per_stage_in_the_order_of_the_run(workdir):
    training = _section(_page(workdir), "Training")
    assert re.findall(r"<h3>(.*?)</h3>", training) == ["contrastive", "instruct"]
    assert training.count("<svg role=") == 2
    text = _text(training)
    assert "40 steps · loss 4.16 →" in text and "1,234 steps · loss 1.5 →" in text
    assert "812 examples/s · 2.0% of the time waiting for data" in text


def test_accuracy_per_question_type_beside_the_blind_baseline(workdir):
    rows = _section(_page(workdir), "Accuracy per question type").split("<tr")[2:]
    cells = [re.sub(r"^[^>]*> ", "", _text("<tr" + row)).split() for row in rows]
    assert cells == [
        ["count", "2", "87.1%", "35.0%", "+52.1"],
        ["left_of", "1", "100.0%", "–", "–"],  # no baseline was measured: said, not invented
        ["mean", "3", "93.6%", "21.0%", "+72.6"],
    ]


def test_gallery_groups_questions_by_scene_and_marks_wrong_answers(workdir):
    scenes = _section(_page(workdir), "Held-out scenes")
    assert scenes.count("<article") == 1 and "The first 1 of 2 recorded scenes" in _text(scenes)
    assert scenes.count('src="data:image/png;base64,') == 1
    wrong, right = re.findall(r"<li.*?</li>", scenes, re.DOTALL)
    assert 'class="wrong"' in wrong and _text(wrong).strip() == "count, scene 1? 2 ✗ wrong , truth: 3"
    assert "wrong" not in right and _text(right).strip() == "left_of, scene 1? blue ✓"


def test_an_image_that_is_gone_is_said_to_be_missing(workdir):
    (workdir / "eval" / "gallery" / "1.png").unlink()
    assert "gallery/1.png is missing" in _section(_page(workdir), "Held-out scenes")


def test_matrices(workdir):
    page = _page(workdir)
    similarity = _section(page, "Image-text similarity")
    assert "a red 7" in similarity and "Similarity from -0.10 (no colour) to 0.90 (full colour)" in similarity
    assert re.findall(r"--v:([\d.]+)", similarity) == ["1.000", "0.000", "0.300", "0.900"]
    confusion = _text(_section(page, "Zero-shot confusions"))
    assert "taken for three (4)" in confusion and " 9 1 " in confusion


def test_everything_from_the_files_is_escaped(workdir):
    page = _page(workdir)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; a $5 &amp; $6 &#34;note&#34;") >= 6


def test_the_page_needs_nothing_from_elsewhere(workdir):
    page = _page(workdir)
    assert "http://" not in page and "https://" not in page
    assert not re.search(r"<(link|script|iframe)|@import", page)
    assert all(url.startswith("data:") for url in re.findall(r'src="([^"]*)"', page))
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", page))
    referred = re.findall(r'(?:url\(|href=")#([\w-]+)', page)
    assert referred and all(page.count(f'id="{name}"') == 1 for name in referred)


def test_the_page_is_a_function_of_the_files_and_leaves_nothing_behind(workdir):
    before = sorted(path.name for path in workdir.iterdir())
    assert _page(workdir) == _page(workdir)
    assert sorted(path.name for path in workdir.iterdir()) == sorted([*before, "report.html"])


def test_notes_and_config(workdir):
    page = _page(workdir)
    assert "&lt;script&gt;" in _section(page, "What helps this run")
    assert re.search(r"<details>\s*<summary>Configuration</summary>.*?&#34;depth&#34;: 3", page, re.DOTALL)
    assert "contrastive → instruct · seed 7" in _text(page)


def test_missing_parts_cost_one_sentence_each(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"run": ["contrastive"], "seed": 0}))
    _write_lines(tmp_path / "metrics.jsonl", _metrics("contrastive", 1, 4.16))
    page = _page(tmp_path)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Training", "Not in this report"]
    absent = _section(page, "Not in this report")
    assert absent.count("<p") == 4 and "Question answering was not evaluated (eval/vqa.json)." in absent


def test_an_empty_workdir_gives_a_page(tmp_path):
    absent = _section(_page(tmp_path), "Not in this report")
    assert "No training steps were logged (metrics.jsonl)." in absent
    assert "No configuration was found (config.json)." in absent


def test_a_diverged_run_is_reported_too(workdir):
    rows = _metrics("contrastive", 20, 4.16)
    for row in rows[10:]:
        row["loss"] = float("nan")
    _write_lines(workdir / "metrics.jsonl", [*rows, {"stage": "contrastive", "step": 21, "accuracy": 0.5}])
    assert "20 steps · loss 4.16 → –" in _text(_page(workdir))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"stage": "align", "st', "line 3: this is not JSON"),
        ("[1, 2]", "line 3: expected a JSON object, found list"),
        ('{"step": 3, "loss": 1.0}', "line 3: a logged step needs a 'stage'"),
        ("", "line 3: this is not JSON"),
    ],
)
def test_a_malformed_metrics_line_is_named(workdir, line, complaint):
    _write_lines(workdir / "metrics.jsonl", _metrics("align", 2, 2.0))
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=complaint) as error:
        write_report(workdir)
    assert str(workdir / "metrics.jsonl") in str(error.value)
    assert not (workdir / "report.html").exists()


def test_a_matrix_without_its_labels_is_an_error(workdir):
    result = {"similarity": [[1, 0], [0]], "similarity_texts": ["a", "b"]}
    (workdir / "eval" / "retrieval.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match="retrieval.json: 'similarity' must be square"):
        write_report(workdir)


def test_no_such_workdir(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        write_report(tmp_path / "nowhere")


def test_smooth_keeps_constants_and_skips_what_is_not_finite():
    np.testing.assert_allclose(plots.smooth(np.full(100, 2.0)), 2.0)
    values = np.full(100, 2.0)
    values[50] = np.nan
    np.testing.assert_allclose(plots.smooth(values), 2.0)
    assert plots.smooth(np.array([3.0])).tolist() == [3.0]


def test_numbers():
    assert [percent(x) for x in [0.934, 1, None, float("nan")]] == ["93.4%", "100.0%", "–", "–"]
    assert [number(x) for x in [0.30517, 12345.6, "x"]] == ["0.305", "12,346", "–"]
