"""Every image file is made here with Pillow, so that each expected pixel is known."""

import dataclasses
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data import images
from vlm_jax.data.images import CLIP_MEAN, CLIP_STD, Augmentation, ImageProcessor, decode, normalise, read


def encode(image: Image.Image, fmt: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def colours(height: int, width: int) -> np.ndarray:
    """Random pixels, all different."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def gradient(height: int, width: int) -> np.ndarray:
    """Smooth, so that a lossy format comes close."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, np.full_like(x, 90)], -1).astype(np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces its size and holds no pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT", b"IEND"]
    packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


# --- formats and colour modes ---


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_the_very_pixels(fmt):
    pixels = colours(5, 7)
    out = decode(encode(Image.fromarray(pixels), fmt, **({"lossless": True} if fmt == "WEBP" else {})), "x")
    assert out.dtype == np.uint8 and out.shape == (5, 7, 3)
    np.testing.assert_array_equal(out, pixels)


@pytest.mark.parametrize("fmt", ["JPEG", "WEBP"])
def test_lossy_formats_come_close(fmt):
    pixels = gradient(32, 48)
    out = decode(encode(Image.fromarray(pixels), fmt, quality=95), "x")
    assert np.abs(out.astype(int) - pixels).max() <= 8


@pytest.mark.parametrize("options", [
    dict(), dict(quality=30), dict(quality=100, subsampling=0), dict(subsampling=1), dict(progressive=True),
    dict(keep_rgb=True), dict(optimize=True), dict(restart_marker_rows=1)], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(64, 48), (33, 57)])
def test_jpeg_is_what_pillow_makes_of_it(options, mode, size):
    if mode != "RGB" and "keep_rgb" in options:
        options = {}
    pixels = gradient(*size) // 2 + colours(*size) // 2
    data = encode(Image.fromarray(pixels).convert(mode), "JPEG", **options)
    np.testing.assert_array_equal(decode(data, "x"), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_jpeg_with_harmless_disorder_is_read_all_the_same():
    """Junk between the markers: the fast decoder refuses it, Pillow reads on."""
    data = encode(Image.fromarray(gradient(24, 16)), "JPEG")
    disordered = data[:20] + b"\x00\x00\x00" + data[20:]
    np.testing.assert_array_equal(decode(disordered, "x"), decode(data, "x"))


def test_gray_one_bit_and_gray_jpeg():
    gray = np.array([[0, 100], [200, 255]], np.uint8)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(gray)), "x"), np.stack([gray] * 3, -1))
    bits = decode(encode(Image.fromarray(gray).convert("1", dither=Image.Dither.NONE)), "x")
    np.testing.assert_array_equal(bits[:, :, 0], [[0, 0], [255, 255]])
    flat = decode(encode(Image.new("L", (8, 8), 77), "JPEG"), "x")
    assert flat.shape == (8, 8, 3) and np.abs(flat.astype(int) - 77).max() <= 1


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_sixteen_bit_gray_keeps_the_high_byte(fmt):
    deep = np.array([[0x0000, 0x00FF, 0x0100], [0x7FFF, 0xC8C8, 0xFFFF]], np.uint16)
    out = decode(encode(Image.fromarray(deep), fmt), "x")
    np.testing.assert_array_equal(out, np.repeat((deep >> 8).astype(np.uint8)[:, :, None], 3, 2))


def test_palette_with_and_without_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 0, 1, 2, 3])
    image.putdata([0, 1, 2])
    np.testing.assert_array_equal(decode(encode(image), "x")[0], [[10, 20, 30], [200, 100, 0], [1, 2, 3]])
    # Entry 1 is invisible: white. Bytes give each entry its own alpha: 51 / 255 of (10, 20, 30) on white.
    clear = decode(encode(image, transparency=1), "x")
    np.testing.assert_array_equal(clear[0], [[10, 20, 30], [255, 255, 255], [1, 2, 3]])
    np.testing.assert_array_equal(decode(encode(image, "GIF", transparency=1), "x"), clear)
    partly = decode(encode(image, transparency=bytes([51, 0, 255])), "x")
    np.testing.assert_array_equal(partly[0], [[206, 208, 210], [255, 255, 255], [1, 2, 3]])


def test_alpha_is_laid_on_white():
    rgba = np.array([[[255, 0, 0, 255], [0, 0, 0, 0], [0, 100, 200, 128]]], np.uint8)
    blend = [round((c * 128 + 255 * 127) / 255) for c in (0, 100, 200)]
    for fmt in ("PNG", "TIFF"):
        out = decode(encode(Image.fromarray(rgba), fmt), "x")
        np.testing.assert_array_equal(out[0], [[255, 0, 0], [255, 255, 255], blend])
    la = Image.fromarray(np.array([[[0, 255], [0, 0], [100, 128]]], np.uint8), "LA")
    np.testing.assert_array_equal(decode(encode(la), "x")[0, :, 0], [0, 255, blend[1]])
    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    out = decode(encode(keyed, transparency=(1, 2, 3)), "x")
    np.testing.assert_array_equal(out[0], [[255, 255, 255], [4, 5, 6]])


def test_cmyk():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    np.testing.assert_array_equal(decode(encode(image, "TIFF"), "x")[3, 3], [255, 0, 0])
    assert np.abs(decode(encode(image, "JPEG", quality=95), "x")[3, 3].astype(int) - [255, 0, 0]).max() <= 3


# What a viewer does for each EXIF orientation (1 is upright).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation):
    pixels = colours(4, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for fmt, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        out = decode(encode(Image.fromarray(pixels), fmt, exif=exif, **options), "x")
        np.testing.assert_array_equal(out, UPRIGHT[orientation](pixels))
    smooth = gradient(32, 48)
    out = decode(encode(Image.fromarray(smooth), "JPEG", quality=95, exif=exif), "x")
    assert np.abs(out.astype(int) - UPRIGHT[orientation](smooth)).max() <= 8


def test_exif_turns_palette_sixteen_bit_and_alpha_images_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = np.array([[0x1000, 0x2000, 0x3000]], np.uint16)
    out = decode(encode(Image.fromarray(deep), exif=exif), "x")
    np.testing.assert_array_equal(out[:, :, 0], [[0x10], [0x20], [0x30]])
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putdata([0, 1])
    out = decode(encode(image, transparency=0, exif=exif), "x")
    np.testing.assert_array_equal(out[:, 0], [[255, 255, 255], [200, 100, 0]])


# --- what cannot be read ---


def test_empty_foreign_and_truncated_bytes_are_one_sentence_each():
    with pytest.raises(ValueError, match=r"^image cat.png is empty \(0 bytes\); replace it or leave it out$"):
        decode(b"", "cat.png")
    with pytest.raises(ValueError, match="^image cat.png is damaged or none of JPEG, PNG") as caught:
        decode(b"<html>404 Not Found</html>", "cat.png")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated_files(fmt, share):
    data = encode(Image.fromarray(colours(64, 64)), fmt)
    with pytest.raises(ValueError, match="^image a/cat.x is damaged") as caught:
        decode(data[: int(len(data) * share)], "a/cat.x")
    assert caught.value.__cause__ is not None and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged TIFF tags
def test_flipped_bytes_give_an_image_or_a_value_error():
    rng = np.random.default_rng(1)
    for fmt in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        whole = np.frombuffer(encode(Image.fromarray(gradient(32, 32)), fmt), np.uint8)
        for _ in range(40):
            data = whole.copy()
            data[rng.integers(len(data), size=4)] = rng.integers(256, size=4)
            try:
                out = decode(data.tobytes(), "x")
            except ValueError as error:
                assert str(error).startswith("image x ")
            else:
                assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3


def test_the_header_is_believed_before_anything_is_decoded():
    with pytest.raises(ValueError, match="^image big.png has more than .* pixels, Pillow's limit"):
        decode(png_header(50_000, 50_000), "big.png")
    with pytest.raises(ValueError, match="big.png has 400 x 300 pixels, over the limit of 100,000"):
        decode(png_header(400, 300), "big.png", max_pixels=100_000)
    assert decode(encode(Image.new("RGB", (400, 250))), "ok.png", max_pixels=100_000).shape == (250, 400, 3)
    assert images.MAX_PIXELS == 100_000_000


def test_thirty_two_bit_channels_are_refused():
    for dtype in (np.int32, np.float32):
        data = encode(Image.fromarray(np.ones((2, 2), dtype)), "TIFF")
        with pytest.raises(ValueError, match="^image x.tif has 32 bits a channel; save it with 8 or 16$"):
            decode(data, "x.tif")


def test_read(tmp_path):
    pixels = colours(3, 4)
    (tmp_path / "a.png").write_bytes(encode(Image.fromarray(pixels)))
    np.testing.assert_array_equal(read(tmp_path / "a.png"), pixels)
    np.testing.assert_array_equal(read(str(tmp_path / "a.png")), pixels)
    with pytest.raises(FileNotFoundError, match=r"^image .*/b\.png does not exist; check the path$"):
        read(tmp_path / "b.png")
    with pytest.raises(ValueError, match="cannot be opened"):
        read(tmp_path)
    (tmp_path / "c.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^image .*/c\.png is empty"):
        read(tmp_path / "c.png")


# --- the processor ---


@pytest.mark.parametrize("rescale", [1 / 255, 1 / 127.5, 1.0, 0.003])  # float32 division gives all but the last
def test_every_level_is_rescaled_in_float64_and_rounded_once(rescale):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    exact = np.array([[float(level) * rescale for level in row] for row in levels[..., 0].tolist()]).astype(np.float32)
    got = normalise(levels, (0.0,) * 3, (1.0,) * 3, rescale)
    np.testing.assert_array_equal(got, exact[..., None].repeat(3, axis=2))


def test_values_are_rescaled_and_normalised_as_written_on_paper():
    pixels = colours(6, 6)
    out = ImageProcessor(6)(pixels)
    assert out.dtype == np.float32 and out.shape == (6, 6, 3)
    np.testing.assert_allclose(out, (pixels / 255 - CLIP_MEAN) / CLIP_STD, rtol=1e-5, atol=1e-6)
    # In the order of the reference implementation it is exact: float64 rescale, then float32.
    scaled = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
    np.testing.assert_array_equal(out, (scaled - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD))
    half = ImageProcessor(6, mean=(0.5,) * 3, std=(0.5,) * 3)(np.array([[[0, 255, 51]] * 6] * 6, np.uint8))
    np.testing.assert_allclose(half[2, 3], [-1, 1, -0.6], atol=1e-6)


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_a_size_that_fits_is_left_alone(resize):
    pixels = colours(8, 8)
    np.testing.assert_array_equal(ImageProcessor(8, resize).fit(pixels), pixels)


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_squash_is_one_resize(resample):
    pixels, mode = colours(20, 50), getattr(Image.Resampling, resample.upper())
    out = ImageProcessor((12, 16), "squash", resample).fit(pixels)
    np.testing.assert_array_equal(out, np.asarray(Image.fromarray(pixels).resize((16, 12), mode)))


def test_crop_takes_the_middle():
    """Only columns are cut, nothing is resized: 5 too many, so 2 go at the left and 3 at the right."""
    pixels = colours(4, 9)
    np.testing.assert_array_equal(ImageProcessor(4, "crop").fit(pixels), pixels[:, 2:6])
    tall = pixels.swapaxes(0, 1)
    np.testing.assert_array_equal(ImageProcessor(4, "crop").fit(tall), tall[2:6])


def test_crop_floors_the_longer_side():
    pixels = colours(97, 173)  # 173 * 224 / 97 = 399.5 becomes 399, and (399 - 224) // 2 = 87
    resized = np.asarray(Image.fromarray(pixels).resize((399, 224), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(ImageProcessor(224, "crop").fit(pixels), resized[:, 87:311])


def test_crop_to_a_rectangle_covers_it():
    pixels = colours(30, 30)
    resized = np.asarray(Image.fromarray(pixels).resize((20, 20), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(ImageProcessor((10, 20), "crop").fit(pixels), resized[5:15])


def test_pad_centres_on_the_mean_colour():
    pixels = colours(3, 6)
    out = ImageProcessor(6, "pad").fit(pixels)
    np.testing.assert_array_equal(out[1:4], pixels)  # of 3 rows to add, 1 goes above: (6 - 3) // 2
    np.testing.assert_array_equal(np.unique(out[[0, 4, 5]].reshape(-1, 3), axis=0), [[122, 116, 104]])
    tall = ImageProcessor(6, "pad").fit(pixels.swapaxes(0, 1))
    np.testing.assert_array_equal(tall[:, 1:4], pixels.swapaxes(0, 1))
    # The mean colour is int(mean * 255), which normalises to about zero.
    assert np.abs(ImageProcessor(6, "pad")(pixels)[0]).max() < 0.02


def test_pad_to_a_rectangle_takes_its_shape():
    pixels = colours(4, 4)
    out = ImageProcessor((4, 8), "pad").fit(pixels)
    np.testing.assert_array_equal(out[:, 2:6], pixels)
    assert (out[:, [0, 1, 6, 7]] == [122, 116, 104]).all()


def test_a_strip_of_pixels_is_scaled_or_refused():
    assert ImageProcessor(16, "crop")(colours(1, 50)).shape == (16, 16, 3)
    strip = np.zeros((1, 90_000, 3), np.uint8)
    assert ImageProcessor(16, "squash")(strip).shape == (16, 16, 3)
    for resize in ("crop", "pad"):
        with pytest.raises(ValueError, match=f"1 x 90000 pixels is too thin for resize='{resize}'"):
            ImageProcessor(224, resize).fit(strip)


def test_only_uint8_rgb_is_taken():
    for wrong in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8),
                  np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="an image must be uint8 H x W x 3"):
            ImageProcessor(4)(wrong)


def test_description_survives_json():
    half = (0.5, 0.5, 0.5)
    for processor in (ImageProcessor(224), ImageProcessor((32, 48), "pad", "bilinear", half, half)):
        again = ImageProcessor(**json.loads(json.dumps(dataclasses.asdict(processor))))
        assert again == processor and hash(again) == hash(processor)
    assert ImageProcessor(224).size == (224, 224)


@pytest.mark.parametrize("change, message", [
    ({"size": 0}, "image size must be one or two positive integers, not 0"),
    ({"size": (1, 2, 3)}, "image size must be"),
    ({"size": 22.5}, "image size must be"),
    ({"resize": "stretch"}, "image resize must be one of squash, crop, pad, not 'stretch'"),
    ({"resample": "lanczos"}, "image resample must be one of bicubic, bilinear, not 'lanczos'"),
    ({"std": (1, 0, 1)}, "image mean and std must be three numbers"),
    ({"mean": (0.5,)}, "image mean and std must be three numbers"),
    ({"resize": "pad", "mean": (0.5, 0.5, 127.5)}, "'pad' fills with the mean, which must be 0..1"),
])
def test_a_description_that_cannot_be_honoured_raises(change, message):
    with pytest.raises(ValueError, match=message):
        ImageProcessor(**{"size": 8, **change})


# --- augmentation ---


def test_augmentation_is_the_identity_by_default_and_draws_nothing():
    rng, pixels = np.random.default_rng(0), colours(5, 6)
    np.testing.assert_array_equal(Augmentation()(pixels, rng), pixels)
    assert rng.random() == np.random.default_rng(0).random()


def test_flip_mirrors_half_of_the_images():
    pixels, flip = colours(2, 3), Augmentation(flip=True)
    outs = [flip(pixels, np.random.default_rng(seed)) for seed in range(200)]
    mirrored = [np.array_equal(out, pixels[:, ::-1]) for out in outs]
    assert all(m or np.array_equal(out, pixels) for m, out in zip(mirrored, outs))
    assert 70 <= sum(mirrored) <= 130


def test_crops_are_boxes_of_the_asked_area_and_shape():
    y, x = np.mgrid[:80, :100].astype(np.uint8)
    where = np.stack([y, x, y], -1)  # each pixel tells its place
    crop, shares, shapes = Augmentation(crop_scale=(0.2, 0.5)), [], []
    for seed in range(200):
        out = crop(where, np.random.default_rng(seed))
        h, w = out.shape[:2]
        top, left = out[0, 0, 0], out[0, 0, 1]
        np.testing.assert_array_equal(out, where[top : top + h, left : left + w])
        shares.append(h * w / 8000)
        shapes.append(w / h)
    assert 0.19 < min(shares) < 0.23 and 0.47 < max(shares) < 0.51
    assert 0.73 < min(shapes) < 0.78 and 1.28 < max(shapes) < 1.36
    same = [crop(where, np.random.default_rng(7)) for _ in range(2)]
    np.testing.assert_array_equal(*same)


def test_a_shape_with_no_such_box_falls_back_to_the_centre():
    pixels = colours(12, 100)  # 90 % of the area would have to be 12 high and 90 wide: not within 4/3
    out = Augmentation(crop_scale=(0.9, 0.95))(pixels, np.random.default_rng(0))
    np.testing.assert_array_equal(out, pixels[:, 42:58])  # 12 x 16


@pytest.mark.parametrize("scale", [(0, 1), (0.5, 0.2), (0.5, 1.5)])
def test_crop_scale_must_be_a_range_of_shares(scale):
    with pytest.raises(ValueError, match="crop_scale must be two shares"):
        Augmentation(crop_scale=scale)
