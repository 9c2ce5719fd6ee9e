"""PaliGemma: images, begin token, the prompt as it is, a newline (arXiv 2407.07726); an answer is its suffix.

It was trained on single questions, and has no chat template: of a conversation the words alone make the prompt.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from vlm_jax.data.huggingface.marks.marks import Files, Marks, Sizes, only_answer, said, shown, told
from vlm_jax.data.huggingface.template import Messages, Spans
from vlm_jax.models.tokens import Fixed


@dataclasses.dataclass(frozen=True)
class PaliGemmaMarks(Marks):
    begin: str = "<bos>"
    begins: ClassVar[bool] = True

    def asked(self, messages: Messages) -> str:
        return self.mark * shown(messages) + "".join(map(said, messages))

    def taught(self, messages: Messages, end: str | None) -> tuple[str, Spans]:
        suffix = only_answer(messages, end, "PaliGemma")
        prompt = self.closed(self.asked(messages[:1]))
        return prompt + suffix, [(len(prompt), len(prompt + suffix))]

    def marked(self, prompt: str, images: int) -> str:
        if self.mark in prompt:
            return prompt
        return self.mark * images + prompt if images else self.begin + prompt

    def closed(self, prompt: str) -> str:
        return prompt + "\n"

    def written(self, sizes: Sizes) -> list[str]:
        images = super().written(sizes)
        return images[:-1] + [images[-1] + self.begin] if images else []

    def fields(self, is_image: np.ndarray, learnt: np.ndarray) -> dict[str, np.ndarray]:
        return {"token_type_ids": learnt.astype(np.int64)}


def marks(files: Files) -> PaliGemmaMarks:
    key = "image_seq_length"
    tokens = told(key, files.pixels.get(key), files.processor.get(key), files.vision("num_image_tokens"))
    return PaliGemmaMarks(files.image_token(), files.image_token(), Fixed(tokens), files.token("bos_token", "<bos>"))
