"""Configs and weight tables of Qwen2-VL and Qwen2.5-VL, in every spelling; values are held against transformers by
test_parity."""

import dataclasses

import numpy as np
import pytest

from vlm_jax.weights.huggingface.families import qwen2_5_vl, qwen2_vl

TEXT = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24,
            vocab_size=30)
VISION = dict(depth=2, embed_dim=16, hidden_size=16, num_heads=2, mlp_ratio=3, patch_size=2)
VISION_2_5 = dict(depth=2, hidden_size=16, out_hidden_size=16, num_heads=2, intermediate_size=20, patch_size=2,
                  window_size=14, fullatt_block_indexes=[1])
ROPE = {"type": "mrope", "mrope_section": [2, 1, 1]}
HUB = {**TEXT, "rope_theta": 500.0, "rope_scaling": ROPE, "vision_config": VISION}


def test_language_settings_lie_at_the_top_or_in_a_group_of_their_own():
    config = qwen2_vl.config(HUB)
    t = config.decoder.transformer
    assert (t.rope_sections, t.rope_theta, t.rope_scaling, t.attention_bias, t.out_bias) == (
        (2, 1, 1), 500.0, None, True, False)
    rope = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [2, 1, 1]}
    assert qwen2_vl.config({"vision_config": VISION, "text_config": TEXT | {"rope_parameters": rope}}) == config
    group = TEXT | {"rope_theta": 500.0, "rope_scaling": ROPE}
    assert qwen2_vl.config({"vision_config": VISION, "text_config": group}) == config


@pytest.mark.parametrize("tied", [{"tie_word_embeddings": True}, {"text_config": TEXT | {"tie_word_embeddings": True}}])
def test_tying_counts_wherever_it_is_said(tied):
    assert qwen2_vl.config(HUB | tied).decoder.tie_embeddings
    assert not qwen2_vl.config(HUB).decoder.tie_embeddings


def test_stretched_positions_keep_their_axes():
    yarn = ROPE | {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    t = qwen2_vl.config(HUB | {"rope_scaling": yarn}).decoder.transformer
    assert (t.rope_scaling.kind, t.rope_scaling.factor, t.rope_sections) == ("yarn", 4.0, (2, 1, 1))
    silent = qwen2_vl.config(HUB | {"rope_scaling": None}).decoder.transformer
    assert silent.rope_sections == (16, 24, 24)


@pytest.mark.parametrize("family, vision", [(qwen2_vl.FAMILY, VISION), (qwen2_5_vl.FAMILY, VISION_2_5)])
@pytest.mark.parametrize("scaling", [ROPE, ROPE | {"type": "linear", "factor": 2.0}])
def test_configs_map_both_ways(family, vision, scaling):
    config = family.config(HUB | {"vision_config": vision, "rope_scaling": scaling})
    explicit = dataclasses.replace(config.decoder.transformer, head_dim=8)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, transformer=explicit))
    assert family.config(family.hf_config(config)) == config


def test_a_window_is_whole_visual_tokens():
    """14 pixels are 7 patches of 2, of which 3 whole tokens of 2 x 2 are 6."""
    vision = qwen2_5_vl.config(HUB | {"vision_config": VISION_2_5}).vision
    assert (vision.window, vision.full_layers, vision.transformer.norm) == (6, (1,), "rms")
    published = qwen2_5_vl.config(HUB | {"vision_config": {}}).vision
    assert (published.window, published.full_layers) == (8, (7, 15, 23, 31))


@pytest.mark.parametrize("family, vision", [(qwen2_vl.FAMILY, VISION), (qwen2_5_vl.FAMILY, VISION_2_5)])
def test_import_gives_back_what_was_exported(family, vision, checkpoint, reimport, tmp_path):
    config = family.config(HUB | {"vision_config": vision})
    params, tensors = checkpoint(family, config, tmp_path)
    again = reimport(family, config, tmp_path)
    blocks = params["vision"]["blocks"]["attn"]
    np.testing.assert_array_equal(again["vision"]["blocks"]["attn"]["k"]["bias"], blocks["k"]["bias"])
    np.testing.assert_array_equal(
        tensors["visual.blocks.1.attn.qkv.weight"], np.concatenate([blocks[n]["kernel"][1].T for n in "qkv"]))
    kernel = tensors["visual.patch_embed.proj.weight"]
    assert kernel.shape == (16, 3, 2, 2, 2)
    np.testing.assert_array_equal(kernel[5].ravel(), params["vision"]["patch_embed"]["kernel"][:, 5])
    assert ("visual.blocks.0.norm1.bias" in tensors) == (family is qwen2_vl.FAMILY)


def test_names_of_later_versions_are_the_hubs():
    assert qwen2_vl.rename("model.language_model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert qwen2_vl.rename("model.visual.merger.ln_q.weight") == "visual.merger.ln_q.weight"
    assert qwen2_vl.rename("visual.rotary_pos_emb.inv_freq") is None


@pytest.mark.parametrize("changes, sentence", [
    ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding windows beside positions"),
    ({"vision_config": VISION | {"in_channels": 1}}, "1 channels"),
    ({"vision_config": VISION | {"rope_parameters": {"rope_type": "yarn"}}}, "rotary positions of type 'yarn'"),
    ({"rope_scaling": ROPE | {"type": "longrope"}}, "rotary positions of type 'longrope'"),
])
def test_what_we_cannot_honour_is_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        qwen2_vl.config(HUB | changes)
