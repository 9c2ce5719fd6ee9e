"""One transformer block with explicit options, and the stack that every tower runs it in.

The parameters of a tower's blocks are stacked on a leading layer axis (`blocks/attn/q/kernel: [layers, in, out]`).
How the blocks are executed is not visible in that tree.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from vlm_jax.models.attention import attention, attention_weights
from vlm_jax.models.axes import constrain
from vlm_jax.models.execution import as_computed, current, remat
from vlm_jax.models.layers import Linear, Mlp, Norm
from vlm_jax.models.mask import SequenceInfo, describe
from vlm_jax.models.rope import RopeScaling, rotate

Params = Any
LayerCache = tuple[Float[Array, "b s g d"], Float[Array, "b s g d"]]  # keys, values


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and options of a stack of pre-norm blocks.

    Attention: `kv_heads` below `heads` is grouped queries; `out_bias` None follows `attention_bias`; `qk_norm` puts an
    RMSNorm on queries and keys before they are rotated, on each "head" (Qwen3, Gemma 3) or across "all" (InternViT);
    `attention_scale` None is head_dim^-0.5, `attention_softcap` bounds the scores (Gemma 2). `window` w lets a token
    see the w last ones, itself included; a tuple of them is repeated over the layers.
    Rotary positions: none where `rope_theta` is None; `local_rope_theta` is that of layers with a window, whose positions
    are never stretched (Gemma 3); `rope_sections` and `rope_axial` are for several axes (see `rope.rotate`).
    Residual branches: `post_norm` normalises what a branch gives before it is added (Gemma 2); `layer_scale` multiplies
    it by a learned vector that starts at this value (arXiv 2103.17239; DINOv2, InternViT).
    """

    layers: int
    width: int
    heads: int
    mlp_width: int
    kv_heads: int | None = None
    head_dim: int | None = None
    norm: str = "layer"
    norm_eps: float = 1e-5
    activation: str = "gelu"
    gated_mlp: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    out_bias: bool | None = None
    qk_norm: str | None = None
    qk_norm_eps: float | None = None
    attention_scale: float | None = None
    attention_softcap: float | None = None
    rope_theta: float | None = None
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    rope_sections: tuple[int, ...] = ()
    rope_axial: bool = False
    window: int | tuple[int | None, ...] | None = None
    post_norm: bool = False
    layer_scale: float | None = None

    def __post_init__(self):
        for name in ("layers", "width", "heads", "mlp_width", "groups"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name.replace('groups', 'kv_heads')} is {size!r}; give a whole number from 1 on.")
        if self.qk_norm not in (None, "head", "all"):
            raise ValueError(f"qk_norm '{self.qk_norm}' is unknown; choose 'head', 'all' or None.")
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}; change one or set head_dim.")
        if self.heads % self.groups:
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.groups}; change one of them.")
        if not isinstance(self.dim, int) or self.dim < 1 or self.rope_theta is not None and self.dim % 2:
            raise ValueError(f"Heads have size {self.dim!r}; it must be a whole number, and even to be rotated.")

    @property
    def groups(self) -> int:
        """Number of key/value heads."""
        return self.kv_heads or self.heads

    @property
    def dim(self) -> int:
        """Size of one head."""
        return self.head_dim or self.width // self.heads

    def of_layer(self, i: int) -> TransformerConfig:
        """The config of block i alone, where layers differ."""
        window = self.window[i % len(self.window)] if isinstance(self.window, tuple) else self.window
        local = {}
        if window is not None and self.local_rope_theta is not None:
            local = {"rope_theta": self.local_rope_theta, "rope_scaling": None}
        return dataclasses.replace(self, window=window, **local)

    @property
    def out_std(self) -> float:
        """Initial scale of layers that write to the residual stream (OpenAI CLIP: width^-.5 (2 layers)^-.5)."""
        return (self.width * 2 * self.layers) ** -0.5


class Attention(nn.Module):
    config: TransformerConfig

    def setup(self):
        c = self.config
        self.q = Linear(c.heads * c.dim, c.attention_bias)
        self.k = Linear(c.groups * c.dim, c.attention_bias)
        self.v = Linear(c.groups * c.dim, c.attention_bias)
        self.o = Linear(c.width, c.attention_bias if c.out_bias is None else c.out_bias, std=c.out_std)
        if c.qk_norm:
            kind, eps = "rms_offset" if c.norm == "rms_offset" else "rms", c.qk_norm_eps or c.norm_eps
            self.q_norm, self.k_norm = Norm(kind, eps), Norm(kind, eps)

    def heads(self, x: Float[Array, "b t w"], info: SequenceInfo | None):
        """Queries [b t h d], keys and values [b t g d], rotated where the config asks for it."""
        c = self.config
        q, k, v = self.q(x), self.k(x), self.v(x)
        if c.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.reshape(*y.shape[:2], -1, c.dim) for y in (q, k, v))
        if c.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if c.rope_theta is not None:
            positions = info.positions if info.axes is None else info.axes
            q, k = (rotate(y, positions, c.rope_theta, c.rope_scaling, c.rope_sections, c.rope_axial) for y in (q, k))
        place = lambda y, tokens: constrain(y, "batch", tokens, "heads", "head_dim")
        return place(q, "tokens"), place(k, "keys"), place(v, "keys")

    @property
    def options(self) -> dict[str, Any]:
        """What the attention function has to know of this layer."""
        c = self.config
        return {"window": c.window, "scale": c.attention_scale, "softcap": c.attention_softcap}

    def __call__(self, x, info, kv_info, cache: LayerCache | None, start):
        q, k, v = self.heads(x, info)
        if cache is not None:
            k, v = (lax.dynamic_update_slice(old, new.astype(old.dtype), (0, start, 0, 0))
                    for old, new in zip(cache, (k, v)))
            cache = (k, v)
        y = attention(q, k, v, info, kv_info, **self.options)
        return self.o(y.reshape(*x.shape[:2], -1)), cache


class Block(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x)); each branch perhaps normalised and scaled before it is added."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        self.norm1, self.norm2 = Norm(c.norm, c.norm_eps), Norm(c.norm, c.norm_eps)
        self.attn = Attention(c)
        self.mlp = Mlp(c.mlp_width, c.activation, c.gated_mlp, c.mlp_bias, c.out_std)
        if c.post_norm:
            self.norm1_post, self.norm2_post = Norm(c.norm, c.norm_eps), Norm(c.norm, c.norm_eps)
        if c.layer_scale is not None:
            vector = lambda name: self.param(name, nn.initializers.constant(c.layer_scale), (c.width,))
            self.scale1, self.scale2 = vector("scale1"), vector("scale2")

    def __call__(self, x, info=None, kv_info=None, cache=None, start=0):
        c = self.config
        x = constrain(x, "batch", "tokens", "embed")
        y, cache = self.attn(self.norm1(x), info, kv_info, cache, start)
        if c.post_norm:
            y = self.norm1_post(y)
        x = x + (y if c.layer_scale is None else y * self.scale1.astype(y.dtype))
        y = self.mlp(self.norm2(x))
        if c.post_norm:
            y = self.norm2_post(y)
        return x + (y if c.layer_scale is None else y * self.scale2.astype(y.dtype)), cache

    def weights(self, x: Float[Array, "b t w"], info: SequenceInfo | None = None) -> Float[Array, "b h t t"]:
        """The attention weights this block computes on its input: to look at, not used in training."""
        q, k, _ = self.attn.heads(self.norm1(x), info)
        weights = attention_weights(q, k, info, info, **self.attn.options)
        return weights.reshape(x.shape[0], self.config.heads, *weights.shape[-2:])


def init_blocks(rng: Array, config: TransformerConfig) -> Params:
    """Parameters of all blocks, stacked on a leading layer axis."""
    x = jnp.zeros((1, 1, config.width))
    info = describe(jnp.zeros((1, 1), jnp.int32))
    block = Block(config.of_layer(0), parent=None)  # layers differ in what they see, not in their parameters
    init = lambda key: block.init(key, x, info, info)["params"]
    return jax.vmap(init)(jax.random.split(rng, config.layers))


def declare_blocks(module: nn.Module, config: TransformerConfig) -> Params:
    """Declares `blocks` under a module and returns its parameters, stacked or (while decoding) unstacked."""
    if module.is_initializing():
        return module.param("blocks", init_blocks, config)
    return module.get_variable("params", "blocks")


def unstack(params: Params, layers: int, first: int = 0) -> tuple[Params, ...]:
    """One tree a layer, from `first` on. Decoding does this once: slicing the stack in the token loop costs bandwidth."""
    depths = {leaf.shape[0] for leaf in jax.tree.leaves(params)}
    if depths != {layers}:  # JAX clamps an index that is too large: the last layer would silently run twice
        raise ValueError(f"The parameters hold {sorted(depths)} layers, the config asks for {layers}.")
    return tuple(jax.tree.map(lambda leaf: leaf[i], params) for i in range(first, layers))


def apply_blocks(
    config: TransformerConfig,
    params: Params,
    x: Float[Array, "b t w"],
    info: SequenceInfo | tuple[SequenceInfo, ...] | None = None,
    kv_info: SequenceInfo | None = None,
    caches: tuple[LayerCache, ...] | None = None,
    start: Int[Array, ""] | int = 0,
) -> tuple[list[Float[Array, "b t w"]], tuple[LayerCache, ...] | None]:
    """Runs the stack; returns [input, after block 1, ..., after the last block] and the updated caches.

    `info` is one description, or one a layer where layers see differently.
    `kv_info` describes the keys when a cache is given (tokens are written from slot `start` on), else the keys are
    the tokens themselves. Hidden states that the caller drops cost nothing under jit. With a cache, or with parameters
    that `unstack` took apart, blocks are never scanned.
    """
    x = as_computed(x)
    if current().layers == "scan" and caches is None and not isinstance(params, tuple):
        return _scanned(config, params, x, info, kv_info), None
    layers = params if isinstance(params, tuple) else unstack(params, config.layers)
    hidden, updated = [x], []
    for i, layer in enumerate(layers):
        cache = None if caches is None else caches[i]
        x, cache = run_block(config.of_layer(i))(layer, x, _of_layer(info, i), kv_info, cache, start)
        hidden.append(x)
        updated.append(cache)
    return hidden, None if caches is None else tuple(updated)


def run_block(config: TransformerConfig, in_scan: bool = False):
    """One block as a pure function of its parameters: (layer, x, info, kv_info, cache, start) -> (x, cache)."""
    def run(layer, x, info, kv_info, cache, start):
        block = Block(config, parent=None)
        return block.apply({"params": layer}, x, info, info if kv_info is None else kv_info, cache, start)

    return remat(run, in_scan)


def _of_layer(info, i: int):
    return info[i] if isinstance(info, tuple) else info


def _cycle(config: TransformerConfig, info) -> int:
    """After how many layers what they see repeats: 1 where all are alike."""
    seen = [(config.of_layer(i), id(_of_layer(info, i))) for i in range(config.layers)]
    return next(n for n in range(1, config.layers + 1) if all(seen[i] == seen[i % n] for i in range(config.layers)))


def _scanned(config: TransformerConfig, params: Params, x, info, kv_info) -> list[Float[Array, "b t w"]]:
    """The states of all blocks: a loop over whole cycles, then what is left of one."""
    cycle = _cycle(config, info)
    rounds = config.layers // cycle
    layers = unstack(params, config.layers, rounds * cycle)  # and checks their number
    group = lambda leaf: leaf[:rounds * cycle].reshape(rounds, cycle, *leaf.shape[1:])

    def run(x, layer, i):
        return run_block(config.of_layer(i), in_scan=True)(layer, x, _of_layer(info, i), kv_info, None, 0)[0]

    def body(x, layers):
        states = []
        for i in range(cycle):
            x = run(x, jax.tree.map(lambda leaf: leaf[i], layers), i)
            states.append(x)
        return x, states

    last, states = lax.scan(body, x, jax.tree.map(group, params))
    hidden = [x, *(states[i % cycle][i // cycle] for i in range(rounds * cycle))]
    hidden[-1] = last
    for i, layer in enumerate(layers):
        hidden.append(run(hidden[-1], layer, i))
    return hidden
