"""Pages from the templates beside this file: one look, everything escaped, written whole or not at all."""

from __future__ import annotations

import importlib.resources
from typing import Callable

import jinja2
from etils import epath


def template(name: str, **filters: Callable[..., str]) -> jinja2.Template:
    """A page's template; what is put into it is escaped: a caption may hold `<script>`."""
    read = lambda name: importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    pages = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=jinja2.FunctionLoader(read))
    pages.filters.update(filters)
    return pages.get_template(name)


def write(path: epath.Path, page: str) -> epath.Path:
    """Writes a page under another name and renames it, so that a reader never sees half of it; returns its path."""
    unfinished = path.parent / f"{path.name}.tmp"
    unfinished.write_text(page, encoding="utf-8")
    return unfinished.replace(path)
