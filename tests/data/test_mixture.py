"""Mixtures: shares, epochs and selections, and the same order whoever reads it."""

import collections
import types

import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax.data import mixture
from vlm_jax.data.digest import digest, origins
from vlm_jax.data.images import ImageProcessor
from vlm_jax.data.mixture import MixtureConfig, Part, epochs, open_parts, order, selected
from vlm_jax.data.pipeline import DataConfig, RowsConfig, batches
from vlm_jax.data.processor import Processor, ProcessorConfig
from vlm_jax.data.records import Message, Record
from vlm_jax.data.scenes import SceneConfig
from vlm_jax.data.tokenizer import train

PROCESSOR = Processor(ProcessorConfig(ImageProcessor(16)), train(["a"], 270),
                      types.SimpleNamespace(image_size=16, patch_size=16))
SIZES = {"large": 60, "small": 20}


def parts(**options):
    return {name: Part(SceneConfig(size=size, conversations=1), **{key: value[name] for key, value in options.items()})
            for name, size in SIZES.items()}


def places(config, count, seed=0):
    found = order(open_parts(config), seed)
    return [found[i] for i in range(count)]


# Shares and epochs.


def test_weights_are_shares_of_the_examples():
    config = MixtureConfig(parts(weight={"large": 3.0, "small": 1.0}))
    found = places(config, 400)
    for start in range(0, 400, 40):  # all along, not only in the end
        assert collections.Counter(part for part, _ in found[start:start + 40]) == {0: 30, 1: 10}
    opened = open_parts(config)
    assert [part.share for part in opened] == [0.75, 0.25]
    assert epochs(opened, 400) == {"large": 5.0, "small": 5.0}


def test_stated_epochs_end_together():
    config = MixtureConfig(parts(epochs={"large": 1.0, "small": 3.0}))
    found = places(config, 120)
    read = collections.Counter(found)
    assert read == {**{(0, i): 1 for i in range(60)}, **{(1, i): 3 for i in range(20)}}
    assert epochs(open_parts(config), 120) == {"large": 1.0, "small": 3.0}


def test_every_epoch_of_a_part_is_shuffled_anew_and_by_itself():
    found = places(MixtureConfig(parts(weight={"large": 1.0, "small": 1.0})), 240)
    small = [index for part, index in found if part == 1]
    rounds = [small[i:i + 20] for i in range(0, 120, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in rounds)
    assert len({tuple(epoch) for epoch in rounds}) == 6
    assert places(MixtureConfig(parts(weight={"large": 1.0, "small": 1.0})), 240, seed=1) != found


# Selections.


def test_selections():
    assert list(selected(5, "all")) == [0, 1, 2, 3, 4]
    assert list(selected(5, "first:2")) == [0, 1] and list(selected(5, "first:9")) == [0, 1, 2, 3, 4]
    half = list(selected(1000, "random:50%"))
    assert len(half) == len(set(half)) == 500 and set(half) != set(range(500))
    assert list(selected(1000, "random:50%")) == half  # a data set, not a draw
    assert set(list(selected(1000, "random:12.5%"))) < set(half)  # a smaller share is inside the larger
    assert len(list(selected(3, "random:1%"))) == 1 and sorted(selected(3, "random:100%")) == [0, 1, 2]


@pytest.mark.parametrize("select", ["first:0", "first", "random:0%", "random:101%", "random:5", "half", "last:3"])
def test_unknown_selections_are_refused(select):
    with pytest.raises(ValueError, match="write 'all', 'first:N', or 'random:N%'"):
        Part(SceneConfig(), weight=1.0, select=select)


def test_a_selection_is_all_that_is_read():
    config = MixtureConfig(parts(weight={"large": 1.0, "small": 1.0}, select={"large": "first:7", "small": "random:25%"}))
    read = collections.defaultdict(set)
    for part, index in places(config, 300):
        read[part].add(index)
    assert read[0] == set(range(7)) and read[1] == set(selected(20, "random:25%"))


def test_weights_or_epochs_but_not_both():
    for wrong in (dict(), dict(weight=1.0, epochs=1.0), dict(weight=0.0), dict(epochs=-1.0)):
        with pytest.raises(ValueError, match="a weight or a number of epochs above 0"):
            Part(SceneConfig(), **wrong)
    with pytest.raises(ValueError, match="all have weights or all have epochs"):
        MixtureConfig({"a": Part(SceneConfig(), weight=1.0), "b": Part(SceneConfig(), epochs=1.0)})


def test_a_config_file_spells_a_mixture():
    written = dict(kind="mixture", parts=dict(
        a=dict(source=dict(kind="scenes", size=10), weight=2),
        b=dict(source=dict(kind="captions", path="p"), weight=1.5, select="first:3")))
    data = configs.build(DataConfig, dict(source=written, batch=4, format=dict(kind="rows", length=64)), "data")
    assert data.source.parts["a"] == Part(SceneConfig(size=10), weight=2.0)
    assert data.source.parts["b"].select == "first:3"
    assert configs.plain(data.source)["parts"]["b"]["source"]["kind"] == "captions"


# Text and images.


def test_text_rows_and_image_rows_mix(monkeypatch):
    def talk(mark, text):
        return ((Message("user", mark + text), Message("assistant", "yes")),)

    picture = np.full((8, 8, 3), 200, np.uint8)
    sources = {1: [Record((picture,), conversations=talk("<image>", "a"))], 2: [Record(conversations=talk("", "b"))]}
    monkeypatch.setattr(mixture, "open_source", lambda config, keep_bad: sources[config.size])
    config = DataConfig(MixtureConfig({"seen": Part(SceneConfig(size=1), weight=1.0),
                                       "said": Part(SceneConfig(size=2), weight=1.0)}), 4, RowsConfig(64))
    batch = next(batches(config, PROCESSOR, 0, 0, 1))
    visual = (batch["image_index"] >= 0).any(axis=1)
    assert visual.tolist() == [True, False, True, False]
    assert (batch["images"].reshape(4, -1) != 0).any(axis=1).tolist() == visual.tolist()


# Exactness.

MIXED = DataConfig(MixtureConfig(parts(weight={"large": 2.0, "small": 1.0}, select={"large": "random:50%", "small": "all"})),
                   8, RowsConfig(160))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_stopping_anywhere_and_going_on_with_other_hosts_is_the_same_sequence(hosts):
    whole = origins(MIXED, PROCESSOR, 7, 0, 12)
    assert whole.shape == (12, 8, 1, 2)
    for stop in np.random.default_rng(hosts).integers(1, 11, 2):
        before, after = origins(MIXED, PROCESSOR, 7, 0, stop, hosts), origins(MIXED, PROCESSOR, 7, stop, 12, hosts)
        assert np.array_equal(np.concatenate([before, after]), whole)


def test_the_digest_depends_on_the_examples_alone():
    known = digest(MIXED, PROCESSOR, 7, 2, 6)
    assert digest(MIXED, PROCESSOR, 7, 2, 6, hosts=4) == known
    assert digest(MIXED, PROCESSOR, 7, 2, 6, workers=2) == known  # processes of their own
    assert len({known, digest(MIXED, PROCESSOR, 8, 2, 6), digest(MIXED, PROCESSOR, 7, 3, 7)}) == 3
    with pytest.raises(ValueError, match="A batch of 8 does not divide among 3 hosts"):
        digest(MIXED, PROCESSOR, 7, 2, 6, hosts=3)
