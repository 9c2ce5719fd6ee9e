"""Captioning: the share of images that are described word for word."""

from __future__ import annotations

import dataclasses

from vlm_jax.data.processor import Processor
from vlm_jax.data.records import IMAGE_MARK, Conversation, Message, Record, Source
from vlm_jax.data.scene_text import DESCRIBE
from vlm_jax.data.scenes import SceneSource
from vlm_jax.evals.ask import Question, answers
from vlm_jax.evals.results import GALLERY, Result, gallery_path
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.transformer import Params

CAPTION_TOKENS = 48


def caption(
    config: ModelConfig, params: Params, processor: Processor, source: Source, examples: int, batch: int
) -> Result:
    """Metric: caption_exact, of the first `examples` records, greedy. All but the spacing counts."""
    model = config.vlm()
    if isinstance(source, SceneSource):  # whose conversations may begin with any question
        source = SceneSource(dataclasses.replace(source.config, conversations=0, caption_style="full"))
    questions, truths, pictures = [], [], {}
    for i in range(min(examples, len(source))):
        record = source[i]
        asked, truth = task(record)
        questions.append(Question(i, asked))
        truths.append(truth)
        if i < GALLERY:
            pictures[gallery_path("caption", i)] = record.images[0]
    said = answers(model, params, processor, source, questions, batch=batch, max_new_tokens=CAPTION_TOKENS)
    records = [{"index": i, "prediction": prediction, "truth": truth, "correct": same(prediction, truth)}
               for i, (prediction, truth) in enumerate(zip(said, truths))]
    for record, path in zip(records, pictures):
        record["image"] = path
    exact = sum(record["correct"] for record in records) / len(records)
    return Result("caption", {"caption_exact": exact}, records, pictures=pictures)


def task(record: Record) -> tuple[Conversation, str]:
    """What to ask about a record, and the truth: its own first question where it has a conversation, and its
    caption, or else the answer to that question."""
    if not record.images or not (record.caption or record.conversations):
        raise ValueError(f"{record.name}: it has no image or no words about it; captioning needs both.")
    if not record.conversations:
        return (Message("user", f"{IMAGE_MARK}\n{DESCRIBE}"),), record.caption
    first = record.conversations[0]
    at = next(i for i, message in enumerate(first) if message.role == "assistant")
    return first[:at], record.caption or first[at].text


def same(prediction: str, truth: str) -> bool:
    return prediction.split() == truth.split()
