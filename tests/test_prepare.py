"""`vlm_jax.prepare`: any source as shards, by any number of processes, killed and started again."""

import hashlib
import json
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

from vlm_jax import config as configs, prepare as verb
from vlm_jax.data import packing, shards
from vlm_jax.data.pipeline import traced
from vlm_jax.data.registry import open_source
from vlm_jax.data.scenes import SceneConfig
from vlm_jax.data.shards import is_done, make_plan, prepare
from vlm_jax.data.sources.array_record import ArrayRecordConfig
from vlm_jax.data.sources.captions import CaptionFolderConfig
from vlm_jax.train import make_processor

SCENES = SceneConfig(size=25, conversations=2)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_shards_hold_every_record_of_the_source_in_order(tmp_path):
    manifest = prepare(make_plan(SCENES, tmp_path, 10, 0.0))
    assert (manifest["records"], manifest["images"], manifest["bad"]) == (25, 25, [])
    assert [shard["records"] for shard in manifest["shards"]] == [10, 10, 5]
    for shard in manifest["shards"]:
        data = (tmp_path / shard["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    made, scenes = open_source(ArrayRecordConfig(str(tmp_path))), open_source(SCENES)
    assert len(made) == 25
    for i in (0, 9, 10, 24):
        assert made[i].conversations == scenes[i].conversations and made[i].caption == scenes[i].caption
        assert made[i].regions == scenes[i].regions
        assert np.array_equal(made[i].images[0], scenes[i].images[0])


def test_parts_and_restarts_end_with_the_same_bytes(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    prepare(make_plan(SCENES, whole, 4, 0.0))
    plan = make_plan(SCENES, parts, 4, 0.0)
    assert prepare(plan, 1, 3) is None
    with pytest.raises(ValueError, match="is not prepared to its end"):
        open_source(ArrayRecordConfig(str(parts)))

    real, calls = shards._write_records, []

    def killed(plan, source, indices, path):
        calls.append(indices[0] // 4)
        if len(calls) == 2:
            raise KeyboardInterrupt  # in the middle of the second shard
        return real(plan, source, indices, path)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_records", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(plan, 0, 3)
    assert calls == [0, 3] and is_done(plan, 0) and not is_done(plan, 3)
    (parts / (plan.name(1) + ".json")).unlink()  # killed between the data and their description
    for part in range(3):
        manifest = prepare(make_plan(SCENES, parts, 4, 0.0), part, 3)
    assert manifest["records"] == 25 and files(parts) == files(whole)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_records", killed)  # nothing is left to do
        assert prepare(plan) == manifest and len(calls) == 2


def test_a_shard_that_was_cut_short_is_made_again(tmp_path):
    plan = make_plan(SCENES, tmp_path, 10, 0.0)
    prepare(plan)
    before = files(tmp_path)
    cut = tmp_path / (plan.name(1) + ".array_record")
    cut.write_bytes(cut.read_bytes()[:-7])
    assert not is_done(plan, 1)
    prepare(plan)
    assert files(tmp_path) == before


def test_another_source_or_plan_needs_another_folder(tmp_path):
    make_plan(SCENES, tmp_path, 10, 0.0)
    for source, per_shard in ((SceneConfig(size=26), 10), (SCENES, 11)):
        with pytest.raises(ValueError, match="holds the shards of another source or plan"):
            make_plan(source, tmp_path, per_shard, 0.0)


def test_bad_records_are_left_out_within_the_share(tmp_path, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(10):
        Image.new("RGB", (4 + i, 4)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"")
    lines = [json.dumps({"image": f"{i}.png", "caption": f"n {i}"}) for i in range(10)]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    source = CaptionFolderConfig(str(folder), "all")
    with pytest.raises(ValueError, match="--bad-share=0.0 allows.*captions.jsonl:4: image .*3.png is empty"):
        prepare(make_plan(source, tmp_path / "strict", 4, 0.0))
    manifest = prepare(make_plan(source, tmp_path / "out", 4, 0.1))
    assert manifest["records"] == 9 and [record["index"] for record in manifest["bad"]] == [3]
    assert "left out record 3: " in capsys.readouterr().err
    made = open_source(ArrayRecordConfig(str(tmp_path / "out")))
    assert [made[i].caption for i in range(9)] == [f"n {i}" for i in range(10) if i != 3]


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
    verb.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_command(tmp_path, monkeypatch, capsys):
    arguments = ("--source.kind=scenes", "--source.size=6", "--source.colors=['red','blue','green']", "--per-shard", "2",
                 f"--out={tmp_path}", "--json")
    assert run(monkeypatch, capsys, *arguments, "--part", "1/2")["complete"] is False
    figures = run(monkeypatch, capsys, *arguments, "--workers", "2")
    assert figures | {"bytes": 0} == {"complete": True, "records": 6, "images": 6, "bytes": 0, "shards": 3, "bad": 0,
                                      "out": str(tmp_path)}
    assert open_source(ArrayRecordConfig(str(tmp_path)))[5].images[0].shape == (64, 64, 3)


@pytest.mark.parametrize("arguments, message", [
    (["--source.kind=zip"], "--source.kind is 'zip'; choose one of scenes, captions"),
    (["--kind=scenes"], "Unknown argument '--kind=scenes'"),
    (["--source.kind=scenes", "--source.siez=3"], "Unknown config key 'siez' in source; did you mean 'size'"),
    (["--source.kind=scenes", "--part=2/2"], "--part is '2/2'; write I/N"),
    (["--source.kind=captions", "--source.path=2024"], "2024 holds neither captions.jsonl nor captions.csv")])
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["prepare", f"--out={tmp_path / 'out'}", *arguments])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        verb.main()


def test_the_config_of_packed_rows_mixes_prepared_records_with_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SAMPLE", 60)
    prepare(make_plan(SCENES, tmp_path / "shards", 10, 0.0))
    config = configs.resolve(configs.load(f"configs/packed.py:{tmp_path / 'shards'}", [
        "--config.stages.instruct.data.source.parts.scenes.select=first:30", "--config.stages.instruct.data.format.block=8"]))
    data, processor = config.stages["instruct"].data, make_processor(config, epath.Path(tmp_path))
    batch = traced(data, processor, 0)[0]
    places = [place for place in batch["origin"].reshape(-1, 2).tolist() if place[0] >= 0]
    assert batch["tokens"].shape == (8, 512) and batch["images"].shape[:2] == (8, 16)
    own, scenes = ([index for part, index in places if part == n] for n in (0, 1))
    assert abs(len(own) - len(scenes)) <= 8 and len(places) > 16
    assert set(own) <= set(range(25)) and set(scenes) <= set(range(30))
