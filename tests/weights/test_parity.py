"""Every family against transformers: the checkpoints and reference outputs of tests/fixtures, which its make.py wrote.

A new fixture is a row of tests/fixtures/checkpoints.py; a family that is not read, or not written back, fails here.
"""
import dataclasses
import json
import pathlib

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file

import vlm_jax
from vlm_jax import config as configs
from experiments import parity
from vlm_jax.data.files import read_json
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.weights.huggingface.folder import load_config
from vlm_jax.weights.huggingface.families.registry import FAMILIES, family_of


def test_outputs_and_greedy_tokens_are_those_of_transformers(published):
    """Within 1e-4 + 1e-5 |reference|, padding on either side, rows of uneven length with none, one or two images."""
    pt, reference = vlm_jax.load_pretrained(published), np.load(published / "reference.npz")
    for case in dict.fromkeys(key.split("/")[0] for key in reference):
        inputs, wanted = (parity.part(reference, case, kind) for kind in ("in", "out"))
        rows = list(parity.differences(pt, inputs, wanted))
        assert {name for name, _, _ in rows} == set(wanted) - {"margin", "eos_id"}
        for name, difference, good in rows:
            assert good, (case, name, difference)


def test_both_spellings_of_the_config_say_the_same_model(published):
    new, old = (read_json(published / name) for name in ("config.json", "config.hub.json"))
    assert new != old
    assert family_of(new).config(new) == family_of(old).config(old)


def test_a_config_can_take_a_model_s_sizes_from_its_folder(published):
    said = json.loads(json.dumps(configs.model_of(str(published))))  # as config.json of a run keeps it
    assert configs.build(ModelConfig, said, "model") == load_config(epath.Path(published))


def test_a_round_trip_writes_every_tensor_back_byte_for_byte(published, tmp_path):
    """Under a name of the family's hub files: `rename` takes what transformers 5 writes to it. Buffers may be left out."""
    pt = vlm_jax.load_pretrained(published, dtype=None)
    vlm_jax.save_pretrained(pt, tmp_path / "out")
    rename = family_of(read_json(published / "config.json")).rename
    before = {rename(name): value for name, value in load_file(published / "model.safetensors").items()}
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert set(after) == {name for name in before if name is not None}
    for name, value in after.items():
        assert value.dtype == before[name].dtype and value.tobytes() == before[name].tobytes(), name
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads((published / "config.json").read_text())


def test_our_sizes_written_as_config_json_say_the_same_model(published):
    hf = read_json(published / "config.json")
    family = family_of(hf)
    assert explicit(family.config(family.hf_config(family.config(hf)))) == explicit(family.config(hf))


def explicit(config):
    """A config with the sizes written out that a stack of blocks derives from others."""
    if isinstance(config, TransformerConfig):
        out_bias = config.attention_bias if config.out_bias is None else config.out_bias
        windows = tuple(config.of_layer(i).window for i in range(config.layers))
        return dataclasses.replace(
            config, kv_heads=config.groups, head_dim=config.dim, out_bias=out_bias, window=windows)
    if not dataclasses.is_dataclass(config):
        return config
    return dataclasses.replace(
        config, **{field.name: explicit(getattr(config, field.name)) for field in dataclasses.fields(config)})


def test_every_family_has_a_fixture(fixtures):
    unknown_to_transformers = {"LlavaLlamaForCausalLM", "LlavaMistralForCausalLM"}  # see test_llava_original.py
    known = {read_json(file)["architectures"][0] for file in fixtures.glob("*/config.json")}
    assert set(FAMILIES) - unknown_to_transformers == known
