"""The image's own resolution, as patches in the order of the merger: Qwen2-VL, Qwen2.5-VL (`models.tokens.native`)."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from vlm_jax.data.huggingface.images.base import STEPS, Arrays, Config, HfImageProcessor, Values, resized
from vlm_jax.data.images import CLIP_MEAN, CLIP_STD
from vlm_jax.models.tokens import Layout, Native

DEFAULTS: dict[str, Config] = {"Qwen2VL": dict(
    STEPS, size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}, patch_size=14, temporal_patch_size=2,
    merge_size=2, image_mean=CLIP_MEAN, image_std=CLIP_STD)}


@dataclasses.dataclass(frozen=True)
class NativePatches(HfImageProcessor):
    """frames: how often a still image stands in time, in each of its patches."""

    layout: Native
    frames: int
    resize: bool
    resample: int
    values: Values

    def batch(self, prompts: list[list[Image.Image]]) -> Arrays:
        """`pixel_values` float32 [patches of all images, 3 * frames * patch * patch], the patches of a merged square
        together; `image_grid_thw` int64 [n, 3], (1, rows, columns) of patches."""
        patches, grids = zip(*(self._patches(image) for images in prompts for image in images))
        return {"pixel_values": np.concatenate(patches), "image_grid_thw": np.array(grids, np.int64)}

    def _patches(self, image: Image.Image) -> tuple[np.ndarray, tuple[int, int, int]]:
        p, m = self.layout.patch, self.layout.merge
        if self.resize:
            image = resized(image, *self.layout.resized(*image.size), self.resample)
        elif image.width % (p * m) or image.height % (p * m):
            raise ValueError(f"An image of {image.width} x {image.height} pixels is not resized by this "
                             f"preprocessor_config.json; its sides must be multiples of {p * m}.")
        rows, columns = image.height // p, image.width // p
        pixels = self.values([image])[0].reshape(3, rows // m, m, p, columns // m, m, p)
        patches = pixels.transpose(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, 3, 1, p, p)
        return np.tile(patches, (1, 1, self.frames, 1, 1)).reshape(rows * columns, -1), (1, rows, columns)

    def model_layout(self, layout: Layout | None, tokens: int) -> Layout:
        return self.layout


def build(name: str, config: Config) -> NativePatches:
    """The bounds on pixels stand in `size`, or as files of before transformers 5 have them, beside it."""
    size = DEFAULTS[name]["size"] | config["size"]
    fewest, most = config.get("min_pixels", size["shortest_edge"]), config.get("max_pixels", size["longest_edge"])
    return NativePatches(Native(config["patch_size"], config["merge_size"], fewest, most),
                         config["temporal_patch_size"], config["do_resize"], config["resample"], Values.of(config))
