"""Retrieval against ranks counted by hand: ties, several captions of an image, repeated captions."""

import numpy as np
import pytest

from vlm_jax.data.records import Record
from vlm_jax.evals.retrieval import distinct, ranks, retrieval


def picture(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value, np.uint8)


def test_ranks_count_what_is_as_good_as_the_truth_as_better():
    scores = np.array([[0.9, 0.1, 0.5],   # first
                       [0.9, 0.5, 0.1],   # second
                       [0.2, 0.7, 0.2]])  # behind one, level with another: last
    assert ranks(scores, np.eye(3, dtype=bool)).tolist() == [1, 2, 3]
    assert ranks(np.zeros((3, 3)), np.eye(3, dtype=bool)).tolist() == [3, 3, 3]


def test_any_of_several_right_answers_will_do_and_none_counts_against_the_other():
    scores = np.array([[0.5, 0.8, 0.7], [0.6, 0.9, 0.6]])
    right = np.array([[True, True, False], [True, False, True]])
    assert ranks(scores, right).tolist() == [1, 2]


def test_a_caption_is_taken_once_and_an_image_has_all_of_its_captions():
    words = [(1, "a cat"), (2, "a dog"), (3, "a cat"), (1, "an animal"), (4, "a bird"), (5, "a fish")]
    source = [Record((picture(value),), caption=text) for value, text in words]
    indices, captions, owner, image_at = distinct(source, examples=4)
    assert indices == [0, 1, 3, 4] and captions == ["a cat", "a dog", "an animal", "a bird"]
    assert owner.tolist() == [0, 1, 0, 2] and image_at == [0, 1, 4]


def test_one_image_is_nothing_to_choose_from():
    with pytest.raises(ValueError, match="two or more images"):
        distinct([Record((picture(1),), caption=text) for text in ("a", "b")], examples=2)


def test_the_result_holds_together(tiny, scenes):
    result = retrieval(*tiny, scenes, examples=20, batch=8)
    assert len({record["caption"] for record in result.records}) == len(result.records) == 20
    for way in ("i2t", "t2i"):
        found = [record[f"{way}_rank"] for record in result.records]
        assert all(1 <= rank <= 20 for rank in found)
        for k in (1, 5, 10):
            assert result.metrics[f"retrieval_{way}_r{k}"] == np.mean([rank <= k for rank in found])
    similarity = np.array(result.extras["similarity"])
    assert similarity.shape == (16, 16) and np.abs(similarity).max() < 1.001
    assert result.extras["similarity_texts"] == [record["caption"] for record in result.records[:16]]
    first = result.records[0]
    assert (first["i2t_rank"] == 1) == (first["nearest"] == first["caption"])


def test_a_recall_that_cannot_fail_is_left_out(tiny, scenes):
    metrics = retrieval(*tiny, scenes, examples=5, batch=8).metrics
    assert sorted(metrics) == ["retrieval_i2t_r1", "retrieval_t2i_r1"]
