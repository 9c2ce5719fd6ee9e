"""Configs and weight tables of OPT and BLIP-2; values are held against transformers by test_parity."""

import jax
import numpy as np
import pytest

from vlm_jax.data.token_ids import TokenIds
from vlm_jax.inference import language
from vlm_jax.weights.huggingface.families import blip2, opt

OPT = dict(model_type="opt", hidden_size=12, ffn_dim=20, num_hidden_layers=2, num_attention_heads=2, vocab_size=30,
           max_position_embeddings=10)
VISION = dict(hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=14,
              patch_size=7)
QFORMER = dict(hidden_size=8, num_hidden_layers=5, num_attention_heads=2, intermediate_size=12)
HF = dict(vision_config=VISION, qformer_config=QFORMER, text_config=OPT, num_query_tokens=3)
LLAMA = dict(model_type="llama", hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, vocab_size=30)


@pytest.mark.parametrize("text", [OPT, OPT | {"enable_bias": False, "tie_word_embeddings": False}, LLAMA])
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False, "image_size": 16}])
def test_configs_map_both_ways(text, changes):
    config = blip2.config(HF | {"text_config": text, "vision_config": VISION | changes})
    again = blip2.config(blip2.hf_config(config))
    assert (again.vision, again.connector) == (config.vision, config.connector)
    assert again.decoder.transformer.dim == config.decoder.transformer.dim
    assert blip2.config(blip2.hf_config(again)) == again


def test_a_round_trip_of_the_fused_and_the_sparse_rows(checkpoint, reimport, tmp_path):
    """The eyes' q, k and v are one tensor; only every second layer of the Q-Former has cross attention."""
    config = blip2.config(HF)
    params, tensors = checkpoint(blip2.FAMILY, config, tmp_path)
    assert jax.tree.all(jax.tree.map(np.array_equal, reimport(blip2.FAMILY, config, tmp_path), params))
    crossed = {int(name.split(".")[3]) for name in tensors if "crossattention" in name}
    assert crossed == {0, 2, 4}
    np.testing.assert_array_equal(tensors["qformer.encoder.layer.4.crossattention.attention.key.weight"],
                                  params["connector"]["qformer"]["cross"]["k"]["kernel"][2].T)
    np.testing.assert_array_equal(tensors["vision_model.encoder.layers.1.self_attn.qkv.bias"], np.concatenate(
        [params["vision"]["blocks"]["attn"][name]["bias"][1] for name in "qkv"]))
    assert tensors["query_tokens"].shape == (1, 3, 8) and "language_model.lm_head.weight" not in tensors
    assert tensors["language_model.model.decoder.embed_positions.weight"].shape == (12, 12)


@pytest.mark.parametrize("changes, sentence", [
    ({"text_config": {"model_type": "t5"}}, "text_config.model_type is 't5'; BLIP-2 is supported with opt, llama"),
    ({"qformer_config": QFORMER | {"use_qformer_text_input": True}}, "use_qformer_text_input"),
    ({"text_config": OPT | {"do_layer_norm_before": False}}, "do_layer_norm_before False; only True is supported"),
    ({"text_config": OPT | {"word_embed_proj_dim": 6}}, "word_embed_proj_dim 6; only 12 is supported"),
])
def test_what_we_cannot_honour_is_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        blip2.config(HF | changes)


def test_a_row_longer_than_the_position_table_is_an_error(checkpoint, tmp_path):
    """JAX would take the last row of the table again and again."""
    config = opt.FAMILY.config(OPT)
    params, _ = checkpoint(opt.FAMILY, config, tmp_path)
    given = {"input_ids": np.ones((1, 8), int)}
    assert language.generate(config, params, given, TokenIds(), max_new_tokens=3).shape == (1, 3)
    with pytest.raises(ValueError, match="row of 12 tokens is longer than the model's 10 positions"):
        language.generate(config, params, given, TokenIds(), max_new_tokens=5)
    with pytest.raises(ValueError, match="row of 11 tokens"):
        language.outputs(config, params, {"input_ids": np.ones((1, 11), int)}, TokenIds())
    with pytest.raises(ValueError, match="options that 'opt' models of transformers lack"):
        opt.hf_text_config(blip2.config(HF | {"text_config": LLAMA}).decoder)
