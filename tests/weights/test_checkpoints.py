"""Checkpoints: what comes back is what was saved, or an error that names the folder and leaves it alone."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from vlm_jax.data.files import read_json, write_atomically
from vlm_jax.training.mesh import MeshConfig, make_mesh
from vlm_jax.weights.checkpoints import Checkpoints, open_existing

META = {"stage": "align", "step": 3}


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {"decoder": {"kernel": jnp.asarray(rng.normal(size=(16, 64)), jnp.float32)},
            "half": jnp.asarray(rng.normal(size=8), jnp.bfloat16), "logit_scale": jnp.float32(rng.normal())}


def moments(seed=0):
    """As optax nests them: tuples, and flat paths that hold slashes."""
    return ({"mu": {"decoder/kernel": tree(seed)["decoder"]["kernel"]}, "count": jnp.int32(seed)}, ())


def abstract(like, sharding=None):
    sharding = sharding or SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def save(workdir, *numbers, keep=2):
    """A workdir with these checkpoints; number n holds tree(n)."""
    with Checkpoints(workdir, keep) as checkpoints:
        for n in numbers:
            checkpoints.save(n, tree(n), moments(n), {"stage": "align", "step": n})
    return epath.Path(workdir)


def snapshot(folder):
    """Every file below a folder: name -> (bytes, time of last change)."""
    files = (path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# Back as it was.


def test_parameters_optimizer_and_meta_can_be_read_apart(tmp_path):
    with Checkpoints(save(tmp_path, 3)) as checkpoints:
        assert checkpoints.latest() == 3
        assert checkpoints.meta(3) == META
        equal(checkpoints.params(3, abstract(tree())), tree(3))
        equal(checkpoints.opt_state(3, abstract(moments())), moments(3))


def test_shapes_without_values(tmp_path):
    checkpoints, number = open_existing(save(tmp_path, 3))
    with checkpoints:
        shapes = checkpoints.shapes(number)
    assert shapes == jax.eval_shape(tree)


def test_saved_on_eight_devices_and_read_on_one_and_the_other_way_round(tmp_path):
    mesh = make_mesh(MeshConfig(data=1, fsdp=8), jax.devices()[:8])
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    pieces = {"kernel": jax.device_put(tree()["decoder"]["kernel"], split)}
    whole = {"kernel": jax.device_put(tree()["decoder"]["kernel"], jax.devices()[0])}
    for n, (saved, wanted) in enumerate([(pieces, whole), (whole, pieces)], start=1):
        with Checkpoints(tmp_path / str(n)) as checkpoints:
            checkpoints.save(1, saved, moments(), META)
            checkpoints.wait()
            read = checkpoints.params(1, abstract(wanted, wanted["kernel"].sharding))
        equal(read, whole)
        assert read["kernel"].sharding == wanted["kernel"].sharding


def test_the_latest_two_are_kept(tmp_path):
    workdir = save(tmp_path, 1, 2, 5, 9)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["5", "9"]
    with Checkpoints(workdir) as checkpoints:
        equal(checkpoints.params(5, abstract(tree())), tree(5))


# Reading changes nothing.


def test_a_half_written_checkpoint_does_not_count(tmp_path):
    workdir = save(tmp_path, 3)
    shutil.copytree(tmp_path / "checkpoints/3", tmp_path / "checkpoints/7.orbax-checkpoint-tmp")
    checkpoints, number = open_existing(workdir)
    checkpoints.close()
    assert number == 3


def test_a_reader_leaves_alone_what_a_running_training_is_just_writing(tmp_path):
    """Chat, evaluation and init_from open the workdir of a run that may still be going."""
    workdir = save(tmp_path, 3)
    shutil.copytree(tmp_path / "checkpoints/3", tmp_path / "checkpoints/7.orbax-checkpoint-tmp")
    before = snapshot(tmp_path)
    checkpoints, number = open_existing(workdir)
    with checkpoints:
        checkpoints.meta(number)
        checkpoints.params(number, abstract(tree()))
    assert snapshot(tmp_path) == before


def test_a_restarted_training_clears_what_the_killed_one_left_half_written(tmp_path):
    workdir = save(tmp_path, 3)
    shutil.copytree(tmp_path / "checkpoints/3", tmp_path / "checkpoints/7.orbax-checkpoint-tmp")
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(7, tree(7), moments(7), META)
        checkpoints.wait()
        equal(checkpoints.params(7, abstract(tree())), tree(7))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "7"]


# Damage.


def damaged(tmp_path, name, how):
    """Copies of a good workdir, each with one file of the newest checkpoint cut, emptied or gone."""
    files = [f for f in sorted((tmp_path / "good/checkpoints/4").rglob("*")) if f.is_file()]
    for i, file in enumerate(files):
        copy = tmp_path / f"{name}{i}"
        shutil.copytree(tmp_path / "good", copy)
        how(copy / file.relative_to(tmp_path / "good"))
        yield file.relative_to(tmp_path / "good"), copy


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("how", [halve, lambda file: file.write_bytes(b""), lambda file: file.unlink()],
                         ids=["cut in half", "emptied", "gone"])
def test_a_damaged_checkpoint_is_named_and_nothing_is_deleted(tmp_path, how):
    save(tmp_path / "good", 2, 4)
    noticed = 0
    for file, copy in damaged(tmp_path, "copy", how):
        before = snapshot(copy)
        with Checkpoints(copy) as checkpoints:
            assert checkpoints.latest() == 4, file
            try:
                read = (checkpoints.meta(4), checkpoints.params(4, abstract(tree())),
                        checkpoints.opt_state(4, abstract(moments())))
            except ValueError as error:
                noticed += 1
                sentence = str(error)
                assert f"checkpoint {copy}/checkpoints/4 cannot be read" in sentence, file
                assert "\n" not in sentence
            else:  # a file that only describes: what was read must still be right
                equal(read, ({"stage": "align", "step": 4}, tree(4), moments(4)))
            equal(checkpoints.params(2, abstract(tree())), tree(2))  # the one before is there to go back to
        assert snapshot(copy) == before, file
    assert noticed >= 4


def test_an_emptied_checkpoint_folder(tmp_path):
    save(tmp_path, 2, 4)
    shutil.rmtree(tmp_path / "checkpoints/4")
    (tmp_path / "checkpoints/4").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match="checkpoints/4 cannot be read"):
            checkpoints.meta(checkpoints.latest())
        assert (tmp_path / "checkpoints/4").exists()


def test_another_shape_is_an_error_not_a_reshape(tmp_path):
    wrong = {**tree(), "half": jnp.zeros((9,), jnp.bfloat16)}
    with Checkpoints(save(tmp_path, 3)) as checkpoints:
        with pytest.raises(ValueError, match="checkpoints/3 cannot be read"):
            checkpoints.params(3, abstract(wrong))


# Workdirs that are none.


def test_opening_what_is_no_trained_workdir(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent has no checkpoints/"):
        open_existing(tmp_path / "absent")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no complete checkpoint"):
        open_existing(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoints"]


# The small files beside them.


def test_json_of_a_workdir(tmp_path):
    path = epath.Path(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        read_json(path)
    path.write_text('{"seed": ')
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        read_json(path)
    path.write_text('{"seed": 3}')
    assert read_json(path) == {"seed": 3}


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / "summary.json")
    write_atomically(path, "old")

    class Killed(BaseException):
        pass

    def killed(self, target):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "replace", killed)
        with pytest.raises(Killed):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
