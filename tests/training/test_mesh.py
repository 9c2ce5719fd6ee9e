"""Meshes of eight devices, of several slices, and of devices that are not here."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from vlm_jax.data.images import Augmentation, ImageProcessor
from vlm_jax.data.pipeline import DataConfig, PairsConfig, batches
from vlm_jax.data.processor import Processor, ProcessorConfig
from vlm_jax.data.scenes import SceneConfig
from vlm_jax.data.tokenizer import train
from vlm_jax.training.mesh import MeshConfig, abstract_mesh, arrange, check_batch, check_rows, host_rows, make_mesh, put_batch


def test_a_mesh_takes_all_devices_along_data_unless_told_otherwise():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1, "context": 1}
    assert make_mesh(MeshConfig(data=2, fsdp=-1)).shape["fsdp"] == 4
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1
    assert make_mesh(MeshConfig(fsdp=8)).shape["data"] == 1


@pytest.mark.parametrize("axes", [
    dict(data=3), dict(data=4), dict(data=16), dict(fsdp=3), dict(data=0), dict(fsdp=0), dict(data=-2),
    dict(fsdp=-2)])
def test_axes_that_do_not_multiply_to_the_devices(axes):
    with pytest.raises(ValueError, match="change config.mesh"):
        make_mesh(MeshConfig(**axes))


def test_only_one_axis_takes_what_is_left():
    with pytest.raises(ValueError, match="Only one mesh axis may be -1"):
        make_mesh(MeshConfig(data=-1, fsdp=-1))


def test_a_mesh_of_devices_that_are_not_here():
    assert dict(abstract_mesh(MeshConfig(fsdp=64), 256).shape) == {"data": 4, "fsdp": 64, "tensor": 1, "context": 1}


def test_axes_are_left_to_the_compiler():
    assert set(make_mesh(MeshConfig()).axis_types) == {jax.sharding.AxisType.Auto}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a TPU device tells about itself."""

    id: int
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0

    @property
    def coords(self):
        return (self.id // 2 % 2, self.id // 4, 0)


def test_slices_lie_on_the_data_axis():
    """Two slices of four, listed in turn: each index of `data` belongs to one slice, so that fsdp stays inside it."""
    chips = [Chip(id=i, slice_index=i % 2) for i in range(8)]
    grid = arrange((4, 2, 1, 1), chips)
    assert grid.shape == (4, 2, 1, 1) and {chip.id for chip in grid.flat} == set(range(8))
    assert [{chip.slice_index for chip in row.flat} for row in grid] == [{0}, {0}, {1}, {1}]
    with pytest.raises(ValueError, match="config.mesh.data is 1; with 2 slices it must be a multiple"):
        arrange((1, 8, 1, 1), chips)


def test_a_batch_must_divide():
    mesh = make_mesh(MeshConfig(2, 2, 2))  # split over data and fsdp, repeated over tensor
    for size in (4, 8, 12):
        check_batch(size, mesh)
    with pytest.raises(ValueError, match="batch of 6 does not divide by the 4 devices.*a multiple of 4"):
        check_batch(6, mesh)
    check_batch(8, mesh, microbatches=2)
    with pytest.raises(ValueError, match="batch of 4 does not divide by the 4 devices .* in 2 microbatches"):
        check_batch(4, mesh, microbatches=2)


def test_a_batch_is_split_along_its_examples():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    assert host_rows(8, mesh) == list(range(8))  # one process holds every device
    batch = put_batch({"x": np.arange(24, dtype=np.int32).reshape(8, 3)}, mesh)
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2, 3)}
    assert np.array_equal(batch["x"], np.arange(24).reshape(8, 3))


def test_rows_must_divide_by_the_devices_that_split_them():
    mesh = make_mesh(MeshConfig(2, 1, 1, 4))
    check_rows(128, mesh)
    with pytest.raises(ValueError, match="Rows of 126 tokens do not divide by config.mesh.context=4"):
        check_rows(126, mesh)


@pytest.mark.parametrize("axes, per_host, rows", [
    (dict(data=8), 2, [[0, 1], [2, 3], [4, 5], [6, 7]]),
    (dict(data=2, fsdp=4), 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
    (dict(data=2, tensor=4), 2, [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2),
    (dict(data=1, fsdp=2, tensor=2, context=2), 2, [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2)])
def test_hosts_with_the_same_rows_read_the_same_data(axes, per_host, rows):
    """Hosts of a few devices each: those that split the batch read other examples, replicas the very same."""
    mesh = make_mesh(MeshConfig(**axes))
    devices = mesh.devices.ravel()
    hosts = [host_rows(8, mesh, devices[i : i + per_host]) for i in range(0, 8, per_host)]
    assert hosts == rows and set().union(*map(set, hosts)) == set(range(8))
    eyes = types.SimpleNamespace(image_size=16, patch_size=16)
    processor = Processor(ProcessorConfig(ImageProcessor(16)), train(["a"], 300), eyes, 8)
    data = DataConfig(SceneConfig(size=20), 8, PairsConfig(augment=Augmentation((0.3, 0.9), flip=True)))
    whole = next(batches(data, processor, 0, 3, 4))
    for own in hosts:
        read = next(batches(data, processor, 0, 3, 4, own))
        assert all(np.array_equal(read[name], whole[name][own]) for name in whole)
