"""A conversation about an image, or several: encoded once, and every turn goes on from the same cache."""

from __future__ import annotations

import functools
from typing import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.data.processor import Processor
from vlm_jax.data.records import IMAGE_MARK, Message
from vlm_jax.data.templates import count_marks
from vlm_jax.inference.generate import decode, prefill
from vlm_jax.inference.samplers import Sampler
from vlm_jax.models.decoder import init_cache
from vlm_jax.models.mask import PADDING, describe
from vlm_jax.models.transformer import Params
from vlm_jax.models.vlm import VLM

CHUNK = 16  # turns are padded to multiples of this, so that few lengths are compiled


class ChatSession:
    """Keeps what was said. `ask` appends a turn and returns the answer.

    images: uint8 arrays H x W x 3, none for a conversation in text alone. `slots` bounds the whole conversation in
    cache slots: tokens, and the padding of each turn to a multiple of CHUNK.
    """

    def __init__(self, model: VLM, params: Params, processor: Processor, images: Sequence[np.ndarray] = (), *,
                 slots: int = 1024, max_new_tokens: int = 64, sampler: Sampler = Sampler(), seed: int = 0):
        self.model, self.params, self.processor = model, params, processor
        self.sampler, self.max_new_tokens, self.slots = sampler, max_new_tokens, slots
        self.messages: list[Message] = []
        self.read = 0  # tokens of the rendered conversation that the cache holds
        self.cache = init_cache(model.decoder_config, 1, slots)
        self.rng = jax.random.key(seed)
        self.visual, self.images = None, len(images)
        if len(images):
            self.visual = _visual_tokens(model, params, processor.images(images)[None])

    def ask(self, question: str) -> str:
        """The answer to the next user turn. Marks for the images are put before the first question."""
        text = question if self.messages else self.processor.question(question, self.images)[0].text
        messages = [*self.messages, Message("user", text)]
        if count_marks(messages) != self.images:
            raise ValueError(f"The conversation has {count_marks(messages)} {IMAGE_MARK} marks for {self.images} images; "
                             f"write one mark for each, in the first question, or none.")
        new = self.processor.conversation(tuple(messages))[self.read:]
        padded = -(-len(new) // CHUNK) * CHUNK
        start = int(self.cache.length) + padded  # slot of the first answer token
        if start + self.max_new_tokens > self.slots:
            raise ValueError(f"The conversation is longer than {self.slots} slots of the cache; start a new one.")
        fill = lambda values, value: np.concatenate([values, np.full(padded - len(new), value, np.int32)])[None]
        position = self.read + len(new)
        written, self.cache = _turn(
            self.model, self.params, fill(new.ids, self.processor.pad_id), fill(np.zeros(len(new), np.int32), PADDING),
            fill(np.arange(self.read, position, dtype=np.int32), 0), fill(new.image_index, -1), self.visual,
            self.cache, jax.random.fold_in(self.rng, len(messages)), steps=self.max_new_tokens, sampler=self.sampler,
            eos_id=self.processor.end_id, pad_id=self.processor.pad_id, banned=self.processor.banned_ids)
        answer = self.processor.answer(written[0])
        self.messages = [*messages, Message("assistant", answer)]
        self.read = position + self._remember(position, np.asarray(written[0]), int(self.cache.length) - start)
        return answer

    def _remember(self, position: int, written: np.ndarray, cached: int) -> int:
        """How many answer tokens the next turn need not read again; slots of the others are marked unused.

        An answer "3" written as [3, end] leaves [3] in the cache: 1 token is kept, and the next turn reads from the
        end token on.

        The last token written is not in the cache; and where the answer's text does not encode to what was generated,
        as sampling may have it, the rest is read again, so that the cache always holds the rendered conversation.
        """
        rendered = self.processor.conversation(tuple(self.messages)).ids[position:]
        n = min(cached, len(rendered))
        differs = np.flatnonzero(written[:n] != rendered[:n])
        kept = int(differs[0]) if len(differs) else n
        info = self.cache.info
        segments = jnp.where(info.positions >= position + kept, PADDING, info.segment_ids)
        self.cache = self.cache.replace(info=info.replace(segment_ids=segments))
        return kept


@functools.partial(jax.jit, static_argnames="model")
def _visual_tokens(model, params, images):
    return model.apply({"params": params}, images, method="visual_tokens")


@functools.partial(jax.jit, static_argnames=("model", "steps", "sampler", "eos_id", "pad_id", "banned"),
                   donate_argnames="cache")
def _turn(model, params, tokens, segment_ids, positions, image_index, visual, cache, rng, *, steps, sampler, eos_id,
          pad_id, banned):
    info = describe(segment_ids, positions=positions)
    logits, cache = prefill(model, params, tokens, info, visual, image_index, cache)
    return decode(model, params, logits, cache, positions.max(axis=1) + 1, rng, steps=steps, sampler=sampler,
                  eos_ids=(eos_id,), pad_id=pad_id, banned=banned)
