"""Rows and columns of tiles, then the whole image: Idefics3, SmolVLM (`models.tokens.row_columns`)."""

from __future__ import annotations

import dataclasses
from typing import Sequence

import numpy as np
from PIL import Image

from vlm_jax.data.huggingface.images.base import (
    HALF, STEPS, Arrays, Config, HfImageProcessor, Picture, Values, cut, joined, resized)
from vlm_jax.models.tokens import Layout, RowColumns

_STEPS = dict(STEPS, resample=1, size={"longest_edge": 4 * 364}, max_image_size={"longest_edge": 364}, do_pad=True,
              do_image_splitting=True, image_mean=HALF, image_std=HALF)
DEFAULTS: dict[str, Config] = {"Idefics3": _STEPS, "SmolVLM": _STEPS}


@dataclasses.dataclass(frozen=True)
class SplitTiles(HfImageProcessor):
    """mask: whether to tell the slots of images from those that fill up."""

    layout: RowColumns
    resample: int
    values: Values
    mask: bool

    def prompts(self, images: Sequence[Picture]) -> list[Sequence[Picture]]:
        """All images belong to one prompt."""
        return [images]

    def batch(self, prompts: list[list[Image.Image]]) -> Arrays:
        """`pixel_values` float32 [b, tiles, 3, side, side], the tiles of a prompt's images one after the other, black
        ones where it has fewer than another; `pixel_attention_mask` int64 [b, tiles, side, side], 0 for those."""
        tiles = [[tile for image in images for tile in self._tiles(image)] for images in prompts]
        side = self.layout.tile
        pixels = np.split(self.values([tile for each in tiles for tile in each]), np.cumsum([*map(len, tiles)])[:-1])
        arrays = {"pixel_values": joined(pixels)}
        if self.mask:
            arrays["pixel_attention_mask"] = joined([np.ones((len(each), side, side), np.int64) for each in tiles])
        return arrays

    def _tiles(self, image: Image.Image) -> list[Image.Image]:
        """Each copy is made of the one before, as the published code does it."""
        side, rows = self.layout.tile, self.layout.grid(*image.size)[0]
        copy = resized(image, *self.layout.resized(*image.size), self.resample)
        if self.layout.split:
            copy = resized(copy, *self.layout.canvas(*image.size), self.resample)
        return [*(cut(copy, side, side) if rows else ()), resized(copy, side, side, self.resample)]

    def model_layout(self, layout: Layout | None, tokens: int) -> Layout:
        return dataclasses.replace(self.layout, tokens=tokens)


def build(name: str, config: Config) -> SplitTiles:
    longest = config["size"].get("longest_edge")
    if config["do_resize"] and longest is None:
        raise ValueError(f"preprocessor_config.json has size {config['size']!r}; {name} needs its longest_edge.")
    layout = RowColumns(config["max_image_size"]["longest_edge"], longest if config["do_resize"] else None, 1,
                        config["do_image_splitting"])
    return SplitTiles(layout, config["resample"], Values.of(config), config["do_pad"])
