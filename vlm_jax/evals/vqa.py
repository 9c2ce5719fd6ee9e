"""Visual question answering by exact match, beside a blind baseline: the same questions about another image.

What the baseline gets right needs no eyes (the commonest answer, or one that the question gives away): a
figure means little without it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

import numpy as np

from vlm_jax.data.processor import Processor
from vlm_jax.data.records import IMAGE_MARK, Conversation, Message, Record, Source
from vlm_jax.data.scenes import SceneSource
from vlm_jax.evals.ask import Question, answers
from vlm_jax.evals.embed import fingerprint
from vlm_jax.evals.results import GALLERY, Result, gallery_path
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.transformer import Params

ANSWER_TOKENS = 16
NORMALISER = "lower case, single spaces, no final period"


class Asked(NamedTuple):
    """A question about record `index`: the conversation up to it, its type, and the right answer."""

    index: int
    conversation: Conversation
    kind: str
    truth: str


def vqa(
    config: ModelConfig, params: Params, processor: Processor, source: Source, examples: int, batch: int
) -> Result:
    """Metrics: vqa_accuracy, the mean over question types of vqa/<type>; likewise vqa_blind_accuracy and
    vqa_blind/<type>; vqa_examples, the number of questions.

    Asks every question of the first `examples` records that have images, greedily.
    """
    model = config.vlm()
    if isinstance(source, SceneSource):
        source = SceneSource(dataclasses.replace(source.config, conversations=0))
    asked, images, pictures = questions(source, examples)
    if not asked:
        raise ValueError(f"None of {min(examples, len(source))} records has an image and a question.")
    shown = list(images)
    stand_in = {index: shown[at] for index, at in zip(shown, strangers(list(images.values())))}

    def answered(about: Mapping[int, int]) -> list[str]:
        them = [Question(about[item.index], item.conversation) for item in asked]
        return answers(
            model, params, processor, source, them, batch=batch, max_new_tokens=ANSWER_TOKENS)

    seeing, blind = answered({index: index for index in shown}), answered(stand_in)
    records = [_record(*row, pictures) for row in zip(asked, seeing, blind, strict=True)]
    metrics = accuracies(records, "vqa", "correct") | accuracies(records, "vqa_blind", "blind_correct")
    metrics["vqa_examples"] = len(records)
    return Result("vqa", metrics, records, {"normaliser": NORMALISER}, pictures)


def questions(
    source: Source, examples: int
) -> tuple[list[Asked], dict[int, frozenset[str]], dict[str, np.ndarray]]:
    """(questions, fingerprints of the images of each record asked about, pictures of the first of these)."""
    asked, images, pictures = [], {}, {}
    for i in range(min(examples, len(source))):
        record = source[i]
        found = list(_of_scene(source, i) if isinstance(source, SceneSource) else _of_record(record, i))
        if not record.images or not found:
            continue
        asked += found
        images[i] = frozenset(fingerprint(image) for image in record.images)
        if len(pictures) < GALLERY:
            pictures[gallery_path("vqa", i)] = record.images[0]
    return asked, images, pictures


def _of_scene(source: SceneSource, index: int) -> Iterator[Asked]:
    for kind, question, answer in source.vqa(index):
        yield Asked(index, (Message("user", f"{IMAGE_MARK}\n{question}"),), kind, answer)


def _of_record(record: Record, index: int) -> Iterator[Asked]:
    """Every answer of every conversation, after the true turns before it."""
    kind = str(record.meta.get("type") or "vqa")
    for conversation in record.conversations:
        for turn, message in enumerate(conversation):
            if message.role == "assistant":
                yield Asked(index, conversation[:turn], kind, message.text)


def _record(asked: Asked, answer: str, blind: str, pictures: dict[str, np.ndarray]) -> dict[str, Any]:
    path = gallery_path("vqa", asked.index)
    question = asked.conversation[-1].text.replace(IMAGE_MARK, "").strip()
    right = normalise(asked.truth)
    record = {"index": asked.index, "type": asked.kind, "question": question, "truth": asked.truth,
              "answer": answer, "correct": normalise(answer) == right,
              "blind_answer": blind, "blind_correct": normalise(blind) == right}
    return record | ({"image": path} if path in pictures else {})


def normalise(answer: str) -> str:
    """`NORMALISER`. Nothing else is forgiven: no articles, number words or other punctuation."""
    return " ".join(answer.lower().split()).removesuffix(".").rstrip()


def accuracies(records: Sequence[dict[str, Any]], name: str, key: str) -> dict[str, float]:
    """{name_accuracy: mean over types, name/<type>: share of that type's records whose `key` is true}."""
    kinds = dict.fromkeys(record["type"] for record in records)
    parts = {kind: float(np.mean([r[key] for r in records if r["type"] == kind])) for kind in kinds}
    mean = float(np.mean(list(parts.values())))
    return {f"{name}_accuracy": mean} | {f"{name}/{kind}": share for kind, share in parts.items()}


def strangers(images: Sequence[frozenset[str]]) -> list[int]:
    """For each record the number of another, half the set further on, whose images stand in for its own.

    Where the two share an image it is the next that does not. images: fingerprints of each record's images.
    """
    n, half, found = len(images), len(images) // 2, []
    for i, own in enumerate(images):
        order = ((i + half + step) % n for step in range(n))
        stranger = next((j for j in order if own.isdisjoint(images[j])), None)
        if stranger is None:
            raise ValueError(f"The blind baseline asks about another image, and there is none among {n} "
                             f"records; evaluate more examples.")
        found.append(stranger)
    return found
