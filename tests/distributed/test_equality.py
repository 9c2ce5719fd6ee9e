"""Two processes with two devices each compute what one process computes with four."""

import pathlib

import numpy as np
import pytest

from vlm_jax.training import sharding
from vlm_jax.training.rules import flatten

SCRIPT = pathlib.Path(__file__).with_name("three_steps.py")
MESH = (2, 2, 1, 1)


def close(found, expected, label):
    """Within 1e-5 of the leaf's largest value; of a key bias, whose gradient is truly zero, of the query bias's."""
    sizes = {path: np.abs(np.asarray(leaf)).max() for path, leaf in expected.items()}
    for path, leaf in expected.items():
        size = max(sizes[path], sizes[path.replace("/k/bias", "/q/bias")])
        np.testing.assert_allclose(found[f"{label} {path}"], leaf, rtol=0, atol=1e-5 * size, err_msg=path)


@pytest.mark.parametrize("names", [
    ["sigmoid"], pytest.param(["softmax", "align", "instruct"], marks=pytest.mark.long)], ids="-".join)
def test_three_steps_of_two_processes_are_those_of_one(names, launch, objectives, tmp_path, monkeypatch):
    two = launch("two", [SCRIPT, tmp_path / "found.npz", *names], processes=2, devices=2)
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", objectives.LOWERED)
    expected = {name: objectives.run(objectives.task(name), objectives.mesh_of(*MESH)) for name in names}
    assert two.wait() == [0, 0], two.words()
    found = np.load(tmp_path / "found.npz")
    for name, (losses, gradients, state) in expected.items():
        assert losses[0] != losses[2]
        np.testing.assert_allclose([found[f"{name} loss {i}"] for i in range(3)], losses, rtol=0, atol=1e-5)
        close(found, gradients, f"{name} gradient")
        close(found, flatten(state.params), f"{name} parameter")
