"""Captions, word for word."""

import dataclasses

import numpy as np
import pytest

from vlm_jax.data.records import Message, Record
from vlm_jax.data.scenes import SceneSource
from vlm_jax.evals.ask import Question, answers
from vlm_jax.evals.caption import caption, same, task

IMAGE = np.zeros((4, 4, 3), np.uint8)


def test_only_spacing_is_forgiven():
    assert same(" a red 3\n and a  7", "a red 3 and a 7")
    assert not same("A red 3", "a red 3") and not same("a red 3.", "a red 3")


def test_the_prompt_is_the_records_own_if_it_has_one():
    default = (Message("user", "<image>\nDescribe the image."),)
    assert task(Record((IMAGE,), caption="a cat")) == (default, "a cat")
    own = (Message("system", "Be brief."), Message("user", "<image>\nWhat?"), Message("assistant", "A cat."))
    assert task(Record((IMAGE,), caption="a cat", conversations=(own,))) == (own[:2], "a cat")
    assert task(Record((IMAGE,), conversations=(own,))) == (own[:2], "A cat.")
    with pytest.raises(ValueError, match="line 4: it has no image or no words"):
        task(Record((IMAGE,), meta={"line": 4}))


def test_scenes_are_described_in_full(tiny, scenes):
    """A scene's conversations may begin with any question, its caption may be short: it is all the same."""
    short = SceneSource(dataclasses.replace(scenes.config, caption_style="varied", conversations=1))
    result = caption(*tiny, short, examples=3, batch=2)
    assert [record["truth"] for record in result.records] == [scenes[i].caption for i in range(3)]
    asked = [Question(i, (Message("user", "<image>\nDescribe the image."),)) for i in range(3)]
    said = answers(tiny.config.vlm(), tiny.params, tiny.processor, scenes, asked, batch=2, max_new_tokens=48)
    assert [record["prediction"] for record in result.records] == said and len(set(said)) > 1
    assert [record["image"] for record in result.records] == list(result.pictures)
    assert result.metrics == {"caption_exact": 0.0}
