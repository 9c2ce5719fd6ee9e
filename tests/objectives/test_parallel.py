"""Contrastive losses over eight devices: the dense loss and its gradients, without the table of all pairs."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from vlm_jax.objectives.contrastive import sigmoid_pairs, softmax_pairs
from vlm_jax.training.mesh import MeshConfig, make_mesh

N, WIDTH = 64, 24
LOSSES = {"softmax": lambda x, y, s, b, ids, valid: softmax_pairs(x, y, s, ids, valid),
          "sigmoid": lambda x, y, s, b, ids, valid: sigmoid_pairs(x, y, s, b, ids)}


def mesh_of(*sizes):
    return make_mesh(MeshConfig(*sizes), jax.devices()[:int(np.prod(sizes))])


def inputs(n=N, seed=0):
    """Features, scale and bias; some texts belong to several images."""
    rng = np.random.default_rng(seed)
    unit = lambda: ((x := rng.normal(size=(n, WIDTH))) / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return (unit(), unit(), np.float32(7.0), np.float32(-3.0)), rng.integers(0, n // 2, (n, 1)).astype(np.int32)


def compiled(name, mesh, n=N, valid=None):
    """(loss, hits) and gradients, compiled for rows that are split over the mesh."""
    def run(args, ids):
        loss = lambda args: LOSSES[name](*args, ids, valid)
        return jax.value_and_grad(loss, has_aux=True)(args)

    rows, whole = NamedSharding(mesh, jax.P(("data", "fsdp"))), NamedSharding(mesh, jax.P())
    with jax.set_mesh(mesh):
        return jax.jit(run, in_shardings=((rows, rows, whole, whole), rows)).lower(*inputs(n)).compile()


@functools.cache
def dense(name, valid=None):
    mask = None if valid is None else jnp.asarray(valid)
    args, ids = inputs()
    return jax.value_and_grad(lambda args: LOSSES[name](*args, ids, mask), has_aux=True)(args)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (2, 2, 2, 1)])
def test_loss_hits_and_gradients_are_the_dense_ones(name, sizes):
    mesh = mesh_of(*sizes)
    run = compiled(name, mesh)
    (loss, hits), gradients = run(*jax.device_put(inputs(), run.input_shardings[0]))
    (expected, expected_hits), expected_gradients = dense(name)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6) and float(hits) == float(expected_hits)
    for found, wanted in zip(gradients, expected_gradients):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))
    assert float(np.abs(gradients[2])) > 0


def test_rows_that_are_left_out():
    valid = tuple(bool(i % 3) for i in range(N))
    run = compiled("softmax", mesh_of(8, 1, 1, 1), valid=jnp.asarray(valid))
    (loss, _), gradients = run(*jax.device_put(inputs(), run.input_shardings[0]))
    (expected, _), expected_gradients = dense("softmax", valid)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(gradients[0], expected_gradients[0], atol=1e-6)
    assert (np.asarray(gradients[0])[::3] == 0).all()


def buffers(text, *shape):
    """Results in compiled HLO of just this shape, whatever the element type."""
    return re.findall(rf"= \(?\w+\[{','.join(map(str, shape))}\]", text)


def test_the_ring_has_no_table_of_all_pairs():
    """A device's chunk is there, twice round the ring; neither all pairs, nor its rows against all columns, nor all
    features are."""
    text, share = compiled("sigmoid", mesh_of(8, 1, 1, 1)).as_text(), N // 8
    assert buffers(text, share, share) and "collective-permute" in text
    for shape in [(N, N), (share, N), (N, share), (N, WIDTH)]:
        assert not buffers(text, *shape), shape
    assert "all-gather" not in text
    assert buffers(compiled("sigmoid", mesh_of(1, 1, 1, 1)).as_text(), N, N)  # what the search would have found


def test_softmax_has_local_rows_against_gathered_columns():
    text, share = compiled("softmax", mesh_of(8, 1, 1, 1)).as_text(), N // 8
    assert buffers(text, share, N) and not buffers(text, N, N)


@pytest.mark.parametrize("name, power", [("softmax", 1), ("sigmoid", 2)])
def test_memory_of_a_device_falls_as_devices_are_added(name, power):
    """At a fixed batch: as 1 / devices with gathered columns, as 1 / devices^2 in the ring (less what features need)."""
    n, temporaries = 1024, {}
    for devices in (2, 4, 8):
        temporaries[devices] = compiled(name, mesh_of(devices, 1, 1, 1), n).memory_analysis().temp_size_in_bytes
    assert temporaries[4] < 1.2 * temporaries[2] / 2**power
    assert temporaries[8] < 1.3 * temporaries[2] / 4**power
