"""The processor: everything between a person's image and text and the model's arrays. It belongs to the model, is
saved beside its weights, and is what training, evaluation and chat all use."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Sequence

import numpy as np

from vlm_jax.data.images import ImageProcessor
from vlm_jax.data.records import IMAGE_MARK, Conversation, Message, Record
from vlm_jax.data.rows import Tokens, build_row, fit
from vlm_jax.data.templates import LAYOUTS, count_marks, render, template
from vlm_jax.data.tokenizer import BOS, EOS, IMAGE, PAD, Tokenizer
from vlm_jax.models.tokens import num_visual_tokens


@dataclasses.dataclass(frozen=True)
class ProcessorConfig:
    """`tokenizer` is a tokenizer.json or a workdir to take it from, or "clip", the standard one of contrastive
    pretraining (49,408 ids, end 49407, rows of 77); empty trains one of `vocab_size` ids.

    `template` and `layout` (interleaved, front, delimited) say how a conversation becomes a row.
    """

    image: ImageProcessor
    tokenizer: str = ""
    vocab_size: int = 512
    template: str = "llava"
    layout: str = "interleaved"

    def __post_init__(self):
        template(self.template)
        if self.layout not in LAYOUTS:
            raise ValueError(f"Image layout '{self.layout}' is unknown; choose one of {', '.join(LAYOUTS)}.")


class Processor:
    """`model` is the model config (or its vision config), which decides how many tokens an image takes; `context` the
    text tower's row length; `vocab_size` the decoder's, which may be larger than the tokenizer."""

    def __init__(self, config: ProcessorConfig, tokenizer: Tokenizer, model, context: int | None = None,
                 vocab_size: int = 0):
        self.config, self.tokenizer, self.context = config, tokenizer, context
        self._warned: set[int] = set()
        self.template = template(config.template)
        self.tokens_per_image = num_visual_tokens(model, *config.image.size)
        self.pad_id, self.bos_id, self.eos_id = (tokenizer.special[t] for t in (PAD, BOS, EOS))
        for token in self.template.own_tokens():
            if token not in tokenizer.special:
                raise ValueError(f"The tokenizer has no special token {token}, which the chat template "
                                 f"'{config.template}' writes; leave processor.tokenizer empty to train one that "
                                 f"has, or change the template.")
        self.end_id = tokenizer.special[self.template.end.text]  # ends an answer; eos_id ends a row of the text tower
        special = [i for i in tokenizer.special.values() if i != self.end_id]
        self.banned_ids = (*special, *range(len(tokenizer), vocab_size))  # never to be generated

    def text(self, text: str) -> np.ndarray:
        """Row of the text tower [context] int32: begin, text, end, padding; long text loses its tail, not the end."""
        ids = [self.bos_id, *self.tokenizer.encode(text)[: self.context - 2], self.eos_id]
        return np.array(ids + [self.pad_id] * (self.context - len(ids)), np.int32)

    def images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Pixel values [n, size, size, 3] float32 of uint8 images H x W x 3."""
        return np.stack([self.config.image(image) for image in images])

    def conversation(self, conversation: Conversation) -> Tokens:
        """Tokens of one conversation; `<image>` mark i takes the visual tokens of slot i."""
        ids, loss, index, slot = [], [], [], 0
        for piece in render(self.template, conversation, self.config.layout):
            if piece.special and piece.text == IMAGE:
                n = self.tokens_per_image
                ids += [self.tokenizer.special[IMAGE]] * n
                index += range(slot * n, (slot + 1) * n)
                slot += 1
            elif piece.special:
                ids.append(self.tokenizer.special[piece.text])
            else:
                ids += self.tokenizer.encode(piece.text)
            loss += [int(piece.loss)] * (len(ids) - len(loss))
            index += [-1] * (len(ids) - len(index))
        return Tokens(*(np.array(values, np.int32) for values in (ids, loss, index)))

    def row(self, record: Record, length: int, slots: int, loss: str = "answers") -> dict[str, np.ndarray]:
        """One training row and its images [slots, size, size, 3] (see `build_row`).

        `slots` 0 makes a text-only row: the marks are taken out. `loss` "all" teaches every token but the first.
        """
        return self.placed(self.fitting(record, length, slots, loss), record, length, slots)

    def placed(self, fitting: Sequence[Tokens], record: Record, length: int, slots: int) -> dict[str, np.ndarray]:
        """The row of what `fitting` found, with the record's images."""
        row = build_row(fitting, length)
        if slots:
            row["images"] = self.blank(slots)
            if record.images:
                row["images"][: len(record.images)] = self.images(record.images)
        return row

    def blank(self, slots: int) -> np.ndarray:
        """Image slots without images [slots, size, size, 3] float32."""
        return np.zeros((slots, *self.config.image.size, 3), np.float32)

    def fitting(self, record: Record, length: int, slots: int, loss: str = "answers") -> list[Tokens]:
        """The record's conversations as far as they fit into a row (see `fit`). Opens no image."""
        name = record.name
        if not record.conversations:
            raise ValueError(f"{name}: it has no conversation; give its source a prompt or a conversation to learn.")
        conversations = [self._checked(c, record, slots, name) for c in record.conversations]
        tokens = [self.conversation(c) for c in conversations]
        if loss == "all":
            tokens = [dataclasses.replace(t, loss=(t.image_index < 0).astype(np.int32)) for t in tokens]
        kept = fit(tokens, length, name)
        if sum(map(len, kept)) < sum(map(len, tokens)) and length not in self._warned:
            self._warned.add(length)  # once: a warning that names its record would else come with each of them
            warnings.warn(f"Some conversations do not fit into rows of {length} tokens and are cut or left out "
                          f"(first: {name}); raise the stage's data.format.length.", stacklevel=3)
        return kept

    def _checked(self, conversation: Conversation, record: Record, slots: int, name: str) -> Conversation:
        if slots == 0:
            return tuple(dataclasses.replace(m, text=m.text.replace(IMAGE_MARK + "\n", "").replace(IMAGE_MARK, ""))
                         if m.role == "user" else m for m in conversation)
        if count_marks(conversation) != len(record.images):
            raise ValueError(f"{name}: {count_marks(conversation)} {IMAGE_MARK} marks for {len(record.images)} "
                             f"images; write one mark for each image.")
        if len(record.images) > slots:
            raise ValueError(f"{name}: {len(record.images)} images, a row has {slots} image slots; "
                             f"raise the stage's data.format.image_slots.")
        return conversation

    def prompts(self, conversations: Sequence[Conversation], multiple: int = 16) -> dict[str, np.ndarray]:
        """Left-padded generation prompts: tokens, segment_ids and image_index, int32 [batch, length].

        Lengths are rounded up to `multiple`, so that a compiled generator is met again.
        """
        rows = [self.conversation(c) for c in conversations]
        length = -(-max(map(len, rows)) // multiple) * multiple
        pad = lambda values, fill: np.stack(
            [np.concatenate([np.full(length - len(v), fill, np.int32), v]) for v in values])
        return {"tokens": pad([r.ids for r in rows], self.pad_id),
                "segment_ids": pad([np.zeros(len(r), np.int32) for r in rows], -1),
                "image_index": pad([r.image_index for r in rows], -1)}

    def answer(self, ids: Sequence[int]) -> str:
        """Text of generated ids, up to the first end token."""
        ids = [int(i) for i in ids]
        return self.tokenizer.decode(ids[: ids.index(self.end_id)] if self.end_id in ids else ids).strip()

    def question(self, text: str, images: int = 1) -> Conversation:
        """A user's question about `images` images, marks in front unless the text already has them."""
        marks = "" if IMAGE_MARK in text else (IMAGE_MARK + "\n") * images
        return (Message("user", marks + text),)
