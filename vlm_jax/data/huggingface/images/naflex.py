"""Patches of any aspect ratio, padded to one number: SigLIP 2 (`models.tokens.naflex`)."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from vlm_jax.data.huggingface.images.base import HALF, STEPS, Arrays, Config, HfImageProcessor, Values, resized
from vlm_jax.models.tokens import Layout, NaFlex

DEFAULTS: dict[str, Config] = {"Siglip2": dict(
    STEPS, resample=2, patch_size=16, max_num_patches=256, image_mean=HALF, image_std=HALF)}


@dataclasses.dataclass(frozen=True)
class NaFlexPatches(HfImageProcessor):
    """resize: False takes as many whole patches as the image has."""

    layout: NaFlex
    resize: bool
    resample: int
    values: Values

    def batch(self, prompts: list[list[Image.Image]]) -> Arrays:
        """`pixel_values` float32 [n, max_patches, patch * patch * 3], zero where an image has fewer patches;
        `pixel_attention_mask` int32 [n, max_patches], 1 for its own; `spatial_shapes` int64 [n, 2], rows, columns."""
        patches, shapes = zip(*(self._patches(image) for images in prompts for image in images))
        most = self.layout.max_patches
        if any(len(each) > most for each in patches):
            raise ValueError(f"An image has more than the {most} patches of preprocessor_config.json; let it resize.")
        padded = [np.pad(each, [(0, most - len(each)), (0, 0)]) for each in patches]
        mask = np.arange(most) < np.array([[len(each)] for each in patches])
        return {"pixel_values": np.stack(padded), "pixel_attention_mask": mask.astype(np.int32),
                "spatial_shapes": np.array(shapes, np.int64)}

    def _patches(self, image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        p = self.layout.patch
        rows, columns = self.layout.grid(*image.size) if self.resize else (image.height // p, image.width // p)
        if self.resize:
            image = resized(image, rows * p, columns * p, self.resample)
        pixels = self.values([image])[0, :, : rows * p, : columns * p].reshape(3, rows, p, columns, p)
        return pixels.transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1), (rows, columns)

    def model_layout(self, layout: Layout | None, tokens: int) -> Layout:
        return self.layout


def build(name: str, config: Config) -> NaFlexPatches:
    return NaFlexPatches(NaFlex(config["patch_size"], config["max_num_patches"]), config["do_resize"],
                         config["resample"], Values.of(config))
