"""Rows `layers/...`: choices inside the models against the obvious alternative, gradient included, at ViT-S sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from experiments.benchmarks.timing import Row, paired
from vlm_jax.models.attention import attention
from vlm_jax.models.layers import Linear
from vlm_jax.models.vit import patchify

BATCH, TOKENS, WIDTH, HEADS, PATCH = 16, 197, 384, 6, 16


def _gradient(function, *arrays):
    """Value and gradient of sum(f^2) with respect to every array, compiled."""
    step = jax.jit(jax.value_and_grad(lambda args: jnp.square(function(*args)).sum()))
    return lambda: step(arrays)


def _normal(*shape: int):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def dense() -> Row:
    """An MLP on tokens flattened to 2-D against the same matmuls on [batch, tokens, width]."""
    x, up, down = _normal(BATCH, TOKENS, WIDTH), _normal(WIDTH, 4 * WIDTH), _normal(4 * WIDTH, WIDTH)

    def ours(x, up, down):
        hidden = Linear(4 * WIDTH, use_bias=False).apply({"params": {"kernel": up}}, x)
        return Linear(WIDTH, use_bias=False).apply({"params": {"kernel": down}}, jax.nn.gelu(hidden))

    return paired(_gradient(ours, x, up, down), _gradient(lambda x, up, down: jax.nn.gelu(x @ up) @ down, x, up, down))


def attend() -> Row:
    """Our attention against jax.nn.dot_product_attention."""
    qkv = [_normal(BATCH, TOKENS, HEADS, WIDTH // HEADS) for _ in range(3)]
    return paired(_gradient(attention, *qkv), _gradient(jax.nn.dot_product_attention, *qkv))


def patches() -> Row:
    """Reshape and matmul against a strided convolution."""
    images, kernel = _normal(BATCH, 224, 224, 3), _normal(PATCH * PATCH * 3, WIDTH)

    def convolution(images, kernel):
        kernel = kernel.reshape(PATCH, PATCH, 3, WIDTH)
        return jax.lax.conv_general_dilated(
            images, kernel, (PATCH, PATCH), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return paired(_gradient(lambda images, kernel: patchify(images, PATCH) @ kernel, images, kernel),
                  _gradient(convolution, images, kernel))


ROWS = {"layers/dense_2d": dense, "layers/attention": attend, "layers/patchify": patches}
