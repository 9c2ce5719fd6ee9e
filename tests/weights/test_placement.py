"""Published weights come to the devices that keep them piece by piece, whatever the pieces."""
import jax
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

import vlm_jax
from vlm_jax.data.files import read_json
from vlm_jax.models.model import abstract_params
from vlm_jax.training.mesh import MeshConfig, make_mesh
from vlm_jax.weights.huggingface import safetensors
from vlm_jax.weights.huggingface.families.registry import family_of
from vlm_jax.weights.huggingface.table import import_params


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])  # fused tensors in the second
@pytest.mark.parametrize("axis", ["layers", "last", "both"])
def test_every_piece_is_the_slice_of_the_whole(fixtures, name, axis):
    folder = fixtures / name
    pt, mesh = vlm_jax.load_pretrained(folder), make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    whole = traverse_util.flatten_dict(pt.params, sep="/")
    first, last = {"layers": ("fsdp", None), "last": (None, "tensor"), "both": ("fsdp", "tensor")}[axis]

    def sharding(leaf):
        """As asked for, where the sizes divide."""
        names = [None] * leaf.ndim
        for place, axis_name in ((0, first), (-1, last)):
            if leaf.ndim > 1 and axis_name and leaf.shape[place] % 2 == 0:
                names[place] = axis_name
        return NamedSharding(mesh, PartitionSpec(*names))

    leaves = traverse_util.flatten_dict(abstract_params(pt.config), sep="/")
    abstract = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf))
                for path, leaf in leaves.items()}
    family = family_of(read_json(folder / "config.json"))
    with safetensors.Reader(folder, family.rename) as reader:
        placed = import_params(family.table(pt.config), reader, abstract)
    assert any(not leaf.sharding.is_fully_replicated for leaf in placed.values())
    for path, leaf in placed.items():
        assert leaf.sharding == abstract[path].sharding
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(whole[path])[shard.index], err_msg=path)
