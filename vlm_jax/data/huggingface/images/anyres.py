"""The whole image and the tiles of a larger copy: LLaVA-NeXT, LLaVA-OneVision (`models.tokens.anyres`)."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from vlm_jax.data.huggingface.images import fixed
from vlm_jax.data.huggingface.images.base import (
    STEPS, Arrays, Config, HfImageProcessor, Values, centred, cut, joined, resized, sides)
from vlm_jax.data.images import CLIP_MEAN, CLIP_STD
from vlm_jax.models.tokens import AnyRes
from vlm_jax.models.tokens.anyres import best_canvas, fitted

_NEXT = dict(STEPS, do_pad=True, image_mean=CLIP_MEAN, image_std=CLIP_STD, size={"shortest_edge": 224},
             do_center_crop=True, crop_size={"height": 224, "width": 224},
             image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]])
DEFAULTS: dict[str, Config] = {
    "LlavaNext": _NEXT,
    "LlavaOnevision": _NEXT | dict(
        size={"height": 384, "width": 384}, do_center_crop=False, crop_size=None,
        image_grid_pinpoints=[[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)])}


@dataclasses.dataclass(frozen=True)
class AnyResTiles(HfImageProcessor):
    """whole: (height, width) that the whole image is squashed to. steps: what then is done to it and to each tile.

    alone: (OneVision) only the image of a prompt that has no other is tiled; this is what is done to the rest.
    """

    layout: AnyRes
    whole: tuple[int, int]
    steps: fixed.FixedSize
    alone: fixed.FixedSize | None = None

    def batch(self, prompts: list[list[Image.Image]]) -> Arrays:
        """`pixel_values` float32 [n, tiles, 3, height, width], the whole image first, black tiles where an image has
        fewer than another; `image_sizes` int64 [n, 2], height and width; OneVision: `batch_num_images` int64 [b]."""
        prompts = [images for images in prompts if images]
        tiles = [self._tiles(image, len(images)) for images in prompts for image in images]
        sizes = [image.size[::-1] for images in prompts for image in images]
        arrays = {"pixel_values": joined(tiles), "image_sizes": np.array(sizes, np.int64)}
        return arrays | ({"batch_num_images": np.array([*map(len, prompts)], np.int64)} if self.alone else {})

    def _tiles(self, image: Image.Image, images: int) -> np.ndarray:
        if self.alone and images > 1:
            return self.steps.values([self.alone.fit(image)])
        tiles = [resized(image, *self.whole, self.steps.resample), *cut(self._canvas(image), *[self.layout.tile] * 2)]
        return self.steps.values([self.steps.fit(tile) for tile in tiles])

    def _canvas(self, image: Image.Image) -> Image.Image:
        height, width = best_canvas(self.layout.pinpoints, *image.size)
        copy = resized(image, *fitted((height, width), *image.size), self.steps.resample)
        return centred(copy, height, width)


def build(name: str, config: Config) -> AnyResTiles:
    size = sides(config["size"])
    whole = size if isinstance(size, tuple) else (size, size)
    crop = sides(config["crop_size"], square=True) if config["crop_size"] else None
    pinpoints = tuple((height, width) for height, width in config["image_grid_pinpoints"])
    steps = fixed.FixedSize(
        pad=None, resize=size if config["do_resize"] else None, crop=crop if config["do_center_crop"] else None,
        resample=config["resample"], values=Values.of(config))
    alone = dataclasses.replace(steps, pad=fixed.colour(config)) if name == "LlavaOnevision" else None
    return AnyResTiles(AnyRes((crop or whole)[0], 1, pinpoints), whole, steps, alone)
