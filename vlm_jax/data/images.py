"""Images: bytes to an RGB array, the preprocessing a model carries with it, and training augmentation.

An image is always an H x W x 3 uint8 array in RGB, turned upright; a processed image is the float32 array a
vision tower reads. Everything here is a pure function of its arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import os
from typing import Sequence

import numpy as np
import simplejpeg
from etils import epath
from PIL import ExifTags, Image, ImageOps

MAX_PIXELS = 100_000_000  # 300 MB as uint8 RGB; a header may promise any number
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # not all of Pillow's: it runs Ghostscript for EPS

ORIENTATION = ExifTags.Base.Orientation

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's training images, in units of 1 = white
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_RESIZES = ("squash", "crop", "pad")
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def read(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The image file at `path` (local or remote) as H x W x 3 uint8.

    Raises FileNotFoundError where there is no file, ValueError as `decode` does.
    """
    return decode(read_bytes(path), str(path), max_pixels)


def read_bytes(path: str | os.PathLike) -> bytes:
    """The image file at `path` as it lies there; raises as `read` does."""
    try:
        return epath.Path(path).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"image {path} does not exist; check the path") from error
    except Exception as error:  # a folder, no permission, or whatever a bucket's client raises
        raise ValueError(f"image {path} cannot be opened ({error}); check path and permissions") from error


def decode(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An encoded image as H x W x 3 uint8, upright by its EXIF tag, transparency laid on white.

    JPEG, PNG, WebP, GIF, BMP and TIFF (their first frame), up to 16 bits a channel, of which the high byte is
    kept. `name` is what errors call the image. Raises ValueError if the bytes are empty,
    damaged, truncated or of another format, or if the header announces more than `max_pixels` pixels.
    """
    if not data:
        raise ValueError(f"image {name} is empty (0 bytes); replace it or leave it out")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header only
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise ValueError(f"image {name} has more than {limit:,} pixels, Pillow's limit; shrink it") from error
    except Exception as error:  # header parsers raise whatever the damage leads to
        known = ", ".join(FORMATS)
        raise ValueError(f"image {name} is damaged or none of {known}; convert it or leave it out") from error
    if image.width * image.height > max_pixels:
        raise ValueError(f"image {name} has {image.width} x {image.height} pixels, over the limit of "
                         f"{max_pixels:,}; shrink it or leave it out")
    if image.mode in ("I", "F"):  # no range is agreed for them: any mapping to 0..255 would be a guess
        raise ValueError(f"image {name} has 32 bits a channel; save it with 8 or 16")
    try:
        return _pixels(image, data)
    except Exception as error:  # as above: OSError, SyntaxError, zlib.error, struct.error, ...
        raise ValueError(f"image {name} is damaged or truncated ({error}); replace it") from error


def _pixels(image: Image.Image, data: bytes) -> np.ndarray:
    """The opened image, upright."""
    if image.format == "JPEG" and image.mode in ("RGB", "L") and image.getexif().get(ORIENTATION, 1) == 1:
        try:
            return simplejpeg.decode_jpeg(data)  # Pillow's pixels, bit for bit, in three quarters of its time
        except ValueError:
            pass  # it stops at the first thing out of order; whether the file can still be read, Pillow decides
    ImageOps.exif_transpose(image, in_place=True)
    return _rgb(image)


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        # So Pillow reads 16-bit colour; what it makes of 16-bit gray (clip or scale) depends on its version.
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.has_transparency_data:  # an alpha channel, or a transparent palette entry or colour
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


@functools.lru_cache
def _divisor(rescale: float) -> np.float32 | None:
    """What 0 to 255 may be divided by in float32 to give the very values that `rescale` gives in float64, at half the
    cost; None where that is not so (for 1/255 it is)."""
    levels, divisor = np.arange(256), np.float32(1 / rescale)
    same = np.array_equal(levels.astype(np.float32) / divisor, (levels * np.float64(rescale)).astype(np.float32))
    return divisor if same else None


def normalise(image: np.ndarray, mean: Sequence[float], std: Sequence[float], rescale: float) -> np.ndarray:
    """(image * rescale - mean) / std, uint8 H x W x 3 to float32."""
    height, width, channels = image.shape
    mean, std = (np.tile(np.float32(values), width) for values in (mean, std))  # whole rows: NumPy is fast on long ones
    values, divisor = image.reshape(height, -1).astype(np.float32), _divisor(rescale)
    # Rescaled in float64 and rounded once, as transformers does; what follows is in float32.
    if divisor is None:
        values = (values * np.float64(rescale)).astype(np.float32)
    else:
        values /= divisor
    values -= mean
    values /= std
    return values.reshape(image.shape)


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """How a model wants its images: what is saved beside its weights, and read by training, evals and chat.

    `size`: (height, width) in pixels; an integer means a square.
    `resize`: "squash" to the size, whatever the aspect ratio (SigLIP); "crop": scale until the shorter side
        fits, then cut out the middle (CLIP); "pad": lay on a canvas of the right shape in the mean colour,
        then scale (LLaVA).
    `resample`: "bicubic" | "bilinear", Pillow's antialiased filters on uint8.
    `mean`, `std`: per channel, after `rescale`.

    Lists are taken for tuples, so `ImageProcessor(**json.loads(json.dumps(dataclasses.asdict(p)))) == p`.
    Raises ValueError for a field that cannot be honoured.
    """

    size: int | tuple[int, int]
    resize: str = "squash"
    resample: str = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    rescale: float = 1 / 255

    def __post_init__(self):
        size = tuple(self.size) if isinstance(self.size, (tuple, list)) else (self.size,)
        size = size * 2 if len(size) == 1 else size  # the command line makes (96,) of 96
        if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
            raise ValueError(f"image size must be one or two positive integers, not {self.size!r}")
        if self.resize not in _RESIZES:
            raise ValueError(f"image resize must be one of {', '.join(_RESIZES)}, not {self.resize!r}")
        if self.resample not in _FILTERS:
            raise ValueError(f"image resample must be one of {', '.join(_FILTERS)}, not {self.resample!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"image mean and std must be three numbers each, std above 0, "
                             f"not {self.mean!r} and {self.std!r}")
        if self.resize == "pad" and not all(0 <= m <= 1 for m in self.mean):
            raise ValueError(f"image resize 'pad' fills with the mean, which must be 0..1, not {self.mean!r}")
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 H x W x 3 to float32 height x width x 3. Raises ValueError as `fit` does."""
        return normalise(self.fit(image), self.mean, self.std, self.rescale)

    def fit(self, image: np.ndarray) -> np.ndarray:
        """The geometry alone: uint8 H x W x 3 to uint8 height x width x 3; the right size is left untouched.

        Raises ValueError for another dtype or shape, or a strip so thin that it would outgrow MAX_PIXELS.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"an image must be uint8 H x W x 3, not {image.dtype} {image.shape}")
        height, width = self.size
        if self.resize == "pad":
            image = self._letterbox(image)
        if self.resize != "crop":
            return self._scale(image, height, width)
        h, w = image.shape[:2]
        if h * width <= w * height:  # wider than the target: the height becomes exact, the width is floored
            image = self._scale(image, height, w * height // h)
        else:
            image = self._scale(image, h * width // w, width)
        # Of an odd margin the smaller part is at the top and left: transformers floors (torchvision rounds).
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return image[top : top + height, left : left + width]

    def _letterbox(self, image: np.ndarray) -> np.ndarray:
        """LLaVA's expand2square, for any shape: the smallest canvas that holds the image."""
        (h, w), (height, width) = image.shape[:2], self.size
        canvas_h, canvas_w = max(h, math.ceil(w * height / width)), max(w, math.ceil(h * width / height))
        self._check_growth(image, canvas_h, canvas_w)
        canvas = np.empty((canvas_h, canvas_w, 3), np.uint8)
        canvas[:] = [int(m * 255) for m in self.mean]
        top, left = (canvas_h - h) // 2, (canvas_w - w) // 2
        canvas[top : top + h, left : left + w] = image
        return canvas

    def _scale(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        if image.shape[:2] == (height, width):
            return image
        self._check_growth(image, height, width)
        return np.asarray(Image.fromarray(image).resize((width, height), _FILTERS[self.resample]))

    def _check_growth(self, image: np.ndarray, height: int, width: int) -> None:
        h, w = image.shape[:2]
        if height * width > MAX_PIXELS:  # a strip of 1 x 90,000 pixels is small, but not once it is 224 high
            raise ValueError(f"an image of {h} x {w} pixels is too thin for resize={self.resize!r} (it would "
                             f"grow to {height} x {width}); leave it out or use 'squash'")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Training augmentation, applied before the processor; the default changes nothing.

    `crop_scale`: cut out a box whose share of the area is uniform in this range and whose aspect ratio is
        log-uniform in 3/4 .. 4/3: torchvision's RandomResizedCrop, once a "squash" processor follows.
        (1, 1) is off.
    `flip`: mirror every second image, by chance. Wrong for data with writing or with "left of" in it.
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False

    def __post_init__(self):
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must be two shares, 0 < low <= high <= 1, not {self.crop_scale!r}")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 H x W x 3 to uint8 H' x W' x 3: a function of the image and the generator's state."""
        if tuple(self.crop_scale) != (1.0, 1.0):
            top, left, h, w = _crop_box(image.shape[0], image.shape[1], self.crop_scale, rng)
            image = image[top : top + h, left : left + w]
        if self.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        return np.ascontiguousarray(image)


def _crop_box(height: int, width: int, scale: tuple[float, float],
              rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of RandomResizedCrop: ten tries, then the largest centred box."""
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = min(height, round(width / low)), min(width, round(height * high))
    return (height - h) // 2, (width - w) // 2, h, w
