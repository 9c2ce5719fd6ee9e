"""What a published folder's files say together: the model's sizes, and how its processor cuts images."""

import json
import pathlib

import pytest

import vlm_jax
from vlm_jax.models.tokens import AspectTiles, PanAndScan

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def opened(folder, name="llava", **preprocessor):
    """A fixture as if its images were cut by this processor."""
    for file in (FIXTURES / name).iterdir():
        (folder / file.name).symlink_to(file)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return vlm_jax.load_pretrained(folder)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Visual tokens of one tile."""
    pt = opened(tmp_path_factory.mktemp("plain"))
    assert pt.config.layout is None
    return vlm_jax.num_visual_tokens(pt, 640, 480)


def test_a_model_counts_the_tiles_that_its_processor_makes(tmp_path, tokens):
    """640 x 480 pixels are 3 x 4 tiles and a thumbnail, or of at most six 2 x 3 and one."""
    pt = opened(tmp_path, image_processor_type="GotOcr2ImageProcessorFast", crop_to_patches=True,
                size={"height": 448, "width": 448}, max_patches=12)
    assert pt.config.layout == AspectTiles((448, 448), tokens, 1, 12)
    assert vlm_jax.num_visual_tokens(pt, 640, 480) == 13 * tokens
    assert vlm_jax.num_visual_tokens(pt, 100, 100) == tokens


def test_crops_count_where_the_processor_makes_them(tmp_path, tokens):
    pt = opened(tmp_path, image_processor_type="Gemma3ImageProcessor", do_pan_and_scan=True)
    assert pt.config.layout == PanAndScan(tokens, 256, 4, 1.2)
    assert [vlm_jax.num_visual_tokens(pt, *size) for size in [(1200, 400), (400, 400)]] == [4 * tokens, tokens]


def test_a_processor_of_one_size_leaves_the_layout_alone(tmp_path):
    assert opened(tmp_path, image_processor_type="CLIPImageProcessor").config.layout is None


def test_eyes_for_any_aspect_ratio_take_as_many_patches_as_the_processor_gives(tmp_path):
    """3 x 5 patches of 16 places at most, or 4 x 6 of 24."""
    (tmp_path / "plain").mkdir(), (tmp_path / "more").mkdir()
    pt = opened(tmp_path / "plain", "siglip2")
    patch, places = pt.config.vision.patch_size, pt.config.vision.num_patches
    assert (vlm_jax.num_visual_tokens(pt, 500, 300), places) == (15, 16)
    pt = opened(tmp_path / "more", "siglip2", image_processor_type="Siglip2ImageProcessor", patch_size=patch,
                max_num_patches=24)
    assert vlm_jax.num_visual_tokens(pt, 600, 400) == 24
