"""Layouts against transformers 5.23's own functions, whose numbers stand here, and the published token counts."""

import json
import types
import typing

import numpy as np
import pytest

import vlm_jax
from vlm_jax import config as configs
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.tokens import (NAMES, AnyRes, AspectTiles, Fixed, NaFlex, Native, PanAndScan, RowColumns,
                                   num_visual_tokens)
from vlm_jax.models.tokens.anyres import NEWLINE

SIZES = [(640, 480), (480, 640), (1000, 1000), (1, 300), (333, 100), (57, 91), (2000, 401)]  # width, height
COLUMNS = ("llava-next", "llava-onevision", "internvl", "qwen2-vl", "qwen2-vl-16384", "nanovlm")
TABLE = {
    (224, 224): (1176, 1485, 256, 64, 64, 1088), (336, 336): (1176, 1485, 256, 144, 144, 1088),
    (640, 480): (2340, 2929, 3328, 391, 391, 832), (800, 600): (2340, 4725, 3328, 609, 609, 832),
    (1920, 1080): (1948, 7269, 2304, 1222, 2691, 832), (1080, 1920): (1968, 7317, 2304, 1222, 2691, 832),
    (1024, 899): (2634, 6551, 2560, 1184, 1184, 1088), (1200, 300): (1890, 3672, 1280, 473, 473, 320),
    (1000, 1000): (2928, 7371, 2560, 1225, 1296, 1088), (2000, 2000): (2928, 7371, 2560, 1225, 5041, 1088)}


def grids(layout):
    return [layout.grid(*size) for size in SIZES]


@pytest.mark.parametrize("size", TABLE)
def test_published_counts(size):
    assert tuple(vlm_jax.num_visual_tokens(name, *size) for name in COLUMNS) == TABLE[size]


@pytest.mark.parametrize("name, tokens", [
    ("llava-1.5", 576), ("minigpt-4", 32), ("blip-2", 32), ("flamingo", 64), ("siglip-384", 729), ("gemma-3", 256),
    ("moondream", 729), ("paligemma", 256), ("paligemma-448", 1024), ("paligemma-896", 4096)])
def test_models_with_one_count_for_every_image(name, tokens):
    assert {num_visual_tokens(name, *size) for size in SIZES} == {tokens}


def test_spellings_of_a_name_are_the_same():
    assert num_visual_tokens("Qwen2_5-VL", 640, 480) == num_visual_tokens("qwen2.5-vl", 640, 480) == 391
    assert num_visual_tokens("gemma3_pan_and_scan", 1200, 400) == 4 * 256


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="No model is called 'llava-nxt'; did you mean 'llava-next'.*qwen2-vl"):
        num_visual_tokens("llava-nxt", 5, 5)
    with pytest.raises(ValueError, match="must be positive"):
        num_visual_tokens("llava-next", 0, 5)


def test_every_layout_goes_through_a_config_file():
    layouts = [*NAMES.values(), PanAndScan(256, 256, 4, 1.2)]
    kinds = typing.get_type_hints(ModelConfig)["layout"]
    for layout in layouts:
        stored = json.loads(json.dumps(configs.plain(layout)))
        assert configs.build(kinds, stored, "layout") == layout


# --- aspect ratios


@pytest.mark.parametrize("layout, wanted", [
    (AspectTiles((448, 448), 256), [(3, 4), (4, 3), (3, 3), (12, 1), (1, 3), (3, 2), (1, 5)]),
    (AspectTiles((28, 28), 256, 1, 4), [(2, 2), (2, 2), (2, 2), (4, 1), (1, 3), (2, 1), (1, 4)]),
    (AspectTiles((28, 28), 256, 2, 6), [(2, 3), (3, 2), (2, 2), (6, 1), (1, 3), (3, 2), (1, 5)]),
    (AspectTiles((100, 40), 256), [(3, 4), (4, 3), (3, 3), (12, 1), (2, 6), (3, 2), (1, 5)]),
    (RowColumns(28, 56, 4), [(2, 2), (2, 2), (2, 2), (2, 1), (1, 2), (2, 2), (1, 2)]),
    (RowColumns(28, 60, 4), [(3, 3), (3, 3), (3, 3), (3, 1), (1, 3), (3, 2), (1, 3)]),
    (RowColumns(364, 1456, 169), [(3, 4), (4, 3), (4, 4), (4, 1), (2, 4), (4, 3), (1, 4)]),
    (RowColumns(28, 28, 4), [(0, 0)] * 7),
    (RowColumns(28, 56, 4, split=False), [(0, 0)] * 7),
    (NaFlex(16, 256), [(14, 18), (18, 14), (16, 16), (256, 1), (9, 28), (20, 12), (7, 35)]),
    (NaFlex(6, 24), [(4, 6), (6, 4), (4, 4), (24, 1), (3, 8), (6, 4), (2, 10)]),
    (PanAndScan(256, 256, 4, 1.2), [(1, 2), (2, 1), (0, 0), (0, 0), (0, 0), (0, 0), (1, 4)]),
    (PanAndScan(256, 32, 4, 1.2), [(1, 2), (2, 1), (0, 0), (0, 0), (1, 3), (2, 1), (1, 4)]),
    (PanAndScan(256, 10, 2, 1.0), [(1, 2), (2, 1), (1, 2), (0, 0), (1, 2), (2, 1), (1, 2)]),
    (PanAndScan(256, 100, 6, 2.5), [(0, 0), (0, 0), (0, 0), (0, 0), (1, 3), (0, 0), (1, 5)])])
def test_grids(layout, wanted):
    assert grids(layout) == wanted


def test_tiles_with_the_whole_image():
    assert [AspectTiles((448, 448), 256).tiles(*size) for size in [(448, 448), (896, 448)]] == [1, 3]
    assert [RowColumns(28, 56, 4).count(*size) for size in SIZES[:4]] == [20, 20, 20, 12]
    crops = PanAndScan(256, 32, 4, 1.2)
    assert crops.count(333, 100) == 1024 and crops.crop(333, 100) == (100, 111)


@pytest.mark.parametrize("layout, wanted", [
    (Native(14), [(476, 644), (644, 476), (980, 980), None, (112, 336), (84, 56), (392, 1988)]),
    (Native(4, 2, 400, 2000), [(32, 48), (48, 32), (40, 40), None, (24, 80), (56, 32), (16, 96)]),
    (Native(7, 4, 3136, 3136), [(28, 56), (56, 28), (56, 56), None, (28, 84), (56, 28), (28, 112)])])
def test_native_resolution(layout, wanted):
    for size, pixels in zip(SIZES, wanted):
        if pixels is None:
            with pytest.raises(ValueError, match="1 x 300 pixels is too thin"):
                layout.resized(*size)
        else:
            assert layout.resized(*size) == pixels
            assert layout.count(*size) == pixels[0] * pixels[1] // (layout.patch * layout.merge) ** 2


# --- AnyRes


WIDE = ((4, 8), (8, 4), (8, 8))


@pytest.mark.parametrize("layout, size, wanted", [
    (AnyRes(4, 2, WIDE), (8, 8), [4, 5, 8, 9, -1, 6, 7, 10, 11, -1, 12, 13, 16, 17, -1, 14, 15, 18, 19, -1]),
    (AnyRes(4, 2, WIDE), (9, 4), [4, 5, 8, 9, -1, 6, 7, 10, 11, -1]),
    (AnyRes(4, 2, ((8, 8),)), (20, 9), [6, 7, 10, 11, -1, 12, 13, 16, 17, -1]),
    (AnyRes(6, 3, ((6, 12), (12, 6), (12, 12))), (5, 20), [10, -1, 13, -1, 16, -1, 19, -1, 22, -1, 25, -1]),
    (AnyRes(6, 3, ((12, 12),), 1), (7, 7), [11, 16, 21, -1, 21.5, 26.5, 31.5, -1, 32, 37, 42, -1]),
    (AnyRes(6, 3, ((12, 12),), 1), (7, 4), [14, 19, 24, -1, 29, 34, 39, -1]),
    (AnyRes(4, 2, ((4, 8), (8, 8)), 3), (7, 7),
     [4.5, 6.8333, 9.1667, -1, 9.1667, 11.5, 13.8333, -1, 13.8333, 16.1667, 18.5, -1])])
def test_the_order_of_tokens(layout, size, wanted):
    """What transformers makes of features that are their own place in the pool, and of a newline of -1."""
    index, weight = layout.gather(*size)
    whole = layout.side**2
    pool = np.append(np.arange(layout.tiles(*size) * whole), NEWLINE)
    tokens = (weight * pool[index]).sum(1)
    np.testing.assert_allclose(tokens, [*range(whole), *wanted], atol=1e-4)
    assert layout.count(*size) == len(tokens) and index.dtype == np.int32 and weight.dtype == np.float32


def test_shrinking_rounds_as_pytorch_does():
    """Token 44 of the first row, of columns that are 0 and 1 in turn: exactly it is 0.6333333."""
    index, weight = AnyRes(32, 32, ((192, 192),), max_tiles=2).gather(1000, 1000)
    assert abs((weight * (index % 2)).sum(1)[32**2 + 44] - 0.6333160) < 2e-6


def test_an_image_among_others_is_not_tiled():
    layout = AnyRes(4, 2, WIDE, max_tiles=3)
    assert layout.count(9, 4, tiled=False) == 5
    assert layout.gather(9, 4, tiled=False).index[:, 0].tolist() == [0, 1, 2, 3, NEWLINE]


def test_pinpoints_are_whole_tiles():
    with pytest.raises(ValueError, match="multiples of the tile, 4 pixels"):
        AnyRes(4, 2, ((4, 6),)).count(5, 5)


def test_a_layout_of_a_loaded_model_answers_for_it():
    config = types.SimpleNamespace(layout=Fixed(7), vision=types.SimpleNamespace(image_size=4, patch_size=2))
    assert num_visual_tokens(config, 3, 3) == num_visual_tokens(types.SimpleNamespace(config=config), 3, 3) == 7
