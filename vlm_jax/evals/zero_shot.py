"""Zero-shot classification: an image is of the class whose prompts lie nearest (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Sequence

import numpy as np

from vlm_jax.data.processor import Processor
from vlm_jax.data.records import Source
from vlm_jax.data.scene_text import zero_shot_prompt
from vlm_jax.data.scenes import SceneSource
from vlm_jax.evals.embed import captioned, embed_images, embed_texts
from vlm_jax.evals.results import Result
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.transformer import Params


class Labelled(NamedTuple):
    """Record `indices[i]` belongs to class number `labels[i]`; a class has one or more prompts."""

    source: Source
    indices: Sequence[int]
    labels: np.ndarray
    classes: list[str]
    prompts: list[list[str]]


def zero_shot(
    config: ModelConfig, params: Params, processor: Processor, source: Source, examples: int, batch: int
) -> Result:
    """Metrics: zero_shot_top1, and zero_shot_mean_per_class (each class counts alike). A tie counts as wrong.

    Raises ValueError for embeddings that are not finite, or all equal.
    """
    model = config.two_tower()
    data = labelled(source, examples)
    images = (data.source[i].images[0] for i in data.indices)
    zimg = embed_images(model, params, processor, images, min(batch, len(data.indices)))
    flat = [prompt for prompts in data.prompts for prompt in prompts]
    ztxt = embed_texts(model, params, processor, flat, batch)
    scores = zimg @ class_vectors(ztxt, [len(prompts) for prompts in data.prompts]).T
    predicted = predictions(scores, data.labels)
    confusion = np.zeros((len(data.classes),) * 2, int)
    np.add.at(confusion, (data.labels, predicted), 1)
    asked = confusion.sum(axis=1)
    recalls = np.diag(confusion)[asked > 0] / asked[asked > 0]
    records = [{"index": i, "prediction": data.classes[p], "truth": data.classes[t], "correct": bool(p == t)}
               for i, p, t in zip(data.indices, predicted, data.labels)]
    return Result(
        "zero_shot",
        {"zero_shot_top1": float(np.mean(predicted == data.labels)),
         "zero_shot_mean_per_class": float(recalls.mean())},
        records, {"classes": data.classes, "prompts": data.prompts, "confusion": confusion.tolist()})


def labelled(source: Source, examples: int) -> Labelled:
    """Scenes of a single digit, or records whose captions are their classes.

    The latter are taken evenly from the whole source: of a file sorted by class the first would be all alike.
    """
    n = min(examples, len(source))
    if isinstance(source, SceneSource):
        source = SceneSource(dataclasses.replace(source.config, min_digits=1, max_digits=1, conversations=0))
        labels = [source[i].meta["digits"][0]["digit"] for i in range(n)]
        prompts = [[zero_shot_prompt(digit)] for digit in range(10)]
        return Labelled(source, range(n), np.array(labels), [str(digit) for digit in range(10)], prompts)
    indices = [i * len(source) // n for i in range(n)]
    captions = [captioned(source[i]).caption for i in indices]
    classes = sorted(set(captions))
    if len(classes) < 2:
        raise ValueError(f"All {n} records have the caption {captions[0]!r:.60}; zero_shot takes two.")
    return Labelled(source, indices, np.searchsorted(classes, captions), classes, [[c] for c in classes])


def class_vectors(ztxt: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """[classes, e]: normalise(mean over a class's prompts of their normalised embeddings).

    ztxt: [sum(counts), e] normalised, the prompts of class 0 first. Without the second normalisation a class
    whose prompts disagree would be short, and rarely win.
    """
    means = np.stack([part.mean(axis=0) for part in np.split(ztxt, np.cumsum(counts)[:-1])])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def predictions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The nearest class of each row of scores [n, classes]; where the true one is tied, another."""
    rows = np.arange(len(labels))
    others = scores.copy()
    others[rows, labels] = -np.inf
    return np.where(scores[rows, labels] > others.max(axis=1), labels, others.argmax(axis=1))
