"""Microbatches: which examples they take, and that random numbers are the same each time features are made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.training.accumulate import gradients, join, split
from vlm_jax.training.mesh import MeshConfig, make_mesh, put_batch


def test_a_microbatch_takes_every_nth_example():
    parts = split({"x": np.arange(8)}, 2)
    assert np.array_equal(parts["x"], [[0, 2, 4, 6], [1, 3, 5, 7]])
    assert np.array_equal(join(parts)["x"], np.arange(8))


def test_no_example_moves_to_another_device():
    mesh = make_mesh(MeshConfig(8), jax.devices())
    batch = put_batch({"x": np.zeros((32, 5), np.float32)}, mesh)
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda b: jax.lax.map(lambda part: part["x"] * 2, split(b, 4))).lower(batch).compile()
    text = compiled.as_text()
    assert "[4,4,5]" not in text and "[4,1,5]" in text  # a device has one example of each microbatch
    assert not any(op in text for op in ("all-gather", "all-to-all", "collective-permute"))


class Noisy:
    """Features of an example are its value times a random number times w; the loss is of all features together."""

    terms = {"spread": 1.0}

    def __call__(self, params, batch, rng):
        return self.compare(params, self.embed(params, batch, rng), batch)

    def embed(self, params, batch, rng):
        return params["w"]["kernel"] * batch["x"] * jax.random.uniform(rng, batch["x"].shape)

    def compare(self, params, features, batch):
        total = features.sum() * params["w"]["kernel"]
        return {"spread": total**2}, {"spread": jnp.float32(len(features))}


@pytest.mark.parametrize("microbatches", [2, 4])
def test_features_are_made_again_with_the_keys_of_the_first_time(microbatches):
    """(w^2 S)^2 / n, S the sum of x times what its microbatch's key draws: its slope at w is 4 w^3 S^2 / n."""
    x, rng, w = np.arange(1, 9, dtype=np.float32), jax.random.key(3), jnp.float32(0.7)
    keys = jax.random.split(rng, microbatches)
    drawn = jnp.stack([jax.random.uniform(key, (8 // microbatches,)) for key in keys])
    s = float((split(x, microbatches) * drawn).sum())
    loss, values, grads = gradients(Noisy(), lambda t: {"w": {"kernel": t["w/kernel"]}}, {"w/kernel": w}, {"x": x}, rng,
                                    microbatches)
    assert float(loss) == pytest.approx((0.49 * s) ** 2 / 8, rel=1e-5) and values["spread"] == loss
    assert float(grads["w/kernel"]) == pytest.approx(4 * 0.7**3 * s**2 / 8, rel=1e-5)
