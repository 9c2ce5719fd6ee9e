"""Machines by name: the mesh and the execution that a run on them starts from (`config.hardware`), and their peak speed.

A name is never guessed from the devices at hand: a run on other hardware is another run, and its config says so.
"""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import numpy as np

from vlm_jax.models.execution import Execution
from vlm_jax.training.mesh import MeshConfig


@dataclasses.dataclass(frozen=True)
class Hardware:
    """`devices`: how many there are; `kind`: what JAX calls one."""

    devices: int
    kind: str
    mesh: MeshConfig
    execution: Execution


FAST = Execution(layers="scan", remat="dots", dtype="bfloat16")  # attention "auto": the device's fused kernel

PRESETS = {
    "1-gpu": Hardware(1, "NVIDIA H100 80GB HBM3", MeshConfig(), FAST),
    "8-gpu": Hardware(8, "NVIDIA H100 80GB HBM3", MeshConfig(data=1, fsdp=8), FAST),
    "v5e-16": Hardware(16, "TPU v5 lite", MeshConfig(data=1, fsdp=16), FAST),
    "v5e-64": Hardware(64, "TPU v5 lite", MeshConfig(data=1, fsdp=64), FAST),
    "v5e-256": Hardware(256, "TPU v5 lite", MeshConfig(data=4, fsdp=64), FAST),  # 1152 does not divide by 256
    "v5p-128": Hardware(128, "TPU v5", MeshConfig(data=2, fsdp=64), FAST),
    "v6e-64": Hardware(64, "TPU v6 lite", MeshConfig(data=1, fsdp=64), FAST),
}

# Dense bfloat16 multiply-adds, two FLOPs each, per second: the makers' figures, by the start of JAX's device kind.
PEAK_FLOPS = {
    "NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12,
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12, "TPU v5": 459e12,
    "TPU v6 lite": 918e12, "TPU v6e": 918e12,
}


def preset(name: str) -> Hardware:
    if name not in PRESETS:
        raise ValueError(f"Hardware '{name}' is unknown; choose one of {', '.join(PRESETS)}, or leave config.hardware "
                         f"empty and set config.mesh and config.execution.")
    return PRESETS[name]


def peak_flops(device: jax.Device) -> float | None:
    """FLOPs a second that the device could do at most; None for an accelerator whose figure is not in the table.

    Of a CPU no maker tells: there it is what a large float32 matmul reaches, tried once, and shared among the devices
    that JAX makes of it.
    """
    known = [flops for kind, flops in PEAK_FLOPS.items() if device.device_kind.startswith(kind)]
    if known:
        return known[0]
    return _measured() / len(jax.local_devices(backend="cpu")) if device.platform == "cpu" else None


@functools.cache
def _measured(size: int = 1024) -> float:
    x, times = np.ones((size, size), np.float32), []
    for _ in range(5):
        start = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)
