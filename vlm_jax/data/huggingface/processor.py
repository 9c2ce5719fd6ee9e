"""Processors of published checkpoints: a folder's tokenizer, chat template and image steps as one function."""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping, Sequence

import numpy as np
from PIL import Image

from vlm_jax.data.huggingface.images import HfImageProcessor, size
from vlm_jax.data.huggingface.marks.marks import Marks
from vlm_jax.data.huggingface.script import Script
from vlm_jax.data.huggingface.spans import check_kept, check_plain, ended, learnt
from vlm_jax.data.huggingface.template import ChatTemplate, Messages
from vlm_jax.data.huggingface.tokenizer import HfTokenizer

Images = Sequence[Image.Image | np.ndarray]
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PairText:
    """How a text tower wants its rows: at most `context` ids, padded to that or to the longest of the batch."""

    context: int
    to_context: bool = False
    mask: bool = True


@dataclasses.dataclass(frozen=True)
class HfProcessor:
    """Parts that a folder lacks are None. `pair` is set for two-tower models, `marks` for those that talk of images."""

    tokenizer: HfTokenizer | None = None
    image_processor: HfImageProcessor | None = None
    template: ChatTemplate | None = None
    pair: PairText | None = None
    marks: Marks | None = None

    def tokenize(self, text: str) -> list[int]:
        """Ids with the special tokens that this checkpoint adds; a bare tokenizer.model adds none.

        As in transformers, a special token written out in the text becomes that token.
        """
        return _has(self.tokenizer, "tokenizer").tokenize(text)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of ids, special tokens written out unless skipped."""
        return _has(self.tokenizer, "tokenizer").decode(ids, skip_special_tokens)

    def images(self, images: Images | Sequence[Images]) -> Arrays:
        """What transformers' image processor of this kind makes of images, PIL or uint8 H x W x 3, or of a list of
        them for each prompt: `pixel_values` float32 and what stands beside them (`data.huggingface.images`)."""
        return _has(self.image_processor, "image processor")(images)

    def chat(self, messages: Messages, add_generation_prompt: bool = True, **variables: Any) -> str:
        """A conversation as the prompt that this checkpoint's template makes of it."""
        text = _has(self.template, "chat template").render(messages, add_generation_prompt, **variables)
        check_kept(messages, text)
        return text

    def __call__(self, messages: Sequence[Messages] | None = None, text: Sequence[str] | None = None,
                 images: Sequence[Images] | None = None, padding_side: str = "left") -> Arrays:
        """What `forward` takes: `input_ids` and `attention_mask` [b, t] int64, `pixel_values` of all images, and what
        else the family has.

        `messages` (one conversation a row, ended by the generation prompt) or `text`; `images` has one list a row.
        In a prompt each image has its mark; user text that spells the mark counts as one. Rows are padded to the
        longest on `padding_side`; text towers, whose positions are absolute, always on the right, as in
        transformers. Raises ValueError where marks and images do not match, or a file for what is asked is missing.
        """
        if messages is not None and text is not None:
            raise ValueError("Give messages or text, not both.")
        _check_lists(messages, text, images)
        pixels = self._pixels(images)
        if messages is None and text is None:
            return pixels
        if self.pair is not None:
            return self._pair_rows([self.chat(m) for m in messages] if text is None else text) | pixels
        scripts = [self._prompt(m) for m in messages] if text is None else [Script(prompt) for prompt in text]
        scripts = self._marked(scripts, images)
        if self.marks is not None:
            scripts = [dataclasses.replace(script, text=self.marks.closed(script.text)) for script in scripts]
        return self._rows(scripts, images, padding_side)[0] | pixels

    def training(self, messages: Sequence[Messages], images: Sequence[Images] | None = None,
                 padding_side: str = "right") -> Arrays:
        """Whole conversations to learn from: what a call gives for prompts, and `loss_mask` [b, t] int64.

        1 stands at what the assistant says and at the token that ends it, where the checkpoint's own template writes
        them (see `ChatTemplate.answers`); where it writes no end token, the tokenizer's is put behind each answer.
        Prompts and images are never learnt. A message that spells a special token is refused, but for an image's
        mark in what a user says. Raises ValueError too for a template that does not tell its answers.
        """
        _check_lists(messages, None, images)
        special = _has(self.tokenizer, "tokenizer").special_texts
        for i, conversation in enumerate(messages):
            check_plain(conversation, special, self.marks and self.marks.mark, i)
        scripts = self._marked([self._taught(conversation) for conversation in messages], images)
        inputs, mask = self._rows(scripts, images, padding_side)
        return inputs | {"loss_mask": mask.astype(np.int64)} | self._pixels(images)

    def _prompt(self, messages: Messages) -> Script:
        asked = self.marks.asked(messages) if self.marks else None
        return Script(self.chat(messages), chat=True) if asked is None else Script(asked)

    def _taught(self, messages: Messages) -> Script:
        end = self.tokenizer.special.get("eos_token")
        if self.marks is not None and (written := self.marks.taught(messages, end)) is not None:
            return Script(*written)
        text, spans = _has(self.template, "chat template").answers(messages)
        check_kept(messages, text)
        return Script(*ended(text, spans, self.tokenizer.special_texts, end), chat=True)

    def _marked(self, scripts: list[Script], images: Sequence[Images] | None) -> list[Script]:
        """The scripts, each with as many marks as it has images."""
        counts = [len(row) for row in images] if images is not None else [0] * len(scripts)
        if len(counts) != len(scripts):
            raise ValueError(f"{len(scripts)} prompts and {len(counts)} lists of images; give one list a prompt.")
        if self.marks is None:
            if any(counts):
                raise ValueError("This processor has no image mark; only text can be prompted.")
            return scripts
        scripts = [script.marked(self.marks, count) for script, count in zip(scripts, counts)]
        for i, (script, count) in enumerate(zip(scripts, counts)):
            if (marks := script.text.count(self.marks.mark)) != count:
                raise ValueError(f"Prompt {i} has {marks} {self.marks.mark} marks for {count} images; "
                                 f"write one mark for each image.")
        return scripts

    def _rows(self, scripts: list[Script], images: Sequence[Images] | None, side: str) -> tuple[Arrays, np.ndarray]:
        """(inputs but for pixels, bool [b, t] which tokens are learnt) of marked scripts."""
        tokenizer, marks = _has(self.tokenizer, "tokenizer"), self.marks
        sizes = [[size(image) for image in row] for row in images or [[]] * len(scripts)]
        fronts, image = [[]] * len(scripts), None
        if marks is not None:
            scripts = [script.written(marks, row) for script, row in zip(scripts, sizes)]
            image = tokenizer.backend.token_to_id(marks.token)
            fronts = [[image] * marks.front(row) for row in sizes]
        rows = [tokenizer.encode(script.text, special=self._takes_special(script)) for script in scripts]
        ids = _padded([ids for ids, _ in rows], fronts, side, tokenizer.pad_id)
        mask = _padded([[1] * len(ids) for ids, _ in rows], [[1] * len(front) for front in fronts], side, 0)
        taught = [learnt(script.text, offsets, script.spans) for script, (_, offsets) in zip(scripts, rows)]
        taught = _padded(taught, [[0] * len(front) for front in fronts], side, 0) > 0
        is_image = (mask > 0) & (ids == image)
        fields = marks.fields(is_image, taught & ~is_image) if marks else {}
        return {"input_ids": ids, "attention_mask": mask} | fields, taught & ~is_image

    def _takes_special(self, script: Script) -> bool:
        """Whether the tokenizer adds its special tokens. Of a chat template's text transformers' tokenizers add none;
        its processors of text and images do unless the template has written the begin token."""
        if self.marks is not None and self.marks.begins:
            return False
        begin = self.tokenizer.special.get("bos_token")
        return not script.chat or self.image_processor is not None and not (begin and script.text.startswith(begin))

    def _pair_rows(self, texts: Sequence[str]) -> Arrays:
        tokenizer, context = _has(self.tokenizer, "tokenizer"), self.pair.context
        rows = [tokenizer.tokenize(text, max_length=context) for text in texts]
        length, fronts = context if self.pair.to_context else 0, [[]] * len(rows)
        inputs = {"input_ids": _padded(rows, fronts, "right", tokenizer.pad_id, length)}
        if self.pair.mask:
            inputs["attention_mask"] = _padded([[1] * len(row) for row in rows], fronts, "right", 0, length)
        return inputs

    def _pixels(self, images: Sequence[Images] | None) -> Arrays:
        """What the model takes of the images; nothing where there are none."""
        if not any(images or ()):
            return {}
        arrays = self.images(images)
        return {name: array for name, array in arrays.items() if name not in self.image_processor.prompt_only}


def _check_lists(messages: Any, text: Any, images: Any) -> None:
    single = isinstance(text, str) or messages and isinstance(messages[0], Mapping)
    if single or images and not isinstance(images[0], (list, tuple)):
        raise ValueError("Give lists over the batch: text=[prompt, ...] or messages=[conversation, ...], and "
                         "images=[[image, ...], ...], a list for each prompt.")


def _padded(rows: Sequence[Sequence[int]], fronts: Sequence[Sequence[int]], side: str, fill: int,
            length: int = 0) -> np.ndarray:
    """int64 [b, t]: rows filled up to the longest, or to `length`; each front comes first, before any filling."""
    if side not in ("left", "right"):
        raise ValueError(f"padding_side is '{side}'; it must be 'left' or 'right'.")
    length = max([length, *(len(front) + len(row) for front, row in zip(fronts, rows))])
    out = np.full((len(rows), length), fill, np.int64)
    for i, (front, row) in enumerate(zip(fronts, rows)):
        start = length - len(row) if side == "left" else len(front)
        out[i, : len(front)], out[i, start : start + len(row)] = front, row
    return out


def _has(part: Any, name: str) -> Any:
    if part is None:
        raise ValueError(f"This folder has no {name}; copy its files next to config.json.")
    return part
