"""Chat templates as data, and rendering with loss spans.

Rendering gives pieces, not a string: the span of an answer is known because it was written as one, so nothing is ever
tokenised twice to find it, and special tokens are pieces of their own that no user text can imitate.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Iterator

from vlm_jax.data.records import IMAGE_MARK, Conversation
from vlm_jax.data.tokenizer import BOS, EOS, IMAGE, IMAGE_END, IMAGE_START, SPECIAL_TOKENS

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

    `user`, `answer` and `system` hold `{text}`. `begin` opens a conversation, `again` each user's turn but the first,
    and `after` stands between an answer and the next turn; none of them is learnt. `special` are the parts of all these
    that are single tokens. `system_inside` puts what the system says in the first user's turn, before the user's words.
    A template with `user_text` False says nothing of the user but the images.
    """

    user: str
    open: str
    answer: str
    system: str = ""
    default_system: str = ""
    end: Piece = Piece(EOS, special=True, loss=True)
    user_text: bool = True
    begin: str = BOS
    again: str = ""
    after: str = ""
    special: tuple[str, ...] = (BOS, EOS)
    system_inside: bool = False

    def own_tokens(self) -> tuple[str, ...]:
        """The special tokens that a tokenizer has to have for this template, besides those that all have."""
        return tuple(token for token in dict.fromkeys((*self.special, self.end.text)) if token not in SPECIAL_TOKENS)


_VICUNA = ChatTemplate(user="USER: {text} ", open="ASSISTANT:", answer=" {text}", system="{text} ")
_INST = ChatTemplate(user="[INST] {text} [/INST]", open="", answer=" {text}", system="{text}\n\n", system_inside=True)
_CHATML = ChatTemplate(
    user="<|im_start|>user\n{text}<|im_end|>\n", open="<|im_start|>assistant\n", answer="{text}",
    system="<|im_start|>system\n{text}<|im_end|>\n", end=Piece("<|im_end|>", special=True, loss=True), after="\n",
    begin="", special=("<|im_start|>", "<|im_end|>"))

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
    # Llama 2 chat: every question opens a sequence of its own.
    "llama2": dataclasses.replace(_INST, answer=" {text} ", system="<<SYS>>\n{text}\n<</SYS>>\n\n", again=BOS),
    "llama3": ChatTemplate(
        user="<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>",
        open="<|start_header_id|>assistant<|end_header_id|>\n\n", answer="{text}",
        system="<|start_header_id|>system<|end_header_id|>\n\n{text}<|eot_id|>",
        end=Piece("<|eot_id|>", special=True, loss=True),
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    # Qwen and many others.
    "chatml": _CHATML,
    "gemma": ChatTemplate(
        user="<start_of_turn>user\n{text}<end_of_turn>\n", open="<start_of_turn>model\n", answer="{text}",
        system="{text}\n\n", end=Piece("<end_of_turn>", special=True, loss=True), after="\n",
        special=("<start_of_turn>", "<end_of_turn>"), system_inside=True),
    # Mistral 7B instruct, whose brackets are text.
    "mistral": _INST,
    # InternVL 2.5 on InternLM and Qwen: ChatML with its system sentence ("you are InternVL, made by ...").
    "internvl": dataclasses.replace(_CHATML, default_system=(
        "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。")),
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
    pieces = list(_written(chat, chat.begin))
    if layout == "front":
        pieces += [Piece(IMAGE, special=True)] * count_marks(conversation)
    system = next((m.text for m in conversation if m.role == "system"), chat.default_system)
    inside = list(_filled(chat, chat.system, system)) if system and chat.system else []
    if not chat.system_inside:
        pieces += inside
    last = None
    for message in conversation:
        pieces += _written(chat, chat.after) if last == "assistant" else ()
        if message.role == "user":
            pieces += _written(chat, chat.again) if last == "assistant" else ()
            first = chat.system_inside and last in (None, "system")
            pieces += _user(chat, message.text, layout, inside if first else [])
        elif message.role == "assistant":
            pieces += [*_written(chat, chat.open), *_filled(chat, chat.answer, message.text, loss=True), chat.end]
        last = message.role
    if last == "user":
        pieces += _written(chat, chat.open)
    return _join(pieces)


def _written(chat: ChatTemplate, form: str, loss: bool = False) -> Iterator[Piece]:
    """A template's own words, taken apart where its special tokens are."""
    for part in re.split("(" + "|".join(map(re.escape, chat.special)) + ")", form):
        yield Piece(part, special=part in chat.special, loss=loss)


def _filled(chat: ChatTemplate, form: str, text: str, loss: bool = False) -> Iterator[Piece]:
    """A form with somebody's text in it; whatever it spells, the text is text."""
    before, after = form.split("{text}")
    yield from _written(chat, before, loss)
    yield Piece(text, loss=loss)
    yield from _written(chat, after, loss)


def _user(chat: ChatTemplate, text: str, layout: str, first: list[Piece]) -> Iterator[Piece]:
    """A user's turn, with `first` before the user's words."""
    before, after = chat.user.split("{text}")
    yield from _written(chat, before)
    yield from first
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
    yield from _written(chat, after)


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
