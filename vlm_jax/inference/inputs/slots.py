"""Tiles dealt out to the image slots of rows, as many slots a row as the longest needs."""

from __future__ import annotations

from typing import Sequence

import numpy as np


def dealt(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[b, slots, ...] of one array [tiles, ...] a row; what is left over is zero. There is always a slot."""
    slots = max(1, *(len(row) for row in rows))
    out = np.zeros((len(rows), slots, *rows[0].shape[1:]), rows[0].dtype)
    for b, row in enumerate(rows):
        out[b, : len(row)] = row
    return out


def used(image_slots: np.ndarray, slots: int) -> np.ndarray:
    """bool [b * slots]: the first `image_slots` [b] of each row."""
    return (np.arange(slots) < image_slots[:, None]).ravel()
