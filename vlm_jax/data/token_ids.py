"""Token ids with a meaning, as a generator needs them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """`image` stands where a visual token goes; any of `eos` ends an answer, which `pad` fills up; `banned` are never
    generated."""

    image: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None
    banned: tuple[int, ...] = ()
