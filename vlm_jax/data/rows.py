"""From rendered conversations to rows of tokens: loss weights, positions, branches and image slots."""

from __future__ import annotations

import dataclasses
from typing import Sequence

import numpy as np

IGNORED = 0  # target where nothing is learnt


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One conversation as tokens, int32 arrays [n]: ids, loss (0 or 1), and the visual token's index or -1."""

    ids: np.ndarray
    loss: np.ndarray
    image_index: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Tokens:
        return Tokens(self.ids[part], self.loss[part], self.image_index[part])


def shared_prefix(conversations: Sequence[Tokens]) -> int:
    """Length of what all conversations begin with and none of them learns; 0 for a single one.

    The token before the first learnt one stays out, so that each answer is predicted inside its own branch.
    """
    if len(conversations) < 2:
        return 0
    limit = min(int(np.argmax(c.loss)) - 1 if c.loss.any() else len(c) for c in conversations)
    first = conversations[0]
    for n in range(max(limit, 0)):
        if any(c.ids[n] != first.ids[n] or c.image_index[n] != first.image_index[n] for c in conversations):
            return n
    return max(limit, 0)


def width(conversations: Sequence[Tokens]) -> int:
    """Tokens that the row of these conversations takes."""
    prefix = shared_prefix(conversations)
    return prefix + sum(len(conversation) - prefix for conversation in conversations)


def fit(conversations: Sequence[Tokens], length: int, name: str) -> list[Tokens]:
    """The conversations that fit into a row, in order; the first is cut short where even that one does not.

    Raises where visual tokens would be cut: half an image is no image.
    """
    prefix = shared_prefix(conversations)
    kept, used = [], prefix
    for conversation in conversations:
        if used + len(conversation) - prefix <= length:
            kept.append(conversation)
            used += len(conversation) - prefix
    if kept:
        return kept
    first = conversations[0]
    visual = np.flatnonzero(first.image_index >= 0)
    if len(visual) and visual[-1] >= length:
        raise ValueError(f"{name}: its images take {len(visual)} visual tokens, a row holds {length} tokens; "
                         f"raise the stage's data.format.length above {visual[-1] + 1}.")
    return [first[:length]]


def build_row(conversations: Sequence[Tokens], length: int) -> dict[str, np.ndarray]:
    """One row of `length` tokens: a shared prefix, then a branch a conversation (see vlm_jax.models.mask).

    Returns int32 arrays [length]: tokens, targets, positions, segment_ids (0, or -1 for padding), subsegment_ids,
    image_index; and loss_weights float32. Position t predicts targets[t], the next token of the same branch.
    """
    row = {name: np.zeros(length, np.int32) for name in ("tokens", "targets", "positions", "subsegment_ids")}
    row |= {name: np.full(length, -1, np.int32) for name in ("segment_ids", "image_index")}
    row["loss_weights"] = np.zeros(length, np.float32)
    prefix = shared_prefix(conversations)

    def place(part: Tokens, at: int, position: int, branch: int) -> int:
        end, last = at + len(part), at + max(len(part) - 1, 0)
        row["tokens"][at:end], row["image_index"][at:end] = part.ids, part.image_index
        row["targets"][at:last], row["loss_weights"][at:last] = part.ids[1:], part.loss[1:]
        row["positions"][at:end] = np.arange(position, position + len(part))
        row["segment_ids"][at:end], row["subsegment_ids"][at:end] = 0, branch
        return end

    end = place(conversations[0][:prefix], 0, 0, 0) if prefix else 0
    for i, conversation in enumerate(conversations):
        branch = i + 1 if len(conversations) > 1 else 0
        end = place(conversation[prefix:], end, prefix, branch)
    return row


def join(
    rows: Sequence[dict[str, np.ndarray]], length: int, slots: np.ndarray | None, visual: int
) -> dict[str, np.ndarray]:
    """Several rows as one of `length` tokens: segment i is row i, with positions of its own, and after it comes the
    next. Raises where they do not fit.

    `slots` [s, h, w, 3] takes the rows' images [n, h, w, 3] one after the other, each with `visual` tokens; None where
    rows have none.
    """
    joined = build_row([], length)
    at = slot = 0
    for segment, row in enumerate(rows):
        end, images = at + len(row["tokens"]), row.get("images", ())
        if end > length or slot + len(images) > (0 if slots is None else len(slots)):
            raise ValueError(f"A row of {length} tokens has no room for {end}, or for {slot + len(images)} images.")
        for name in ("tokens", "targets", "positions", "subsegment_ids", "loss_weights"):
            joined[name][at:end] = row[name]
        joined["segment_ids"][at:end] = np.where(row["segment_ids"] >= 0, segment, -1)
        joined["image_index"][at:end] = np.where(row["image_index"] >= 0, row["image_index"] + slot * visual, -1)
        if len(images):
            slots[slot : slot + len(images)] = images
        at, slot = end, slot + len(images)
    return joined if slots is None else joined | {"images": slots}
