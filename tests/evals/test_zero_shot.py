"""Zero-shot classification against figures worked out by hand."""

import dataclasses

import numpy as np
import pytest

from vlm_jax.data.records import Record
from vlm_jax.evals.zero_shot import class_vectors, labelled, predictions, zero_shot


def test_class_vectors_are_normalised_after_the_mean_too():
    ztxt = np.array([[1, 0], [0, 1], [0, 1]], np.float32)  # two prompts that disagree, then a class with one
    np.testing.assert_allclose(class_vectors(ztxt, [2, 1]), [[0.5**0.5, 0.5**0.5], [0, 1]], atol=1e-7)


def test_the_nearest_class_wins_and_a_tie_is_wrong():
    scores = np.array([[0.9, 0.1, 0.2], [0.3, 0.1, 0.2], [0.5, 0.5, 0.1], [0.0, 0.0, 0.0]])
    assert predictions(scores, np.array([0, 2, 0, 1])).tolist() == [0, 0, 1, 0]
    assert predictions(scores, np.array([0, 2, 1, 0])).tolist() == [0, 0, 0, 1]


def test_scenes_are_asked_with_a_single_digit(scenes):
    data = labelled(scenes, 20)
    assert data.classes == list("0123456789") and data.prompts[3] == ["a 3"]
    for i, label in zip(data.indices, data.labels):
        assert [d["digit"] for d in data.source[i].meta["digits"]] == [label]


def test_captions_are_the_classes_of_other_sources_and_drawn_from_all_of_it():
    image = np.zeros((4, 4, 3), np.uint8)
    source = [Record((image,), caption=name) for name in ["dog"] * 5 + ["cat"] * 5]  # sorted, as files may be
    data = labelled(source, 4)
    assert data.classes == ["cat", "dog"] and data.prompts == [["cat"], ["dog"]]
    assert data.indices == [0, 2, 5, 7] and data.labels.tolist() == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="All 5 records have the caption 'dog'"):
        labelled(source[:5], 5)


def test_the_result_holds_together(tiny, scenes):
    result = zero_shot(*tiny, scenes, examples=20, batch=8)
    confusion = np.array(result.extras["confusion"])
    assert confusion.shape == (10, 10) and confusion.sum() == 20
    assert result.metrics["zero_shot_top1"] == np.trace(confusion) / 20
    assert result.metrics["zero_shot_top1"] == np.mean([record["correct"] for record in result.records])
    asked = confusion.sum(axis=1)
    recalls = [confusion[i, i] / asked[i] for i in range(10) if asked[i]]
    assert result.metrics["zero_shot_mean_per_class"] == pytest.approx(np.mean(recalls))


def test_a_model_without_a_text_tower_says_so(tiny, scenes):
    config = dataclasses.replace(tiny.config, text=None, contrast=None)
    with pytest.raises(ValueError, match="no text tower"):
        zero_shot(config, tiny.params, tiny.processor, scenes, examples=4, batch=4)
