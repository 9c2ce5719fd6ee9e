"""Connectors in files of their own: every way of writing their names, and nothing but a connector."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from vlm_jax.weights.huggingface import projector
from vlm_jax.weights.init_from import check, load_into

RNG = np.random.default_rng(0)
FIRST, SECOND = (RNG.normal(size=(6, 4)).astype(np.float32) for _ in range(2))  # torch: [out, in]
BIAS, LAST = (RNG.normal(size=6).astype(np.float32) for _ in range(2))
LINEAR = {"weight": FIRST, "bias": BIAS}
MLP = {"0.weight": FIRST, "0.bias": BIAS, "2.weight": SECOND @ SECOND.T, "2.bias": LAST}


def tree(*layers, dtype=jnp.float32):
    sizes = {"linear_1": (4, 6), "linear_2": (6, 6)}
    return {name: {"kernel": jnp.zeros(sizes[name], dtype), "bias": jnp.zeros(6, dtype)} for name in layers}


def write(folder, tensors, prefix=""):
    file = folder / "mm_projector.safetensors"
    save_file({prefix + name: np.ascontiguousarray(value) for name, value in tensors.items()}, file)
    return str(file)


@pytest.mark.parametrize("prefix", ["model.mm_projector.", "mm_projector.", "base_model.model.model.mm_projector."])
def test_an_mlp_of_llava_s_first_stage(tmp_path, prefix):
    loaded = projector.load(write(tmp_path, MLP, prefix), tree("linear_1", "linear_2"))
    np.testing.assert_array_equal(loaded["linear_1"]["kernel"], FIRST.T)
    np.testing.assert_array_equal(loaded["linear_1"]["bias"], BIAS)
    np.testing.assert_array_equal(loaded["linear_2"]["kernel"], MLP["2.weight"].T)
    np.testing.assert_array_equal(loaded["linear_2"]["bias"], LAST)


@pytest.mark.parametrize("prefix", ["model.mm_projector.", "mm_projector.", "llama_proj."])
def test_one_layer_of_llava_and_of_minigpt4(tmp_path, prefix):
    loaded = projector.load(write(tmp_path, LINEAR, prefix), tree("linear_1", dtype=jnp.bfloat16))
    assert loaded.keys() == {"linear_1"} and loaded["linear_1"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose(loaded["linear_1"]["kernel"].astype(np.float32), FIRST.T, rtol=2**-8)


def test_a_stage_starts_from_it_and_keeps_the_rest(tmp_path):
    params = {"vision": jnp.ones(3), "connector": tree("linear_1"), "decoder": jnp.ones(2)}
    file = write(tmp_path, LINEAR, "llama_proj.")
    for init_from in (file, f"{file}:connector"):
        assert check(params, init_from) == ["connector"]
        loaded = load_into(params, init_from)
        assert loaded["vision"] is params["vision"] and loaded["decoder"] is params["decoder"]
        np.testing.assert_array_equal(loaded["connector"]["linear_1"]["bias"], BIAS)
    assert not params["connector"]["linear_1"]["bias"].any()
    for wrong in (f"{file}:vision", f"{file}:connector,decoder"):
        with pytest.raises(ValueError, match="a file holds a connector alone"):
            check(params, wrong)
    with pytest.raises(ValueError, match="a file holds a connector alone; this model has vision"):
        check({"vision": jnp.ones(3)}, file)


@pytest.mark.parametrize("tensors, layers, sentence", [
    (LINEAR | {"extra.weight": BIAS}, ["linear_1"], "used: linear_1.bias, linear_1.weight, unused: extra.weight, missing: none"),
    (LINEAR, ["linear_1", "linear_2"],
     "used: linear_1.bias, linear_1.weight, unused: none, missing: linear_2.bias, linear_2.weight"),
    (MLP, ["linear_1"], "unused: linear_2.bias, linear_2.weight, missing: none"),
    ({"weight": FIRST}, ["linear_1"], "missing: linear_1.bias"),
    ({"weight": FIRST.T, "bias": BIAS}, ["linear_1"], r"'linear_1.weight' in .* has shape \(4, 6\)"),
])
def test_loading_is_strict_and_lists_all_names(tmp_path, tensors, layers, sentence):
    for name in ("check", "load"):
        params = {"connector": tree(*layers)}
        with pytest.raises(ValueError, match=sentence):
            (check if name == "check" else load_into)(params, write(tmp_path, tensors, "model.mm_projector."))


def test_tensors_beside_the_projector_are_unused_under_their_own_names(tmp_path):
    both = {"model.mm_projector.weight": FIRST, "model.mm_projector.bias": BIAS, "model.embed_tokens.weight": FIRST}
    with pytest.raises(ValueError, match="unused: model.embed_tokens.weight"):
        projector.load(write(tmp_path, both), tree("linear_1"))


def test_a_pickle_and_a_connector_of_another_kind_are_refused(tmp_path):
    (tmp_path / "mm_projector.bin").write_bytes(b"never opened")
    with pytest.raises(ValueError, match="is pickled.*torch.load.*save_file"):
        check({"connector": tree("linear_1")}, str(tmp_path / "mm_projector.bin"))
    with pytest.raises(ValueError, match="The connector has norm/scale, which no file of a projector holds"):
        projector.load(write(tmp_path, LINEAR, "mm_projector."), {"norm": {"scale": jnp.ones(4)}, **tree("linear_1")})
    with pytest.raises(FileNotFoundError, match="There is no file .*absent.safetensors"):
        check({"connector": tree("linear_1")}, str(tmp_path / "absent.safetensors"))
