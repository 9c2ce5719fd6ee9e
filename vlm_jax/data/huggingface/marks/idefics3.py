"""Idefics3 and SmolVLM: tiles row by row, each after a token of its place, then the whole image."""

from __future__ import annotations

import dataclasses

from vlm_jax.data.huggingface.marks.marks import Files, Marks, Sizes
from vlm_jax.models.tokens import RowColumns


@dataclasses.dataclass(frozen=True)
class Idefics3Marks(Marks):
    """around: what stands before each tile and at the end. whole: the place of the whole image."""

    around: str = "<fake_token_around_image>"
    whole: str = "<global-img>"

    def written(self, sizes: Sizes) -> list[str]:
        return [self._written(*self.layout.grid(width, height)) for width, height in sizes]

    def _written(self, rows: int, columns: int) -> str:
        tile = self.token * self.layout.tokens
        lines = ["".join(f"{self.around}<row_{r}_col_{c}>{tile}" for c in range(1, columns + 1)) + "\n"
                 for r in range(1, rows + 1)]
        return "".join(lines) + "\n" * bool(lines) + self.around + self.whole + tile + self.around


def marks(files: Files) -> Idefics3Marks:
    tokens = files.processor.get("image_seq_len", 169)
    mark, layout = files.image_token(), dataclasses.replace(files.layout(RowColumns), tokens=tokens)
    return Idefics3Marks(mark, mark, layout, files.token("fake_image_token", "<fake_token_around_image>"),
                         files.token("global_image_token", "<global-img>"))
