"""Chat templates as data, and rendering with loss spans.

Rendering gives pieces, not a string: the span of an answer is known because it was written as one, so nothing is ever
tokenised twice to find it, and special tokens are pieces of their own that no user text can imitate.
"""

from __future__ import annotations

import dataclasses
from typing import Iterator

from vlm_jax.data.records import IMAGE_MARK, Conversation
from vlm_jax.data.tokenizer import BOS, EOS, IMAGE, IMAGE_END, IMAGE_START

LAYOUTS = ("interleaved", "front", "delimited")


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of text, or one special token; `loss` where the model is taught to say it."""

    text: str
    special: bool = False
    loss: bool = False


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """What stands around each turn. `end` closes an answer and is learnt with it.

    `user` and `answer` hold `{text}`. A template with `user_text` False says nothing of the user but the images.
    """

    user: str
    open: str
    answer: str
    system: str = ""
    default_system: str = ""
    end: Piece = Piece(EOS, special=True, loss=True)
    user_text: bool = True


_VICUNA = ChatTemplate(user="USER: {text} ", open="ASSISTANT:", answer=" {text}", system="{text} ")

TEMPLATES = {
    # LLaVA's first stage: the image, then its caption; what the user says is discarded. Theirs ends with a newline and
    # never stops generating; ours ends as every answer does.
    "plain": ChatTemplate(user="{text}", open="", answer="{text}", user_text=False),
    # Hugging Face's template of LLaVA 1.5.
    "llava": _VICUNA,
    # The original template of Vicuna and LLaVA 1.5, with its system sentence.
    "vicuna_v1": dataclasses.replace(_VICUNA, default_system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.")),
}


def template(name: str) -> ChatTemplate:
    if name not in TEMPLATES:
        raise ValueError(f"Chat template '{name}' is unknown; choose one of {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def count_marks(conversation: Conversation) -> int:
    """`<image>` marks in what the user says; an assistant's text is never a place for an image."""
    return sum(message.text.count(IMAGE_MARK) for message in conversation if message.role == "user")


def render(chat: ChatTemplate, conversation: Conversation, layout: str = "interleaved") -> list[Piece]:
    """Pieces of a conversation; ends with the opening of the answer where the user spoke last (a generation prompt).

    Layouts: "interleaved" puts images where the marks are, "delimited" the same between delimiter tokens, "front" all
    of them before the first word. Each image is one `<image>` piece, whatever number of tokens it takes.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"Image layout '{layout}' is unknown; choose one of {', '.join(LAYOUTS)}.")
    pieces = [Piece(BOS, special=True)]
    if layout == "front":
        pieces += [Piece(IMAGE, special=True)] * count_marks(conversation)
    system = next((m.text for m in conversation if m.role == "system"), chat.default_system)
    if system:
        pieces.append(Piece(chat.system.format(text=system)))
    for message in conversation:
        if message.role == "user":
            pieces += _user(chat, message.text, layout)
        elif message.role == "assistant":
            pieces += [Piece(chat.open), Piece(chat.answer.format(text=message.text), loss=True), chat.end]
    if conversation[-1].role == "user":
        pieces.append(Piece(chat.open))
    return _join(pieces)


def _user(chat: ChatTemplate, text: str, layout: str) -> Iterator[Piece]:
    before, after = chat.user.split("{text}")
    yield Piece(before)
    parts = text.split(IMAGE_MARK)
    for i, part in enumerate(parts):
        if i and layout == "front":
            part = part.removeprefix("\n") if parts[i - 1][-1:] in ("", "\n") else part  # it held nothing but the image
        elif i and layout == "delimited":
            yield from (Piece(token, special=True) for token in (IMAGE_START, IMAGE, IMAGE_END))
        elif i:
            yield Piece(IMAGE, special=True)
        if chat.user_text:
            yield Piece(part)
    yield Piece(after)


def _join(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring text with the same loss as one piece, so that words are tokenised whole; empty text dropped."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if piece.special or not last or last.special or last.loss != piece.loss:
            joined.append(piece)
        else:
            joined[-1] = Piece(last.text + piece.text, loss=piece.loss)
    return [piece for piece in joined if piece.text]
