"""A conversation with a published checkpoint: at each turn the whole of it is one prompt of its own processor."""

from __future__ import annotations

from typing import Any, Callable, Collection, Mapping, Sequence

import numpy as np

from vlm_jax.data.huggingface.processor import HfProcessor


class PromptedSession:
    """Keeps what was said. `ask` appends a turn and returns the answer; images are shown with the first question.

    generate: inputs of the processor -> new ids [1, n], with `seed` for sampling. end_ids: tokens that end an answer.
    images: uint8 arrays H x W x 3. Unlike `ChatSession`, whose cache goes on from turn to turn, each turn reads it all.
    """

    def __init__(self, generate: Callable[..., np.ndarray], processor: HfProcessor, end_ids: Collection[int],
                 images: Sequence[np.ndarray] = (), *, seed: int = 0):
        self.generate, self.processor, self.end_ids = generate, processor, frozenset(end_ids)
        self.images, self.seed = list(images), seed
        self.messages: list[Mapping[str, Any]] = []

    def ask(self, question: str) -> str:
        """The answer to the next user turn; raises ValueError where the checkpoint's files cannot make a prompt."""
        images = [] if self.messages else [{"type": "image"} for _ in self.images]
        messages = [*self.messages, self._said("user", question, images)]
        inputs = self.processor(messages=[messages], images=[self.images])
        ids = self.generate(**inputs, seed=self.seed + len(messages))[0].tolist()
        length = next((i for i, token in enumerate(ids) if token in self.end_ids), len(ids))
        answer = self.processor.decode(ids[:length], skip_special_tokens=True).strip()
        self.messages = [*messages, self._said("assistant", answer, [])]
        return answer

    def _said(self, role: str, text: str, images: list[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Templates of models with eyes read a list of parts, those of language models a string."""
        return {"role": role, "content": text if self.processor.marks is None else
                [*images, {"type": "text", "text": text}]}
