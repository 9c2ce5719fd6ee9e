"""Encoders alone behind forward: what comes out, and what is refused; values are in tests/weights/test_parity.py."""

import pathlib

import jax
import numpy as np
import pytest

import vlm_jax
from vlm_jax.inference import encoders, peer
from vlm_jax.models.naflex import NaFlexConfig
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.vit import ViT

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
NAFLEX = NaFlexConfig(4, 2, TransformerConfig(1, 4, 1, 4))
ROWS = {"pixel_values": np.zeros((2, 6, 12), np.float32), "spatial_shapes": np.array([[2, 3], [1, 2]]),
        "pixel_attention_mask": np.arange(6) < np.array([[6], [2]])}


@pytest.fixture(scope="module")
def dinov2():
    return vlm_jax.load_pretrained(FIXTURES / "dinov2")


def test_all_states_of_all_tokens(dinov2):
    """A class token in front of the patches; the last of `hidden_states` has not passed the final norm."""
    size, blocks = dinov2.config.vision.image_size, dinov2.config.vision.transformer
    out = dinov2.forward(pixel_values=np.ones((2, 3, size, size), np.float32))
    tokens = 1 + np.prod(dinov2.config.vision.grid)
    assert out["hidden_states"].shape == (blocks.layers + 1, 2, tokens, blocks.width)
    last = out["hidden_states"][-1].astype(float)
    last = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + blocks.norm_eps)
    norm = dinov2.params["vision"]["norm_post"]
    np.testing.assert_allclose(out["last_hidden_state"], last * norm["scale"] + norm["bias"], atol=1e-4)
    np.testing.assert_array_equal(out["pooler_output"], out["last_hidden_state"][:, 0])


def test_an_encoder_is_its_own_model_and_generates_nothing(dinov2):
    assert dinov2.model == ViT(dinov2.config.vision)
    with pytest.raises(ValueError, match="This model encodes and has no decoder to generate text with"):
        dinov2.generate(pixel_values=np.zeros((1, 3, 20, 20), np.float32))
    pair = vlm_jax.load_pretrained(FIXTURES / "siglip2")
    assert pair.model.vision_config == pair.config.vision
    with pytest.raises(ValueError, match="has no decoder to generate text with"):
        pair.generate(input_ids=np.ones((1, 14), np.int64))


@pytest.mark.parametrize("inputs, message", [
    ({}, "pixel_values are missing"),
    ({"pixel_values": np.zeros((3, 20, 20))}, r"pixel_values are \(3, 20, 20\); the encoder takes \[images, 3, height"),
    ({"pixel_values": np.zeros((1, 3, 20, 20)), "input_ids": np.zeros((1, 2))}, "does not take input_ids; it takes pixel"),
])
def test_inputs_that_an_encoder_cannot_take(dinov2, inputs, message):
    with pytest.raises(ValueError, match=message):
        dinov2.forward(**inputs)


def test_rows_of_patches_without_a_mask_are_all_real():
    without = {name: value for name, value in ROWS.items() if name != "pixel_attention_mask"}
    assert encoders.images(NAFLEX, ROWS)["mask"].tolist() == ROWS["pixel_attention_mask"].tolist()
    assert encoders.images(NAFLEX, without)["mask"].all()


@pytest.mark.parametrize("name", ["dinov2", "siglip2_vision"])
def test_noise_is_what_the_encoder_takes(name):
    """Of the native size; `convert verify` compares on it where a folder has no image processor."""
    pt = vlm_jax.load_pretrained(FIXTURES / name)
    inputs = peer.questions(pt.config, pt.processor)
    assert set(inputs) == set(encoders.names(pt.config.vision)) and inputs["pixel_values"].std() > 0.9
    native, rows = jax.tree.map(np.shape, (pt.config.vision.blank(2), encoders.images(pt.config.vision, inputs)))
    assert native == rows


@pytest.mark.parametrize("change, message", [
    ({"pixel_values": np.zeros((2, 3, 4, 4))}, r"the encoder takes patches \[images, patches, 12\]"),
    ({"spatial_shapes": None}, r"ask for spatial_shapes \[2, 2\] and a pixel_attention_mask \[2, 6\]"),
    ({"pixel_attention_mask": np.ones((2, 5))}, r"a pixel_attention_mask \[2, 6\]"),
    ({"spatial_shapes": np.array([[2, 4], [1, 1]])}, "at most 6 patches an image"),
    ({"spatial_shapes": np.array([[0, 4], [1, 1]])}, "must be 1 or more rows and columns"),
])
def test_rows_of_patches_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        encoders.images(NAFLEX, ROWS | change)
