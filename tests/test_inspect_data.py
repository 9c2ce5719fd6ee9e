"""`vlm_jax.inspect_data`: what a pipeline delivers, as a page, as figures and as one hash."""

import hashlib
import json
import re
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

from vlm_jax import config as configs, inspect_data
from vlm_jax.data import packing
from vlm_jax.data.pipeline import batches, stage_seed
from vlm_jax.reports.rows import Row, Token, mask_picture, write_rows
from vlm_jax.train import make_processor

PACKED = [f"--config.stages.instruct.data.{key}={value}" for key, value in {
    "format.arrange": "packed", "format.length": 256, "format.image_slots": 8, "format.block": 8, "batch": 4,
    "source.size": 60, "source.conversations": 1}.items()]
SMALL = [f"--config.stages.{stage}.data.source.size=60" for stage in ("contrastive", "language", "align")]


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["inspect_data", *map(str, arguments)])
    inspect_data.main()
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A captioned folder of 40 images; image i is called "i"."""
    folder = tmp_path_factory.mktemp("numbered")
    for i in range(40):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    lines = [json.dumps({"image": f"{i}.png", "caption": f"{i}"}) for i in range(40)]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def test_the_digest_is_that_of_what_the_batches_hold(numbered, tmp_path, monkeypatch, capsys):
    """The captions that training would read say which examples came: hashed here, they give the same digest."""
    named = f"configs/clip_folder.py:{numbered}"
    overrides = ["--config.stages.contrastive.data.batch=8", "--config.stages.contrastive.data.source.split=all"]
    config = configs.resolve(configs.load(named, overrides))
    processor, data = make_processor(config, epath.Path(tmp_path)), config.stages["contrastive"].data
    lines = []
    for batch in batches(data, processor, stage_seed(0, "contrastive"), 3, 9):
        for text in batch["text"]:
            end = text.tolist().index(processor.eos_id)
            lines.append(f"captions:{processor.tokenizer.decode(text[1:end])}\n")
    assert len(lines) == 48 and len(set(lines)) > 20
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    arguments = ("--config", named, *overrides, "--digest", 6, "--skip", 3)
    assert run(monkeypatch, capsys, *arguments) == f"{expected}\n"
    assert run(monkeypatch, capsys, *arguments, "--hosts", 4) == f"{expected}\n"
    assert json.loads(run(monkeypatch, capsys, *arguments, "--hosts", 2, "--json").splitlines()[-1]) == {
        "stage": "contrastive", "digest": expected, "steps": 6, "skip": 3}


def test_a_page_of_packed_rows_and_its_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inspect_data, "SECONDS", 0.5)
    monkeypatch.setattr(packing, "SAMPLE", 100)
    out = tmp_path / "page.html"
    said = run(monkeypatch, capsys, "--config", "configs/smoke.py", *PACKED, *SMALL, "--out", out, "--rows", 2, "--json")
    figures = json.loads(said.splitlines()[-1])
    assert figures["stage"] == "instruct" and figures["images_per_s"] > 0 and figures["tokens_per_s"] > 0
    assert 0.7 < figures["utilisation"] <= 1 and figures["examples_per_row"] > 2
    assert figures["epochs"]["scenes"] == pytest.approx(8 * 4 * figures["examples_per_row"] / 60, rel=0.02)
    page = out.read_text()
    assert page.count("<article") == 2 and page.count('class="mask"') == 2
    assert page.count("as the model sees it") == page.count("image 0: 16 tokens") + sum(
        page.count(f"image {slot}: 16 tokens") for slot in range(1, 8))
    assert re.search(r'--w:1.000" title="segment 1, branch 0, position \d+, loss weight 1.0">', page)


def test_a_page_of_pairs(numbered, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inspect_data, "SECONDS", 0.2)
    said = run(monkeypatch, capsys, "--config", f"configs/clip_folder.py:{numbered}", "--out", tmp_path / "a.html")
    assert re.match(r"images/s: [\d,]+\ntokens/s: [\d,]+\nutilisation: \d+\.\d%\n", said)
    page = (tmp_path / "a.html").read_text()
    assert page.count("<article") == page.count("as the model sees it") == 8 and "captions " in page


@pytest.mark.parametrize("arguments, message", [
    (["--stage", "algin"], "There is no stage 'algin' in config.stages; did you mean 'align'"),
    (["--digest", "0"], "--rows, --digest and --hosts take 1 or more"),
    (["--config.sede=1"], "Unknown config key 'sede'")])
def test_mistakes_are_one_sentence(monkeypatch, capsys, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(monkeypatch, capsys, "--config", "configs/quickstart.py", *arguments)


# The page itself.


def test_a_mask_is_drawn_dot_by_dot():
    mask = np.tril(np.ones((3, 3), bool))
    mask[2, 0] = False
    picture = mask_picture(mask, np.array([0, 0, 1]))
    side = len(picture) // 3
    assert picture.shape == (384, 384, 3)
    seen = (picture[::side, ::side] != picture[0, -1]).any(axis=-1)  # the upper right corner sees nothing
    assert seen.tolist() == mask.tolist()
    assert (picture[0, 0] != picture[-1, -1]).any()  # two segments, two colours
    long = mask_picture(np.eye(1000, dtype=bool), np.zeros(1000, int))
    assert max(long.shape) <= 384 and (long[0, 0] != long[0, -1]).any()


def test_what_a_row_says_is_escaped(tmp_path):
    write_rows(tmp_path / "a.html", "<b>", {"x": "<i>"}, [Row(["<u>"], [], [Token("<script>")])])
    page = (tmp_path / "a.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "<b>&lt;i&gt;</b>" in page and "<u>" not in page
