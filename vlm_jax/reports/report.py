"""One stand-alone HTML page about one run, made from the files in its workdir.

    write_report("runs/quickstart")  ->  runs/quickstart/report.html

Read, each only if it is there:

    config.json         `run` (stage names in order), `seed`, `notes`
    metrics.jsonl       `stage`, `step`, `loss`, `learning_rate`, `examples_per_s`, `data_wait` (a share)
    eval/<task>.json    `metrics` of any task
    eval/zero_shot.json `classes` and `confusion[true][predicted]`
    eval/retrieval.json `similarity[image][text]` and `similarity_texts`
    eval/vqa.jsonl      `index` (of the scene), `type`, `question`, `answer`, `truth`, `correct`, `image`
    eval/caption.jsonl  `index`, `prediction`, `truth`, `correct`, `image` (a path relative to eval/)

Whatever is absent costs its section and leaves one sentence that says so. The page is a function of these
files alone (no clock, no host name): writing it twice gives the same bytes.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import mimetypes
import os
import re
from typing import Any

import numpy as np
from etils import epath

from vlm_jax.reports import pages, plots

MAX_SCENES = 24  # scenes in the gallery
MAX_CAPTIONS = 24
MAX_LABELS = 32  # rows of a matrix; beyond that nobody reads it

# The headline figures, in the order in which they are shown; other metrics follow under their own name.
HEADLINES = {
    "zero_shot_top1": ("Zero-shot top-1", "class named by the nearest prompt"),
    "retrieval_i2t_r1": ("Image → text, recall@1", "the right caption comes first"),
    "retrieval_t2i_r1": ("Text → image, recall@1", "the right image comes first"),
    "caption_exact": ("Captions exactly right", "word for word"),
    "vqa_accuracy": ("Answers right", "mean over the question types"),
    "vqa_blind_accuracy": ("Answers right, blind", "same questions, another scene's image"),
}
_SHARE = re.compile(r"(accuracy|exact|precision|recall|f1|top\d+|r\d+)$")  # lie in [0, 1], shown as per cent


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir holds, as read; absent parts are empty."""

    workdir: epath.Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    results: dict[str, dict[str, Any]]  # task -> eval/<task>.json
    questions: list[dict[str, Any]]  # eval/vqa.jsonl
    captions: list[dict[str, Any]]  # eval/caption.jsonl


def write_report(workdir: str | os.PathLike[str]) -> epath.Path:
    """Writes `report.html` into `workdir` (local or remote) and returns its path.

    The page is written under another name and then renamed, so that a reader never sees half of it.

    Raises:
      ValueError: there is no such folder, or a file in it is malformed; the sentence names the file and line.
    """
    run = read_run(epath.Path(workdir))
    page = pages.template("template.html", percent=percent).render(
        name=run.workdir.name or "run",
        run=run.config.get("run", []),
        seed=run.config.get("seed"),
        tiles=_tiles(run.results),
        stages=_stages(run),
        questions=_question_types(run),
        similarity=_similarity(run),
        confusion=_confusion(run),
        scenes=_scenes(run),
        scene_total=len({record.get("index") for record in run.questions}),
        captions=_with_images(run, run.captions[:MAX_CAPTIONS]),
        caption_total=len(run.captions),
        notes=run.config.get("notes", []),
        config=json.dumps(run.config, indent=2, ensure_ascii=False) if run.config else "",
        missing=_missing(run),
    )
    return pages.write(run.workdir / "report.html", page)


def read_run(workdir: epath.Path) -> Run:
    """Reads every input of the report; see the module's docstring for what is looked for."""
    if not workdir.is_dir():
        raise ValueError(f"{workdir}: there is no such folder to report on.")
    folder = workdir / "eval"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return Run(
        workdir=workdir,
        config=_read_json(workdir / "config.json"),
        metrics=_read_metrics(workdir / "metrics.jsonl"),
        results={n.removesuffix(".json"): _read_json(folder / n) for n in names if n.endswith(".json")},
        questions=_read_lines(folder / "vqa.jsonl"),
        captions=_read_lines(folder / "caption.jsonl"),
    )


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: this is not JSON ({error.msg}).") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(value).__name__}.")
    return value


def _read_json(path: epath.Path) -> dict[str, Any]:
    return _parse(path.read_text(encoding="utf-8"), f"{path}") if path.exists() else {}


def _read_lines(path: epath.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8").removesuffix("\n")
    lines = text.split("\n") if text else []  # not splitlines(): a JSON string may hold U+2028
    return [_parse(line, f"{path}, line {n}") for n, line in enumerate(lines, 1)]


def _read_metrics(path: epath.Path) -> list[dict[str, Any]]:
    rows = _read_lines(path)
    for n, row in enumerate(rows, 1):
        if not isinstance(row.get("stage"), str) or not isinstance(row.get("step"), int):
            raise ValueError(f"{path}, line {n}: a logged step needs a 'stage' (text) and a 'step' (int).")
    return rows


def _tiles(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The headline figures: every metric that is not a part (`vqa/count`) of another one."""
    found = {
        name: value
        for result in results.values()
        for name, value in result.get("metrics", {}).items()
        if "/" not in name
    }
    order = [name for name in HEADLINES if name in found] + [name for name in found if name not in HEADLINES]
    tiles = []
    for name in order:
        label, note = HEADLINES.get(name, (name.replace("_", " "), ""))
        figure = percent(found[name]) if _SHARE.search(name) else number(found[name])
        tiles.append({"label": label, "note": note, "figure": figure})
    return tiles


def _column(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    """One logged value over the rows as floats, NaN where a row has none."""
    return np.array([_real(row.get(key)) for row in rows])


def _stages(run: Run) -> list[dict[str, Any]]:
    """One panel per stage, in the order of the run (a stage that the config does not name comes last)."""
    rows = [row for row in run.metrics if "loss" in row]
    logged = list(dict.fromkeys(row["stage"] for row in rows))
    planned = [stage for stage in run.config.get("run", []) if stage in logged]
    return [_stage(name, [r for r in rows if r["stage"] == name]) for name in dict.fromkeys(planned + logged)]


def _stage(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    steps, loss, rate = _column(rows, "step"), _column(rows, "loss"), _column(rows, "learning_rate")
    speed, wait = _column(rows, "examples_per_s"), _column(rows, "data_wait")
    facts = [f"{int(steps.max()):,} steps", f"loss {number(loss[0])} → {number(plots.smooth(loss)[-1])}"]
    if np.isfinite(speed).any():
        facts.append(f"{np.nanmedian(speed):,.0f} examples/s")
    if np.isfinite(wait).any():
        facts.append(f"{percent(np.nanmean(wait))} of the time waiting for data")
    plot = plots.curves(steps, loss, rate if np.isfinite(rate).any() else None, name)
    return {"name": name, "plot": plot, "facts": facts}


def _question_types(run: Run) -> list[dict[str, Any]]:
    """Accuracy per question type with its blind baseline, where there is one; the mean stands last."""
    metrics = run.results.get("vqa", {}).get("metrics", {})
    asked = [record.get("type") for record in run.questions]

    def row(kind: str | None, count: int, name: str, blind_name: str) -> dict[str, Any]:
        right, blind = metrics[name], metrics.get(blind_name)
        gain = points(_real(right) - _real(blind))
        return {"type": kind, "asked": count, "right": right, "blind": blind, "gain": gain}

    kinds = [name.removeprefix("vqa/") for name in metrics if name.startswith("vqa/")]
    rows = [row(kind, asked.count(kind), f"vqa/{kind}", f"vqa_blind/{kind}") for kind in kinds]
    if rows and "vqa_accuracy" in metrics:
        rows.append(row(None, len(asked), "vqa_accuracy", "vqa_blind_accuracy"))
    return rows


def _matrix(run: Run, task: str, key: str, names: str) -> tuple[np.ndarray, list[str]] | None:
    """The square matrix `key` of a task's result and the names of its rows, or None where it is not given."""
    result = run.results.get(task, {})
    if not result.get(key):
        return None
    values = [[_real(value) for value in row] for row in result[key]]
    labels = [str(name) for name in result.get(names, [])]
    if [len(row) for row in values] != [len(labels)] * len(labels):
        path = run.workdir / "eval" / f"{task}.json"
        raise ValueError(f"{path}: '{key}' must be square, one row for each of the {len(labels)} '{names}'.")
    return np.array(values), labels


def _similarity(run: Run) -> plots.HeatMap | None:
    found = _matrix(run, "retrieval", "similarity", "similarity_texts")
    return found and plots.similarity_map(found[0][:MAX_LABELS, :MAX_LABELS], found[1][:MAX_LABELS])


def _confusion(run: Run) -> dict[str, Any] | None:
    """The zero-shot confusions: a heat map unless there are too many classes, the commonest in words."""
    found = _matrix(run, "zero_shot", "confusion", "classes")
    if found is None:
        return None
    counts, classes = found
    wrong = counts * (1 - np.eye(len(classes)))
    worst = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:5]]
    return {
        "map": plots.confusion_map(counts, classes) if len(classes) <= MAX_LABELS else None,
        "worst": [(classes[i], classes[j], int(wrong[i, j])) for i, j in worst if wrong[i, j] > 0],
    }


def _scenes(run: Run) -> list[dict[str, Any]]:
    """The first scenes in the VQA records (those with an image, if any has one), each with its questions."""
    by_scene: dict[Any, list[dict[str, Any]]] = {}
    for record in run.questions:
        by_scene.setdefault(record.get("index"), []).append(record)
    scenes = []
    for index, records in by_scene.items():
        image = next((record["image"] for record in records if record.get("image")), None)
        scenes.append({"index": index, "image": image, "questions": records})
    shown = [scene for scene in scenes if scene["image"]] or scenes
    return _with_images(run, shown[:MAX_SCENES])


def _with_images(run: Run, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items, each with the image it names (a path under eval/) as a data URI in `uri`, or None."""
    folder = run.workdir / "eval"
    uris = [_data_uri(folder / item["image"]) if item.get("image") else None for item in items]
    return [item | {"uri": uri} for item, uri in zip(items, uris, strict=True)]


def _data_uri(path: epath.Path) -> str | None:
    if not path.exists():
        return None
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _missing(run: Run) -> list[str]:
    """One sentence for each part that this workdir cannot fill."""
    parts = [
        (run.config, "No configuration was found (config.json)."),
        (run.metrics, "No training steps were logged (metrics.jsonl)."),
        ("zero_shot" in run.results, "Zero-shot classification was not evaluated (eval/zero_shot.json)."),
        ("retrieval" in run.results, "Image-text retrieval was not evaluated (eval/retrieval.json)."),
        ("caption" in run.results, "Captioning was not evaluated (eval/caption.json)."),
        ("vqa" in run.results, "Question answering was not evaluated (eval/vqa.json)."),
    ]
    return [sentence for there, sentence in parts if not there]


def _real(value: Any) -> float:
    """The value if it is a finite number, else NaN (a diverged run logs `NaN`, JSON also knows `null`)."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan


def percent(value: Any) -> str:
    """`0.934 -> "93.4%"`; a dash for what is not a finite number."""
    return "–" if math.isnan(_real(value)) else f"{100 * value:.1f}%"


def points(value: Any) -> str:
    """A difference of two shares in percentage points: `0.72 -> "+72.0"`; a dash for no finite number."""
    return "–" if math.isnan(_real(value)) else f"{100 * value:+.1f}"


def number(value: Any) -> str:
    """`0.30517 -> "0.305"`, `12345 -> "12,345"`; a dash for what is not a finite number."""
    if math.isnan(_real(value)):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
