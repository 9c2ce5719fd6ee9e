"""Greedy answers to many questions about the images of a source, in batches of one size."""

from __future__ import annotations

import functools
from typing import NamedTuple, Sequence

import numpy as np

from vlm_jax.data.processor import Processor
from vlm_jax.data.records import Conversation, Source
from vlm_jax.data.templates import count_marks
from vlm_jax.evals.embed import in_batches
from vlm_jax.inference.generate import generate
from vlm_jax.inference.hosts import fetch, spread
from vlm_jax.models.transformer import Params
from vlm_jax.models.vlm import VLM


class Question(NamedTuple):
    """A conversation that ends with the user's turn, about the images of record `index`.

    Mark i of the conversation takes image i; where the record has fewer (as a stand-in may), they come again.
    """

    index: int
    conversation: Conversation


def answers(
    model: VLM, params: Params, processor: Processor, source: Source, questions: Sequence[Question], *,
    batch: int, max_new_tokens: int,
) -> list[str]:
    """One answer a question, in order. Where questions about one record stand together it is read once."""
    slots = max(count_marks(question.conversation) for question in questions)

    @functools.lru_cache(maxsize=16)
    def pixels(index: int) -> np.ndarray:
        return processor.images(source[index].images)

    def images(question: Question) -> np.ndarray:
        filled = np.zeros((slots, *processor.config.image.size, 3), np.float32)
        for slot in range(count_marks(question.conversation)):
            shown = pixels(question.index)
            filled[slot] = shown[slot % len(shown)]
        return filled

    found: list[str] = []
    for group, real in in_batches(questions, min(batch, len(questions))):
        conversations = [question.conversation for question in group]
        prompt = processor.prompts(conversations, _multiple(processor, conversations))
        written = generate(
            model, params, spread(prompt),
            spread(np.stack([images(question) for question in group])) if slots else None,
            max_new_tokens=max_new_tokens, eos_ids=(processor.end_id,), pad_id=processor.pad_id,
            banned=processor.banned_ids)
        found += [processor.answer(ids) for ids in fetch(written)[:real]]
    return found


def _multiple(processor: Processor, conversations: Sequence[Conversation]) -> int:
    """What to round the prompt length to, so that few lengths are compiled whatever the data: two an octave.

    16, 32, 48, 64, 96, 128, 192, 256, ...: at most a third is padding.
    """
    longest = max(len(processor.conversation(conversation)) for conversation in conversations)
    return max(16, 1 << max((longest - 1).bit_length() - 2, 0))
