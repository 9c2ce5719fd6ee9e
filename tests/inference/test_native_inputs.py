"""Images of any size into rows: positions on three axes, the order of patches, and what does not fit."""

import jax
import numpy as np
import pytest

from vlm_jax.data.token_ids import TokenIds
from vlm_jax.inference import language
from vlm_jax.inference.inputs.native import patch_positions, rope_axes
from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.model import ModelConfig, init_params
from vlm_jax.models.native_vit import NativeViTConfig
from vlm_jax.models.tokens import Native
from vlm_jax.models.transformer import TransformerConfig

IMAGE, IDS = 9, TokenIds(image=9)
SIZES = dict(width=16, heads=2, mlp_width=16, rope_theta=100.0)
EYES = TransformerConfig(layers=1, **SIZES, rope_sections=(2, 2), rope_axial=True)
BLOCKS = TransformerConfig(layers=2, **SIZES, norm="rms", rope_sections=(2, 1, 1))
CONFIG = ModelConfig(
    vision=NativeViTConfig(patch_size=2, temporal_patch_size=1, merge=2, transformer=EYES),
    connector=ConnectorConfig("mlp", hidden=64), decoder=DecoderConfig(20, BLOCKS), layout=Native(2, 2))
GRIDS = np.array([[1, 4, 6], [1, 2, 2], [1, 4, 2]])  # 6, 1 and 2 tokens
ROWS = [[1, 2, *[IMAGE] * 6, 3, 4], [0, 0, 5, IMAGE, 6, IMAGE, IMAGE, 7, 8, 1], [0, 0, 0, 0, 0, 0, 0, 1, 2, 3]]


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda rng: init_params(CONFIG, rng))(jax.random.key(0))


def inputs(**changes):
    tokens = np.array(ROWS)
    pixels = np.random.default_rng(0).normal(size=(36, 12)).astype(np.float32)
    return {"input_ids": tokens, "attention_mask": np.array([[1] * 10, [0] * 2 + [1] * 8, [0] * 7 + [1] * 3]),
            "pixel_values": pixels, "image_grid_thw": GRIDS} | changes


def test_positions_of_the_paper():
    """Two text tokens, an image of 2 x 3 tokens, a text token, two frames of 1 x 2, two text tokens: an image takes as
    many positions as its longer side has tokens."""
    is_image = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0], bool)
    axes = rope_axes(is_image, [(1, 4, 6), (2, 2, 4)], merge=2).tolist()
    image = [[2, 2 + row, 2 + column] for row in range(2) for column in range(3)]
    frames = [[6 + frame, 6, 6 + column] for frame in range(2) for column in range(2)]
    assert axes == [[0] * 3, [1] * 3, *image, [5] * 3, *frames, [8] * 3, [9] * 3]


@pytest.mark.parametrize("grid, merge", [((1, 4, 6), 2), ((2, 6, 3), 3), ((1, 2, 3), 1)])
def test_patches_come_cell_by_cell(grid, merge):
    frames, rows, columns = grid
    wanted = [[row + i, column + j] for _ in range(frames) for row in range(0, rows, merge)
              for column in range(0, columns, merge) for i in range(merge) for j in range(merge)]
    assert patch_positions(grid, merge).tolist() == wanted


def test_outputs_name_positions_and_leave_padding_out(params):
    out = language.outputs(CONFIG, params, inputs(), IDS)
    assert out["position_ids"].shape == (3, 3, 10) and out["image_features"].shape == (9, 16)
    assert out["patch_embed"].shape == (36, 16)
    assert out["position_ids"][:, 1].tolist() == [
        [0, 0, 0, 1, 2, 3, 3, 5, 6, 7], [0, 0, 0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 1, 2, 3, 3, 5, 6, 7]]
    assert out["rope_deltas"].tolist() == [[-3], [0], [0]]


def test_a_row_is_the_same_alone_and_padded_on_either_side(params):
    together = language.outputs(CONFIG, params, inputs(), IDS)
    row = inputs(input_ids=np.array([ROWS[1][2:] + [0] * 3]), attention_mask=np.array([[1] * 8 + [0] * 3]),
                 pixel_values=inputs()["pixel_values"][24:], image_grid_thw=GRIDS[1:])
    alone = language.outputs(CONFIG, params, row, IDS)
    np.testing.assert_allclose(alone["logits"][0, :8], together["logits"][1, 2:], atol=1e-5)
    np.testing.assert_allclose(alone["image_features"], together["image_features"][6:], atol=1e-5)


def test_decoding_goes_on_from_the_largest_position(params):
    """Each greedy token is what one forward pass over everything before it says."""
    given = inputs()
    new = language.generate(CONFIG, params, given, IDS, max_new_tokens=3)
    assert IMAGE not in new  # it would ask for another image
    for step in range(3):
        logits = language.outputs(CONFIG, params, given, IDS)["logits"][:, -1]
        assert new[:, step].tolist() == logits.argmax(-1).tolist()
        given["input_ids"] = np.concatenate([given["input_ids"], new[:, step : step + 1]], axis=1)
        given["attention_mask"] = np.pad(given["attention_mask"], ((0, 0), (0, 1)), constant_values=1)


@pytest.mark.parametrize("changes, sentence", [
    ({"image_grid_thw": None}, "image_grid_thw is missing"),
    ({"image_grid_thw": GRIDS[:, 1:]}, r"image_grid_thw must be \[images, 3\]"),
    ({"image_grid_thw": np.array([[1, 3, 8], [1, 2, 2], [1, 4, 2]])}, "rows and columns divisible by 2"),
    ({"image_grid_thw": GRIDS[:2]}, r"pixel_values are \(36, 12\); image_grid_thw .* asks for \(28, 12\)"),
    ({"image_grid_thw": GRIDS[[1, 0, 2]]}, "Row 0 has 6 image tokens; its images .* take 7"),
    ({"mm_token_type_ids": np.full((3, 10), 2)}, "only images are supported"),
    ({"pixel_values_videos": np.zeros((4, 12))}, "does not take pixel_values_videos"),
])
def test_inputs_that_do_not_fit_are_one_sentence(params, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        language.outputs(CONFIG, params, inputs(**changes), IDS)


def test_an_image_without_places_is_an_error(params):
    rows = [row if b else [1] * 10 for b, row in enumerate(ROWS)]
    given = inputs(input_ids=np.array(rows), image_grid_thw=GRIDS[[1, 2, 0]])
    with pytest.raises(ValueError, match="1 images more than input_ids have places for"):
        language.outputs(CONFIG, params, given, IDS)
