"""How the next token is chosen: greedy, temperature, top-k and nucleus (arXiv 1904.09751)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Temperature 0 is greedy. `top_k` 0 and `top_p` 1 keep every token.

    The order is: divide by the temperature, keep the k likeliest, keep the smallest set of the likeliest whose
    probability reaches p (the token that crosses p included), draw.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature {self.temperature} is negative; use 0 for greedy or a positive number.")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} is negative; use 0 to keep every token.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is not in (0, 1]; use 1 to keep every token.")

    def __call__(self, logits: Float[Array, "b v"], rng: Array) -> Int[Array, "b"]:
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1)
        return jax.random.categorical(rng, self.kept(logits), axis=-1)

    def kept(self, logits: Float[Array, "b v"]) -> Float[Array, "b v"]:
        """Tempered logits, -inf where a token is not kept."""
        logits = logits.astype(jnp.float32) / self.temperature
        order = jnp.argsort(-logits, axis=-1)  # the likeliest first; among equals the lower id
        ranked = jnp.take_along_axis(logits, order, axis=-1)
        if self.top_k:
            ranked = jnp.where(jnp.arange(ranked.shape[-1]) < self.top_k, ranked, -jnp.inf)
        if self.top_p < 1:
            probabilities = jax.nn.softmax(ranked, axis=-1)
            before = jnp.cumsum(probabilities, axis=-1) - probabilities  # the likeliest has nothing before it
            ranked = jnp.where(before < self.top_p, ranked, -jnp.inf)
        return jnp.put_along_axis(logits, order, ranked, axis=-1, inplace=False)
