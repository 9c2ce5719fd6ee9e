"""The pipeline: the batch of step k is the same whoever reads it, from wherever the reading starts."""

import itertools
import json
import types

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data import mixture, registry
from vlm_jax.data.images import Augmentation, ImageProcessor
from vlm_jax.data.pipeline import (
    DataConfig, PairsConfig, RowsConfig, batches, dataset, example, stage_seed, texts)
from vlm_jax.data.processor import Processor, ProcessorConfig
from vlm_jax.data.records import Message, Record, Region
from vlm_jax.data.scenes import SceneConfig
from vlm_jax.data.sources.captions import CaptionFolderConfig
from vlm_jax.data.sources.llava import LlavaJsonConfig
from vlm_jax.data.templates import TEMPLATES
from vlm_jax.data.tokenizer import train

EYES = types.SimpleNamespace(image_size=16, patch_size=16)
IMAGES = ImageProcessor(16, mean=(0, 0, 0), std=(1, 1, 1))
PROCESSOR = Processor(ProcessorConfig(IMAGES), train(["a cat"], 300), EYES, 8)
SOURCE = SceneConfig(size=7)  # stands in for any source; `numbered` puts others in its place
PAIRS = PairsConfig()


@pytest.fixture
def numbered(monkeypatch):
    """A source of `size` records; record i has the caption "i"."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)

    def source(size):
        records = [Record((picture,), f"{i}") for i in range(size)]
        monkeypatch.setattr(mixture, "open_source", lambda config, keep_bad: records)

    return source


def seen(config, seed, start, stop):
    """Which records the batches of these steps hold, by caption: one list a step."""
    rows = [batch["text"] for batch in batches(config, PROCESSOR, seed, start, stop)]
    captions = lambda text: PROCESSOR.tokenizer.decode([i for i in text if i not in (0, 1, 2)])
    return [[int(captions(text)) for text in row] for row in rows]


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# A pure function of (config, seed, step).


@pytest.mark.parametrize("form", [
    PairsConfig(regions=2, augment=Augmentation((0.3, 0.9), flip=True)), RowsConfig(length=200),
    RowsConfig(260, 0, "all")])
def test_starting_at_a_step_is_skipping_the_steps_before(form):
    config = DataConfig(SceneConfig(size=50, conversations=2), 8, form)
    whole = list(batches(config, PROCESSOR, 3, 0, 12))
    assert len(whole) == 12
    for start, stop in [(0, 3), (5, 12), (11, 12), (12, 12)]:
        part = list(batches(config, PROCESSOR, 3, start, stop))
        assert len(part) == stop - start
        assert all(equal(a, b) for a, b in zip(part, whole[start:stop]))


def test_any_single_batch_can_be_read_alone():
    config = DataConfig(SceneConfig(size=50), 4, PairsConfig(augment=Augmentation((0.3, 0.9))))
    whole = dataset(config, PROCESSOR, 3)
    for step in (1_000_000, 20, 3):  # the far future first
        (batch,) = batches(config, PROCESSOR, 3, step, step + 1)
        assert equal(batch, whole[step])


def test_seeds_and_stages_have_orders_of_their_own(numbered):
    numbered(60)
    config = DataConfig(SOURCE, 20, PAIRS)
    seeds = [stage_seed(seed, stage) for seed in (0, 1) for stage in ("align", "instruct", "contrastive")]
    assert len(set(seeds)) == 6 and all(0 <= seed < 2**32 for seed in seeds)
    orders = [sum(seen(config, seed, 0, 3), []) for seed in seeds]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert seen(config, seeds[0], 0, 3) == seen(config, stage_seed(0, "align"), 0, 3)


# Hosts.


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_disjoint_rows_whose_union_is_the_batch(hosts):
    config = DataConfig(SceneConfig(size=50), 8, PairsConfig(augment=Augmentation((0.3, 0.9), flip=True)))
    whole = list(batches(config, PROCESSOR, 3, 2, 6))
    for rows in (np.arange(8).reshape(hosts, -1), np.arange(8).reshape(-1, hosts).T):  # in blocks, and in turn
        parts = [list(batches(config, PROCESSOR, 3, 2, 6, part.tolist())) for part in rows]
        for step, batch in enumerate(whole):
            for part, read in zip(rows, parts):
                assert equal(read[step], {name: value[part] for name, value in batch.items()})


@pytest.mark.parametrize("rows", [[], [0, 8], [-1, 0], [1, 0], [0, 0]])
def test_rows_that_no_batch_has_are_refused(rows):
    with pytest.raises(ValueError, match="some of the rows 0 to 7 in ascending order"):
        batches(DataConfig(SOURCE, 8, PAIRS), PROCESSOR, 0, 0, 1, rows)


# Epochs.


def test_an_epoch_holds_every_example_once_and_the_next_is_shuffled_anew(numbered):
    numbered(60)
    order = sum(seen(DataConfig(SOURCE, 20, PAIRS), 0, 0, 9), [])
    epochs = [order[:60], order[60:120], order[120:]]
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3 and list(range(60)) not in epochs


def test_a_batch_may_straddle_epochs_and_be_larger_than_the_source(numbered):
    numbered(7)
    order = sum(seen(DataConfig(SOURCE, 16, PAIRS), 0, 0, 7), [])  # 16 epochs in 7 batches
    assert all(sorted(order[i:i + 7]) == list(range(7)) for i in range(0, 112, 7))
    assert seen(DataConfig(SOURCE, 16, PAIRS), 0, 5, 7) == [order[80:96], order[96:112]]


def test_a_single_example_is_enough(numbered):
    numbered(1)
    assert seen(DataConfig(SOURCE, 3, PAIRS), 0, 0, 2) == [[0, 0, 0], [0, 0, 0]]


def test_a_source_without_examples_is_refused(monkeypatch):
    monkeypatch.setitem(registry.SOURCES, type(SOURCE), lambda config, keep_bad: [])
    with pytest.raises(ValueError, match="has no examples"):
        registry.open_source(SOURCE)


# Augmentation.


def test_augmentation_differs_between_epochs_and_not_between_readings(numbered):
    numbered(1)
    config = DataConfig(SOURCE, 8, PairsConfig(augment=Augmentation((0.2, 0.8), flip=True)))
    first, again = (next(batches(config, PROCESSOR, 0, 0, 1))["images"] for _ in range(2))
    assert np.array_equal(first, again)
    assert len({image.tobytes() for image in first}) > 4  # eight readings of one picture
    assert not np.array_equal(first, next(batches(config, PROCESSOR, 1, 0, 1))["images"])


# Examples.


def test_a_pair_with_regions():
    boxes = {"a red 3": (0, 0, 0.5, 0.5), "a 7": (0.5, 0.5, 1, 1), "all": (0, 0, 1, 1)}
    regions = tuple(Region(box, phrase) for phrase, box in boxes.items())
    record = Record((np.zeros((16, 16, 3), np.uint8),), "a cat", regions=regions)
    rng = np.random.default_rng(0)
    pair = example(record, PROCESSOR, PairsConfig(regions=2), rng)
    assert pair["boxes"].tolist() == [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]
    assert [t.tolist() for t in pair["box_text"]] == [PROCESSOR.text(t).tolist() for t in ("a red 3", "a 7")]
    pair = example(record, PROCESSOR, PairsConfig(regions=5), rng)
    assert pair["boxes"].shape == (5, 4) and not pair["boxes"][3:].any()  # a box without area is none
    assert pair["box_text"].shape == (5, 8)
    assert "boxes" not in example(record, PROCESSOR, PAIRS, rng)
    for lacking in (Record((), "a cat"), Record(record.images, None)):
        with pytest.raises(ValueError, match="no image or no caption"):
            example(lacking, PROCESSOR, PAIRS, rng)


def test_shapes_never_depend_on_the_data(tmp_path):
    """Pictures of many sizes, long and short talk, with an image and without: one shape of batch."""
    for i in range(6):
        Image.new("RGB", (5 + 9 * i, 40 - 6 * i)).save(tmp_path / f"{i}.png")
    say = lambda text, n: [{"from": "human", "value": text}, {"from": "gpt", "value": "a cat " * n}]
    entry = lambda i: {"image": f"{i}.png", "conversations": say("<image>\nWhat?", 1 + 2 * i)}
    entries = [{"id": str(i), **entry(i)} for i in range(6)]
    entries.append({"id": "words", "conversations": say("What?", 1)})
    (tmp_path / "talk.json").write_text(json.dumps(entries))
    config = DataConfig(LlavaJsonConfig(str(tmp_path / "talk.json"), split="all"), 3, RowsConfig(64))
    read = list(batches(config, PROCESSOR, 0, 0, 7))
    shapes = [{name: (value.shape, value.dtype) for name, value in batch.items()} for batch in read]
    assert len(shapes) == 7 and all(shape == shapes[0] for shape in shapes)
    assert shapes[0]["images"][0] == (3, 1, 16, 16, 3) and shapes[0]["tokens"][0] == (3, 64)


def test_a_broken_image_is_named_from_the_reading_thread(tmp_path):
    """The sentence that the command line shows must be the error's, whichever thread it comes from."""
    (tmp_path / "a.png").write_bytes(b"not an image")
    (tmp_path / "captions.jsonl").write_text('{"image": "a.png", "caption": "a cat"}\n')
    config = DataConfig(CaptionFolderConfig(str(tmp_path), split="all"), 2, PAIRS)
    with pytest.raises(ValueError, match=r"^.*captions.jsonl:1: image .*a.png is damaged") as error:
        next(batches(config, PROCESSOR, 0, 0, 2))
    assert "\n" not in str(error.value)


# What a tokenizer is trained on.


def test_texts_are_the_pieces_that_will_be_encoded():
    talk = (Message("user", "<image>\nWhat is it?"), Message("assistant", "A cat."))
    records = [Record(caption="a cat", conversations=(talk,)), Record(caption=None), Record(caption="a dog")]
    assert list(texts(records, 3, TEMPLATES["llava"])) == [
        "a cat", "USER: ", "\nWhat is it? ASSISTANT:", " A cat.", "a dog"]
    assert list(texts(records, 100, TEMPLATES["plain"])) == ["a cat", "A cat.", "a dog"]
    assert list(texts(records, 1, TEMPLATES["plain"])) == ["a cat", "A cat."]


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="'answer' is unknown; choose 'answers' or 'all'"):
        RowsConfig(64, loss="answer")


def test_rows_without_branches_do_not_speak_of_them():
    """So that what is known before the program runs is that they are causal; a promise that does not hold is an error."""
    rows = lambda conversations, branches: dataset(DataConfig(
        SceneConfig(size=7, conversations=conversations), 2, RowsConfig(200, branches=branches)), PROCESSOR, 0)[0]
    spoken, silent = rows(1, True), rows(1, False)
    assert not spoken.pop("subsegment_ids").any() and equal(silent, spoken)
    with pytest.raises(ValueError, match="An example has several conversations; set the stage's data.format.branches"):
        rows(2, False)
