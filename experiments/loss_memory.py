"""JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 python -m experiments.loss_memory [--batch 8192] [--width 512]

What the losses take on one device, in MiB of temporaries of the compiled program (gradients included), nothing run:
the contrastive ones at a fixed global batch as devices are added, the vocabulary's as its tokens are taken in chunks,
and blocks as more of them is computed again. Prints Markdown.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp

from vlm_jax import cli
from vlm_jax.models.execution import REMAT, Execution, executing
from vlm_jax.models.transformer import TransformerConfig, apply_blocks, init_blocks
from vlm_jax.objectives.contrastive import sigmoid_pairs, softmax_pairs
from vlm_jax.objectives.generative import in_chunks, next_token_loss
from vlm_jax.training.mesh import MeshConfig, batch_sharding, make_mesh

VOCABULARY, TOKENS, MIB = 32064, 2048, 2**20
BLOCKS = TransformerConfig(layers=12, width=512, heads=8, mlp_width=2048)


def shape(*sizes: int, dtype=jnp.float32, sharding=None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)


def temporaries(function, *args) -> float:
    """MiB that the compiled function needs beside its arguments and results."""
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes / MIB


def contrastive(devices: int, batch: int, width: int) -> tuple[float, float]:
    """(softmax, sigmoid) on a mesh of that many devices."""
    mesh = make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
    rows = batch_sharding(mesh)
    features = shape(batch, width, sharding=rows)
    ids, scalar = shape(batch, 1, dtype=jnp.int32, sharding=rows), shape()
    softmax = lambda x, y, s, b, ids: softmax_pairs(x, y, s, ids)[0]
    sigmoid = lambda x, y, s, b, ids: sigmoid_pairs(x, y, s, b, ids)[0]
    with jax.set_mesh(mesh):
        return tuple(temporaries(jax.grad(loss, argnums=(0, 1, 2, 3)), features, features, scalar, scalar, ids)
                     for loss in (softmax, sigmoid))


def vocabulary(chunks: int, width: int) -> float:
    """Next-token loss of one row, with gradients of the hidden states and the output layer."""
    def loss(kernel, hidden, targets):
        score = lambda hidden, targets: (next_token_loss(hidden @ kernel, targets).sum(), jnp.zeros(()))
        return in_chunks(score, chunks, hidden, targets)[0]

    return temporaries(jax.grad(loss, argnums=(0, 1)), shape(width, VOCABULARY), shape(1, TOKENS, width),
                       shape(1, TOKENS, dtype=jnp.int32))


def blocks(remat: str) -> float:
    """Twelve scanned blocks on 8 rows of 256 tokens."""
    params = jax.eval_shape(lambda: init_blocks(jax.random.key(0), BLOCKS))
    with executing(Execution(layers="scan", remat=remat)):
        loss = lambda params, x: apply_blocks(BLOCKS, params, x)[0][-1].sum()
        return temporaries(jax.grad(loss), params, shape(8, 256, BLOCKS.width))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.loss_memory", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8192, help="global batch of the contrastive losses")
    parser.add_argument("--width", type=int, default=512, help="width of features and hidden states")
    args = parser.parse_args()
    print("| devices | softmax | sigmoid |\n|---|---|---|")
    for devices in (n for n in (1, 2, 4, 8) if n <= jax.device_count()):
        print(f"| {devices} | {' | '.join(f'{size:.0f}' for size in contrastive(devices, args.batch, args.width))} |")
    print("\n| chunks | vocabulary loss |\n|---|---|")
    for chunks in (1, 4, 16):
        print(f"| {chunks} | {vocabulary(chunks, args.width):.0f} |")
    print("\n| remat | blocks |\n|---|---|")
    for remat in REMAT:
        print(f"| {remat} | {blocks(remat):.0f} |")


if __name__ == "__main__":
    cli.main(main)
