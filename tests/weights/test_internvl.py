"""What InternVL's configs may say beside its fixture, and what is refused."""

import pytest

from vlm_jax.models.tokens import num_visual_tokens
from vlm_jax.weights.huggingface.families import internvl
from vlm_jax.weights.huggingface.families.registry import family_of

TEXT = dict(model_type="qwen2", vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1)
HF = {"architectures": ["InternVLForConditionalGeneration"], "text_config": TEXT}


def config(vision=None, **top):
    return internvl.FAMILY.config(HF | {"vision_config": vision or {}} | top)


def test_the_published_tile_has_256_tokens():
    """What the class fills in: InternViT-300M at 448 pixels with patches of 14, four of which become a token."""
    whole = config()
    assert whole.layout.tile == (448, 448) and whole.layout.tokens == 256
    assert num_visual_tokens(whole, 640, 480) == 13 * 256  # twelve tiles and a thumbnail
    assert config(downsample_ratio=0.25).layout.tokens == 64


def test_the_final_norm_is_there_without_mean_pooling_and_only_over_the_last_layers_features():
    mean, token = config(), config({"use_mean_pooling": False})
    assert (mean.vision.final_norm, mean.vision.feature_norm) == (None, False)
    assert (token.vision.final_norm, token.vision.feature_norm) == ("all", True)
    assert not config({"use_mean_pooling": False}, vision_feature_layer=-2).vision.feature_norm


def test_tying_is_said_at_the_top_or_else_by_the_language_model():
    tied = lambda **top: config(**top).decoder.tie_embeddings
    assert not tied() and tied(tie_word_embeddings=True)
    assert tied(text_config=TEXT | {"tie_word_embeddings": True})
    assert not tied(text_config=TEXT | {"tie_word_embeddings": True}, tie_word_embeddings=False)


@pytest.mark.parametrize("vision, top, message", [
    ({"norm_type": "rms_norm", "use_mean_pooling": False}, {}, "norm_type 'rms_norm' with use_mean_pooling False"),
    ({"use_absolute_position_embeddings": False}, {}, "use_absolute_position_embeddings false"),
    ({"image_size": [448, 224]}, {}, "only squares are supported"),
    ({}, {"vision_feature_layer": [-1, -2]}, "only one layer"),
    ({}, {"vision_feature_select_strategy": "full"}, "only one layer and 'default' are supported"),
    ({}, {"text_config": {"model_type": "internlm2"}}, "text_config.model_type is 'internlm2'; known language models"),
])
def test_what_cannot_be_honoured_is_named(vision, top, message):
    with pytest.raises(ValueError, match=message):
        config(vision, **top)


def test_the_original_layout_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="InternVLChatModel are not supported; take the one .* ends in -hf"):
        family_of({"architectures": ["InternVLChatModel"]})


@pytest.mark.parametrize("name, hub", [
    ("model.vision_tower.encoder.layer.0.lambda_1", "vision_tower.encoder.layer.0.lambda_1"),
    ("model.multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias"),
    ("model.language_model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.up_proj.weight"),
    ("lm_head.weight", "language_model.lm_head.weight"),
    ("language_model.model.norm.weight", "language_model.model.norm.weight"),
])
def test_names_as_transformers_has_them_in_memory(name, hub):
    assert internvl.rename(name) == hub
