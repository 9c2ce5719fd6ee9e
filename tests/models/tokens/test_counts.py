"""The token count, stated as plain numbers; test_vit.py holds it against what the encoder returns."""

import types

import pytest

from vlm_jax.models.tokens import num_visual_tokens, patch_grid


def vision(image_size, patch_size):
    return types.SimpleNamespace(image_size=image_size, patch_size=patch_size)


@pytest.mark.parametrize("size, patch, tokens", [(336, 14, 576), (224, 16, 196), (64, 16, 16), (64, 64, 1)])
def test_published_sizes(size, patch, tokens):
    assert num_visual_tokens(vision(size, patch), size, size) == tokens


def test_the_image_is_resized_so_its_own_size_does_not_count():
    assert {num_visual_tokens(vision(336, 14), *size) for size in [(1, 1), (640, 480), (336, 336)]} == {576}


def test_a_vision_config_a_model_config_and_a_loaded_model_agree():
    model = types.SimpleNamespace(vision=vision(224, 16), decoder=None)
    assert num_visual_tokens(model, 224, 224) == 196
    assert num_visual_tokens(types.SimpleNamespace(config=model), 224, 224) == 196


def test_patches_must_tile_the_image():
    assert patch_grid(48, 16) == (3, 3)
    with pytest.raises(ValueError, match="size 225 is not divisible by patch_size 16; use 224 or 240 pixels"):
        num_visual_tokens(vision(225, 16), 225, 225)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_an_image_without_pixels_is_refused(size):
    with pytest.raises(ValueError, match="must be positive"):
        num_visual_tokens(vision(224, 16), *size)
