"""Which tokens of a rendered conversation are learnt: [start, end) spans of characters, and what becomes of them."""

from __future__ import annotations

import re
from typing import Collection, Sequence

from vlm_jax.data.huggingface.marks.marks import said
from vlm_jax.data.huggingface.template import Messages, Spans


def check_plain(messages: Messages, special: Collection[str], mark: str | None, row: int) -> None:
    """Raises ValueError where a message spells a special token: an answer would teach to stop in its middle.

    The image mark may stand in what a user says.
    """
    for message in messages:
        text = said(message)
        for token in set(special) - ({mark} if message["role"] != "assistant" else set()):
            if token in text:
                raise ValueError(f"Conversation {row} spells the special token {token} in what the {message['role']} "
                                 f"says; take it out.")


def check_kept(messages: Messages, text: str) -> None:
    """Raises ValueError where a template has left out what a user or an assistant says: many of models with eyes look
    for a list of parts, and write nothing of a string. Its last line is looked for, as thoughts may be dropped."""
    for i, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, str) and content.strip() and message["role"] in ("user", "assistant"):
            if content.strip().splitlines()[-1].strip() not in text:
                raise ValueError(f"The chat template leaves out what message {i} says; give its content as "
                                 f"[{{'type': 'text', 'text': ...}}].")


def ended(text: str, spans: Spans, special: Collection[str], end: str | None) -> tuple[str, Spans]:
    """Text and spans of answers each of which closes with a token that ends it.

    This is the special token at the end of a span (blanks behind it, between turns, are not learnt); else that which
    stands directly behind every span, the last included; else `end` is written there. Raises ValueError without one.

        [No.</s>\\n]USER:   ->  [No.</s>]\\nUSER:       [No.]<|im_end|>\\n  ->  [No.<|im_end|>]\\n
        [No. ]USER: [Yes. ] ->  [No.</s>] USER: [Yes.</s>]
    """
    closing = "|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)"
    behind = [re.match(closing, text[stop:]) for _, stop in spans]
    if len({match and match[0] for match in behind}) == 1 and behind[0]:
        spans = [(start, stop + match.end()) for (start, stop), match in zip(spans, behind)]
    parts, new, at, length = [], [], 0, 0
    for start, stop in spans:
        answer = text[start:stop].rstrip()
        closes = re.search(f"(?:{closing})$", answer)
        if not closes and not end:
            raise ValueError("The chat template writes no token that ends an answer, and the tokenizer has no "
                             "eos_token; let the template write one.")
        parts += [text[at:start], answer + ("" if closes else end)]
        length += start - at + len(parts[-1])
        new.append((length - len(parts[-1]), length))
        at = start + len(answer)
    return "".join(parts) + text[at:], new


def learnt(text: str, offsets: Sequence[tuple[int, int]], spans: Spans) -> list[bool]:
    """Whether each token lies in a span; a blank that it begins with may lie in front of it.

    A token that joins the end of a prompt to the beginning of an answer is not learnt: a prompt never is.
    """
    def inside(start: int, stop: int) -> bool:
        blank = len(text[start:stop]) - len(text[start:stop].lstrip())
        start += blank if start + blank < stop else 0
        return start < stop and any(first <= start and stop <= last for first, last in spans)
    return [inside(*offset) for offset in offsets]
