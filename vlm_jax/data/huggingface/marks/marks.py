"""How images are written into prompts: what all families have in common. This one repeats a token."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Mapping, Sequence

import numpy as np

from vlm_jax.data.huggingface.images import HfImageProcessor
from vlm_jax.data.huggingface.template import Messages, Spans
from vlm_jax.data.huggingface.tokenizer import HfTokenizer
from vlm_jax.models.tokens import Layout

Sizes = Sequence[tuple[int, int]]  # (width, height) of each image of a prompt, in pixels


@dataclasses.dataclass(frozen=True)
class Files:
    """What a folder tells: config.json, processor_config.json and preprocessor_config.json (empty where absent), and
    what has been made of them."""

    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    pixels: Mapping[str, Any]
    images: HfImageProcessor
    tokenizer: HfTokenizer

    def token(self, name: str, default: str | None = None) -> str | None:
        """A token by its name, `image_token`: the tokenizer's, else the processor's."""
        return self.tokenizer.special.get(name) or self.processor.get(name) or default

    def image_token(self) -> str:
        """The token of an image; of old folders, the one whose id config.json tells."""
        number = self.config.get("image_token_index", self.config.get("image_token_id"))
        known = None if number is None else self.tokenizer.backend.id_to_token(number)
        return self.token("image_token") or known or "<image>"

    def layout(self, kind: type[Layout]) -> Layout:
        """The geometry of the image steps; raises ValueError where it is not of the kind that the family has."""
        if not isinstance(self.images.layout, kind):
            raise ValueError(f"A model of this kind has no {type(self.images).__name__} steps; give the folder the "
                             f"preprocessor_config.json of its own.")
        return self.images.layout

    def vision(self, key: str) -> Any:
        """A value of the vision tower's config, None where it is not told."""
        return (self.config.get("vision_config") or {}).get(key)


def told(name: str, *values: Any) -> Any:
    """The first value that is not None; raises ValueError where none is."""
    found = next((value for value in values if value is not None), None)
    if found is None:
        raise ValueError(f"How many tokens an image takes is not told; set {name} in processor_config.json.")
    return found


@dataclasses.dataclass(frozen=True)
class Marks:
    """mark: what a prompt has for an image. token: what each visual token becomes. layout: how many there are.

    `begins` says that the begin token is written with the marks, so that the tokenizer adds nothing. A family whose
    prompts are not a chat template's has `asked` and `taught`.
    """

    mark: str
    token: str
    layout: Layout
    begins: ClassVar[bool] = False

    def asked(self, messages: Messages) -> str | None:
        """The prompt of a conversation; None: it is the chat template's."""
        return None

    def taught(self, messages: Messages, end: str | None) -> tuple[str, Spans] | None:
        """A conversation to learn, and [start, end) of its answer with the `end` token; None: the chat template's."""
        return None

    def marked(self, prompt: str, images: int) -> str:
        """The prompt with a mark for each image, as the family's users may leave them out."""
        return prompt

    def closed(self, prompt: str) -> str:
        """The prompt with what stands before an answer whatever was asked."""
        return prompt

    def written(self, sizes: Sizes) -> list[str]:
        """What takes the place of each mark."""
        return [self.token * self.layout.count(width, height) for width, height in sizes]

    def front(self, sizes: Sizes) -> int:
        """Number of image tokens before the begin token, and before any padding."""
        return 0

    def fields(self, is_image: np.ndarray, learnt: np.ndarray) -> dict[str, np.ndarray]:
        """More inputs of the model, of what bool [b, t] says of image tokens and of tokens to learn."""
        return {}


def said(message: Mapping[str, Any]) -> str:
    """The text of a message, its images left out."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def only_answer(messages: Messages, end: str | None, model: str) -> str:
    """The answer to the only question of a conversation, closed by `end`; raises ValueError for any other, and where
    the tokenizer names no end."""
    if [message["role"] for message in messages] != ["user", "assistant"]:
        raise ValueError(f"{model} learns one question and its answer; give a user's message and an assistant's.")
    if end is None:
        raise ValueError("The tokenizer has no eos_token to end an answer; name one in tokenizer_config.json.")
    return said(messages[1]) + end


def shown(messages: Messages) -> int:
    """Number of images in a conversation."""
    contents = [message.get("content") for message in messages]
    return sum(part["type"] == "image" for content in contents if isinstance(content, list) for part in content)
