"""Dense layers, norms and activations: what every tower is made of."""

from __future__ import annotations

from typing import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.models.axes import constrain, splitting

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI CLIP
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


def activation(name: str) -> Callable[[Array], Array]:
    if name not in ACTIVATIONS:
        raise ValueError(f"Activation '{name}' is unknown; choose one of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def lookup(table: Float[Array, "vocab d"], tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
    """Rows of an embedding table. Where its columns are split over devices, each looks up its columns of every token
    and then trades them for all columns of its own tokens: the table itself never travels."""
    x = table[constrain(tokens, "lookup_batch", "tokens")]
    return constrain(constrain(x, "lookup_batch", "tokens", "lookup_embed"), "batch", "tokens", "embed")


class Linear(nn.Module):
    """y = x W + b over the last axis; kernel [in, out], initialised N(0, std^2) with std = in^-0.5 unless given.

    y has the dtype of x unless `out_dtype` is given. Adapters among the parameters (`models/lora.py`) are added.
    """

    features: int
    use_bias: bool = True
    std: float | None = None
    out_dtype: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*lead i"]) -> Float[Array, "*lead o"]:
        std = self.std or x.shape[-1] ** -0.5
        kernel = self.param("kernel", nn.initializers.normal(std), (x.shape[-1], self.features))
        lead = x.shape[:-1]
        if not splitting("tokens"):  # one 2-D matmul is faster on CPU; a sharded axis must stay apart
            x = x.reshape(-1, x.shape[-1])
        y = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=self.out_dtype)
        if self.has_variable("params", "lora_a"):
            a, b = (self.get_variable("params", name).astype(x.dtype) for name in ("lora_a", "lora_b"))
            y = y + (x @ a) @ b
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros_init(), (self.features,)).astype(y.dtype)
        return y.reshape(*lead, self.features)


class Norm(nn.Module):
    """LayerNorm (`kind` "layer": scale and bias) or RMSNorm ("rms": scale), computed in float32.

    "rms_offset" is Gemma's RMSNorm: it multiplies by 1 + scale, and its scale starts at 0.
    """

    kind: str
    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*lead d"]) -> Float[Array, "*lead d"]:
        width = x.shape[-1:]
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - y.mean(-1, keepdims=True)
        elif self.kind not in ("rms", "rms_offset"):
            raise ValueError(f"Norm '{self.kind}' is unknown; choose 'layer', 'rms' or 'rms_offset'.")
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        if self.kind == "rms_offset":
            y = y * (1 + self.param("scale", nn.initializers.zeros_init(), width).astype(jnp.float32))
        else:
            y = y * self.param("scale", nn.initializers.ones_init(), width)
        if self.kind == "layer":
            y = y + self.param("bias", nn.initializers.zeros_init(), width)
        return y.astype(x.dtype)


class Mlp(nn.Module):
    """down(act(up(x))), or the gated form down(act(gate(x)) * up(x)) (SwiGLU with silu)."""

    hidden: int
    activation: str
    gated: bool
    use_bias: bool
    out_std: float

    @nn.compact
    def __call__(self, x: Float[Array, "*lead d"]) -> Float[Array, "*lead d"]:
        act = activation(self.activation)
        up = Linear(self.hidden, self.use_bias, name="up")(x)
        if self.gated:
            up = act(Linear(self.hidden, self.use_bias, name="gate")(x)) * up
        else:
            up = act(up)
        if up.ndim == 3:
            up = constrain(up, "batch", "tokens", "mlp")
        return Linear(x.shape[-1], self.use_bias, std=self.out_std, name="down")(up)
