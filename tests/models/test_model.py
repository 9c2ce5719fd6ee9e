"""The model tree: its names, and that both assemblies begin with the same eyes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.mask import describe
from vlm_jax.models.model import ModelConfig, abstract_params, init_params
from vlm_jax.models.text import TextConfig
from vlm_jax.models.tokens import num_visual_tokens
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.two_tower import ContrastConfig
from vlm_jax.models.vit import ViTConfig

BLOCKS = TransformerConfig(layers=1, width=8, heads=2, mlp_width=16)
CONFIG = ModelConfig(
    vision=ViTConfig(8, 4, BLOCKS), text=TextConfig(20, 6, 2, BLOCKS), contrast=ContrastConfig(8),
    connector=ConnectorConfig(), decoder=DecoderConfig(20, BLOCKS))
TOWERS = dataclasses.replace(CONFIG, connector=None, decoder=None)
TALKER = dataclasses.replace(CONFIG, text=None, contrast=None)


def test_the_parts_have_the_names_that_rules_use():
    assert sorted(abstract_params(CONFIG)) == [
        "connector", "decoder", "logit_scale", "text", "text_projection", "vision", "vision_projection"]
    assert sorted(abstract_params(TALKER)) == ["connector", "decoder", "vision"]
    assert sorted(abstract_params(TOWERS)) == [
        "logit_scale", "text", "text_projection", "vision", "vision_projection"]


def test_shapes_are_those_of_the_parts():
    tree = abstract_params(CONFIG)
    assert tree["vision"]["position_embedding"].shape == (4 + 1, 8)
    assert tree["vision_projection"]["kernel"].shape == (8, 8) and tree["logit_scale"].shape == ()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(tree)} == {"float32"}
    assert num_visual_tokens(CONFIG, 8, 8) == 4


def test_both_assemblies_draw_the_same_eyes():
    tokens, images = np.zeros((1, 1), np.int32), np.zeros((1, 8, 8, 3), np.float32)

    @jax.jit
    def eyes(rng):
        talker = CONFIG.vlm().init(rng, tokens, describe(tokens), images[:, None], tokens)["params"]["vision"]
        towers = CONFIG.two_tower().init(rng, images, tokens)["params"]["vision"]
        return talker, towers

    talker, towers = eyes(jax.random.key(3))
    assert jax.tree.structure(talker) == jax.tree.structure(towers)
    jax.tree.map(np.testing.assert_array_equal, talker, towers)
    other, _ = eyes(jax.random.key(4))
    assert np.abs(talker["patch_embed"]["kernel"] - other["patch_embed"]["kernel"]).max() > 0.1


def test_parts_that_belong_together():
    with pytest.raises(ValueError, match="model.text and model.contrast belong together"):
        dataclasses.replace(CONFIG, contrast=None)
    with pytest.raises(ValueError, match="model.connector and model.decoder belong together"):
        dataclasses.replace(CONFIG, connector=None)


def test_an_assembly_without_its_parts_says_what_to_set():
    with pytest.raises(ValueError, match="no text tower; set model.text and model.contrast"):
        TALKER.two_tower()
    with pytest.raises(ValueError, match="no decoder; set model.connector and model.decoder"):
        TOWERS.vlm()


def test_drawing_parameters_traces_a_deep_tower_no_longer_than_a_shallow_one():
    def equations(layers):
        model = ModelConfig(decoder=DecoderConfig(20, dataclasses.replace(BLOCKS, layers=layers)))
        return len(jax.make_jaxpr(lambda rng: init_params(model, rng))(jax.random.key(0)).eqns)

    assert equations(20) - equations(2) <= 18 * 2  # a slice or two for its output; a block itself has dozens


def test_parameters_are_drawn_alike_however_blocks_are_run():
    deep = ModelConfig(decoder=DecoderConfig(20, dataclasses.replace(BLOCKS, layers=2)))
    x, rng = jnp.zeros((1, 1), jnp.int32), jax.random.key(3)
    unrolled = jax.jit(lambda: deep.vlm().init(rng, x, describe(x))["params"])()
    jax.tree.map(np.testing.assert_array_equal, jax.jit(lambda: init_params(deep, rng))(), unrolled)
