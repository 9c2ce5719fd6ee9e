"""Tiles of the nearest aspect ratio, then a thumbnail: InternVL (`models.tokens.aspect_tiles`)."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from vlm_jax.data.huggingface.images.base import (
    STEPS, Arrays, Config, HfImageProcessor, Values, cut, resized, sides)
from vlm_jax.data.images import CLIP_MEAN, CLIP_STD
from vlm_jax.models.tokens import AspectTiles, Layout

DEFAULTS: dict[str, Config] = {"GotOcr2": dict(
    STEPS, size={"height": 384, "width": 384}, crop_to_patches=False, min_patches=1, max_patches=12,
    image_mean=CLIP_MEAN, image_std=CLIP_STD)}


@dataclasses.dataclass(frozen=True)
class RatioTiles(HfImageProcessor):
    """A layout of at most one tile takes the image whole; `resize` False then leaves its size alone."""

    layout: AspectTiles
    resize: bool
    resample: int
    values: Values
    prompt_only = ("num_patches",)

    def batch(self, prompts: list[list[Image.Image]]) -> Arrays:
        """`pixel_values` float32 [tiles of all images, 3, height, width]; `num_patches` int64 [n], tiles of each."""
        tiles = [self._tiles(image) for images in prompts for image in images]
        return {"pixel_values": self.values([tile for each in tiles for tile in each]),
                "num_patches": np.array([*map(len, tiles)], np.int64)}

    def _tiles(self, image: Image.Image) -> list[Image.Image]:
        if self.layout.max_tiles == 1:
            return [resized(image, *self.layout.tile, self.resample) if self.resize else image]
        (height, width), (rows, columns) = self.layout.tile, self.layout.grid(*image.size)
        tiles = cut(resized(image, rows * height, columns * width, self.resample), height, width)
        return tiles if len(tiles) == 1 else [*tiles, resized(image, height, width, self.resample)]

    def model_layout(self, layout: Layout | None, tokens: int) -> Layout:
        return dataclasses.replace(self.layout, tokens=tokens)


def build(name: str, config: Config) -> RatioTiles:
    tiles = (config["min_patches"], config["max_patches"]) if config["crop_to_patches"] else (1, 1)
    return RatioTiles(AspectTiles(sides(config["size"], square=True), 1, *tiles), config["do_resize"],
                      config["resample"], Values.of(config))
