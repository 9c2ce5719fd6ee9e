"""What the fields of an example say, whatever file they come from.

    conversations: [{from: human, value: <image>\\nWhat is it?}, {from: gpt, value: A cat.}]     LLaVA
    prefix: What is it?   suffix: A cat.                                                       PaliGemma
    caption: A cat.                                                   the prompt asks for it, where there is one
"""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping

from vlm_jax.data.records import IMAGE_MARK, Conversation, Message
from vlm_jax.data.sources.text import string

_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
_AFTER = {None: ("system", "human"), "system": ("human",), "human": ("gpt",), "gpt": ("human",)}


@dataclasses.dataclass(frozen=True)
class Said:
    """The words of a record: its caption, its conversations, or both."""

    caption: str | None = None
    conversations: tuple[Conversation, ...] = ()


def check_prompt(prompt: str | None) -> None:
    if IMAGE_MARK in (prompt or ""):
        raise ValueError(f"prompt {prompt!r} must not hold {IMAGE_MARK}; one is put before it")


def said(value: Mapping[str, Any], images: int, where: str, prompt: str | None, caption: str = "caption") -> Said:
    """The words of an example with that many images; its caption, if that is what it has, lies in the field `caption`.

    Raises ValueError, naming the entry `where`, for what cannot be used.
    """
    if "conversations" in value:
        return conversation(value["conversations"], images, where)
    if "prefix" in value or "suffix" in value:
        return question(value.get("prefix"), value.get("suffix"), images, where)
    if caption in value:
        return captioned(value[caption], images, where, prompt)
    found = ", ".join(sorted(map(repr, value))) or "nothing"
    raise ValueError(f"{where} has neither conversations nor prefix and suffix nor {caption!r}, only {found}; rename "
                     f"a field")


def captioned(text: Any, images: int, where: str, prompt: str | None) -> Said:
    """A caption, and with a prompt the conversation of one question and one answer that it makes."""
    text = string(text, "caption", where)
    if not text.strip() or IMAGE_MARK in text:
        raise ValueError(f"{where}: the caption is empty or holds {IMAGE_MARK}; correct or remove the line")
    if prompt is None:
        return Said(text)
    asked = Message("user", f"{IMAGE_MARK}\n" * images + prompt)
    return Said(text, ((asked, Message("assistant", text)),))


def question(prefix: Any, suffix: Any, images: int, where: str) -> Said:
    """What PaliGemma calls prefix and suffix; the images stand before the prefix unless it says where."""
    prefix, suffix = string(prefix, "prefix", where), string(suffix, "suffix", where)
    if IMAGE_MARK in suffix:
        raise ValueError(f"{where}: the suffix holds {IMAGE_MARK}; only a prefix may")
    if IMAGE_MARK not in prefix:
        prefix = f"{IMAGE_MARK}\n" * images + prefix
    _check_marks(prefix.count(IMAGE_MARK), images, where)
    return Said(conversations=((Message("user", prefix), Message("assistant", suffix)),))


def conversation(value: Any, images: int, where: str) -> Said:
    """An optional system turn, then human and gpt in turn, gpt last; a mark for each image."""
    if not isinstance(value, list):
        raise ValueError(f"{where}: 'conversations' must be a list of turns, not {value!r:.40}")
    turns, last = [], None
    for n, turn in enumerate(value):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if speaker not in _AFTER[last]:
            raise ValueError(f"{where}: turn {n} must be {' or '.join(_AFTER[last])}, not {speaker!r:.40}")
        text = string(turn.get("value"), f"value of turn {n}", where)
        if speaker != "human" and IMAGE_MARK in text:
            raise ValueError(f"{where}: turn {n} from {speaker} holds {IMAGE_MARK}; only human turns may")
        turns.append(Message(_ROLES[speaker], text))
        last = speaker
    if last != "gpt":
        raise ValueError(f"{where}: 'conversations' must end with a turn from gpt; add it or drop the entry")
    _check_marks(sum(message.text.count(IMAGE_MARK) for message in turns), images, where)
    return Said(conversations=(tuple(turns),))


def _check_marks(marks: int, images: int, where: str) -> None:
    if marks != images:
        raise ValueError(f"{where}: {marks} {IMAGE_MARK} marks for {images} images; put one for each")
