"""PaliGemma and Gemma 3 with eyes: configs in both directions, names of every generation, refusals, masks and sizes.

What they compute is held against transformers by test_parity.py.
"""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import vlm_jax
from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.model import abstract_params
from vlm_jax.models.tokens import num_visual_tokens
from vlm_jax.weights.huggingface.families.registry import family_of
from vlm_jax.weights.huggingface.table import export_params

EYES = dict(model_type="siglip_vision_model", hidden_size=12, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=3, image_size=12, patch_size=3, layer_norm_eps=1e-3, vision_use_head=False)
TEXT = dict(vocab_size=40, hidden_size=20, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=6)
IMAGE, PER_IMAGE = 39, {"gemma3": 4, "gemma": 16, "gemma2": 16}


def config(kind, text=None, eyes=None, **options):
    """config.json of Gemma 3, or of PaliGemma over "gemma" or "gemma2"."""
    if kind == "gemma3":
        name, own = "Gemma3ForConditionalGeneration", dict(model_type="gemma3", mm_tokens_per_image=4)
    else:
        name, own = "PaliGemmaForConditionalGeneration", dict(model_type="paligemma", projection_dim=20)
    text = {**TEXT, "model_type": "gemma3_text" if kind == "gemma3" else kind, **(text or {})}
    return {"architectures": [name], "image_token_index": IMAGE, "vision_config": EYES | (eyes or {}),
            "text_config": text, **own, **options}


def read(kind, *args, **options):
    hf = config(kind, *args, **options)
    return family_of(hf).config(hf)


def random_tensors(hf):
    family, rng = family_of(hf), np.random.default_rng(0)
    shapes = flatten_dict(abstract_params(family.config(hf)), sep="/")
    flat = {path: rng.normal(0, 0.2, leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    tensors = export_params(family.table(family.config(hf)), flat)
    return {name: np.ascontiguousarray(value) for name, value in tensors}


def write(folder, hf, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf))
    save_file(tensors, folder / "model.safetensors")
    return vlm_jax.load_pretrained(folder)


def inputs(kind, images=1):
    ids = np.array([[5, 6, *[IMAGE] * (PER_IMAGE[kind] * images), 7, 8, 9]])
    pixels = np.random.default_rng(1).normal(size=(images, 3, 12, 12)).astype(np.float32)
    return {"input_ids": ids, "pixel_values": pixels}


# --- configs


@pytest.mark.parametrize("kind", PER_IMAGE)
@pytest.mark.parametrize("options", [
    dict(), dict(tie_word_embeddings=False), dict(eyes=dict(vision_use_head=True)), dict(eyes=dict(image_size=13))])
def test_what_is_written_says_the_same_model(kind, options):
    hf = config(kind, **options)
    family = family_of(hf)
    written = family.hf_config(family.config(hf))
    again = family.config(written)
    assert family.hf_config(again) == written
    assert again.vision == family.config(hf).vision and again.connector == family.config(hf).connector
    assert again.decoder.tie_embeddings == options.get("tie_word_embeddings", True)


def test_the_whole_is_tied_by_what_is_said_at_the_top():
    for kind in PER_IMAGE:
        assert read(kind, dict(tie_word_embeddings=False)).decoder.tie_embeddings
        assert not read(kind, dict(tie_word_embeddings=True), tie_word_embeddings=False).decoder.tie_embeddings


def test_what_sets_the_families_apart():
    gemma3, pali, pali2 = (read(kind) for kind in ("gemma3", "gemma", "gemma2"))
    assert gemma3.connector == ConnectorConfig("norm_linear", norm_eps=1e-3, reducer="average", factor=2)
    assert pali.connector == pali2.connector == ConnectorConfig("linear")
    assert (gemma3.decoder.mask, gemma3.decoder.first_position) == ("image_blocks", 0)
    assert (pali.decoder.mask, pali.decoder.first_position) == ("prefix", 1)
    assert (pali2.decoder.logit_softcap, pali2.decoder.transformer.attention_softcap) == (30.0, 50.0)
    for model in (gemma3, pali, pali2):
        assert model.vision.feature_norm and model.vision.feature_layer == -1
        assert model.decoder.embed_scale == math.sqrt(20)


def test_class_defaults_stand_where_the_config_is_silent(tmp_path):
    """PaliGemmaConfig() of transformers, which has no head, and the ids of image tokens."""
    hf = {"architectures": ["PaliGemmaForConditionalGeneration"], "model_type": "paligemma"}
    model = family_of(hf).config(hf)
    assert (model.vision.image_size, model.vision.grid, model.vision.pool) == (224, (16, 16), "mean")
    assert (model.decoder.vocab_size, model.decoder.transformer.groups) == (257152, 1)
    for kind, image in (("gemma3", 262144), ("gemma", 256000)):
        hf = {key: value for key, value in config(kind).items() if key != "image_token_index"}
        ids = write(tmp_path / kind, hf, random_tensors(hf)).ids
        assert (ids.image, ids.eos, ids.pad) == (image, (1,), 0)


def test_gemma_3_with_eyes_caps_no_logits():
    """Gemma3ForConditionalGeneration of transformers does not read this key, Gemma3ForCausalLM does."""
    assert read("gemma3", dict(final_logit_softcapping=3.0)).decoder.logit_softcap is None


@pytest.mark.parametrize("tokens, size, each", [(4, 12, 4), (5, 12, 4), (16, 12, 16), (1, 12, 1), (4, 15, 4)])
def test_cells_of_gemma_3_are_as_large_as_the_tokens_allow(tokens, size, each):
    """5 pixels a side by 2 tokens a side: cells of 2, and a row and a column that fill none."""
    assert num_visual_tokens(read("gemma3", eyes=dict(image_size=size), mm_tokens_per_image=tokens), 640, 480) == each


@pytest.mark.parametrize("kind, options, what", [
    ("gemma3", dict(mm_tokens_per_image=25), "mm_tokens_per_image 25 for images of 16 patches"),
    ("gemma3", dict(text=dict(model_type="gemma2")), "'gemma2'; Gemma3ForConditionalGeneration takes gemma3_text"),
    ("gemma3", dict(text=dict(use_bidirectional_attention=True)), "use_bidirectional_attention"),
    ("gemma", dict(eyes=dict(model_type="clip_vision_model")), "only 'siglip_vision_model'"),
    ("gemma", dict(projection_dim=24), "projection_dim 24, but text_config has hidden_size 20"),
])
def test_a_config_that_cannot_be_honoured_is_refused(kind, options, what):
    with pytest.raises(ValueError, match=what):
        read(kind, **options)


@pytest.mark.parametrize("change", [
    dict(mask="causal"), dict(mask="prefix"), dict(first_position=1), dict(logit_softcap=3.0), dict(embed_scale=None)])
def test_a_decoder_that_gemma_3_cannot_be_is_not_written(change):
    hf, model = config("gemma3"), read("gemma3")
    with pytest.raises(ValueError, match="lack"):
        family_of(hf).hf_config(dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, **change)))


# --- names


IN_MEMORY = [("language_model.model.", "model.language_model."), ("language_model.lm_head.", "lm_head."),
             ("vision_tower.", "model.vision_tower."), ("multi_modal_projector.", "model.multi_modal_projector.")]
GENERATIONS = {
    "transformers 4.52": IN_MEMORY,
    "transformers 5": [("vision_tower.vision_model.", "vision_tower."), *IN_MEMORY],
    "saved by transformers 5": [("vision_tower.vision_model.", "vision_tower.")]}


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("kind, tied", [("gemma3", True), ("gemma", False)])
def test_every_generation_of_names_is_read_and_the_hubs_is_written(tmp_path, generation, kind, tied):
    hf = config(kind, tie_word_embeddings=tied)
    tensors, renamed = random_tensors(hf), {}
    assert ("language_model.lm_head.weight" in tensors) != tied
    for name, value in tensors.items():
        for old, new in GENERATIONS[generation]:
            name = new + name.removeprefix(old) if name.startswith(old) else name
        renamed[name] = value
    assert set(renamed) != set(tensors)
    pt, plain = write(tmp_path / "new", hf, renamed), write(tmp_path / "hub", hf, tensors)
    assert jax.tree.all(jax.tree.map(np.array_equal, pt.params, plain.params))
    vlm_jax.save_pretrained(pt, tmp_path / "out")
    again = vlm_jax.load_pretrained(tmp_path / "out")
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, plain.params))


def test_gemma_3_writes_its_projection_as_it_multiplies(tmp_path):
    """multi_modal_projector.mm_input_projection_weight is [in, out], unlike every other matrix of the file."""
    tensors = random_tensors(config("gemma3"))
    assert tensors["multi_modal_projector.mm_input_projection_weight"].shape == (12, 20)
    pt = write(tmp_path / "in", config("gemma3"), tensors)
    out = pt.forward(**inputs("gemma3"))
    pooled = out["vision"].reshape(1, 2, 2, 2, 2, 12).mean(axis=(2, 4)).reshape(1, 4, 12)
    scale = 1 + tensors["multi_modal_projector.mm_soft_emb_norm.weight"]
    normed = pooled / np.sqrt((pooled**2).mean(-1, keepdims=True) + 1e-3) * scale
    want = normed @ tensors["multi_modal_projector.mm_input_projection_weight"]
    np.testing.assert_allclose(out["projector"], want, atol=1e-5)


# --- masks, seen from outside: which logits change with which token


def reach(pt, given):
    """bool [t, t]: whether the logits of token i depend on what token j is, for text tokens j."""
    base, seen = pt.forward(**given)["logits"][0], []
    for j, token in enumerate(given["input_ids"][0]):
        ids = given["input_ids"].copy()
        ids[0, j] = token if token == IMAGE else token + 10
        seen.append(np.abs(pt.forward(**(given | {"input_ids": ids}))["logits"][0] - base).max(axis=-1) > 1e-6)
    return np.array(seen).T


def test_a_prefix_sees_itself_whole_and_a_suffix_only_what_was(tmp_path):
    hf = config("gemma2", dict(sliding_window=2, num_hidden_layers=1))
    pt = write(tmp_path / "in", hf, random_tensors(hf))
    kinds = np.zeros((1, 21), int)
    kinds[0, -2:] = 1
    seen = reach(pt, inputs("gemma2") | {"token_type_ids": kinds})
    assert seen[:19, [0, 1, 18]].all()  # the window of 2 does not cut the prefix
    assert not seen[:19, 19:].any() and seen[19, 18] and not seen[19, 20]
    assert not seen[20, :2].any() and seen[20, 19]  # but it does cut the suffix


def test_an_image_sees_its_own_tokens_and_the_text_before_it(tmp_path):
    """One layer without a window: text that follows an image stays unseen by it, and by text before."""
    hf = config("gemma3", dict(num_hidden_layers=1, sliding_window_pattern=1))
    pt = write(tmp_path / "in", hf, random_tensors(hf))
    given = inputs("gemma3")
    seen = reach(pt, given)
    text = [0, 1, 6, 7, 8]
    assert np.array_equal(seen[:, text], np.tri(9, dtype=bool)[:, text])
    other = given | {"pixel_values": given["pixel_values"] + np.eye(12, dtype=np.float32)[None, None] * 9}
    moved = np.abs(pt.forward(**other)["logits"] - pt.forward(**given)["logits"])[0].max(axis=-1) > 1e-6
    assert np.array_equal(moved, [False, False, *[True] * 7])


def test_an_image_token_may_lie_outside_the_vocabulary_but_no_other(tmp_path):
    hf = config("gemma3", image_token_index=99)
    tensors, given = random_tensors(hf), inputs("gemma3")
    want = write(tmp_path / "inside", config("gemma3"), tensors).forward(**given)["logits"]
    pt = write(tmp_path / "outside", hf, tensors)
    ids = np.where(given["input_ids"] == IMAGE, 99, given["input_ids"])
    np.testing.assert_array_equal(pt.forward(**given | {"input_ids": ids})["logits"], want)
    with pytest.raises(ValueError, match="input_ids must be 0 to 39"):
        pt.forward(**given | {"input_ids": np.where(ids == 9, 98, ids)})


# --- published sizes

SO400M = dict(model_type="siglip_vision_model", hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
              num_attention_heads=16, patch_size=14, vision_use_head=False)


@pytest.mark.parametrize("hf, count, each", [
    ({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": 256,
      "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
                      "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                      "sliding_window": 1024},
      "vision_config": SO400M | {"image_size": 896}}, 4_300_079_472, 256),  # Gemma 3 4B
    ({"architectures": ["PaliGemmaForConditionalGeneration"], "model_type": "paligemma", "projection_dim": 2048,
      "text_config": {"model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
                      "num_attention_heads": 8, "num_key_value_heads": 1, "vocab_size": 257216},
      "vision_config": SO400M | {"projection_dim": 2048}}, 2_923_466_480, 256),  # PaliGemma 3B at 224 pixels
])
def test_published_sizes_have_the_published_number_of_parameters(hf, count, each):
    model = family_of(hf).config(hf)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(model))) == count
    assert num_visual_tokens(model, 1000, 700) == each
