"""Every source: the same examples in any form are the same batches."""

import dataclasses
import json
import pickle
import types

import numpy as np
import pytest

from vlm_jax.data.images import ImageProcessor
from vlm_jax.data.pipeline import DataConfig, RowsConfig, batches
from vlm_jax.data.processor import Processor, ProcessorConfig
from vlm_jax.data.records import Record, Region
from vlm_jax.data.registry import SOURCES, open_source
from vlm_jax.data.scenes import SceneConfig
from vlm_jax.data.sources.array_record import pack, unpack
from vlm_jax.data.tokenizer import train

FORMS = ["captions, jsonl", "captions, csv", "llava", "prefix_suffix", "webdataset", "parquet", "array_record", "tfds"]
PROCESSOR = Processor(ProcessorConfig(ImageProcessor(16)), train(["Picture 1"], 300),
                      types.SimpleNamespace(image_size=16, patch_size=16))


def test_the_list_has_every_source(every_form):
    assert list(every_form) == FORMS
    assert {type(config) for config in every_form.values()} == set(SOURCES) - {SceneConfig}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_examples_in_any_form_are_the_same_batches(form, every_form):
    read = [list(batches(DataConfig(every_form[name], 16, RowsConfig(128)), PROCESSOR, 5, 0, 6))
            for name in (form, "captions, jsonl")]
    assert all(set(a) == set(b) for a, b in zip(*read))
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(*read) for name in a)
    assert len({image.tobytes() for batch in read[0][:4] for image in batch["images"]}) == 64  # an epoch: each once


@pytest.mark.parametrize("form", FORMS)
def test_records_are_read_in_any_order_and_in_another_process(form, every_form):
    source = open_source(every_form[form])
    assert len(source) == 64
    last, first = source[63], source[0]
    assert first.conversations[0][1].text == "Picture 0, größer als -1" and first.images[0].shape == (9, 20, 3)
    assert last.conversations[0][1].text == "Picture 63, größer als 62" and last.images[0].shape == (9, 17, 3)
    assert first.name != last.name  # what an error would call them
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again[40].images[0], source[40].images[0])
    assert again[-1].conversations == last.conversations
    for outside in (64, -65):
        with pytest.raises(IndexError):
            source[outside]


@pytest.mark.parametrize("form", ["captions, csv", "webdataset", "parquet", "tfds"])
def test_without_a_prompt_captions_are_no_conversations(form, every_form):
    record = open_source(dataclasses.replace(every_form[form], prompt=None))[5]
    assert record.conversations == () and record.caption == "Picture 5, größer als 4"
    with pytest.raises(ValueError, match="must not hold <image>"):
        open_source(dataclasses.replace(every_form[form], prompt="<image> What?"))


def test_a_class_label_is_a_caption_by_its_name(every_form):
    source = open_source(dataclasses.replace(every_form["tfds"], caption="parity"))
    assert [source[i].caption for i in range(3)] == ["even", "odd", "even"]


def test_a_packed_record_comes_back_whole():
    scene = open_source(SceneConfig(size=3))[2]
    back = unpack(pack(scene), "x")
    assert np.array_equal(back.images[0], scene.images[0]) and len(back.images) == 1
    meta = json.loads(json.dumps(scene.meta))  # JSON has no tuples
    assert dataclasses.replace(back, images=()) == dataclasses.replace(scene, images=(), meta=meta)
    text = Record(caption="a\u2028b", regions=(Region((0.0, 0.5, 1.0, 1.0), "half"),))
    assert unpack(pack(text), "x").regions == text.regions and unpack(pack(text), "x").caption == text.caption
    with pytest.raises(ValueError, match="record 3 has .* bytes where its header says"):
        unpack(pack(scene)[:-1], "record 3")
