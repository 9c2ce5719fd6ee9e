"""Machines by name, and how fast a device could be."""

import pathlib
import types

import jax
import pytest

from vlm_jax import config as configs
from vlm_jax.training.hardware import PRESETS, peak_flops, preset

SMOKE = configs.load(str(pathlib.Path(__file__).parents[2] / "configs/smoke.py"))


def test_every_mesh_fits_its_devices():
    for name, machine in PRESETS.items():
        assert machine.mesh.shape(machine.devices), name


def test_a_run_on_a_machine_takes_its_mesh_and_execution_and_writes_them_out():
    config = configs.resolve(SMOKE | {"hardware": "v5e-64"})
    assert config.mesh == preset("v5e-64").mesh and config.execution.layers == "scan"
    assert configs.plain(config)["mesh"] == {"data": 1, "fsdp": 64, "tensor": 1, "context": 1}
    assert configs.resolve(configs.plain(config)) == config  # what config.json holds is read again


def test_a_mesh_beside_a_machine_is_refused():
    with pytest.raises(ValueError, match="config.mesh is not that of config.hardware 'v5e-64'; leave one of them out"):
        configs.resolve(SMOKE | {"hardware": "v5e-64", "mesh": {"data": 2}})
    with pytest.raises(ValueError, match="Hardware 'v5e-63' is unknown; choose one of 1-gpu, 8-gpu"):
        configs.resolve(SMOKE | {"hardware": "v5e-63"})


def test_peak_speed():
    device = lambda kind: types.SimpleNamespace(device_kind=kind, platform="gpu")
    assert peak_flops(device("NVIDIA H100 80GB HBM3")) == 989e12
    assert peak_flops(device("TPU v5 lite")) == 197e12 and peak_flops(device("TPU v5")) == 459e12
    assert all(peak_flops(device(machine.kind)) > 1e14 for machine in PRESETS.values())
    assert peak_flops(device("NVIDIA of tomorrow")) is None
    assert 1e8 < peak_flops(jax.devices()[0]) < 1e14  # measured: no maker tells of a CPU
