"""The Vision Transformer: patches against a convolution, layers and pooling against the stack, counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models import positions
from vlm_jax.models.tokens import num_visual_tokens
from vlm_jax.models.transformer import TransformerConfig, apply_blocks
from vlm_jax.models.vit import ViT, ViTConfig, patchify

BLOCKS = TransformerConfig(layers=2, width=16, heads=2, mlp_width=32, activation="quick_gelu")
CLIP = ViTConfig(image_size=12, patch_size=4, transformer=BLOCKS)
MEAN = dataclasses.replace(CLIP, pool="mean", pre_norm=False, patch_bias=True, feature_layer=-1)
IMAGES = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)


def parameters(config, seed=0):
    size = config.image_size
    tree = jax.eval_shape(ViT(config).init, jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), tree)


def run(config, params, images=IMAGES):
    return _apply(ViT(config), {"params": params}, images)


_apply = jax.jit(lambda module, *args: module.apply(*args), static_argnums=0)  # compiled once a config


@pytest.fixture(scope="module")
def clip():
    """(parameters, hidden states of every layer) of the small CLIP tower."""
    params = parameters(CLIP)

    @jax.jit
    def hidden(params):
        x = ViT(CLIP).apply({"params": params}, IMAGES, method="embed")
        return apply_blocks(BLOCKS, params["blocks"], x)[0]

    return params, [np.asarray(h) for h in hidden(params)]


def layer_norm(x, params):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * params["scale"] + params["bias"]


# Patches.


def test_patches_of_a_numbered_image():
    """4 x 4 pixels of one channel, patches of 2: rows of patches, and rows inside a patch."""
    image = np.arange(16).reshape(1, 4, 4, 1)
    assert patchify(image, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_patchify_and_matmul_are_a_strided_convolution():
    rng = np.random.default_rng(1)
    images, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 8, 12, 3), (4, 4, 3, 5)))
    layout = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(images, kernel, (4, 4), "VALID", dimension_numbers=layout)
    ours = patchify(images, 4) @ kernel.reshape(-1, 5)
    assert np.allclose(ours, np.asarray(expected).reshape(2, 6, 5), atol=1e-5)


# What comes out.


def test_tokens_are_patches_plus_positions_behind_a_class_token(clip):
    params, hidden = clip
    patches = patchify(IMAGES, 4) @ params["patch_embed"]["kernel"]
    x = np.concatenate([np.broadcast_to(params["class_token"], (2, 1, 16)), patches], axis=1)
    expected = layer_norm(x + params["position_embedding"], params["norm_pre"])
    assert params["position_embedding"].shape == (10, 16)
    assert np.allclose(hidden[0], expected, atol=1e-4)


def test_class_token_is_pooled_after_the_last_layer_and_features_come_from_the_one_before(clip):
    params, hidden = clip
    out = run(CLIP, params)
    assert np.allclose(out.pooled, layer_norm(hidden[-1][:, 0], params["norm_post"]), atol=1e-4)
    assert np.allclose(out.patches.features, hidden[BLOCKS.layers - 1][:, 1:], atol=1e-5)


def test_feature_layers_count_as_in_hugging_face(clip):
    """0 is the input of the first block; of two layers -1 is 2, -2 is 1 and -3 is 0."""
    params, hidden = clip

    @jax.jit
    def features(params):
        towers = {layer: ViT(dataclasses.replace(CLIP, feature_layer=layer)) for layer in range(-3, 3)}
        return {layer: t.apply({"params": params}, IMAGES).patches.features for layer, t in towers.items()}

    for layer, value in features(params).items():
        assert np.allclose(value, hidden[layer][:, 1:], atol=1e-5), layer
    assert np.abs(hidden[-1] - hidden[-2]).max() > 0.1


def test_features_of_several_layers_are_joined_and_may_begin_elsewhere(clip):
    params, hidden = clip
    both = run(dataclasses.replace(CLIP, feature_layer=(-2, 0)), params).patches
    assert np.allclose(both.features, np.concatenate([hidden[1], hidden[0]], axis=-1)[:, 1:], atol=1e-5)
    for start, extra in ((0, 1), (1, 0), (2, -1)):
        config = dataclasses.replace(CLIP, feature_start=start)
        patches = run(config, params).patches
        assert np.allclose(patches.features, hidden[-2][:, start:], atol=1e-5)
        places = [[-1, -1], *([row, column] for row in range(3) for column in range(3))]
        assert patches.positions[1].tolist() == places[start:] and patches.mask.shape == (2, 9 + extra)
        assert num_visual_tokens(config, 12, 12) == 9 + extra


def test_mean_pooling_has_no_class_token():
    params = parameters(MEAN)
    assert "class_token" not in params and "norm_pre" not in params and "bias" in params["patch_embed"]
    assert params["position_embedding"].shape == (9, 16)
    out = run(MEAN, params)
    last = np.asarray(out.patches.features)  # of feature_layer -1
    assert np.allclose(out.pooled, layer_norm(last, params["norm_post"]).mean(axis=1), atol=1e-4)


def test_the_features_say_where_they_come_from(clip):
    patches = run(CLIP, clip[0]).patches
    assert patches.positions[0].tolist() == [[row, column] for row in range(3) for column in range(3)]
    assert patches.positions.shape == (2, 9, 2) and patches.positions.dtype == jnp.int32
    assert patches.mask.shape == (2, 9) and patches.mask.dtype == bool and patches.mask.all()


def test_images_of_a_batch_do_not_see_each_other(clip):
    other = IMAGES.copy()
    other[1] += 1
    ours, theirs = run(CLIP, clip[0]), run(CLIP, clip[0], other)
    assert np.array_equal(ours.pooled[0], theirs.pooled[0])
    assert not np.allclose(ours.pooled[1], theirs.pooled[1], atol=1e-3)


def test_every_patch_sees_every_other(clip):
    """Bidirectional: the first patch's feature depends on the last pixel."""
    other = IMAGES.copy()
    other[:, -1, -1] += 5
    change = np.abs(run(CLIP, clip[0], other).patches.features - run(CLIP, clip[0]).patches.features)
    assert (change[:, 0].max(axis=-1) > 1e-3).all()


# Options of DINOv2, InternViT and ViTModel.


def embedded(config, params, images=IMAGES):
    return np.asarray(_embed(ViT(config), {"params": params}, images))


_embed = jax.jit(lambda module, *args: module.apply(*args, method="embed"), static_argnums=0)


def test_registers_stand_behind_the_class_token_and_have_no_position():
    config = dataclasses.replace(CLIP, pre_norm=False, registers=2)
    params = parameters(config)
    x, table = embedded(config, params), params["position_embedding"]
    assert table.shape == (10, 16) and params["registers"].shape == (2, 16)
    np.testing.assert_allclose(x[0, 0], params["class_token"] + table[0], atol=1e-6)
    np.testing.assert_array_equal(x[0, 1:3], params["registers"])
    np.testing.assert_allclose(x[:, 3:], patchify(IMAGES, 4) @ params["patch_embed"]["kernel"] + table[1:], atol=1e-5)
    out = run(config, params)
    assert out.patches.features.shape == (2, 9, 16) and out.last.shape == (2, 12, 16)


def test_position_embeddings_are_resized_where_the_config_says_how():
    """A grid of 3 x 3 for images of 5 x 2 patches; the class token keeps its own place."""
    config = dataclasses.replace(CLIP, pre_norm=False, resize="bicubic")
    params, images = parameters(config), np.zeros((1, 20, 9, 3), np.float32)
    x, table = embedded(config, params, images)[0], params["position_embedding"]
    np.testing.assert_allclose(x[0], params["class_token"] + table[0], atol=1e-6)
    resized = jax.jit(positions.resized, static_argnums=(1, 2, 3))
    expected = resized(table[1:].reshape(3, 3, 16), 5, 2, "bicubic").reshape(10, 16)
    np.testing.assert_allclose(x[1:], expected, atol=1e-5)
    assert run(config, params, images).patches.positions[0, -1].tolist() == [4, 1]


def test_the_final_norm_is_over_all_tokens_or_the_pooled_ones_or_none():
    params = parameters(CLIP)
    apply = {name: run(dataclasses.replace(CLIP, final_norm=name), params) for name in ("all", "pooled", None)}
    last = np.asarray(apply["pooled"].last)
    np.testing.assert_array_equal(apply[None].last, last)
    np.testing.assert_allclose(apply["all"].last, layer_norm(last, params["norm_post"]), atol=1e-4)
    np.testing.assert_allclose(apply["all"].pooled, layer_norm(last[:, 0], params["norm_post"]), atol=1e-4)
    np.testing.assert_array_equal(apply["pooled"].pooled, apply["all"].pooled)
    np.testing.assert_array_equal(apply[None].pooled, last[:, 0])
    assert "norm_post" not in parameters(dataclasses.replace(CLIP, final_norm=None))
    normed = run(dataclasses.replace(CLIP, feature_layer=-1, feature_norm=True), params)
    np.testing.assert_allclose(normed.patches.features, layer_norm(last[:, 1:], params["norm_post"]), atol=1e-4)


def test_a_class_token_may_be_there_and_not_be_pooled():
    config = dataclasses.replace(MEAN, class_token=True, final_norm=None)
    params = parameters(config)
    out = run(config, params)
    assert params["position_embedding"].shape == (10, 16) and out.patches.features.shape == (2, 9, 16)
    np.testing.assert_allclose(out.pooled, np.asarray(out.last)[:, 1:].mean(axis=1), atol=1e-5)


def test_dense_pooling_is_a_layer_and_tanh_on_the_normed_class_token():
    config = dataclasses.replace(CLIP, pool="dense", pool_width=5, final_norm="all")
    params = parameters(config)
    out = run(config, params)
    expected = np.tanh(np.asarray(out.last)[:, 0] @ params["head"]["kernel"] + params["head"]["bias"])
    np.testing.assert_allclose(out.pooled, expected, atol=1e-5)
    assert out.pooled.shape == (2, 5)


def test_the_mask_token_is_kept_and_not_used():
    config = dataclasses.replace(CLIP, mask_token=True)
    params = parameters(config)
    assert params["mask_token"].shape == (16,)
    without = {name: value for name, value in params.items() if name != "mask_token"}
    np.testing.assert_array_equal(run(config, params).last, run(CLIP, without).last)


# Sizes.


@pytest.mark.parametrize("size, patch, tokens", [(336, 14, 576), (224, 16, 196)])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_encoder_returns_as_many_tokens_as_are_counted(size, patch, tokens, pool):
    blocks = TransformerConfig(layers=1, width=8, heads=1, mlp_width=8)
    config = ViTConfig(size, patch, blocks, pool, feature_layer=-1)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    out, _ = jax.eval_shape(ViT(config).init_with_output, jax.random.key(0), images)
    assert num_visual_tokens(config, size, size) == tokens
    assert out.patches.features.shape == (1, tokens, 8) and out.patches.positions.shape == (1, tokens, 2)
    assert out.pooled.shape == (1, 8)


def test_images_of_another_size_are_refused(clip):
    for shape in [(1, 16, 16, 3), (1, 12, 16, 3)]:
        with pytest.raises(ValueError, match=f"Images are {shape[1]}x{shape[2]}, the encoder takes 12x12"):
            ViT(CLIP).apply({"params": clip[0]}, np.zeros(shape, np.float32))


@pytest.mark.parametrize("change, message", [
    (dict(image_size=13), "image_size 13 is not divisible by patch_size 4"),
    (dict(pool="max"), "pool 'max' is unknown"),
    (dict(class_token=False), "pool 'cls' is that of a class token"),
    (dict(final_norm="some"), "final_norm 'some' is unknown"),
    (dict(final_norm=None, feature_norm=True), "feature_norm is the final norm over features; set final_norm"),
    (dict(resize="nearest"), "Resizing 'nearest' is unknown"),
    (dict(feature_layer=3), "feature_layer 3 does not exist in a tower of 2 layers"),
    (dict(feature_layer=-4), "feature_layer -4 does not exist"),
    (dict(feature_layer=(0, 3)), "feature_layer 3 does not exist"),
])
def test_configs_that_cannot_be_honoured(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CLIP, **change)
