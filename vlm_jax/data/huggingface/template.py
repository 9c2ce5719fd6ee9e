"""Chat templates of published checkpoints: their own jinja2 source, rendered in jinja2's sandbox."""

from __future__ import annotations

import datetime
import json
import re
import secrets
from typing import Any, Mapping, Sequence

import jinja2
import jinja2.ext
import jinja2.sandbox


# What stands around a generation block in raw output. Drawn anew by each process: no text of a user spells it.
_OPEN, _CLOSE = (f"\x00{secrets.token_hex(8)}\x00" for _ in range(2))
Messages = Sequence[Mapping[str, Any]]
Spans = list[tuple[int, int]]


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks what is trained on. Its content stays where it is, so that what
    it sets is known behind it too."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        mark = lambda text: jinja2.nodes.Output([jinja2.nodes.TemplateData(text)], lineno=line)
        return [mark(_OPEN), *body, mark(_CLOSE)]


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
            sort_keys: bool = False) -> str:
    """Plain JSON: jinja2's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _plain(value: Any) -> Any:
    """A value as JSON types. An image in a message has methods that write files, of which the sandbox knows nothing:
    what is of another type becomes its type's name. Keys without a value are left out, as templates print them."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else f"<{type(value).__name__}>"


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


class ChatTemplate:
    """`special` holds bos_token, eos_token and their like, which templates know by these names."""

    def __init__(self, source: str, special: Mapping[str, str]):
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"The chat template cannot be read ({error}); repair it.") from error
        self._special = dict(special)

    def render(self, messages: Messages, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The conversation as one string. Raises ValueError where the template refuses it or fails on it."""
        return re.sub(f"{_OPEN}|{_CLOSE}", "", self._raw(messages, add_generation_prompt, variables))

    def answers(self, messages: Messages, **variables: Any) -> tuple[str, Spans]:
        """A whole conversation and [start, end) of what its assistant says, in characters of it.

        These are the template's generation blocks. Where it has none, an answer is what rendering the conversation up
        to it adds to rendering it up to the generation prompt before it:

            messages[:1] and the prompt     USER: Red? ASSISTANT:
            messages[:2]                    USER: Red? ASSISTANT: No.</s>
            messages                        USER: Red? ASSISTANT: No.</s>USER: Blue? ASSISTANT: Yes.</s>

        Each must begin the next, else ValueError is raised: a template may, for one, say less of what is long past.
        """
        raw = self._raw(messages, False, variables)
        if _OPEN in raw:
            return _blocks(raw)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, upto = self.render(messages[:i], **variables), self.render(messages[: i + 1], False, **variables)
            if not (raw.startswith(upto) and upto.startswith(before)):
                raise ValueError(f"The chat template does not write turn after turn, so that where message {i} stands "
                                 "is not known; put {% generation %} blocks around what it writes of the assistant.")
            spans.append((len(before), len(upto)))
        return raw, spans

    def _raw(self, messages: Messages, add_generation_prompt: bool, variables: Mapping[str, Any]) -> str:
        known = self._special | {"tools": None, "documents": None} | {n: _plain(v) for n, v in variables.items()}
        known |= {"messages": _plain(messages), "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(known)
        except Exception as error:  # TypeError and others too: a template is a program
            raise ValueError(f"The chat template refuses these messages: {error}.") from error


def _blocks(raw: str) -> tuple[str, Spans]:
    text, spans = "", []
    for part in re.split(f"({_OPEN}.*?{_CLOSE})", raw, flags=re.DOTALL):
        inside = part.removeprefix(_OPEN).removesuffix(_CLOSE)
        if inside != part:
            spans.append((len(text), len(text) + len(inside)))
        text += inside
    return text, spans
