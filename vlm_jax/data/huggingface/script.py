"""A prompt or a conversation as text, on its way to tokens: images written into it, and which parts are learnt."""

from __future__ import annotations

import dataclasses

from vlm_jax.data.huggingface.marks.marks import Marks, Sizes
from vlm_jax.data.huggingface.template import Spans


@dataclasses.dataclass(frozen=True)
class Script:
    """spans: [start, end) of what is learnt, in characters. chat: whether a chat template has written the text, with
    whatever special tokens it thought of."""

    text: str
    spans: Spans = dataclasses.field(default_factory=list)
    chat: bool = False

    def marked(self, marks: Marks, images: int) -> Script:
        """With a mark for each image, which are all in front of what is learnt."""
        text = marks.marked(self.text, images)
        more = len(text) - len(self.text)
        return dataclasses.replace(self, text=text, spans=[(start + more, stop + more) for start, stop in self.spans])

    def written(self, marks: Marks, sizes: Sizes) -> Script:
        """With the tokens of each image in the place of its mark."""
        parts, images = self.text.split(marks.mark), marks.written(sizes)
        starts, at = [], 0
        for part in parts[:-1]:
            starts.append(at + len(part))
            at = starts[-1] + len(marks.mark)
        growth = [len(image) - len(marks.mark) for image in images]
        moved = lambda place: place + sum(more for start, more in zip(starts, growth) if start < place)
        text = parts[0] + "".join(image + part for image, part in zip(images, parts[1:]))
        return dataclasses.replace(self, text=text, spans=[(moved(a), moved(b)) for a, b in self.spans])
