"""Published sizes by name, held against the parameter counts that were published with them."""

import jax
import pytest

import vlm_jax
from vlm_jax.models.model import abstract_params

PUBLISHED = {
    "clip-vit-base-patch32": 151_277_313,
    "clip-vit-base-patch16": 149_620_737,
    "clip-vit-large-patch14": 427_616_513,
    "clip-vit-large-patch14-336": 427_944_193,
    "siglip-base-patch16-224": 203_155_970,
    "siglip-so400m-patch14-384": 877_960_498,
    "dinov2-large": 304_368_640,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-4b": 4_300_079_472,
    "llava-1.5-7b": 7_063_427_072,
    "llava-1.5-13b": 13_351_494_656,
    "paligemma-3b-224": 2_923_466_480,
    "blip2-opt-2.7b": 3_744_761_856,
    "minigpt-4-7b": 6_738_415_616 + 985_952_256 + 105_162_240 + 769 * 4096,  # Vicuna, EVA, Q-Former, linear layer
    "qwen2-vl-7b": 8_291_375_616,
    "qwen2.5-vl-7b": 8_292_166_656,
}


@pytest.mark.parametrize("name", vlm_jax.list_presets())
def test_a_preset_has_as_many_parameters_as_were_published(name):
    """Tied weights once. A new preset without a published count fails here."""
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_params(vlm_jax.preset(name)))) == PUBLISHED[name]


def test_every_published_size_asked_for_is_there():
    assert set(vlm_jax.list_presets()) >= set(PUBLISHED)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="No published size is called 'llama-2-7'; did you mean 'llama-2-7b'?"):
        vlm_jax.preset("llama-2-7")
