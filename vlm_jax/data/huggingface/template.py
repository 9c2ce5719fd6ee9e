"""Chat templates of published checkpoints: their own jinja2 source, rendered in jinja2's sandbox."""

from __future__ import annotations

import datetime
import json
from typing import Any, Mapping, Sequence

import jinja2
import jinja2.ext
import jinja2.sandbox


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks what is trained on; in a prompt only its content counts."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    """Plain JSON: jinja2's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


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

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True,
               **variables: Any) -> str:
        """The conversation as one string. Raises ValueError where the template refuses it or fails on it."""
        known = self._special | {"tools": None, "documents": None} | variables
        known |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(known)
        except Exception as error:  # TypeError and others too: a template is a program
            raise ValueError(f"The chat template refuses these messages: {error}.") from error
