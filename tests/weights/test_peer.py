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
    inputs = parity.part(reference, next(iter(reference)).split("/")[0], "in")
    before, after = (peer.Peer(folder).outputs(inputs) for folder in (published, tmp_path / "out"))
    assert before and before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3", "dinov2", "siglip2_vision"])
def test_verify_agrees_on_weights_alone(fixtures, name):
    assert convert.verify_folder(str(fixtures / name), as_json=False)


def test_verify_sees_a_weight_that_is_off(fixtures, tmp_path, monkeypatch):
    pt = vlm_jax.load_pretrained(fixtures / "llama")
    norm = pt.params["decoder"]["norm_post"]
    norm["scale"] = norm["scale"] * 1.001
    monkeypatch.setattr(convert, "load_pretrained", lambda source: pt)
    assert not convert.verify_folder(str(fixtures / "llama"), as_json=False)
