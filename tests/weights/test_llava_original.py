"""Checkpoints as LLaVA's own code writes them, against the same tensors under the hub's names."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import vlm_jax
from vlm_jax.models.model import abstract_params
from vlm_jax.weights.huggingface.families.registry import FAMILIES, family_of
from vlm_jax.weights.huggingface.table import export_params

SIZES = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=64)
EYES = dict(model_type="clip_vision_model", hidden_size=12, intermediate_size=20, num_hidden_layers=3,
            num_attention_heads=3, image_size=8, patch_size=4)
HUB = {"architectures": ["LlavaForConditionalGeneration"], "image_token_index": 38, "text_config": SIZES, "vision_config": EYES}
NEXT = HUB | {"architectures": ["LlavaNextForConditionalGeneration"], "image_grid_pinpoints": [[8, 16], [24, 8]]}
ORIGINAL = {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "mm_projector_type": "mlp2x_gelu",
            "mm_hidden_size": 12, "mm_vision_select_layer": -2, "eos_token_id": 2, **SIZES}
ANYRES = {"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres",
          "image_grid_pinpoints": [[16, 8], [8, 24]]}  # (width, height)
RENAMES = (("multi_modal_projector.linear_1", "model.mm_projector.0"), ("multi_modal_projector.linear_2", "model.mm_projector.2"),
           ("vision_tower", "model.vision_tower.vision_tower"), ("language_model.lm_head", "lm_head"),
           ("language_model.model", "model"), ("image_newline", "model.image_newline"))


def write(folder, hf, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf))
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def random_tensors(hf):
    family, rng = family_of(hf), np.random.default_rng(0)
    flat = {path: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
            for path, leaf in flatten_dict(abstract_params(family.config(hf)), sep="/").items()}
    return dict(export_params(family.table(family.config(hf)), flat))


def original(name):
    here, there = next(pair for pair in RENAMES if name.startswith(pair[0]))
    return there + name.removeprefix(here)


def eyes(folder, tensors, whole):
    """A CLIPVisionModel, or a CLIPModel with more than eyes."""
    prefix = "vision_tower."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    more = {"text_model.embeddings.token_embedding.weight": np.ones((3, 2), np.float32), "logit_scale": np.ones(1)}
    return write(folder, {"vision_config": EYES} if whole else EYES, own | (more if whole else {}))


@pytest.mark.parametrize("hub, more", [(HUB, {}), (NEXT, ANYRES)])
@pytest.mark.parametrize("tower", ["in the checkpoint", "a CLIPModel beside it", "a CLIPVisionModel beside it"])
def test_it_loads_as_the_same_model_in_the_hub_s_names(tmp_path, hub, more, tower):
    tensors = random_tensors(hub)
    want = vlm_jax.load_pretrained(write(tmp_path / "hub", hub, tensors))
    names = {original(name): value for name, value in tensors.items()}
    if tower != "in the checkpoint":
        names = {name: value for name, value in names.items() if "vision_tower" not in name}
    hf = ORIGINAL | more | {"mm_vision_tower": str(eyes(tmp_path / "eyes", tensors, "CLIPModel" in tower))}
    got = vlm_jax.load_pretrained(write(tmp_path / "original", hf, names))
    assert got.config == want.config
    jax.tree.map(np.testing.assert_array_equal, got.params, want.params)
    vlm_jax.save_pretrained(got, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == {original(name) for name in tensors}
    assert all(value.tobytes() == tensors_of(tensors, name).tobytes() for name, value in again.items())


def tensors_of(tensors, name):
    return next(value for hub, value in tensors.items() if original(hub) == name)


def test_its_own_mark_of_an_image_is_taken(tmp_path):
    tensors, rng = random_tensors(HUB), np.random.default_rng(1)
    hf = ORIGINAL | {"mm_vision_tower": str(eyes(tmp_path / "eyes", tensors, False))}
    got = vlm_jax.load_pretrained(write(tmp_path / "original", hf, {original(k): v for k, v in tensors.items()}))
    want = vlm_jax.load_pretrained(write(tmp_path / "hub", HUB, tensors))
    ids, pixels = np.array([[1, 38, 38, 38, 38, 7, 9]]), rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    out = got.forward(input_ids=np.where(ids == 38, -200, ids), pixel_values=pixels)["logits"]
    np.testing.assert_array_equal(out, want.forward(input_ids=ids, pixel_values=pixels)["logits"])


def test_the_first_llava_has_one_linear_layer(tmp_path):
    tensors = random_tensors(HUB)
    names = {original(name): value for name, value in tensors.items() if not name.startswith("multi_modal")}
    names |= {f"model.mm_projector.{kind}": tensors[f"multi_modal_projector.linear_1.{kind}"] for kind in ("weight", "bias")}
    hf = {key: value for key, value in ORIGINAL.items() if key != "mm_projector_type"}  # older than the key
    hf |= {"mm_vision_tower": str(eyes(tmp_path / "eyes", tensors, False)), "mm_vision_select_feature": "cls_patch"}
    pt = vlm_jax.load_pretrained(write(tmp_path / "original", hf, names))
    assert pt.config.connector.kind == "linear" and vlm_jax.num_visual_tokens(pt, 8, 8) == 5
    pixels = np.ones((1, 3, 8, 8), np.float32)
    out = pt.forward(input_ids=[[1, *[-200] * 5, 3]], pixel_values=pixels)
    hidden = want_hidden(tmp_path, tensors, pixels)
    wanted = hidden @ names["model.mm_projector.weight"].T + names["model.mm_projector.bias"]
    np.testing.assert_allclose(out["image_features"], wanted, rtol=1e-5, atol=1e-5)


def want_hidden(tmp_path, tensors, pixels):
    """The state after all layers but the last, of the eyes alone."""
    tower = vlm_jax.load_pretrained(write(
        tmp_path / "alone", {"architectures": ["CLIPVisionModel"], **EYES},
        {name.removeprefix("vision_tower."): value for name, value in tensors.items() if name.startswith("vision_tower.")}))
    return tower.forward(pixel_values=pixels)["hidden_states"][-2][0]


@pytest.mark.parametrize("change, sentence", [
    (dict(mm_vision_tower="openai/clip-vit-large-patch14-336"),
     "The checkpoint holds no eyes, and config.json names 'openai/clip-vit-large-patch14-336'; fetch that model"),
    (dict(mm_vision_tower="someone/eyes"), "names the eyes 'someone/eyes', whose sizes are not known"),
    (dict(mm_projector_type="mlp3x_gelu"), "mm_projector_type 'mlp3x_gelu'; supported are linear, mlp2x_gelu"),
    (dict(mm_vision_select_feature="cls"), "mm_vision_select_feature 'cls'"),
    (dict(mm_patch_merge_type="spatial_unpad"), "image_aspect_ratio 'square' with mm_patch_merge_type"),
])
def test_what_is_missing_or_unknown_is_said(tmp_path, change, sentence):
    tensors = random_tensors(HUB)
    names = {original(name): value for name, value in tensors.items() if not name.startswith("vision_tower")}
    hf = ORIGINAL | {"mm_vision_tower": str(eyes(tmp_path / "eyes", tensors, False))} | change
    with pytest.raises(ValueError, match=sentence):
        vlm_jax.load_pretrained(write(tmp_path / "original", hf, names))


@pytest.mark.parametrize("sizes, count", [
    (dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32), 7_062_902_784),
    (dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40), 13_350_839_296),
])
def test_sizes_of_llava_1_5_with_a_named_tower(sizes, count):
    """The published 7,063,427,072 and 13,351,494,656 have 64 more rows in both embedding tables: 2 * 64 * width."""
    hf = {"architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": "openai/clip-vit-large-patch14-336",
          "mm_projector_type": "mlp2x_gelu", "vocab_size": 32000, **sizes}
    config = FAMILIES["LlavaLlamaForCausalLM"].config(hf)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config))) == count
    assert count + 2 * 64 * sizes["hidden_size"] in (7_063_427_072, 13_351_494_656)
