"""Tiles dealt out to rows, and which visual token each text place shows, against the definition written out."""

import types

import numpy as np
import pytest

from vlm_jax.inference.inputs import anyres, row_columns
from vlm_jax.models.tokens import AnyRes

RNG = np.random.default_rng(0)
TILES = RNG.normal(size=(3, 5, 3, 4, 4)).astype(np.float32)
NEXT = types.SimpleNamespace(layout=AnyRes(4, 2, ((4, 8), (8, 4), (8, 8))))
MANY = types.SimpleNamespace(layout=AnyRes(4, 2, ((4, 8), (8, 4), (8, 8)), max_tiles=1))
SIZES = [(10, 20), (7, 7), (30, 14)]  # height, width: 1 x 2, 2 x 2 and 2 x 1 tiles beside the whole
LENGTHS = [4 + 2 * 5, 4 + 4 * 5, 4 + 4 * 3]


def rows(*counts, width=60):
    is_image = np.zeros((len(counts), width), bool)
    for row, count in zip(is_image, counts):
        row[3 : 3 + count] = True
    return is_image


def test_the_tokens_of_next_are_the_whole_image_then_lines_of_the_tiles():
    inputs = dict(pixel_values=TILES, image_sizes=np.array(SIZES))
    fields, tiles = anyres.arrange(NEXT, inputs, rows(LENGTHS[0] + LENGTHS[1], LENGTHS[2]))
    assert fields["image_slots"].tolist() == [3 + 5, 3] and tiles.shape == (2, 8, 4, 4, 3)
    np.testing.assert_array_equal(tiles[0, 3:], TILES[1].transpose(0, 2, 3, 1))
    newline = 8 * 4
    first = [0, 1, 2, 3, *(4, 5, 8, 9, newline), *(6, 7, 10, 11, newline)]
    second = [0, 1, 2, 3, *(4, 5, 8, 9, -1), *(6, 7, 10, 11, -1), *(12, 13, 16, 17, -1), *(14, 15, 18, 19, -1)]
    second = [newline if i < 0 else i + 12 for i in second]
    assert fields["image_index"][0, 3 : 3 + 38].tolist() == first + second
    third = [0, 1, 2, 3, *(4, 5, newline), *(6, 7, newline), *(8, 9, newline), *(10, 11, newline)]
    assert fields["image_index"][1, 3:19].tolist() == third and (fields["image_index"][1, 19:] == -1).all()


def test_several_images_of_onevision_are_not_tiled():
    inputs = dict(pixel_values=TILES, image_sizes=np.array(SIZES), batch_num_images=np.array([2, 1]))
    count = MANY.layout.count(14, 30)
    fields, tiles = anyres.arrange(MANY, inputs, rows(5 + 5, count))
    assert fields["image_slots"].tolist() == [2, 3] and fields["image_index"].shape == (2, 60, 4)
    assert fields["image_index"][0, 3:13, 0].tolist() == [0, 1, 2, 3, 12, 4, 5, 6, 7, 12]
    np.testing.assert_allclose(fields["image_weight"][1, 3 : 3 + count].sum(-1), 1, rtol=1e-6)
    assert not fields["image_weight"][:, :3].any()


def test_a_row_without_images_has_no_count():
    """transformers' image processor takes lists that are not empty; its model never looks at rows."""
    inputs = dict(pixel_values=TILES, image_sizes=np.array(SIZES), batch_num_images=np.array([2, 1]))
    fields, _ = anyres.arrange(MANY, inputs, rows(0, 5 + 5, 0, MANY.layout.count(14, 30)))
    assert fields["image_slots"].tolist() == [0, 2, 0, 3]
    assert (fields["image_index"][[0, 2]] == -1).all() and fields["image_index"][1, 3, 0] == 0


@pytest.mark.parametrize("change, counts, sentence", [
    (dict(image_sizes=None), (38, 16), "image_sizes are missing"),
    (dict(), (37, 16), "Row 0 has 37 image tokens; its images take 38"),
    (dict(), (14, 24), "There are 3 images, 1 more than input_ids have places for"),
    (dict(pixel_values=TILES[:, :2]), (38, 16), r"the 3 images have \[3, 5, 3\] tiles"),
    (dict(batch_num_images=np.array([2])), (38, 16), r"batch_num_images are \[2\] for 3 images"),
])
def test_what_does_not_fit_is_said(change, counts, sentence):
    inputs = {"pixel_values": TILES, "image_sizes": np.array(SIZES)} | change
    inputs = {name: value for name, value in inputs.items() if value is not None}
    with pytest.raises(ValueError, match=sentence):
        anyres.arrange(NEXT, inputs, rows(*counts))


IDEFICS = types.SimpleNamespace(vision=types.SimpleNamespace(patch_size=1), connector=types.SimpleNamespace(factor=2))


def test_tiles_of_zeros_are_left_out_and_masks_become_those_of_patches():
    pixels = TILES[:2].copy()
    pixels[0, 1:] = pixels[1, 3:] = 0
    mask = np.ones((2, 5, 4, 4), np.int64)
    mask[1, 2, 2:] = 0
    fields, tiles = row_columns.arrange(
        IDEFICS, dict(pixel_values=pixels, pixel_attention_mask=mask), rows(4, 12))
    assert fields["image_slots"].tolist() == [1, 3] and tiles["pixels"].shape == (2, 3, 4, 4, 3)
    np.testing.assert_array_equal(tiles["pixels"][1], pixels[1, :3].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(tiles["mask"][1], mask[1, :3] > 0)
    assert fields["image_index"][1, 3:15].tolist() == list(range(12))
    with pytest.raises(ValueError, match="Row 1 has 8 image tokens; its 3 tiles take 4 each"):
        row_columns.arrange(IDEFICS, dict(pixel_values=pixels), rows(4, 8))
