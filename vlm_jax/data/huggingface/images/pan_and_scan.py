"""The whole image, and crops of a long one: Gemma 3 (`models.tokens.pan_and_scan`)."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from vlm_jax.data.huggingface.images.base import (
    HALF, STEPS, Arrays, Config, HfImageProcessor, Values, cut, resized, sides)
from vlm_jax.models.tokens import Fixed, Layout, PanAndScan

# The bounds on crops are those of transformers' processor of text and images; its image processor knows none.
DEFAULTS: dict[str, Config] = {"Gemma3": dict(
    STEPS, resample=2, size={"height": 224, "width": 224}, image_mean=HALF, image_std=HALF, do_pan_and_scan=False,
    pan_and_scan_min_crop_size=256, pan_and_scan_max_num_crops=4, pan_and_scan_min_ratio_to_activate=1.2)}


@dataclasses.dataclass(frozen=True)
class Crops(HfImageProcessor):
    """resize: (height, width) of the image and of each crop, whatever the aspect ratio; None leaves them alone."""

    layout: PanAndScan | Fixed
    resize: tuple[int, int] | None
    resample: int
    values: Values
    prompt_only = ("num_crops",)

    def batch(self, prompts: list[list[Image.Image]]) -> Arrays:
        """`pixel_values` float32 [images and crops, 3, height, width], each image before its crops; `num_crops` int64
        [n]."""
        views = [self._views(image) for images in prompts for image in images]
        return {"pixel_values": self.values([view for each in views for view in each]),
                "num_crops": np.array([len(each) - 1 for each in views], np.int64)}

    def _views(self, image: Image.Image) -> list[Image.Image]:
        crops = cut(image, *self.layout.crop(*image.size)) if self.layout.tiles(*image.size) > 1 else []
        views = [image, *crops]
        return views if self.resize is None else [resized(view, *self.resize, self.resample) for view in views]

    def model_layout(self, layout: Layout | None, tokens: int) -> Layout | None:
        return dataclasses.replace(self.layout, tokens=tokens) if isinstance(self.layout, PanAndScan) else layout


def build(name: str, config: Config) -> Crops:
    bounds = [config[f"pan_and_scan_{key}"] for key in ("min_crop_size", "max_num_crops", "min_ratio_to_activate")]
    return Crops(PanAndScan(1, *bounds) if config["do_pan_and_scan"] else Fixed(1),
                 sides(config["size"], square=True) if config["do_resize"] else None, config["resample"],
                 Values.of(config))
