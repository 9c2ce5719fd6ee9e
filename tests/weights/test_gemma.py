"""The language models of the Gemma families, made here with NumPy under the hub's names, read, written and refused.

`written_out` below is the whole model once more, token by token: no line of it is shared with the package.
"""

import json
import math

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import vlm_jax
from vlm_jax.models.model import abstract_params
from vlm_jax.weights.huggingface.families.registry import FAMILIES, family_of
from vlm_jax.weights.huggingface.table import export_params

NAMES = {"gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}
SIZES = dict(vocab_size=40, hidden_size=20, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, head_dim=6, rms_norm_eps=1e-4)
IDS = np.random.default_rng(1).integers(0, 40, 9)


def config(kind, **options):
    return {"architectures": [NAMES[kind]], "model_type": kind, **SIZES, **options}


def decoder(kind, **options):
    hf = config(kind, **options)
    return family_of(hf).config(hf).decoder


def random_tensors(hf):
    family, rng = family_of(hf), np.random.default_rng(0)
    shapes = flatten_dict(abstract_params(family.config(hf)), sep="/")
    flat = {path: rng.normal(0, 0.3, leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    return dict(export_params(family.table(family.config(hf)), flat))


def write(folder, hf, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf))
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def written_out(w, ids, *, scale, windows=(None,) * 3, thetas=(1e4,) * 3, factors=(1,) * 3, caps=(None, None)):
    """Logits [t, vocab] of one row, float64, of `SIZES`; what the tensors show (sandwich norms, q/k norm) is used."""
    w = {name: value.astype(np.float64) for name, value in w.items()}
    heads, groups, dim, eps = 4, 2, 6, SIZES["rms_norm_eps"]
    rms = lambda x, name: x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * (1 + w[name + ".weight"])
    dense = lambda x, name: x @ w[name + ".weight"].T
    gelu = lambda x: x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2
    cap = lambda x, c: x if c is None else c * np.tanh(x / c)
    x = w["model.embed_tokens.weight"][ids] * math.sqrt(SIZES["hidden_size"])

    def turned(y, norm, position, theta, factor):
        y = rms(y, norm) if norm + ".weight" in w else y
        a, b, angle = y[: dim // 2], y[dim // 2 :], position / factor * theta ** (-2 * np.arange(dim // 2) / dim)
        c, s = np.cos(angle), np.sin(angle)
        return np.concatenate([a * c - b * s, b * c + a * s])

    for layer, (window, theta, factor) in enumerate(zip(windows, thetas, factors)):
        p = f"model.layers.{layer}."
        sandwich = p + "pre_feedforward_layernorm.weight" in w
        y = rms(x, p + "input_layernorm")
        q, k, v = (dense(y, f"{p}self_attn.{n}_proj").reshape(len(ids), -1, dim) for n in "qkv")
        mixed = np.zeros((len(ids), heads, dim))
        for t in range(len(ids)):
            seen = range(max(0, t - window + 1) if window else 0, t + 1)
            for h in range(heads):
                g = h // (heads // groups)
                query = turned(q[t, h], p + "self_attn.q_norm", t, theta, factor)
                scores = np.array([query @ turned(k[s, g], p + "self_attn.k_norm", s, theta, factor) for s in seen])
                weights = np.exp(cap(scores * scale, caps[0]))
                mixed[t, h] = weights / weights.sum() @ v[list(seen), g]
        y = dense(mixed.reshape(len(ids), -1), p + "self_attn.o_proj")
        x = x + (rms(y, p + "post_attention_layernorm") if sandwich else y)
        y = rms(x, p + ("pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"))
        y = dense(gelu(dense(y, p + "mlp.gate_proj")) * dense(y, p + "mlp.up_proj"), p + "mlp.down_proj")
        x = x + (rms(y, p + "post_feedforward_layernorm") if sandwich else y)
    return cap(rms(x, "model.norm") @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T, caps[1])


@pytest.mark.parametrize("kind, options, how", [
    ("gemma", dict(rope_theta=500.0), dict(scale=6**-0.5, thetas=(500.0,) * 3)),
    ("gemma", dict(tie_word_embeddings=False, hidden_act="gelu"), dict(scale=6**-0.5)),  # the first files mean tanh
    ("gemma2", dict(query_pre_attn_scalar=10, sliding_window=3, attn_logit_softcapping=2.0,
                    final_logit_softcapping=3.0),
     dict(scale=10**-0.5, windows=(3, None, 3), caps=(2.0, 3.0))),
    ("gemma2", dict(sliding_window=2, layer_types=["full_attention", "sliding_attention", "full_attention"]),
     dict(scale=256**-0.5, windows=(None, 2, None), caps=(50.0, 30.0))),
    ("gemma3_text", dict(query_pre_attn_scalar=9, sliding_window=3, sliding_window_pattern=2, rope_local_base_freq=50.0,
                         final_logit_softcapping=3.0, rope_scaling=dict(rope_type="linear", factor=8.0)),
     dict(scale=1 / 3, windows=(3, None, 3), thetas=(50.0, 1e6, 50.0), factors=(1, 8, 1), caps=(None, 3.0))),
])
def test_the_logits_are_those_of_the_model_written_out(tmp_path, kind, options, how):
    hf = config(kind, **options)
    tensors = random_tensors(hf)
    assert ("lm_head.weight" in tensors) == (hf.get("tie_word_embeddings") is False)
    pt = vlm_jax.load_pretrained(write(tmp_path / "in", hf, tensors))
    padded = np.stack([np.r_[[0] * 3, IDS], np.r_[IDS, [0] * 3]])
    mask = np.stack([np.r_[[0] * 3, [1] * 9], np.r_[[1] * 9, [0] * 3]])
    out = pt.forward(input_ids=padded, attention_mask=mask)["logits"]
    want = written_out(tensors, IDS, **how)
    np.testing.assert_allclose(out[0, 3:], want, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(out[1, :9], want, rtol=1e-5, atol=1e-4)
    again = family_of(hf).hf_config(pt.config)
    assert family_of(hf).config(again) == pt.config


# --- configs


def test_rope_parameters_by_type_of_layer_say_what_the_older_keys_say():
    old = decoder("gemma3_text", rope_theta=500.0, rope_local_base_freq=50.0,
                  rope_scaling=dict(rope_type="linear", factor=8.0))
    new = decoder("gemma3_text", rope_parameters={
        "full_attention": dict(rope_type="linear", factor=8.0, rope_theta=500.0),
        "sliding_attention": dict(rope_type="default", rope_theta=50.0)})
    assert old == new
    t = new.transformer
    assert (t.rope_theta, t.local_rope_theta, t.rope_scaling.factor) == (500.0, 50.0, 8.0)
    assert t.of_layer(0).rope_scaling is None and t.of_layer(0).rope_theta == 50.0


@pytest.mark.parametrize("kind, silent, spoken", [
    ("gemma2", dict(), dict(layer_types=["sliding_attention", "full_attention"] * 4)),
    ("gemma3_text", dict(),
     dict(layer_types=["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"] * 2)),
    ("gemma3_text", dict(sliding_window_pattern=4),
     dict(layer_types=[*["sliding_attention"] * 3, "full_attention"] * 2)),
])
def test_without_layer_types_every_nth_layer_sees_all(kind, silent, spoken):
    assert decoder(kind, num_hidden_layers=8, **silent) == decoder(kind, num_hidden_layers=8, **spoken)


def test_class_defaults_stand_where_the_config_is_silent():
    """The whole text_config that Gemma 3 4B ships with; the rest is Gemma3TextConfig's."""
    hf = {"architectures": ["Gemma3ForCausalLM"], "hidden_size": 2560, "intermediate_size": 10240,
          "sliding_window": 1024, "model_type": "gemma3_text", "num_hidden_layers": 34,
          "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    got = family_of(hf).config(hf).decoder
    t = got.transformer
    assert (got.vocab_size, t.heads, t.groups, t.dim, t.norm_eps) == (262208, 8, 4, 256, 1e-6)
    assert (t.rope_theta, t.local_rope_theta, t.attention_scale) == (1e6, 1e4, 1 / 16)
    assert got.tie_embeddings and got.logit_softcap is None and got.embed_scale == math.sqrt(2560)
    assert [i for i in range(34) if t.of_layer(i).window is None] == [5, 11, 17, 23, 29]


@pytest.mark.parametrize("kind, options", [
    ("gemma", dict()), ("gemma2", dict(num_hidden_layers=5)), ("gemma3_text", dict(num_hidden_layers=7)),
    ("gemma3_text", dict(sliding_window_pattern=1)), ("gemma3_text", dict(sliding_window_pattern=5)),
])
def test_what_is_written_also_speaks_to_older_readers(kind, options):
    """Without layer_types and rope_parameters, which they do not know, the config says the same."""
    hf = config(kind, **options)
    family = family_of(hf)
    written = family.hf_config(family.config(hf))
    known = {key: value for key, value in written.items() if key not in ("layer_types", "rope_parameters")}
    assert family.config(known) == family.config(written) == family.config(hf)
    assert written.get("sliding_window", 0) is not None  # Gemma's classes want a number even where no layer uses it


@pytest.mark.parametrize("kind, options, what", [
    ("gemma", dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
    ("gemma3_text", dict(rope_parameters=dict(rope_theta=1e4)), "rope_parameters rope_theta; .* of full_attention"),
    ("gemma3_text", dict(rope_parameters=dict(sliding_attention=dict(type="linear", factor=2.0))), "with a window"),
    ("gemma3_text", dict(sliding_window=None), "contradicts itself"),
    ("gemma2", dict(hidden_activation="mish"), "activation 'mish'"),
])
def test_a_config_that_cannot_be_honoured_is_refused(kind, options, what):
    with pytest.raises(ValueError, match=what):
        decoder(kind, **options)


def test_a_decoder_that_a_family_has_no_words_for_is_not_written():
    with pytest.raises(ValueError, match="'gemma' models of transformers lack"):
        hf = config("gemma2")
        FAMILIES[NAMES["gemma"]].hf_config(family_of(hf).config(hf))


def test_a_tied_head_may_stand_in_the_files_too_where_it_is_the_same(tmp_path):
    hf = config("gemma")
    tensors = random_tensors(hf)
    want = vlm_jax.load_pretrained(write(tmp_path / "once", hf, tensors)).params
    twice = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    pt = vlm_jax.load_pretrained(write(tmp_path / "twice", hf, twice))
    assert jax.tree.all(jax.tree.map(np.array_equal, pt.params, want))
    vlm_jax.save_pretrained(pt, tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(tensors)
    other = write(tmp_path / "other", hf, twice | {"lm_head.weight": twice["lm_head.weight"] + 1})
    with pytest.raises(ValueError, match="'lm_head.weight' .* differs from 'model.embed_tokens.weight'"):
        vlm_jax.load_pretrained(other)


@pytest.mark.parametrize("kind, hf, count", [
    ("gemma2", dict(hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8,
                    num_key_value_heads=4, head_dim=256, vocab_size=256000), 2_614_341_888),  # Gemma 2 2B
])
def test_published_sizes_have_the_published_number_of_parameters(kind, hf, count):
    hf = {"architectures": [NAMES[kind]], "model_type": kind, **hf}
    params = abstract_params(family_of(hf).config(hf))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count
