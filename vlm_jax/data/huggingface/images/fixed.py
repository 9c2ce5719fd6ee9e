"""Images padded, resized and cropped to one fixed size: CLIP, SigLIP, LLaVA 1.5, DINOv2, ViT, BLIP."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image

from vlm_jax.data.huggingface.images.base import (
    HALF, STEPS, Arrays, Config, HfImageProcessor, Picture, Values, centred, resized, rgb, sides)
from vlm_jax.data.images import CLIP_MEAN, CLIP_STD
from vlm_jax.models.tokens import Fixed

# What transformers' classes fill in where the file is silent, by image_processor_type without its ending.
_square_of = lambda side: {"height": side, "width": side}
_CROP = dict(STEPS, size={"shortest_edge": 224}, do_center_crop=True, crop_size=_square_of(224),
             image_mean=CLIP_MEAN, image_std=CLIP_STD)
_SQUASH = dict(STEPS, size=_square_of(224), do_center_crop=False, image_mean=HALF, image_std=HALF)
DEFAULTS: dict[str, Config] = {
    "CLIP": _CROP, "Llava": _CROP, "Bit": _CROP, "Siglip": _SQUASH, "ViT": _SQUASH | {"resample": 2},
    "DeiT": _SQUASH | {"size": _square_of(256), "do_center_crop": True, "crop_size": _square_of(224)},
    "Blip": _SQUASH | {"size": _square_of(384), "image_mean": CLIP_MEAN, "image_std": CLIP_STD}}


@dataclasses.dataclass(frozen=True)
class FixedSize(HfImageProcessor):
    """The steps in the order they are taken; one that is None is left out.

    pad: lay on a square of this colour. resize: the shorter side in pixels, or (height, width) whatever the
    aspect ratio. crop: (height, width) out of the middle, with black around what is smaller. `resample` is
    Pillow's number.
    """

    pad: tuple[int, ...] | None
    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: int
    values: Values
    layout = Fixed(1)

    def batch(self, prompts: list[list[Image.Image]]) -> Arrays:
        """`pixel_values` float32 [n, 3, height, width]; raises ValueError where sizes stay unequal."""
        return {"pixel_values": self.values([self.fit(image) for images in prompts for image in images])}

    def fit(self, image: Picture) -> np.ndarray:
        """The geometry alone: uint8 height x width x 3."""
        image = rgb(image)
        if self.pad is not None:
            image = centred(image, *[max(image.size)] * 2, self.pad)
        if self.resize is not None:
            image = self._resized(image)
        pixels = np.asarray(image)
        return pixels if self.crop is None else _centre(pixels, *self.crop)

    def _resized(self, image: Image.Image) -> Image.Image:
        if isinstance(self.resize, tuple):
            return resized(image, *self.resize, self.resample)
        short = min(image.size)  # becomes exact; the longer side is floored
        return resized(image, self.resize * image.height // short, self.resize * image.width // short, self.resample)


def _centre(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Of an odd margin the smaller part is at the top and left; of odd black borders the larger part is."""
    short = [max(0, want - have) for want, have in zip((height, width), pixels.shape)]
    pixels = np.pad(pixels, [(math.ceil(n / 2), n // 2) for n in short] + [(0, 0)])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def build(name: str, config: Config) -> FixedSize:
    return FixedSize(
        pad=colour(config) if name == "Llava" and config.get("do_pad") else None,
        resize=sides(config["size"], square="height" in DEFAULTS[name]["size"]) if config["do_resize"] else None,
        crop=sides(config["crop_size"], square=True) if config["do_center_crop"] else None,
        resample=config["resample"], values=Values.of(config))


def colour(config: Config) -> tuple[int, ...]:
    """What images are padded with: the mean as a grey level, cut off."""
    return tuple(int(m * 255) for m in config["image_mean"])
