"""metrics.jsonl: one object per logged step, each (stage, step) once, whole lines only."""

from __future__ import annotations

import json
from typing import Any, Callable

import jax
from etils import epath

from vlm_jax.data.files import write_atomically


class MetricsLog:
    """Appends lines, and drops those a restart will write again. Of several processes, the first has it alone.

    A bucket cannot append, or does it wrongly: there the whole file is written anew.
    """

    def __init__(self, path: epath.Path, keep: Callable[[dict[str, Any]], bool]):
        self.path, self.mine = path, jax.process_index() == 0
        lines = path.read_text().splitlines(keepends=True) if self.mine and path.exists() else []
        self.lines = [line for line in lines if line.endswith("\n") and _parses(line) and keep(json.loads(line))]
        if lines != self.lines:
            self._rewrite()

    def write(self, record: dict[str, Any]) -> None:
        if not self.mine:
            return
        line = json.dumps(record) + "\n"
        self.lines.append(line)
        if "://" in str(self.path):
            self._rewrite()
        else:
            with self.path.open("a") as file:
                file.write(line)

    def _rewrite(self) -> None:
        write_atomically(self.path, "".join(self.lines))


def _parses(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
