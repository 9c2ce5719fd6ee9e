"""Image processors against what transformers makes of the same images (tests/fixtures/make_preprocess.py)."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data.huggingface import images as hf_images
from vlm_jax.data.huggingface.images import registry
from vlm_jax.models.tokens import AnyRes, AspectTiles, Fixed, Native, PanAndScan, RowColumns

REFERENCE = np.load(pathlib.Path(__file__).parents[2] / "fixtures" / "preprocess.npz")
NAMES = list(dict.fromkeys(key.split("/")[0] for key in REFERENCE if not key.startswith("images")))
PIXELS = [REFERENCE[f"images/{i}"] for i in range(8)]


def case(name):
    """(config, a list of pictures for each prompt, the arrays of transformers)"""
    rows = [[Image.fromarray(PIXELS[i]) for i in row] for row in json.loads(str(REFERENCE[f"{name}/rows"]))]
    start = f"{name}/out/"
    return (json.loads(str(REFERENCE[f"{name}/config"])), rows,
            {key.removeprefix(start): REFERENCE[key] for key in REFERENCE if key.startswith(start)})


@pytest.mark.parametrize("name", NAMES)
def test_every_array_is_that_of_transformers(name):
    config, rows, wanted = case(name)
    got = hf_images.from_config(config)(rows)
    assert set(got) == set(wanted) and got["pixel_values"].dtype == np.float32
    np.testing.assert_allclose(got["pixel_values"].ravel()[::5], wanted["pixel_values"], atol=1e-6)
    for key in set(got) - {"pixel_values"}:
        np.testing.assert_array_equal(got[key], wanted[key])
        assert got[key].dtype == wanted[key].dtype


@pytest.mark.parametrize("name", NAMES)
def test_geometry_and_resampling_are_exact(name):
    config, rows, _ = case(name)
    got = hf_images.from_config(config | {"do_rescale": False, "do_normalize": False})(rows)["pixel_values"]
    np.testing.assert_array_equal(got, REFERENCE[f"{name}/uint8"])


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_tells_the_prompt_how_many_tiles_each_picture_became(name):
    config, rows, wanted = case(name)
    processor = hf_images.from_config(config)
    tiles = [[processor.layout.tiles(*hf_images.size(picture)) for picture in row] for row in rows]
    flat, shape = [n for row in tiles for n in row], REFERENCE[f"{name}/uint8"].shape
    if "num_patches" in wanted:
        assert flat == wanted["num_patches"].tolist()
    elif "num_crops" in wanted:
        assert flat == (wanted["num_crops"] + 1).tolist()
    elif "image_grid_thw" in wanted:
        grids = [list(processor.layout.grid(*picture.size)) for row in rows for picture in row]
        assert grids == wanted["image_grid_thw"][:, 1:].tolist()
    elif "batch_num_images" in wanted:
        assert shape[1] == max(row[0] for row in tiles if len(row) == 1)
    elif isinstance(processor.layout, RowColumns):
        used = wanted["pixel_attention_mask"].any((2, 3))
        assert [sum(row) for row in tiles] == used.sum(1).tolist() and used.shape[1] == max(map(sum, tiles))
    elif isinstance(processor.layout, AnyRes):
        assert shape[:2] == (len(flat), max(flat))
    else:
        assert set(flat) == {1} and shape[0] == len(flat)


def test_images_without_prompts():
    """OneVision tiles each of them; Idefics3 takes all as one prompt's; the others do not care."""
    for name in NAMES:
        config, rows, _ = case(name)
        processor, flat = hf_images.from_config(config), [picture for row in rows for picture in row]
        nested = {"idefics3": [flat], "smolvlm": [flat]}.get(name, [[picture] for picture in flat])
        for key, array in processor(nested).items():
            np.testing.assert_array_equal(processor(flat)[key], array)


def test_prompts_without_images_take_no_pictures():
    picture = Image.fromarray(PIXELS[0])
    config, _, _ = case("idefics3")
    got = hf_images.from_config(config)([[], [picture]])
    assert got["pixel_values"].shape[:2] == (2, 7) and not got["pixel_attention_mask"][0].any()
    config, _, _ = case("llava_onevision")
    assert hf_images.from_config(config)([[], [picture]])["batch_num_images"].tolist() == [1]
    with pytest.raises(ValueError, match="There are no images"):
        hf_images.from_config(config)([[], []])


def test_arrays_are_pictures_too():
    config, _, _ = case("qwen2_vl")
    processor, picture = hf_images.from_config(config), PIXELS[0]
    np.testing.assert_array_equal(processor([picture])["pixel_values"],
                                  processor([Image.fromarray(picture)])["pixel_values"])
    assert hf_images.size(picture) == (61, 40)
    with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\], not float64 \(40, 61, 3\)"):
        processor([picture / 255])


@pytest.mark.parametrize("ending", ["ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor"])
def test_a_silent_file_means_the_values_of_its_class(ending):
    layouts = {name: hf_images.from_config({"image_processor_type": name + ending}).layout for name in registry.MODULES}
    assert layouts["Qwen2VL"] == Native(14, 2, 56 * 56, 28 * 28 * 1280)
    assert layouts["Idefics3"] == layouts["SmolVLM"] == RowColumns(364, 1456, 1)
    assert layouts["GotOcr2"] == AspectTiles((384, 384), 1, 1, 1) and layouts["Gemma3"] == Fixed(1)
    assert layouts["LlavaOnevision"].tile == 384 and len(layouts["LlavaOnevision"].pinpoints) == 36


def test_a_model_s_layout_is_completed_by_its_processor():
    model_layout = lambda name, layout: hf_images.from_config(case(name)[0]).model_layout(layout, 7)
    assert model_layout("internvl", None) == AspectTiles((10, 12), 7, 1, 5)
    assert model_layout("idefics3", RowColumns(10, 20, 7)) == RowColumns(10, 26, 7)
    assert model_layout("qwen2_vl", Native(4)) == Native(4, 2, 128, 900)
    assert model_layout("gemma3_crops", None) == PanAndScan(7, 5, 3, 1.2) and model_layout("gemma3", None) is None
    assert model_layout("clip", Fixed(5)) == Fixed(5)


@pytest.mark.parametrize("config, message", [
    ({"image_processor_type": "SiglipImageProcessor", "size": {"longest_edge": 5}}, "give shortest_edge, or"),
    ({"image_processor_type": "SmolVLMImageProcessor", "size": {"height": 5, "width": 5}}, "needs its longest_edge")])
def test_sizes_that_mean_nothing_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        hf_images.from_config(config)


STRIP = Image.new("RGB", (60_000, 1))  # small, but not once its short side is 224 pixels


@pytest.mark.parametrize("config", [
    {"image_processor_type": "CLIPImageProcessor"}, {"image_processor_type": "BitImageProcessor"},
    {"image_processor_type": "LlavaImageProcessor", "do_pad": True},
    {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": [[20_000, 20_000]]},
    {"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 11_000, "width": 11_000}},
    {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 11_000, "width": 11_000}},
    {"image_processor_type": "SmolVLMImageProcessor", "max_image_size": {"longest_edge": 11_000}},
    {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 200_000_000, "max_pixels": 300_000_000}])
def test_images_that_would_outgrow_memory_are_refused(config):
    with pytest.raises(ValueError, match="leave it out|too thin"):
        hf_images.from_config(config)([STRIP])
