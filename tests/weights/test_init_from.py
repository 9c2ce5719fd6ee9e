"""Starting from another run's weights: all that both have, or the parts that are named; nothing by chance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vlm_jax.training.mesh import MeshConfig, make_mesh
from vlm_jax.weights.checkpoints import Checkpoints
from vlm_jax.weights.init_from import load_into


def params(value, **other):
    full = lambda *shape: jnp.full(shape, value, jnp.float32)
    return {"vision": {"blocks": {"q": {"kernel": full(2, 8, 8)}}, "class_token": full(8)},
            "connector": {"linear_1": {"kernel": full(8, 16)}}, "logit_scale": full(), **other}


@pytest.fixture
def workdir(tmp_path):
    """Another run: all its parameters are 1, and it has a text tower besides."""
    with Checkpoints(tmp_path / "run") as checkpoints:
        theirs = params(1.0, text={"embedding": jnp.ones((4, 8))})
        checkpoints.save(5, theirs, ({"mu": jnp.ones(3)},), {"step": 5})
    return str(tmp_path / "run")


def values(tree):
    """Of each top-level part the value that all its numbers have."""
    found = lambda part: {float(value) for leaf in jax.tree.leaves(part) for value in np.unique(leaf)}
    return {name: found(part) for name, part in tree.items()}


def test_without_names_all_that_both_have_is_taken(workdir):
    ours = params(0.0, decoder={"embedding": jnp.zeros((4, 16))})
    loaded = load_into(ours, workdir)
    assert values(loaded) == {"vision": {1}, "connector": {1}, "logit_scale": {1}, "decoder": {0}}
    assert jax.tree.structure(loaded) == jax.tree.structure(ours)


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors"])
def test_published_weights_are_imported_first(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="Hugging Face layout.*vlm_jax.convert import"):
        load_into(params(0.0), str(tmp_path))


@pytest.mark.parametrize("names, taken", [
    ("vision", {"vision"}), ("vision,connector", {"vision", "connector"}),
    ("vision, logit_scale", {"vision", "logit_scale"})])
def test_with_names_only_those(workdir, names, taken):
    loaded = load_into(params(0.0), f"{workdir}:{names}")
    assert values(loaded) == {name: {1 if name in taken else 0} for name in params(0.0)}


def test_what_is_not_named_need_not_agree(workdir):
    """A new connector on known eyes: its shape is its own business."""
    kernel = lambda *shape: {"kernel": jnp.zeros(shape)}
    ours = params(0.0, connector={"linear_1": kernel(8, 99), "linear_2": kernel(99, 4)})
    assert values(load_into(ours, f"{workdir}:vision"))["connector"] == {0}


def test_the_run_it_came_from_is_left_as_it_was(workdir, tmp_path):
    read = lambda: {path: (path.read_bytes(), path.stat().st_mtime_ns)
                    for path in tmp_path.rglob("*") if path.is_file()}
    before = read()
    load_into(params(0.0), workdir)
    assert read() == before


def test_values_land_where_the_leaves_they_replace_live(workdir):
    mesh = make_mesh(MeshConfig(data=1, fsdp=8), jax.devices()[:8])
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    ours = jax.device_put(params(0.0), NamedSharding(mesh, PartitionSpec()))
    ours["vision"]["blocks"]["q"]["kernel"] = jax.device_put(ours["vision"]["blocks"]["q"]["kernel"], split)
    loaded = load_into(ours, f"{workdir}:vision")
    assert jax.tree.all(jax.tree.map(lambda old, new: old.sharding == new.sharding, ours, loaded))
    assert values(loaded)["vision"] == {1}


def test_differences_are_listed_on_both_sides(workdir):
    blocks = {"q": {"kernel": jnp.zeros((3, 8, 8))}, "k": {"kernel": jnp.zeros(3)}}
    ours = params(0.0, vision={"blocks": blocks})
    with pytest.raises(ValueError) as error:
        load_into(ours, workdir)
    sentence = str(error.value)
    assert "'vision' differs" in sentence
    assert "missing: ['blocks/k/kernel']" in sentence
    assert "unused: ['class_token']" in sentence
    assert "other shapes: ['blocks/q/kernel (2, 8, 8) here (3, 8, 8)']" in sentence


@pytest.mark.parametrize("name", ["decoder", "text", "visoin"])
def test_a_part_that_one_side_lacks(workdir, name):
    ours = params(0.0, decoder={"embedding": jnp.zeros((4, 16))})
    says = (f"{name} is not in both trees; .* has connector, logit_scale, text, vision, "
            "this model connector, decoder, logit_scale, vision")
    with pytest.raises(ValueError, match=says):
        load_into(ours, f"{workdir}:{name}")


def test_nothing_in_common(workdir):
    with pytest.raises(ValueError, match="nothing is not in both trees|nothing is in both trees"):
        load_into({"decoder": {"embedding": jnp.zeros((4, 16))}}, workdir)


def test_a_workdir_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent has no checkpoints/"):
        load_into(params(0.0), str(tmp_path / "absent:vision"))


def test_a_colon_in_a_folder_belongs_to_the_path(workdir, tmp_path):
    folder = tmp_path / "at 12:30" / "run"
    folder.parent.mkdir()
    (tmp_path / "run").rename(folder)
    assert values(load_into(params(0.0), str(folder)))["connector"] == {1}
    assert values(load_into(params(0.0), f"{folder}:vision"))["connector"] == {0}
