"""python -m experiments.import_memory [--gigabytes 2] [--shards 4] [--devices 1] [--json]

Writes a synthetic Llama checkpoint in Hugging Face layout, imports it in a process of its own, and prints the largest
resident size of that process beside the limit: the model's size, one shard and 1 GB. Exits 1 above it.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from flax import traverse_util

from vlm_jax.models.model import abstract_params
from vlm_jax.weights.huggingface import safetensors
from vlm_jax.weights.huggingface.families import llama
from vlm_jax.weights.huggingface.table import export_params

GB = 10**9
# As a user loads it; on Linux ru_maxrss counts KiB, mapped files included.
LOAD = """
import resource, sys
import jax, vlm_jax
from vlm_jax.training.mesh import MeshConfig, make_mesh
mesh = make_mesh(MeshConfig(data=1, fsdp=-1)) if jax.device_count() > 1 else None
pt = vlm_jax.load_pretrained(sys.argv[1], dtype=None, mesh=mesh)
jax.block_until_ready(pt.params)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.import_memory", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices to spread the parameters over")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = checkpoint(pathlib.Path(folder), args.gigabytes, args.shards)
        flags = f"--xla_force_host_platform_device_count={args.devices}"
        run = subprocess.run([sys.executable, "-c", LOAD, folder], capture_output=True, text=True,
                             env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags})
    if run.returncode:
        sys.exit(run.stderr)
    peak, limit = int(run.stdout), size + size / args.shards + GB
    figures = {"model_gb": size / GB, "shard_gb": size / args.shards / GB, "devices": args.devices,
               "peak_gb": peak / GB, "limit_gb": limit / GB}
    print(json.dumps(figures) if args.json else "  ".join(f"{name} {value:.2f}" for name, value in figures.items()))
    sys.exit(peak > limit)


def checkpoint(folder: pathlib.Path, gigabytes: float, shards: int) -> int:
    """A float32 Llama of about that size, in about that many files; returns its size in bytes."""
    hf = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 16000, "hidden_size": 1024,
          "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 16}
    one, two = (_bytes(hf | {"num_hidden_layers": n}) for n in (1, 2))
    hf["num_hidden_layers"] = max(1, round((gigabytes * GB - one) / (two - one)) + 1)
    (folder / "config.json").write_text(json.dumps(hf))
    config = llama.FAMILY.config(hf)
    leaves = traverse_util.flatten_dict(abstract_params(config), sep="/")
    flat = {path: np.broadcast_to(np.float32(0.5), leaf.shape) for path, leaf in leaves.items()}  # no memory of its own
    size = _bytes(hf)
    safetensors.write(folder, export_params(llama.FAMILY.table(config), flat), shard_bytes=-(-size // shards))
    return size


def _bytes(hf: dict) -> int:
    leaves = traverse_util.flatten_dict(abstract_params(llama.FAMILY.config(hf)))
    return sum(4 * leaf.size for leaf in leaves.values())


if __name__ == "__main__":
    main()
