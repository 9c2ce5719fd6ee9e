"""Image processors of published checkpoints, read from preprocessor_config.json: CLIP's, SigLIP's and LLaVA's, and
others that pad, resize, crop and normalise to one fixed size."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Mapping, Sequence

import numpy as np
from PIL import Image

from vlm_jax.data.images import CLIP_MEAN, CLIP_STD, MAX_PIXELS, normalise

# What transformers' classes fill in where the file is silent, by image_processor_type without its ending. In
# `resample` 2 is bilinear, 3 bicubic.
_square_of = lambda side: {"height": side, "width": side}
_STEPS = dict(do_resize=True, resample=3, do_rescale=True, rescale_factor=1 / 255, do_normalize=True)
_CROP = dict(_STEPS, size={"shortest_edge": 224}, do_center_crop=True, crop_size=_square_of(224),
             image_mean=CLIP_MEAN, image_std=CLIP_STD)
_SQUASH = dict(_STEPS, size=_square_of(224), do_center_crop=False,
               image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
FIXED_SIZE: dict[str, dict[str, Any]] = {
    "CLIP": _CROP, "Llava": _CROP, "Bit": _CROP, "Siglip": _SQUASH, "ViT": _SQUASH | {"resample": 2},
    "DeiT": _SQUASH | {"size": _square_of(256), "do_center_crop": True, "crop_size": _square_of(224)},
    "Blip": _SQUASH | {"size": _square_of(384), "image_mean": CLIP_MEAN, "image_std": CLIP_STD}}


@dataclasses.dataclass(frozen=True)
class HfImageProcessor:
    """The steps in the order they are taken; one that is None is left out.

    pad: lay on a square of this colour. resize: the shorter side in pixels, or (height, width) whatever the
    aspect ratio. crop: (height, width) out of the middle, with black around what is smaller. `resample` is
    Pillow's number, `rescale` a factor, `mean` and `std` are per channel.
    """

    pad: tuple[int, ...] | None
    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: int
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Sequence[Image.Image | np.ndarray]) -> np.ndarray:
        """Images, PIL or uint8 H x W x 3, to float32 [n, 3, height, width].

        Raises ValueError for a strip so thin that it would outgrow MAX_PIXELS, and where sizes stay unequal.
        """
        fitted = [self.fit(image) for image in images]
        if len({image.shape for image in fitted}) > 1:
            raise ValueError("preprocessor_config.json neither resizes nor crops; give images of one size.")
        pixels = np.stack([normalise(image, self.mean, self.std, self.rescale) for image in fitted])
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))

    def fit(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """The geometry alone: uint8 height x width x 3."""
        image = rgb(image if isinstance(image, Image.Image) else Image.fromarray(image))
        if self.pad is not None:
            image = _square(image, self.pad)
        if self.resize is not None:
            image = self._resized(image)
        pixels = np.asarray(image)
        return pixels if self.crop is None else _centre(pixels, *self.crop)

    def _resized(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if isinstance(self.resize, tuple):
            height, width = self.resize
        else:  # the shorter side becomes exact, the longer one is floored
            short = min(width, height)
            width, height = self.resize * width // short, self.resize * height // short
        if width * height > MAX_PIXELS:
            raise ValueError(f"An image of {image.height} x {image.width} pixels would grow to "
                             f"{height} x {width}; leave it out.")
        return image if image.size == (width, height) else image.resize((width, height), self.resample)


def rgb(image: Image.Image) -> Image.Image:
    """Transparency is laid on white, as transformers 5 does."""
    if image.mode == "RGB":
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def _centre(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Of an odd margin the smaller part is at the top and left; of odd black borders the larger part is."""
    short = [max(0, want - have) for want, have in zip((height, width), pixels.shape)]
    pixels = np.pad(pixels, [(math.ceil(n / 2), n // 2) for n in short] + [(0, 0)])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def from_config(config: Mapping[str, Any]) -> HfImageProcessor:
    """The processor that a preprocessor_config.json describes; raises ValueError for one of no fixed size."""
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIPImageProcessor"
    name = kind
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(ending)
    if name not in FIXED_SIZE:
        raise ValueError(f"The image processor {kind} is not supported; known are {', '.join(FIXED_SIZE)}.")
    default = FIXED_SIZE[name]
    config = default | {key: value for key, value in config.items() if value is not None}
    resize = _size(config["size"], exact="height" in default["size"])
    colour = tuple(int(m * 255) for m in config["image_mean"])
    return HfImageProcessor(
        pad=colour if name == "Llava" and config.get("do_pad") else None,
        resize=resize if config["do_resize"] else None,
        crop=_size(config["crop_size"], exact=True) if config["do_center_crop"] else None,
        resample=config["resample"],
        rescale=config["rescale_factor"] if config["do_rescale"] else 1.0,
        mean=tuple(config["image_mean"]) if config["do_normalize"] else (0.0,) * 3,
        std=tuple(config["image_std"]) if config["do_normalize"] else (1.0,) * 3)


def _size(size: int | Mapping[str, int], exact: bool) -> int | tuple[int, int]:
    """`size` as any version writes it; a bare number is the shorter side, or a square where `exact`."""
    if isinstance(size, int):
        return (size, size) if exact else size
    return size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
