"""What image processors have in common: their interface, and the steps that several of them take."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Mapping, Sequence

import numpy as np
from PIL import Image

from vlm_jax.data.images import MAX_PIXELS, normalise
from vlm_jax.models.tokens import Layout

Picture = Image.Image | np.ndarray  # an array is uint8 H x W x 3
Arrays = dict[str, np.ndarray]
Config = Mapping[str, Any]  # preprocessor_config.json, silent keys filled with the class' own values


class HfImageProcessor(abc.ABC):
    """Pictures to the arrays that a model takes, under the names of transformers' processor of the same kind.

    layout: how many tiles a picture becomes, and in which grid; a tile counts as one token here. The prompt asks
    `layout.grid(*size(picture))`, and `layout.tiles`, how many marks to write.
    prompt_only: outputs that speak of the prompt, and that models do not take.
    """

    layout: Layout
    prompt_only: ClassVar[tuple[str, ...]] = ()

    def __call__(self, images: Sequence[Picture] | Sequence[Sequence[Picture]]) -> Arrays:
        """`images` of a batch in reading order, or a list of them for each prompt.

        Raises ValueError where there is none, and for a strip so thin that it would outgrow MAX_PIXELS.
        """
        nested = any(isinstance(item, (list, tuple)) for item in images)
        prompts = [[rgb(image) for image in row] for row in (images if nested else self.prompts(images))]
        if not any(prompts):
            raise ValueError("There are no images; give one or more.")
        return self.batch(prompts)

    def prompts(self, images: Sequence[Picture]) -> list[Sequence[Picture]]:
        """How images without prompts are taken: each is one of its own."""
        return [[image] for image in images]

    @abc.abstractmethod
    def batch(self, prompts: list[list[Image.Image]]) -> Arrays:
        """The arrays of RGB pictures, one list a prompt."""

    def model_layout(self, layout: Layout | None, tokens: int) -> Layout | None:
        """A model's layout with what only the processor's file says; `tokens` are those of one tile."""
        return layout


def rgb(image: Picture) -> Image.Image:
    """Transparency is laid on white, as transformers 5 does. Raises ValueError for an array that is no picture."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"An image is one of PIL's or uint8 [height, width, 3], not {image.dtype} {image.shape}.")
        image = Image.fromarray(image)
    if image.mode == "RGB":
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def size(image: Picture) -> tuple[int, int]:
    """(width, height) in pixels."""
    return image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])


def resized(image: Image.Image, height: int, width: int, resample: int) -> Image.Image:
    """`resample` is Pillow's number: 1 Lanczos, 2 bilinear, 3 bicubic. Raises ValueError above MAX_PIXELS."""
    _bound(image, height, width)
    return image if image.size == (width, height) else image.resize((width, height), resample)


def centred(image: Image.Image, height: int, width: int, colour: tuple[int, ...] = (0, 0, 0)) -> Image.Image:
    """In the middle of a canvas; of an odd margin the smaller part is at the top and left. Raises as `resized` does."""
    _bound(image, height, width)
    canvas = Image.new("RGB", (width, height), colour)
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def _bound(image: Image.Image, height: int, width: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"An image of {image.height} x {image.width} pixels would grow to {height} x {width}; "
                         f"leave it out.")


def cut(image: Image.Image, height: int, width: int) -> list[Image.Image]:
    """Boxes of this size, row by row; what lies over the right and lower edges is left out."""
    return [image.crop((left, top, min(left + width, image.width), min(top + height, image.height)))
            for top in range(0, image.height, height) for left in range(0, image.width, width)]


@dataclasses.dataclass(frozen=True)
class Values:
    """uint8 to float32: times `rescale`, minus `mean`, by `std`, these two per channel; uint8 where nothing is done."""

    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, config: Config) -> Values:
        return cls(
            rescale=config["rescale_factor"] if config["do_rescale"] else 1.0,
            mean=tuple(config["image_mean"]) if config["do_normalize"] else (0.0,) * 3,
            std=tuple(config["image_std"]) if config["do_normalize"] else (1.0,) * 3)

    def __call__(self, images: Sequence[Picture]) -> np.ndarray:
        """[n, 3, height, width] of images of one size; raises ValueError for several sizes."""
        if len({size(image) for image in images}) > 1:
            raise ValueError("preprocessor_config.json neither resizes nor crops; give images of one size.")
        pixels = [np.asarray(image) for image in images]
        if self != Values(1.0, (0.0,) * 3, (1.0,) * 3):
            pixels = [normalise(image, self.mean, self.std, self.rescale) for image in pixels]
        return np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2))


def joined(images: Sequence[np.ndarray]) -> np.ndarray:
    """[n, longest, ...] of arrays [length, ...]; what is short is filled with zeros."""
    longest = max(len(image) for image in images)
    return np.stack([np.pad(image, [(0, longest - len(image))] + [(0, 0)] * (image.ndim - 1)) for image in images])


def sides(size: int | Mapping[str, int], square: bool = False) -> int | tuple[int, int]:
    """What `size` asks for, as any version writes it: the shorter side, or (height, width).

    A bare number is the shorter side, or a square where the class knows no other. Raises ValueError for anything else.
    """
    if isinstance(size, int):
        return (size, size) if square else size
    if "shortest_edge" not in size and not {"height", "width"} <= set(size):
        raise ValueError(f"preprocessor_config.json has a size of {dict(size)}; "
                         f"give shortest_edge, or height and width.")
    return size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])


# What most of transformers' classes fill in where the file is silent.
STEPS: Config = dict(do_resize=True, resample=3, do_rescale=True, rescale_factor=1 / 255, do_normalize=True)
HALF = (0.5,) * 3
