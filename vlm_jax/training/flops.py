"""The model FLOPs of a step, and MFU, defined here once.

    MFU = model FLOPs of a step / (seconds of a step * devices * peak FLOPs of one device)

Model FLOPs are what the mathematics asks for, whatever the program does: nothing that is computed again (remat) counts
twice. A multiply-add is two. Of one part (eyes, text tower, connector, decoder) on all its tokens, padding included:

    forward    2 * weights of dense layers * tokens  +  4 * heads * channels * (pairs of query and key) per layer
    pairs      tokens^2 of a row; half of that where rows are causal; at most tokens * window where there is a window
    step       forward * 3 where the part is trained, * 2 where it is frozen but gradients pass through it, * 1 where it is
               frozen and they stop before it

What is trained is told weight by weight: beside trained adapters a frozen decoder counts twice. Embedding lookups, norms
and the comparison of pairs count nothing, tied embeddings count as the dense layer that makes logits.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Iterator, Mapping

import jax

from vlm_jax.models.connectors import connector
from vlm_jax.models.encoders import encoder
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.training.rules import flatten

# part -> the parts before it, through which what it reads has come
UPSTREAM = {"vision": (), "text": (), "connector": ("vision",), "decoder": ("vision", "connector", "image_newline"),
            "vision_projection": ("vision",), "text_projection": ("text",)}
DENSE = ("kernel", "lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class Row:
    """What a part works on: `rows` of `tokens` each, causal or not; `layers` of its blocks are needed (None: all)."""

    rows: int
    tokens: int
    causal: bool = False
    layers: int | None = None


def step_flops(config: ModelConfig, params: Any, batch: Mapping[str, Any], trained: list[str]) -> float:
    """Model FLOPs of one step on a batch (it and the parameters: arrays or their shapes) with the paths that are trained.

    Exact for towers of blocks; a connector counts as dense layers on the tokens that it gives.
    """
    flat = flatten(params)
    return sum(part_flops(config, part, row, flat, trained) for part, row in workload(config, params, batch).items())


def workload(config: ModelConfig, params: Any, batch: Mapping[str, Any]) -> dict[str, Row]:
    """What each part has to do for a batch of pairs or of rows."""
    if "text" in batch:
        n, context = batch["text"].shape
        regions = math.prod(batch["box_text"].shape[:2]) if "box_text" in batch else 0
        work = {"text": Row(n + regions, context, config.text.causal), "text_projection": Row(n + regions, 1),
                "vision_projection": Row(n + regions, 1)}
        return work | _seen(config, params, batch["images"], talks=False)
    work = {"decoder": Row(*batch["tokens"].shape, causal=True)}
    if "images" not in batch:
        return work
    flat = lambda x: jax.ShapeDtypeStruct((math.prod(x.shape[:2]), *x.shape[2:]), x.dtype)  # all slots of all rows
    return work | _seen(config, params, jax.tree.map(flat, batch["images"]), talks=True)


def _seen(config: ModelConfig, params: Any, images: Any, talks: bool) -> dict[str, Row]:
    """The work of eyes, and of the connector behind them where the model talks."""
    out = jax.eval_shape(lambda p, x: encoder(config.vision).apply({"params": p}, x), params["vision"], images)
    rows, tokens = out.last.shape[:2]
    if not talks:
        return {"vision": Row(rows, tokens)}
    blocks, wanted = config.vision.transformer.layers, getattr(config.vision, "feature_layers", (-1,))
    needed = max(layer if layer >= 0 else blocks + 1 + layer for layer in wanted)
    join = connector(config.connector, config.decoder.transformer.width)
    joined = jax.eval_shape(lambda p, x: join.apply({"params": p}, x), params["connector"], out.patches)
    return {"vision": Row(rows, tokens, layers=needed), "connector": Row(*joined.shape[:2])}


def part_flops(config: ModelConfig, part: str, row: Row, flat: Mapping[str, Any], trained: list[str]) -> float:
    """Model FLOPs of one part of a step."""
    passes = any(path.split("/")[0] in (part, *UPSTREAM[part]) for path in trained)
    factor = lambda path: 3 if path in trained else 2 if passes else 1
    own = getattr(config, part, None)
    blocks = getattr(own, "transformer", None)
    share = 1 if blocks is None or row.layers is None else row.layers / blocks.layers
    total = 0.0
    for path, size in _dense(config, part, flat):
        if "/head/" in path and row.layers is not None:
            continue  # a pooled vector, which nobody asks for
        once = "/head/" in path and not path.endswith(("k/kernel", "v/kernel"))  # a pooling head has one query a row
        tokens = row.rows * (1 if once else row.tokens)
        total += 2 * size * tokens * factor(path) * (share if "/blocks/" in path else 1)
    if blocks is not None:
        inside = [path for path in trained if path.startswith(f"{part}/blocks/") and "/lora_" not in path]
        attention = sum(_attention(blocks.of_layer(i), row) for i in range(row.layers or blocks.layers))
        total += attention * (3 if inside else 2 if passes else 1)
    return total


def _dense(config: ModelConfig, part: str, flat: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Paths and sizes of a part's dense layers, stacked layers together."""
    for path, leaf in flat.items():
        if path.split("/")[0] == part and path.split("/")[-1] in DENSE:
            yield path, leaf.size
    if part == "decoder" and config.decoder.tie_embeddings:
        yield "decoder/embedding", flat["decoder/embedding"].size


def _attention(layer: TransformerConfig, row: Row) -> float:
    """Scores and weighted values of one layer."""
    pairs = row.tokens**2 / (2 if row.causal else 1)
    if layer.window is not None and row.causal:
        pairs = min(pairs, row.tokens * layer.window)
    return 4 * layer.heads * layer.dim * pairs * row.rows
