"""Rules on parameter paths: (regex, value) pairs; the first match wins and every parameter must be covered."""

from __future__ import annotations

import re
from typing import Any, Sequence, TypeVar

from flax import traverse_util

Value = TypeVar("Value")
Rules = Sequence[tuple[str, Value]]
Flat = dict[str, Any]  # "decoder/blocks/attn/q/kernel" -> leaf


def flatten(params: Any) -> Flat:
    """Leaves by path, in path order."""
    return dict(sorted(traverse_util.flatten_dict(params, sep="/").items()))


def unflatten(flat: Flat) -> Any:
    return traverse_util.unflatten_dict(flat, sep="/")


def match(rules: Rules, paths: Sequence[str]) -> dict[str, Value]:
    """The value of the first rule whose regex matches the whole path.

    Raises where a path has no rule, and where a rule matches no path at all (most likely a typing mistake), except a
    final catch-all.
    """
    for pattern, _ in rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"The rule '{pattern}' is no regular expression ({error}).") from error
        if pattern != ".*" and not any(re.fullmatch(pattern, path) for path in paths):
            tops = sorted({path.split("/")[0] for path in paths})
            raise ValueError(f"The rule '{pattern}' matches no parameter; the tree has {', '.join(tops)}.")
    values = {}
    for path in paths:
        for pattern, value in rules:
            if re.fullmatch(pattern, path):
                values[path] = value
                break
        else:
            raise ValueError(f"No rule covers the parameter '{path}'; add one, or end the rules with ('.*', None).")
    return values
