"""CLIP's config, weight table and outputs, held against a NumPy forward pass over the file's own names."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vlm_jax.inference import pairs
from vlm_jax.weights.huggingface.families import clip

SIZES = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=2)
HF = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 6,
      "vision_config": dict(SIZES, image_size=9, patch_size=4),
      "text_config": dict(SIZES, hidden_size=8, vocab_size=20, max_position_embeddings=7, eos_token_id=11)}
TOKENS = np.array([[18, 4, 11, 19, 11], [18, 5, 6, 7, 11], [1, 2, 3, 4, 5]])
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
PIXELS = np.random.default_rng(1).normal(size=(2, 3, 9, 9)).astype(np.float32)
INPUTS = {"pixel_values": PIXELS, "input_ids": TOKENS, "attention_mask": MASK}


@pytest.fixture(scope="module")
def written(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("clip")
    config = clip.FAMILY.config(HF)
    return folder, config, *checkpoint(clip.FAMILY, config, folder)


def numpy_clip(net, ends, activation="quick_gelu"):
    """transformers' CLIPModel; `ends` are the positions that are pooled."""
    v, unit = "vision_model", lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    x = net.patches(f"{v}.embeddings.patch_embedding", PIXELS)
    cls = np.broadcast_to(net.tensors[f"{v}.embeddings.class_embedding"], (len(x), 1, x.shape[-1]))
    x = np.concatenate([cls, x], axis=1) + net.tensors[f"{v}.embeddings.position_embedding.weight"]
    image_hidden = net.encoder(v, net.norm(f"{v}.pre_layrnorm", x), 2, 2)
    image = net.linear("visual_projection", net.norm(f"{v}.post_layernorm", image_hidden[:, 0]))
    t = "text_model"
    x = net.tensors[f"{t}.embeddings.token_embedding.weight"][TOKENS]
    x = x + net.tensors[f"{t}.embeddings.position_embedding.weight"][: TOKENS.shape[1]]
    causal = np.tri(TOKENS.shape[1], dtype=bool)[None] & (MASK > 0)[:, None]
    hidden = net.norm(f"{t}.final_layer_norm", net.encoder(t, x, 2, 2, causal))
    text = net.linear("text_projection", hidden[np.arange(len(TOKENS)), ends])
    return {"image_hidden": image_hidden, "image_features": image, "text_features": text,
            "text_hidden": hidden * MASK[..., None], "image_embeds": unit(image), "text_embeds": unit(text),
            "logits_per_image": np.exp(net.tensors["logit_scale"]) * unit(image) @ unit(text).T}


@pytest.mark.parametrize("end_id, ends, activation", [(11, [2, 4, 0], "quick_gelu"), (2, [3, 0, 4], "gelu")])
def test_outputs_equal_a_numpy_forward_pass(written, torch, end_id, ends, activation):
    """End id 2, as the oldest files have it, pools the largest id; rows without an end token pool position 0."""
    _, _, params, tensors = written
    hf = json.loads(json.dumps(HF))
    hf["text_config"] |= {"eos_token_id": end_id, "hidden_act": activation}
    hf["vision_config"]["hidden_act"] = activation
    out = pairs.outputs(clip.FAMILY.config(hf), params, INPUTS)
    wanted = numpy_clip(torch(tensors, 1e-5, activation), ends)
    for name, value in wanted.items():
        np.testing.assert_allclose(out[name], value, atol=1e-4, rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(out["logits_per_text"], out["logits_per_image"].T)


def test_one_side_alone_gives_that_sides_outputs(written):
    _, config, params, _ = written
    text = pairs.outputs(config, params, {"input_ids": TOKENS})
    assert sorted(text) == ["text_embeds", "text_features", "text_hidden"]
    with pytest.raises(ValueError, match="does not take image_sizes"):
        pairs.outputs(config, params, {"image_sizes": PIXELS})


def test_import_gives_back_what_was_exported(written, reimport):
    folder, config, params, tensors = written
    assert jax.tree.all(jax.tree.map(np.array_equal, reimport(clip.FAMILY, config, folder), params))
    assert tensors["vision_model.embeddings.patch_embedding.weight"].shape == (16, 3, 4, 4)
    assert tensors["logit_scale"].shape == () and "vision_model.pre_layrnorm.weight" in tensors


def test_buffers_are_skipped_and_strangers_are_named(written, reimport, tmp_path):
    folder, config, _, _ = written
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = np.arange(7)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    reimport(clip.FAMILY, config, tmp_path)
    tensors["adapter.weight"] = tensors.pop("visual_projection.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="unused: adapter.weight, missing: visual_projection.weight"):
        reimport(clip.FAMILY, config, tmp_path)


def test_configs_map_both_ways():
    config = clip.FAMILY.config(HF)
    assert clip.FAMILY.config(clip.FAMILY.hf_config(config)) == config
    assert config.vision.drop_remainder and config.text.end_id == 11
    legacy = HF | {"text_config": {}, "text_config_dict": HF["text_config"], "vision_config_dict": None}
    assert clip.FAMILY.config(legacy) == config
    oldest = clip.FAMILY.config(HF | {"text_config": {"eos_token_id": 2}})
    assert oldest.text.end_id is None and clip.FAMILY.hf_config(oldest)["text_config"]["eos_token_id"] == 2
    with pytest.raises(ValueError, match="activation 'mish'"):
        clip.vision_config({"hidden_act": "mish"})
    with pytest.raises(ValueError, match="1 channels"):
        clip.vision_config({"num_channels": 1})


def test_the_image_tower_under_another_name():
    config = clip.vision_config(HF["vision_config"])
    rows = clip.vision_table(config, theirs="vision_tower.vision_model")
    assert all(row.theirs.startswith("vision_tower.vision_model.") and row.ours.startswith("vision/") for row in rows)
    assert clip.vision_config(clip.vision_hf_config(config)) == config
