"""Exact match, means over types, the blind baseline, and answers that are those of a chat."""

import numpy as np
import pytest

from vlm_jax.data.records import Message, Record
from vlm_jax.evals.vqa import accuracies, normalise, questions, strangers, vqa
from vlm_jax.inference.session import ChatSession


def picture(value: int) -> np.ndarray:
    return np.full((32, 32, 3), value, np.uint8)


def talk(*turns: str) -> tuple[Message, ...]:
    return tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns))


def test_the_normaliser_forgives_case_spacing_and_a_final_period_and_nothing_else():
    for said in ["yes", "Yes", " yes.\n", "YES .", "yes"]:
        assert normalise(said) == "yes"
    assert normalise("3  and\n5.") == "3 and 5"
    assert normalise("yes..") == "yes." and normalise("a yes") == "a yes" and normalise("two") == "two"
    assert normalise("3.5") == "3.5" and normalise(".") == ""


def test_the_accuracy_is_the_mean_over_types_whatever_their_sizes():
    right = {"count": [True, True, False, False], "color": [True]}
    records = [{"type": kind, "correct": value} for kind, values in right.items() for value in values]
    assert accuracies(records, "vqa", "correct") == {"vqa_accuracy": 0.75, "vqa/count": 0.5, "vqa/color": 1.0}


@pytest.mark.parametrize("n", [2, 3, 7, 8])
def test_nobody_keeps_an_own_image_in_the_blind_baseline(n):
    chosen = strangers([frozenset({str(i)}) for i in range(n)])
    assert chosen == [(i + n // 2) % n for i in range(n)]
    assert all(i != j for i, j in enumerate(chosen))


def test_records_that_share_an_image_do_not_stand_in_for_each_other():
    images = [frozenset(names) for names in ("a", "a", "a", "b", "a", "ab", "c")]
    for own, other in zip(images, strangers(images)):
        assert own.isdisjoint(images[other])
    with pytest.raises(ValueError, match="another image, and there is none among 3 records"):
        strangers([frozenset("a")] * 3)
    with pytest.raises(ValueError, match="none among 1 records"):
        strangers([frozenset("a")])


def test_every_answer_of_a_conversation_is_asked_for_after_the_true_turns_before_it():
    record = Record((picture(1),), conversations=(talk("<image>\nWhat?", "a cat", "Color?", "black"),),
                    meta={"type": "pets"})
    asked, images, pictures = questions([record], 1)
    assert [(item.kind, item.truth) for item in asked] == [("pets", "a cat"), ("pets", "black")]
    assert asked[1].conversation == talk("<image>\nWhat?", "a cat", "Color?")
    assert list(images) == [0] and list(pictures) == ["gallery/vqa-0.png"]


def test_text_alone_is_no_visual_question():
    with_image = Record((picture(1),), conversations=(talk("<image>\nWhat?", "a cat"),))
    asked, images, _ = questions([Record(conversations=(talk("2 + 2?", "4"),)), with_image], 2)
    assert [item.index for item in asked] == list(images) == [1]


def test_batched_answers_are_those_of_a_chat(tiny, scenes):
    result = vqa(*tiny, scenes, examples=4, batch=8)
    assert result.metrics["vqa_examples"] == len(result.records) > 8  # more than a batch, and not a multiple
    assert len(result.records) % 8
    assert len({record["answer"] for record in result.records}) > 5  # or equal answers would prove nothing
    assert any(record["answer"] != record["blind_answer"] for record in result.records)
    for record in result.records[::10]:
        for key, index in (("answer", record["index"]), ("blind_answer", (record["index"] + 2) % 4)):
            chat = ChatSession(tiny.config.vlm(), tiny.params, tiny.processor, scenes[index].images,
                               slots=128, max_new_tokens=16)
            assert chat.ask(record["question"]) == record[key]
        assert record["correct"] == (normalise(record["answer"]) == normalise(record["truth"]))
        assert result.pictures[record["image"]].tolist() == scenes[record["index"]].images[0].tolist()


def test_conversations_of_your_own(tiny):
    """Several images, several turns, and text alone, in one batch; the stand-in has fewer images."""
    record = lambda images, *turns: Record(tuple(map(picture, images)), conversations=(talk(*turns),))
    source = [record([10, 200], "<image>\n<image>\nSame?", "no", "Why?", "dark"), record([], "2 + 2?", "4"),
              record([90], "<image>\nWhat is it?", "gray")]
    result = vqa(*tiny, source, examples=3, batch=4)
    assert [(record["index"], record["question"], record["type"]) for record in result.records] == [
        (0, "Same?", "vqa"), (0, "Why?", "vqa"), (2, "What is it?", "vqa")]
    chat = ChatSession(tiny.config.vlm(), tiny.params, tiny.processor, source[0].images, slots=128,
                       max_new_tokens=16)
    assert chat.ask("Same?") == result.records[0]["answer"]
    with pytest.raises(ValueError, match="None of 1 records has an image and a question"):
        vqa(*tiny, source[1:2], examples=3, batch=4)
