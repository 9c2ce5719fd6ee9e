"""BLIP-2: the queries of the one image before everything else, begin token and padding included.

It was trained on captions and single questions, and has no chat template: of a conversation the last question is asked
in the words of its paper (arXiv 2301.12597).
"""

from __future__ import annotations

import dataclasses

from vlm_jax.data.huggingface.marks.marks import Files, Marks, Sizes, only_answer, said, told
from vlm_jax.data.huggingface.template import Messages, Spans
from vlm_jax.models.tokens import Fixed


@dataclasses.dataclass(frozen=True)
class Blip2Marks(Marks):
    def asked(self, messages: Messages) -> str:
        questions = [said(message) for message in messages if message["role"] == "user"]
        if not questions:
            raise ValueError("BLIP-2 answers a user's question; give a message whose role is 'user'.")
        return f"Question: {questions[-1]} Answer:"

    def taught(self, messages: Messages, end: str | None) -> tuple[str, Spans]:
        answer = " " + only_answer(messages, end, "BLIP-2")
        prompt = self.asked(messages[:1])
        return prompt + answer, [(len(prompt), len(prompt + answer))]

    def marked(self, prompt: str, images: int) -> str:
        return self.mark * images + prompt.replace(self.mark, "")

    def written(self, sizes: Sizes) -> list[str]:
        return [""] * len(sizes)

    def front(self, sizes: Sizes) -> int:
        return sum(self.layout.count(width, height) for width, height in sizes)


def marks(files: Files) -> Blip2Marks:
    key = "num_query_tokens"
    tokens = told(key, files.processor.get(key), files.config.get(key))
    return Blip2Marks(files.image_token(), files.image_token(), Fixed(tokens))
