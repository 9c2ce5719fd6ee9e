"""SigLIP's config, weight table and outputs, held against a NumPy forward pass over the file's own names."""

import jax
import numpy as np
import pytest

from vlm_jax.inference import pairs
from vlm_jax.models.vit import ViT, ViTConfig
from vlm_jax.weights.huggingface.families import siglip

SIZES = dict(hidden_size=16, intermediate_size=24, num_attention_heads=4, num_hidden_layers=2)
HF = {"architectures": ["SiglipModel"], "model_type": "siglip",
      "vision_config": dict(SIZES, image_size=11, patch_size=4),
      "text_config": dict(SIZES, hidden_size=8, projection_size=16, vocab_size=20, max_position_embeddings=6)}
TOKENS = np.random.default_rng(2).integers(0, 20, (3, 6))
PIXELS = np.random.default_rng(1).normal(size=(2, 3, 11, 11)).astype(np.float32)


@pytest.fixture(scope="module")
def written(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("siglip")
    config = siglip.FAMILY.config(HF)
    return folder, config, *checkpoint(siglip.FAMILY, config, folder)


def pooled(net, name, x, width=16):
    """SiglipMultiheadAttentionPoolingHead."""
    weight, bias = net.tensors[f"{name}.attention.in_proj_weight"], net.tensors[f"{name}.attention.in_proj_bias"]
    probe = np.repeat(net.tensors[f"{name}.probe"], len(x), axis=0)
    q, k, v = (y @ weight[i * width : (i + 1) * width].T + bias[i * width : (i + 1) * width]
               for i, y in enumerate([probe, x, x]))
    y = net.linear(f"{name}.attention.out_proj", net.attend(q, k, v, heads=4))
    return (y + net.mlp(f"{name}.mlp", net.norm(f"{name}.layernorm", y)))[:, 0]


def numpy_siglip(net, mask=None):
    """transformers' SiglipModel; `mask` [b, t] is its optional attention_mask."""
    v, t, unit = "vision_model", "text_model", lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    x = net.patches(f"{v}.embeddings.patch_embedding", PIXELS)
    x = x + net.tensors[f"{v}.embeddings.position_embedding.weight"]
    image_hidden = net.norm(f"{v}.post_layernorm", net.encoder(v, x, 2, 4))
    image = pooled(net, f"{v}.head", image_hidden)
    x = net.tensors[f"{t}.embeddings.token_embedding.weight"][TOKENS]
    x = x + net.tensors[f"{t}.embeddings.position_embedding.weight"]
    seen = None if mask is None else (mask > 0)[:, None]
    hidden = net.norm(f"{t}.final_layer_norm", net.encoder(t, x, 2, 4, seen))
    text = net.linear(f"{t}.head", hidden[:, -1])
    logits = np.exp(net.tensors["logit_scale"]) * unit(image) @ unit(text).T + net.tensors["logit_bias"]
    return {"image_hidden": image_hidden, "image_features": image, "text_features": text,
            "text_hidden": hidden if mask is None else hidden * mask[..., None],
            "image_embeds": unit(image), "text_embeds": unit(text), "logits_per_image": logits}


@pytest.mark.parametrize("masked", [False, True])
def test_outputs_equal_a_numpy_forward_pass(written, torch, masked):
    """11 pixels make two patches of 4: the last three rows and columns are never seen."""
    _, config, params, tensors = written
    mask = np.array([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
    inputs = {"pixel_values": PIXELS, "input_ids": TOKENS} | ({"attention_mask": mask} if masked else {})
    out = pairs.outputs(config, params, inputs)
    for name, value in numpy_siglip(torch(tensors, 1e-6, "gelu_pytorch_tanh"), mask if masked else None).items():
        np.testing.assert_allclose(out[name], value, atol=1e-4, rtol=1e-5, err_msg=name)


def test_a_scale_above_clips_cap_is_kept(written):
    """Published SigLIPs multiply by about 117."""
    _, config, params, _ = written
    inputs = {"pixel_values": PIXELS, "input_ids": TOKENS}
    cold = pairs.outputs(config, params | {"logit_scale": np.float32(0)}, inputs)["logits_per_image"]
    hot = pairs.outputs(config, params | {"logit_scale": np.float32(np.log(117))}, inputs)["logits_per_image"]
    np.testing.assert_allclose(hot - params["logit_bias"], 117 * (cold - params["logit_bias"]), rtol=1e-4)


def test_import_gives_back_what_was_exported(written, reimport):
    folder, config, params, tensors = written
    assert jax.tree.all(jax.tree.map(np.array_equal, reimport(siglip.FAMILY, config, folder), params))
    head = params["vision"]["head"]
    np.testing.assert_array_equal(
        tensors["vision_model.head.attention.in_proj_weight"], np.concatenate([head[n]["kernel"].T for n in "qkv"]))
    assert tensors["vision_model.head.probe"].shape == (1, 1, 16) and tensors["logit_scale"].shape == (1,)


def test_configs_map_both_ways():
    config = siglip.FAMILY.config(HF)
    assert siglip.FAMILY.config(siglip.FAMILY.hf_config(config)) == config
    headless = siglip.vision_config(HF["vision_config"] | {"vision_use_head": False})
    assert headless.pool == "mean" and siglip.vision_config(siglip.vision_hf_config(headless)) == headless
    assert not any("head" in row.theirs for row in siglip.vision_table(headless))
    with pytest.raises(ValueError, match="embed_dim is the encoder's width"):
        siglip.FAMILY.config(HF | {"text_config": HF["text_config"] | {"projection_size": 12}}).two_tower()


def test_our_own_encoders_still_refuse_a_remainder():
    blocks = siglip.vision_config(HF["vision_config"]).transformer
    with pytest.raises(ValueError, match="not divisible"):
        ViTConfig(image_size=30, patch_size=7, transformer=blocks)
    config = ViTConfig(image_size=30, patch_size=7, transformer=blocks, drop_remainder=True)
    out = jax.eval_shape(lambda x: ViT(config).init_with_output(jax.random.key(0), x)[0], np.zeros((1, 30, 30, 3)))
    assert config.grid == (4, 4) and out.patches.features.shape == (1, 16, 16)
