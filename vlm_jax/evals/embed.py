"""Embeddings of images and texts in the shared space, in batches of one size."""

from __future__ import annotations

import functools
import hashlib
import itertools
from typing import Iterable, Iterator, Sequence, TypeVar

import jax
import numpy as np

from vlm_jax.data.processor import Processor
from vlm_jax.data.records import Record
from vlm_jax.inference.hosts import fetch, spread
from vlm_jax.models.transformer import Params
from vlm_jax.models.two_tower import TwoTower

T = TypeVar("T")


def in_batches(items: Iterable[T], size: int) -> Iterator[tuple[list[T], int]]:
    """Lists of exactly `size` items, and how many of them are real: the last list repeats its last item.

    One size means one compilation.

        >>> list(in_batches("abc", 2))
        [(['a', 'b'], 2), (['c', 'c'], 1)]
    """
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch + batch[-1:] * (size - len(batch)), len(batch)


def embed_images(
    model: TwoTower, params: Params, processor: Processor, images: Iterable[np.ndarray], batch: int
) -> np.ndarray:
    """Normalised embeddings [n, e] float32 of uint8 images, which are read as they are needed."""
    found = [fetch(_encode_images(model, params, spread(processor.images(group))))[:real]
             for group, real in in_batches(images, batch)]
    return _checked(np.concatenate(found), "image")


def embed_texts(
    model: TwoTower, params: Params, processor: Processor, texts: Sequence[str], batch: int
) -> np.ndarray:
    """Normalised embeddings [n, e] float32."""
    rows = (processor.text(text) for text in texts)
    found = [fetch(_encode_texts(model, params, spread(np.stack(group))))[:real]
             for group, real in in_batches(rows, min(batch, len(texts)))]
    return _checked(np.concatenate(found), "text")


def captioned(record: Record) -> Record:
    """The record, if it has what image and text are compared by."""
    if not record.images or record.caption is None:
        raise ValueError(f"{record.name}: it has no image or no caption; comparing the two needs both.")
    return record


def fingerprint(image: np.ndarray) -> str:
    """Equal for equal images: their shape and pixels."""
    return f"{image.shape} {hashlib.sha256(np.ascontiguousarray(image)).hexdigest()}"


def _checked(embeddings: np.ndarray, what: str) -> np.ndarray:
    """A collapsed model would score at chance, one with NaN (which nothing outranks) even at 100 %."""
    if not np.isfinite(embeddings).all():
        raise ValueError(f"The {what} embeddings hold NaN or infinity; the model's parameters are damaged.")
    if len(embeddings) > 1 and np.ptp(embeddings, axis=0).max() < 1e-6:
        raise ValueError(f"All {len(embeddings)} {what} embeddings are equal; the model tells nothing apart.")
    return embeddings


@functools.partial(jax.jit, static_argnames="model")
def _encode_images(model, params, images):
    return model.apply({"params": params}, images, method="encode_image")[0]


@functools.partial(jax.jit, static_argnames="model")
def _encode_texts(model, params, tokens):
    return model.apply({"params": params}, tokens, method="encode_text")
