"""MiniGPT-4 put together from the folders of its parts, and written as one that everybody opens."""

import json
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vlm_jax
from vlm_jax import cli, convert
from vlm_jax.weights.huggingface import minigpt4
from vlm_jax.weights.huggingface.families import blip2, llama
from vlm_jax.weights.init_from import check, load_into

VISION = dict(hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=14,
              patch_size=7)
QFORMER = dict(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=12)
OPT = dict(model_type="opt", hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
BLIP2 = dict(model_type="blip-2", architectures=["Blip2ForConditionalGeneration"], vision_config=VISION,
             qformer_config=QFORMER, num_query_tokens=3)
LLAMA = dict(model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=12, intermediate_size=20,
             num_hidden_layers=2, num_attention_heads=2, vocab_size=30, eos_token_id=7)


@pytest.fixture(scope="module")
def parts(tmp_path_factory, checkpoint):
    """(BLIP-2 with another language model than the class knows, Llama, the projection) as they are published."""
    eyes, language, projection = (tmp_path_factory.mktemp(name) for name in ("blip2", "llama", "projection"))
    checkpoint(blip2.FAMILY, blip2.config(BLIP2 | {"text_config": OPT}), eyes)
    checkpoint(llama.FAMILY, llama.FAMILY.config(LLAMA), language)
    (eyes / "config.json").write_text(json.dumps(BLIP2 | {"text_config": {"model_type": "t5"}}))
    (language / "config.json").write_text(json.dumps(LLAMA))
    (language / "tokenizer.model").write_bytes(b"pieces")
    rng = np.random.default_rng(5)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    save_file({"llama_proj.weight": draw(12, 8), "llama_proj.bias": draw(12)}, projection / "pretrained.safetensors")
    return eyes, language, projection / "pretrained.safetensors"


def test_the_verb_writes_a_folder_that_holds_every_part(parts, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["convert", "minigpt4", *map(str, parts), str(out)])
    cli.main(convert.main)
    eyes, language, released = (load_file(file) for file in (
        parts[0] / "model.safetensors", parts[1] / "model.safetensors", parts[2]))
    wanted = {name: value for name, value in eyes.items() if not name.startswith("language_")}
    wanted |= {f"language_model.{name}": value for name, value in language.items()}
    wanted |= {name.replace("llama_proj", "language_projection"): value for name, value in released.items()}
    written = load_file(out / "model.safetensors")
    assert set(written) == set(wanted)
    assert all(written[name].tobytes() == value.tobytes() for name, value in wanted.items())
    hf = json.loads((out / "config.json").read_text())
    assert hf["architectures"] == ["Blip2ForConditionalGeneration"] and hf["text_config"]["eos_token_id"] == 7
    assert (out / "tokenizer.model").read_bytes() == b"pieces"


def test_it_looks_and_talks(parts, tmp_path):
    """An image of 3 tokens changes what is said after it, and the projection's bias reaches the decoder."""
    config, params = minigpt4.compose(*parts)
    minigpt4.save(tmp_path, config, params, *parts[:2])
    (tmp_path / "tokenizer.model").unlink()
    pt = vlm_jax.load_pretrained(tmp_path)
    assert jax.tree.all(jax.tree.map(np.array_equal, pt.params, params))
    assert vlm_jax.num_visual_tokens(pt, 640, 480) == 3
    ids = np.array([[1, 5, 0, 0, 0, 6, 8]])
    pixels = np.random.default_rng(0).normal(size=(2, 1, 3, 14, 14)).astype(np.float32)
    one, other = (pt.forward(input_ids=ids, pixel_values=image) for image in pixels)
    assert np.abs(one["logits"][:, 6] - other["logits"][:, 6]).max() > 1e-3
    np.testing.assert_allclose(one["logits"][:, :2], other["logits"][:, :2], atol=1e-6)
    wanted = one["qformer"] @ load_file(parts[2])["llama_proj.weight"].T + load_file(parts[2])["llama_proj.bias"]
    np.testing.assert_allclose(one["projector"], wanted, atol=1e-4)


def test_a_stage_starts_from_the_released_projection_and_keeps_the_q_former(parts):
    _, params = minigpt4.compose(*parts)
    blank = jax.tree.map(np.zeros_like, params["connector"]["linear_1"])
    before = params | {"connector": params["connector"] | {"linear_1": blank}}
    assert check(before, str(parts[2])) == ["connector"]
    assert jax.tree.all(jax.tree.map(np.array_equal, load_into(before, str(parts[2])), params))


def test_a_released_model_comes_from_its_published_sizes():
    config = vlm_jax.preset("minigpt-4-7b")
    assert (config.connector.qformer.queries, vlm_jax.num_visual_tokens(config, 224, 224)) == (32, 32)


def test_parts_that_do_not_fit_are_one_sentence(parts, tmp_path):
    eyes, language, projection = parts
    with pytest.raises(ValueError, match="made of 'blip-2' and one of llama"):
        minigpt4.compose(language, eyes, projection)
    save_file({"llama_proj.weight": np.zeros((12, 9), np.float32), "llama_proj.bias": np.zeros(12, np.float32)},
              tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=r"'linear_1.weight' .* has shape \(12, 9\); .* \(8, 12\)"):
        minigpt4.compose(eyes, language, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match="is pickled, .* convert it once: python -c"):
        minigpt4.compose(eyes, language, tmp_path / "pretrained.pth")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        minigpt4.compose(eyes, language, tmp_path / "none.safetensors")
