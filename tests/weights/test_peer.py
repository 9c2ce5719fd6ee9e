"""What we write, opened by transformers itself (make parity)."""
import numpy as np
import pytest

import vlm_jax
from experiments import parity
from vlm_jax import convert
from vlm_jax.inference import peer

pytestmark = pytest.mark.peer


def test_an_export_gives_the_original_s_logits_in_transformers(published, tmp_path):
    """Bit for bit: the tensors are the same, and so is what config.json says."""
    vlm_jax.save_pretrained(vlm_jax.load_pretrained(published, dtype=None), tmp_path / "out")
    reference = np.load(published / "reference.npz")
    case = next(iter(reference)).split("/")[0]
    inputs, wanted = (parity.part(reference, case, kind) for kind in ("in", "out"))
    out = peer.Peer(tmp_path / "out").outputs(inputs)
    compared = [name for name in wanted if name in out]
    assert compared
    for name in compared:
        np.testing.assert_array_equal(out[name], wanted[name], err_msg=name)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3", "dinov2", "siglip2_vision"])
def test_verify_agrees_on_weights_alone(fixtures, name):
    assert convert.verify_folder(str(fixtures / name), as_json=False)


def test_verify_sees_a_weight_that_is_off(fixtures, tmp_path, monkeypatch):
    pt = vlm_jax.load_pretrained(fixtures / "llama")
    norm = pt.params["decoder"]["norm_post"]
    norm["scale"] = norm["scale"] * 1.001
    monkeypatch.setattr(convert, "load_pretrained", lambda source: pt)
    assert not convert.verify_folder(str(fixtures / "llama"), as_json=False)
