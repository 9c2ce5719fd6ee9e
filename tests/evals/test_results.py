"""The files of an evaluation, as the report will read them."""

import json

import numpy as np
from etils import epath
from PIL import Image

from vlm_jax.evals.results import Result, write


def test_figures_records_and_pictures(tmp_path):
    folder = epath.Path(tmp_path) / "run" / "eval"
    photo = np.zeros((300, 600, 3), np.uint8)
    records = [{"answer": "a\u2028b é"}, {"answer": "c"}]
    pictures = {"gallery/vqa-0.png": photo, "gallery/vqa-1.png": photo[:8, :9] + 7}
    result = Result("vqa", {"vqa_accuracy": 0.5}, records, {"classes": ["x"]}, pictures)
    write(result, folder)
    write(result, folder)  # the same again takes the place of the old
    assert json.loads((folder / "vqa.json").read_text()) == {
        "task": "vqa", "metrics": {"vqa_accuracy": 0.5}, "classes": ["x"]}
    lines = (folder / "vqa.jsonl").read_text().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == records and lines[-1] == ""
    assert Image.open(folder / "gallery" / "vqa-0.png").size == (256, 128)  # the report holds them all inline
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "gallery" / "vqa-1.png")), photo[:8, :9] + 7)
    left = [path.name for place in (folder, folder / "gallery") for path in place.iterdir()]
    assert sorted(left) == ["gallery", "vqa-0.png", "vqa-1.png", "vqa.json", "vqa.jsonl"]
