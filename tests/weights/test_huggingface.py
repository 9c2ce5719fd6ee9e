"""Folders in Hugging Face layout, made here with NumPy under the hub's names, read, written and refused.

`llama` below is the whole model once more, loop by loop: no line of it is shared with the package.
"""
import json
import math

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

import vlm_jax
from vlm_jax.models.model import abstract_params
from vlm_jax.weights.huggingface import safetensors
from vlm_jax.weights.huggingface.families.registry import FAMILIES, family_of
from vlm_jax.weights.huggingface.table import export_params

SIZES = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=64)
NAMES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
         "qwen3": "Qwen3ForCausalLM"}
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
LINEAR = dict(rope_type="linear", factor=2.0)
DYNAMIC = dict(rope_type="dynamic", factor=3.0, original_max_position_embeddings=8)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
VISION = dict(model_type="clip_vision_model", hidden_size=12, intermediate_size=20, num_hidden_layers=2,
              num_attention_heads=3, image_size=8, patch_size=4)


def config(kind, **options):
    return {"architectures": [NAMES[kind]], "model_type": kind, **SIZES, **options}


def random_tensors(hf, seed=0):
    """Every tensor that the family's table names, with values that matter."""
    family, rng = family_of(hf), np.random.default_rng(seed)
    model = family.config(hf)
    flat = traverse_util.flatten_dict(abstract_params(model), sep="/")
    flat = {path: rng.normal(1.0 if path.endswith("scale") else 0, 0.3, leaf.shape).astype(np.float32)
            for path, leaf in flat.items()}
    return dict(export_params(family.table(model), flat))


def write(folder, hf, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf))
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


# --- the independent model


def frequencies(dim, theta, scaling):
    base = [theta ** (-2 * i / dim) for i in range(dim // 2)]
    if scaling is None:
        return np.array(base), 1.0
    length, factor = scaling.get("original_max_position_embeddings"), scaling["factor"]
    if scaling["rope_type"] == "linear":
        return np.array(base) / factor, 1.0
    if scaling["rope_type"] == "dynamic":  # of rows of 12 tokens
        theta *= (factor * 12 / length - (factor - 1)) ** (dim / (dim - 2))
        return np.array([theta ** (-2 * i / dim) for i in range(dim // 2)]), 1.0
    if scaling["rope_type"] == "llama3":
        out = []
        for f in base:
            wave, low, high = 2 * math.pi / f, scaling["low_freq_factor"], scaling["high_freq_factor"]
            smooth = min(max((length / wave - low) / (high - low), 0), 1)
            out.append((1 - smooth) * f / factor + smooth * f)
        return np.array(out), 1.0
    edge = lambda turns: dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))
    low, high = max(math.floor(edge(32)), 0), min(math.ceil(edge(1)), dim - 1)
    ramp = [min(max((i - low) / (high - low), 0), 1) for i in range(dim // 2)]
    return np.array([f / factor * r + f * (1 - r) for f, r in zip(base, ramp)]), 0.1 * math.log(factor) + 1


def llama(hf, w, ids, windows=None, scaling=None):
    """Logits [t, vocab] of one row, float64."""
    w = {name: value.astype(np.float64) for name, value in w.items()}
    heads, groups = hf["num_attention_heads"], hf["num_key_value_heads"]
    dim = hf.get("head_dim") or hf["hidden_size"] // heads
    rms = lambda x, name: x / np.sqrt((x**2).mean(-1, keepdims=True) + hf["rms_norm_eps"]) * w[name + ".weight"]
    dense = lambda x, name: x @ w[name + ".weight"].T + w.get(name + ".bias", 0)
    turns, amplitude = frequencies(dim, hf.get("rope_theta", 10000.0), scaling)
    x = w["model.embed_tokens.weight"][ids]

    def head(y, norm, position):
        y = rms(y, norm) if norm + ".weight" in w else y
        a, b, angle = y[: dim // 2], y[dim // 2:], position * turns
        c, s = np.cos(angle) * amplitude, np.sin(angle) * amplitude
        return np.concatenate([a * c - b * s, b * c + a * s])

    for layer in range(hf["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        y = rms(x, p + "input_layernorm")
        q, k, v = (dense(y, f"{p}self_attn.{n}_proj").reshape(len(ids), -1, dim) for n in "qkv")
        mixed = np.zeros((len(ids), heads, dim))
        for t in range(len(ids)):
            first = max(0, t - windows[layer] + 1) if windows and windows[layer] else 0
            for h in range(heads):
                g = h // (heads // groups)
                query = head(q[t, h], p + "self_attn.q_norm", t)
                scores = np.array([query @ head(k[s, g], p + "self_attn.k_norm", s) for s in range(first, t + 1)])
                weights = np.exp(scores / math.sqrt(dim) - (scores / math.sqrt(dim)).max())
                mixed[t, h] = weights / weights.sum() @ v[first: t + 1, g]
        x = x + dense(mixed.reshape(len(ids), -1), p + "self_attn.o_proj")
        y = rms(x, p + "post_attention_layernorm")
        gate = dense(y, p + "mlp.gate_proj")
        x = x + dense(gate / (1 + np.exp(-gate)) * dense(y, p + "mlp.up_proj"), p + "mlp.down_proj")
    return rms(x, "model.norm") @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


IDS = np.random.default_rng(1).integers(0, 40, 12)


@pytest.mark.parametrize("kind, options, windows, scaling", [
    ("llama", dict(), None, None),
    ("llama", dict(attention_bias=True, mlp_bias=True, head_dim=6, rope_theta=500.0, rope_scaling=LLAMA3),
     None, LLAMA3),
    ("llama", dict(rope_scaling=dict(type="linear", factor=2.0), num_key_value_heads=4), None, LINEAR),
    ("llama", dict(rope_scaling=DYNAMIC, max_position_embeddings=8, head_dim=6), None, DYNAMIC),
    ("llama", dict(rope_scaling=DYNAMIC, max_position_embeddings=12), None, None),
    ("mistral", dict(sliding_window=3), [3, 3, 3], None),
    ("mistral", dict(sliding_window=None, tie_word_embeddings=True), None, None),
    ("qwen2", dict(use_sliding_window=True, sliding_window=3, max_window_layers=1), [None, 3, 3], None),
    ("qwen2", dict(sliding_window=3, tie_word_embeddings=True), None, None),
    ("qwen3", dict(head_dim=8, rope_theta=1e6, rope_scaling=YARN), None, YARN),
    ("qwen3", dict(head_dim=8, sliding_window=2, use_sliding_window=True,
                   layer_types=["full_attention", "sliding_attention", "full_attention"]), [None, 2, None], None),
])
def test_the_logits_are_those_of_the_model_written_out(tmp_path, kind, options, windows, scaling):
    hf = config(kind, **options)
    tensors = random_tensors(hf)
    pt = vlm_jax.load_pretrained(write(tmp_path, hf, tensors))
    padded = np.stack([np.r_[[0] * 3, IDS], np.r_[IDS, [0] * 3]])
    mask = np.stack([np.r_[[0] * 3, [1] * 12], np.r_[[1] * 12, [0] * 3]])
    out = pt.forward(input_ids=padded, attention_mask=mask)["logits"]
    want = llama(hf, tensors, IDS, windows, scaling)
    np.testing.assert_allclose(out[0, 3:], want, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(out[1, :12], want, rtol=1e-5, atol=1e-4)
    assert not out[0, :3].any() and not out[1, 12:].any()


# --- configs


def test_both_spellings_of_config_json_give_the_same_sizes():
    for kind in NAMES:
        old = config(kind, rope_theta=500.0, rope_scaling=YARN)
        new = config(kind, rope_parameters={"rope_theta": 500.0, **YARN})
        assert family_of(old).config(old) == family_of(new).config(new)


@pytest.mark.parametrize("kind, options", [
    ("llama", dict(attention_bias=True, rope_scaling=LLAMA3)), ("llama", dict(rope_scaling=DYNAMIC)), ("mistral", dict(sliding_window=5)),
    ("qwen2", dict(use_sliding_window=True, sliding_window=3, max_window_layers=1)), ("qwen3", dict(rope_scaling=YARN)),
])
def test_what_we_write_of_a_config_reads_back_as_it(kind, options):
    family, hf = FAMILIES[NAMES[kind]], config(kind, **options)
    again = family.config(family.hf_config(family.config(hf)))
    assert family.hf_config(again) == family.hf_config(family.config(hf))
    with pytest.raises(ValueError, match="options that 'mistral' models of transformers lack"):
        FAMILIES["MistralForCausalLM"].hf_config(FAMILIES["Qwen3ForCausalLM"].config(config("qwen3")))


@pytest.mark.parametrize("options, sentence", [
    (dict(rope_scaling=dict(type="longrope", factor=2.0)), "rotary positions of type 'longrope'"),
    (dict(rope_scaling=dict(YARN, partial_rotary_factor=0.5)), "rotary positions with partial_rotary_factor"),
    (dict(hidden_act="mish"), "activation 'mish'"),
    (dict(quantization_config={"bits": 4}), "quantised"),
    (dict(architectures=["PhiForCausalLM"]), "PhiForCausalLM are not supported"),
])
def test_what_cannot_be_honoured_is_said(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        vlm_jax.load_pretrained(write(tmp_path, config("llama", **options), {}))


# --- LLaVA


def llava(**options):
    text = {key: value for key, value in config("llama", pad_token_id=3).items() if key != "architectures"}
    return {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": 38,
            "text_config": text, "vision_config": VISION, **options}


def original(name):  # the names of LLaVA's own code
    for here, there in (("multi_modal_projector.linear_1", "model.mm_projector.0"),
                        ("multi_modal_projector.linear_2", "model.mm_projector.2"),
                        ("vision_tower", "model.vision_tower.vision_tower"),
                        ("language_model.lm_head", "lm_head"), ("language_model.model", "model")):
        if name.startswith(here):
            return there + name.removeprefix(here)
    raise AssertionError(name)


def in_memory(name):
    name = name.replace("language_model.lm_head", "lm_head").replace("language_model.model", "model.language_model")
    return name if name.startswith(("lm_head", "model.")) else "model." + name


GENERATIONS = {"original": original, "hub": lambda name: name, "in memory": in_memory,
               "transformers 5": lambda name: name.replace("vision_tower.vision_model", "vision_tower"),
               "in memory, 5": lambda name: in_memory(name).replace("vision_tower.vision_model", "vision_tower")}


@pytest.fixture(scope="module")
def eyes():
    """A LLaVA, a prompt about three images in two rows, and what it answers."""
    hf = llava()
    tensors, rng = random_tensors(hf), np.random.default_rng(2)
    image = [38] * 4
    rows = [[1, *image, 7, 9], [1, 5, *image, 8, *image, 4]]
    ids = np.array([[0] * (12 - len(row)) + row for row in rows])
    mask = np.array([[0] * (12 - len(row)) + [1] * len(row) for row in rows])
    inputs = dict(input_ids=ids, attention_mask=mask, pixel_values=rng.normal(size=(3, 3, 8, 8)).astype(np.float32))
    return hf, tensors, inputs


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_of_llava_names_loads(tmp_path, eyes, generation):
    hf, tensors, inputs = eyes
    want = vlm_jax.load_pretrained(write(tmp_path / "hub", hf, tensors)).params
    names = {GENERATIONS[generation](name): value for name, value in tensors.items()}
    names[GENERATIONS[generation]("vision_tower.vision_model.embeddings.position_ids")] = np.arange(5)
    names[GENERATIONS[generation]("language_model.model.layers.0.self_attn.rotary_emb.inv_freq")] = np.ones(2)
    got = vlm_jax.load_pretrained(write(tmp_path / "other", hf, names)).params
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_batch_answers_as_its_rows_do(tmp_path, eyes):
    hf, tensors, inputs = eyes
    pt = vlm_jax.load_pretrained(write(tmp_path, hf, tensors))
    out, new = pt.forward(**inputs), pt.generate(**inputs, max_new_tokens=5, eos_token_id=())
    first = dict(input_ids=inputs["input_ids"][:1, 5:], pixel_values=inputs["pixel_values"][:1])
    alone = pt.forward(**first)
    np.testing.assert_allclose(out["logits"][:1, 5:], alone["logits"], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(new[:1], pt.generate(**first, max_new_tokens=5, eos_token_id=()))
    assert out["image_features"].shape == (12, 16) and out["projector"].shape == (3, 4, 16)
    assert out["vision"].shape == (3, 5, 12) and out["hidden_states"].shape == (4, 2, 12, 16)
    np.testing.assert_allclose(out["image_features"][:4], alone["image_features"], rtol=1e-5, atol=1e-5)
    end = int(new[0, 1])
    ended = pt.generate(**inputs, max_new_tokens=5, eos_token_id=end)
    stop = list(new[0]).index(end) + 1
    assert list(ended[0]) == [*new[0, :stop], *[3] * (5 - stop)]  # pad_token_id of text_config


@pytest.mark.parametrize("change, sentence", [
    (dict(pixel_values=None), "there are no pixel_values"),
    (dict(pixel_values=np.zeros((2, 3, 8, 8))), "places for 3 images"),
    (dict(pixel_values=np.zeros((3, 3, 9, 9))), "Images are 9x9"),
    (dict(input_ids=np.full((2, 12), 40)), "input_ids must be 0 to 39"),
    (dict(attention_mask=np.ones((2, 5))), "must all be"),
    (dict(image_sizes=np.ones((2, 2))), "does not take image_sizes"),
])
def test_inputs_that_do_not_fit_are_refused(tmp_path, eyes, change, sentence):
    hf, tensors, inputs = eyes
    pt = vlm_jax.load_pretrained(write(tmp_path, hf, tensors))
    with pytest.raises(ValueError, match=sentence):
        pt.forward(**{**inputs, **change})
    cut = inputs["input_ids"].copy()
    cut[0, 6] = 1
    with pytest.raises(ValueError, match="Row 0 has 3 image tokens; an image takes 4"):
        pt.forward(**{**inputs, "input_ids": cut})


@pytest.mark.parametrize("options, sentence", [
    (dict(vision_feature_select_strategy="cls"), "vision_feature_select_strategy is 'cls'"),
    (dict(vision_feature_layer=[-2, 9]), "feature_layer 9 does not exist"),
    (dict(vision_config=dict(VISION, model_type="swin")), "vision_config.model_type is 'swin'"),
    (dict(text_config=dict(model_type="phi")), "text_config.model_type is 'phi'"),
])
def test_a_llava_that_we_do_not_have_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        family_of(llava()).config(llava(**options))


# --- files


def test_what_was_read_is_written_byte_for_byte(tmp_path, eyes):
    hf, tensors, _ = eyes
    for name, kind in (("f32", "float32"), ("bf16", "bfloat16")):
        source = write(tmp_path / name, {**hf, "torch_dtype": kind}, {k: v.astype(kind) for k, v in tensors.items()})
        (source / "generation_config.json").write_text("{}")
        vlm_jax.save_pretrained(vlm_jax.load_pretrained(source, dtype=None), tmp_path / f"{name}-again")
        again = tmp_path / f"{name}-again"
        for file in ("config.json", "generation_config.json"):
            assert json.loads((again / file).read_text()) == json.loads((source / file).read_text())
        old, new = (load_file(folder / "model.safetensors") for folder in (source, again))
        assert old.keys() == new.keys() and all(old[k].tobytes() == new[k].tobytes() for k in old)


def test_the_written_dtype_is_said_in_config_json(tmp_path, eyes):
    hf, tensors, _ = eyes
    write(tmp_path / "in", {**hf, "dtype": "float32"}, tensors)
    vlm_jax.save_pretrained(vlm_jax.load_pretrained(tmp_path / "in", dtype="bfloat16"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_shards_are_written_with_an_index_and_read_back(tmp_path):
    tensors = {f"t{i}": np.full((4, 4), i, np.float32) for i in range(5)}
    safetensors.write(tmp_path, tensors.items(), shard_bytes=128)
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
        "model.safetensors.index.json"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 320} and index["weight_map"]["t4"] == "model-00003-of-00003.safetensors"
    reader = safetensors.Reader(tmp_path)
    assert all((reader.read(name) == value).all() for name, value in tensors.items())
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002"):
        safetensors.Reader(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t0": "../other.safetensors"}}))
    with pytest.raises(ValueError, match="has no weight_map from tensors to files beside it"):
        safetensors.Reader(tmp_path)


def test_loading_is_strict_about_names_and_shapes(tmp_path):
    hf = config("llama")
    tensors = random_tensors(hf)
    other = dict(tensors, extra=np.ones(2, np.float32))
    del other["model.norm.weight"]
    with pytest.raises(ValueError, match="used: lm_head.weight, .* and 17 more, unused: extra, missing: model.norm.weight"):
        vlm_jax.load_pretrained(write(tmp_path, hf, other))
    for shape in ((16, 23), (16,), (2, 16, 24)):
        other = dict(tensors) | {"model.layers.1.mlp.down_proj.weight": np.ones(shape, np.float32)}
        with pytest.raises(ValueError, match=r"layers.1.mlp.down_proj.weight' in .* has shape"):
            vlm_jax.load_pretrained(write(tmp_path, hf, other))


def test_one_tensor_under_two_names_is_refused(tmp_path, eyes):
    hf, tensors, _ = eyes
    twice = dict(tensors) | {"lm_head.weight": tensors["language_model.lm_head.weight"]}
    with pytest.raises(ValueError, match="the same tensor under two names"):
        vlm_jax.load_pretrained(write(tmp_path, hf, twice))


def header(values, data=b""):
    text = json.dumps(values).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("content", [
    b"", b"\xff" * 8, (2**60).to_bytes(8, "little") + b"{}", header({"a": 1}),
    header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"1234"),
    header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"1234"),
    header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    (55).to_bytes(8, "little") + b'{"a": 1, "a": {"dtype": "U8", "shape": [0], "data_offset' b's": [0, 0]}}',
], ids=["empty", "no length", "absurd length", "not a tensor", "short", "absurd shape", "overlap", "one name twice"])
def test_a_damaged_or_hostile_header_is_a_sentence(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(config("llama")))
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is not a valid safetensors file"):
        vlm_jax.load_pretrained(tmp_path)


def test_an_index_that_promises_a_tensor_too_many_is_a_sentence(tmp_path):
    hf = config("llama")
    (tmp_path / "config.json").write_text(json.dumps(hf))
    safetensors.write(tmp_path, random_tensors(hf).items())
    promised = {name: "model.safetensors" for name in (*random_tensors(hf), "ghost")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": promised}))
    with pytest.raises(ValueError, match="says that model.safetensors holds 'ghost', which none does"):
        vlm_jax.load_pretrained(tmp_path)


@pytest.mark.parametrize("wrong", [
    {"hidden_size": "24"}, {"num_hidden_layers": None}, {"num_hidden_layers": 0}, {"num_attention_heads": 0},
    {"head_dim": 5}, {"rope_scaling": {"type": "linear", "factor": "2"}}, {"rope_scaling": 4}], ids=str)
def test_sizes_that_no_model_has_are_a_sentence(tmp_path, wrong):
    (tmp_path / "config.json").write_text(json.dumps(config("llama", **wrong)))
    with pytest.raises(ValueError, match="makes no sense|whole number|factor '2'"):
        vlm_jax.load_pretrained(tmp_path)


def test_pickles_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config("llama")))
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(ValueError, match="only pickled weights.*transformers.LlamaForCausalLM.from_pretrained"):
        vlm_jax.load_pretrained(tmp_path)


def test_rows_without_tokens_are_a_sentence(tmp_path):
    hf = config("llama")
    pt = vlm_jax.load_pretrained(write(tmp_path, hf, random_tensors(hf)))
    with pytest.raises(ValueError, match="must all be .batch, tokens., and not empty"):
        pt.forward(input_ids=np.zeros((1, 0), int))
