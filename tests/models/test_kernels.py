"""Fused attention: what each kernel is told equals the one formula, and what it cannot honour it refuses in words."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models import kernels
from vlm_jax.models.attention import attention
from vlm_jax.models.execution import Execution, executing
from vlm_jax.models.mask import describe, empty
from vlm_jax.training.mesh import MeshConfig, make_mesh

B, T, HEADS, GROUPS, D = 2, 150, 4, 2, 24
SEGMENTS = np.zeros((B, T), np.int32)
SEGMENTS[0, 60:], SEGMENTS[1, 100:] = 1, -1
KERNELS = {"splash": (functools.partial(kernels.splash, interpret=True), kernels.splash_refusal),
           "cudnn": (functools.partial(kernels.cudnn, implementation="xla"), kernels.cudnn_refusal)}


def draw(dtype=np.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(B, T, n, D)), dtype) for n in (HEADS, GROUPS, GROUPS)]


def descriptions():
    """name -> (description, options)"""
    branches = np.zeros((B, T), np.int32)
    branches[:, 20:40], branches[:, 40:60] = 1, 2
    return {
        "none": (None, {}), "scaled": (None, dict(scale=0.3)), "capped": (None, dict(softcap=2.0)),
        "causal": (describe(SEGMENTS), {}), "full": (describe(SEGMENTS, mask_ar=0), {}),
        "window": (describe(SEGMENTS), dict(window=7)),
        "branches": (describe(SEGMENTS, subsegment_ids=branches), {}),
        "images": (describe(SEGMENTS, image_ids=branches), dict(window=9)),
        "prefix": (describe(SEGMENTS, mask_ar=(np.arange(T) > 30).astype(np.int32)[None]), {}),
    }


SERVES = {"splash": ("none", "scaled", "capped", "causal", "full", "window"),
          "cudnn": ("none", "scaled", "causal", "full", "window", "branches", "images", "prefix")}


def options(window=None, scale=None, softcap=None):
    return window, scale, softcap


LONG = [("splash", "none"), ("splash", "scaled"), ("splash", "full")]


@pytest.mark.parametrize("kernel, name", [
    pytest.param(k, n, marks=pytest.mark.long if (k, n) in LONG else ()) for k, names in SERVES.items() for n in names])
def test_a_kernel_is_the_formula(kernel, name):
    """On every real token, for the output and for gradients of the inputs."""
    call, refusal = KERNELS[kernel]
    info, given = descriptions()[name]
    assert refusal(*(x.astype(jnp.bfloat16) for x in draw()[:2]), info, info, *options(**given)) is None
    real = (SEGMENTS >= 0)[..., None, None] if info is not None else np.ones((B, T, 1, 1), bool)

    def run(function):
        loss = lambda qkv: (jnp.where(real, jnp.sin(function(*qkv)), 0).sum())
        return jax.jit(lambda qkv: (jnp.where(real, function(*qkv), 0), jax.grad(loss)(qkv)))(draw())

    found = run(lambda q, k, v: call(q, k, v, info, info, *options(**given)))
    expected = run(lambda q, k, v: attention(q, k, v, info, **given))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_works_on_each_devices_rows_and_heads(kernel):
    info = describe(SEGMENTS)
    call = jax.jit(lambda q, k, v: KERNELS[kernel][0](q, k, v, info, info, None, None, None))
    with jax.set_mesh(make_mesh(MeshConfig(2, 1, 2), jax.devices()[:4])):
        compiled = call.lower(*draw()).compile()
        found = compiled(*draw())
    real = (SEGMENTS >= 0)[..., None, None]
    np.testing.assert_allclose(np.where(real, found, 0), np.where(real, attention(*draw(), info), 0), atol=2e-5)
    assert compiled.output_shardings.spec == jax.P(("data",), None, ("tensor",))


@pytest.mark.parametrize("kernel, name, reason", [
    ("splash", "branches", "branches, image blocks, prefixes and caches are known only while it runs"),
    ("splash", "images", "known only while it runs"), ("splash", "prefix", "known only while it runs"),
    ("cudnn", "capped", "it has no softcap")])
def test_what_a_kernel_cannot_honour_it_refuses(kernel, name, reason):
    info, given = descriptions()[name]
    q, k, v = draw(jnp.bfloat16)
    with executing(Execution(attention=kernel)), pytest.raises(ValueError, match=f"'{kernel}' cannot serve here: .*{reason}"):
        attention(q, k, v, info, **given)


def test_other_refusals():
    q, k, _ = draw(jnp.bfloat16)
    cudnn = lambda q=q, k=k, info=None: kernels.cudnn_refusal(q, k, info, info, None, None, None)
    splash = lambda q_info, kv_info, window=None: kernels.splash_refusal(q, k, q_info, kv_info, window, None, None)
    assert "not float32" in cudnn(q.astype(jnp.float32))
    assert "not 20" in cudnn(q[..., :20]) and cudnn(q[:, :149]) is None
    assert "even numbers of tokens, not 149 and 150" in cudnn(q[:, :149], info=describe(SEGMENTS))
    info = describe(SEGMENTS)
    assert "caches" in splash(info, empty(B, T)) and "caches" in splash(info.replace(order=info.order), info)
    placed = describe(SEGMENTS, positions=info.positions)
    assert splash(placed, placed) is None and "positions of its own" in splash(placed, placed, window=4)
    with jax.set_mesh(make_mesh(MeshConfig(1, 1, 1, 2), jax.devices()[:2])):
        assert "does not split tokens" in splash(info, info) and "does not split tokens" in cudnn()


def test_a_kernel_of_another_device_is_refused_and_auto_takes_what_runs(capsys):
    q, k, v = draw(jnp.bfloat16)
    for kernel in KERNELS:
        with executing(Execution(attention=kernel)), pytest.raises(ValueError, match="it does not run on a cpu; set config"):
            attention(q, k, v)
    with executing(Execution(attention="auto")):
        attention(q, k, v), attention(q, k, v)
    assert capsys.readouterr().err.count("attention: xla") <= 1  # once a process


def test_auto_says_why_it_did_not_take_the_fused_kernel(monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    attention(*draw())
    attention(*draw())
    assert capsys.readouterr().err == "attention: xla (cudnn cannot serve: it takes bfloat16 or float16, not float32)\n"
