"""The same 64 captioned pictures in every form that a source reads."""

import csv
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

PROMPT = "Describe the image."  # what sources of captions say by default
COUNT = 64


def pictures() -> list[tuple[bytes, str]]:
    """(PNG file, caption) of each example: no two alike, of different sizes."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(COUNT):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (9 + i % 7, 20 - i % 5, 3), np.uint8)).save(file, "PNG")
        made.append((file.getvalue(), f"Picture {i}, größer als {i - 1}"))
    return made


def save_folder(folder, examples) -> None:
    folder.mkdir()
    for i, (data, _) in enumerate(examples):
        (folder / f"{i:03}.png").write_bytes(data)


def save_tfds(folder, examples) -> None:
    """A prepared data set `my_set`, without TensorFlow: its two JSON files, and Examples in an ArrayRecord."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_generated_pb2 as example, tf_feature_generated_pb2 as feature

    from vlm_jax.data.sources.array_record import writer

    folder.mkdir(parents=True)
    tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(None, None, 3)), "caption": tfds.features.Text(),
        "parity": tfds.features.ClassLabel(names=["even", "odd"])}).save_config(str(folder))
    split = {"name": "train", "shardLengths": [str(len(examples))], "numBytes": "1",
             "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
    (folder / "dataset_info.json").write_text(json.dumps(
        {"name": "my_set", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}))
    out = writer(str(folder / "my_set-train.array_record-00000-of-00001"))
    text = lambda value: feature.Feature(bytes_list=feature.BytesList(value=[value]))
    for i, (data, caption) in enumerate(examples):
        parity = feature.Feature(int64_list=feature.Int64List(value=[i % 2]))
        fields = {"image": text(data), "caption": text(caption.encode()), "parity": parity}
        out.write(example.Example(features=feature.Features(feature=fields)).SerializeToString())
    out.close()


@pytest.fixture(scope="session")
def every_form(tmp_path_factory, save_tar):
    """{kind: config of a source}, all with the same 64 examples in the same order."""
    from vlm_jax.data.registry import open_source
    from vlm_jax.data.sources.array_record import ArrayRecordConfig, pack, writer
    from vlm_jax.data.sources.captions import CaptionFolderConfig
    from vlm_jax.data.sources.llava import LlavaJsonConfig
    from vlm_jax.data.sources.parquet import ParquetConfig
    from vlm_jax.data.sources.prefix_suffix import PrefixSuffixConfig
    from vlm_jax.data.sources.tfds import TfdsConfig
    from vlm_jax.data.sources.webdataset import WebDatasetConfig

    root, examples = tmp_path_factory.mktemp("forms"), pictures()
    forms = {}
    for form in ("jsonl", "csv"):
        save_folder(root / form, examples)
        forms[f"captions, {form}"] = CaptionFolderConfig(str(root / form), "all")
    names = [f"{i:03}.png" for i in range(COUNT)]
    captions = [caption for _, caption in examples]
    lines = [json.dumps({"image": name, "caption": caption}) for name, caption in zip(names, captions)]
    (root / "jsonl" / "captions.jsonl").write_text("\n".join(lines))
    with open(root / "csv" / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *zip(names, captions)])
    talk = lambda text: [{"from": "human", "value": f"<image>\n{PROMPT}"}, {"from": "gpt", "value": text}]
    (root / "csv" / "llava.json").write_text(json.dumps(
        [{"id": n, "image": name, "conversations": talk(text)} for n, (name, text) in enumerate(zip(names, captions))]))
    forms["llava"] = LlavaJsonConfig(str(root / "csv" / "llava.json"), split="all")
    lines = [json.dumps({"image": name, "prefix": PROMPT, "suffix": text}) for name, text in zip(names, captions)]
    (root / "talk.jsonl").write_text("\n".join(lines))
    forms["prefix_suffix"] = PrefixSuffixConfig(str(root / "talk.jsonl"), str(root / "csv"), "all")
    for shard, part in enumerate((range(0, 40), range(40, COUNT))):
        members = [(f"{i:03}.{end}", data) for i in part for end, data in
                   (("png", examples[i][0]), ("txt", captions[i].encode()))]
        save_tar(root / f"set-{shard}.tar", members)
        table = pyarrow.table({
            "image": [{"bytes": examples[i][0], "path": names[i]} for i in part], "caption": [captions[i] for i in part]})
        pyarrow.parquet.write_table(table, root / f"set-{shard}.parquet", row_group_size=7)
    forms["webdataset"] = WebDatasetConfig(str(root / "set-*.tar"))
    forms["parquet"] = ParquetConfig(str(root / "set-*.parquet"))
    source, out = open_source(forms["llava"]), writer(str(root / "a.array_record"))
    for i in range(COUNT):
        out.write(pack(source[i]))
    out.close()
    forms["array_record"] = ArrayRecordConfig(str(root / "a.array_record"))
    save_tfds(root / "tfds" / "my_set" / "1.0.0", examples)
    forms["tfds"] = TfdsConfig("my_set", data_dir=str(root / "tfds"))
    return forms
