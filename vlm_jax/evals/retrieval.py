"""Image-text retrieval: does the right caption come first for an image, and the right image for a caption?"""

from __future__ import annotations

import numpy as np

from vlm_jax.data.processor import Processor
from vlm_jax.data.records import Source
from vlm_jax.evals.embed import captioned, embed_images, embed_texts, fingerprint
from vlm_jax.evals.results import Result
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.transformer import Params

RANKS = (1, 5, 10)
SHOWN = 16  # rows of the similarity matrix that is kept
PATIENCE = 64  # records read for each one wanted, before a source counts as out of new captions


def retrieval(
    config: ModelConfig, params: Params, processor: Processor, source: Source, examples: int, batch: int
) -> Result:
    """Metrics: retrieval_i2t_r1, _r5, _r10 and retrieval_t2i_..., among `examples` distinct captions.

    recall@k is the share of queries with a right answer among the first k; ties count against the model. An
    image that several captions describe is one image, and any of them is right for it. A k that nobody could
    miss, among too few candidates, is left out.
    """
    model = config.two_tower()
    indices, captions, owner, image_at = distinct(source, examples)
    images = (source[i].images[0] for i in image_at)
    zimg = embed_images(model, params, processor, images, min(batch, len(image_at)))
    scores = zimg @ embed_texts(model, params, processor, captions, batch).T
    right = owner[None] == np.arange(len(image_at))[:, None]
    i2t, t2i = ranks(scores, right), ranks(scores.T, right.T)
    metrics = {f"retrieval_{way}_r{k}": float(np.mean(found <= k))
               for way, found, candidates in (("i2t", i2t, len(captions)), ("t2i", t2i, len(image_at)))
               for k in RANKS if k < candidates}
    nearest = scores.argmax(axis=1)
    records = [{"index": i, "caption": caption, "i2t_rank": int(i2t[own]), "t2i_rank": int(rank),
                "nearest": captions[nearest[own]]}
               for i, caption, own, rank in zip(indices, captions, owner, t2i)]
    first = np.unique(owner, return_index=True)[1][:SHOWN]  # the first caption of each image
    extras = {"images": len(image_at), "captions": len(captions),
              "similarity": scores[:SHOWN, first].tolist(), "similarity_texts": [captions[i] for i in first]}
    return Result("retrieval", metrics, records, extras)


def distinct(source: Source, examples: int) -> tuple[list[int], list[str], np.ndarray, list[int]]:
    """The first `examples` records with new captions: (their indices, captions and image numbers; for each
    image an index to read it at). Of two with one caption, either would be right yet count as wrong."""
    taken: dict[str, int] = {}
    numbers: dict[str, int] = {}
    owner, image_at = [], []
    for i in range(min(len(source), PATIENCE * examples)):
        record = captioned(source[i])
        if record.caption in taken:
            continue
        taken[record.caption] = i
        number = numbers.setdefault(fingerprint(record.images[0]), len(numbers))
        if number == len(image_at):
            image_at.append(i)
        owner.append(number)
        if len(taken) == examples:
            break
    if len(image_at) < 2:
        raise ValueError("Retrieval takes two or more images with captions of their own; add examples.")
    return list(taken.values()), list(taken), np.array(owner), image_at


def ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank [q], from 1, of the best right answer to each query; scores and right (bool): [q, candidates].

    A wrong candidate with the same score counts as ahead: a model that finds all alike comes last.
    """
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + (~right & (scores >= best)).sum(axis=1)
