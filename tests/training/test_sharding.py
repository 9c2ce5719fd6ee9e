"""Which piece of a parameter lives where: the resolver's rules, one by one, and states that really are in pieces."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from vlm_jax import config as configs
from vlm_jax.models.axes import constrain, parameter_axes
from vlm_jax.models.model import abstract_params
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.models.vit import ViT, ViTConfig
from vlm_jax.training.mesh import MeshConfig, abstract_mesh, make_mesh
from vlm_jax.training.rules import flatten
from vlm_jax.training.sharding import RULES, WHOLE, leaf_spec, state_shardings
from vlm_jax.training.state import fresh_state, sharded

QUICKSTART = str(pathlib.Path(__file__).parents[2] / "configs/quickstart.py")
Q, UP, BIAS = "vision/blocks/attn/q/kernel", "vision/blocks/mlp/up/kernel", "vision/blocks/mlp/up/bias"


def plan(**axes):
    sizes = {axis: axes.get(axis, 1) for axis in ("data", "fsdp", "tensor", "context")}
    return abstract_mesh(MeshConfig(**sizes), int(np.prod(list(sizes.values()))))


def leaf(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def spec(path, shape, rules=RULES, **axes):
    return leaf_spec(path, leaf(*shape), plan(**axes), rules)[0]


# Names.


def test_dimensions_have_names():
    assert parameter_axes(Q, 3) == ("layers", "embed", "heads")
    assert parameter_axes("decoder/blocks/mlp/down/kernel", 3) == ("layers", "mlp", "embed")
    assert parameter_axes("decoder/lm_head/kernel", 2) == ("embed", "vocab")
    assert parameter_axes("connector/linear_1/kernel", 2) == ("in", "out")
    assert parameter_axes(BIAS, 2) == ("layers", "vector") and parameter_axes("logit_scale", 0) == ()


def test_a_parameter_without_names_is_refused():
    with pytest.raises(ValueError, match="The 4 dimensions of the parameter 'vision/patch_embed/kernel' have no names"):
        parameter_axes("vision/patch_embed/kernel", 4)


def test_an_activation_without_a_name_is_refused():
    with pytest.raises(ValueError, match="'haeds' names no dimension"):
        constrain(jnp.zeros((2, 2)), "batch", "haeds")
    with pytest.raises(ValueError):
        constrain(jnp.zeros((2, 2)), "batch")


# Rules.


def test_a_rule_takes_the_first_dimension_that_divides():
    assert spec(UP, (24, 1024, 4096), fsdp=8) == P(None, "fsdp")
    assert spec(UP, (24, 1024, 4096), tensor=4) == P(None, None, "tensor")
    assert spec(UP, (24, 1024, 4096), fsdp=8, tensor=4) == P(None, "fsdp", "tensor")
    assert spec(Q, (24, 1001, 1024), fsdp=8) == P(None, None, "fsdp")  # 1001 does not divide: heads are the next choice
    assert spec("decoder/embedding", (32064, 4096), fsdp=64, tensor=8) == P("tensor", "fsdp")
    assert spec(UP, (24, 1024, 4096), data=8) == P()  # nothing to split over


def test_no_dimension_that_divides_is_an_error():
    """SigLIP So400m: neither its width 1152 nor its hidden 4304 divide by 256."""
    assert spec(UP, (27, 1152, 4304), fsdp=64) == P(None, "fsdp")
    with pytest.raises(ValueError, match=r"'vision/blocks/mlp/up/kernel' divides by fsdp=256 \(embed 1152, mlp 4304\)"):
        spec(UP, (27, 1152, 4304), fsdp=256)


def test_a_rule_may_let_a_leaf_stay_whole_and_says_so():
    rules = {"tensor": ("mlp", WHOLE)}
    assert leaf_spec(UP, leaf(24, 1024, 4095), plan(tensor=8), rules) == (P(), ["tensor"])
    assert leaf_spec(Q, leaf(24, 1024, 1024), plan(tensor=8), rules) == (P(), [])  # not asked
    with pytest.raises(ValueError, match="divides by tensor=8"):
        leaf_spec(UP, leaf(24, 1024, 4095), plan(tensor=8), {"tensor": ("mlp",)})


def test_a_rule_that_names_nothing_known_is_refused():
    with pytest.raises(ValueError, match="mesh axis 'fsdp' names an unknown dimension, 'embde'"):
        spec(UP, (24, 1024, 4096), {"fsdp": ("embde", "mlp")}, fsdp=8)


def test_small_leaves_and_vectors_stay_whole():
    assert spec("connector/linear_1/kernel", (512, 511), fsdp=8) == P()
    assert spec("connector/linear_1/kernel", (512, 512), fsdp=8) == P("fsdp")  # 1 MiB
    assert leaf_spec("connector/linear_1/kernel", leaf(512, 512, dtype=jnp.bfloat16), plan(fsdp=8))[0] == P()
    assert spec(BIAS, (100, 10240), fsdp=8) == P()


# The build.


def params(**shapes):
    """{blocks: {name: {kernel}}} of the given shapes."""
    return {"decoder": {"blocks": {"mlp": {name: {"kernel": leaf(*shape)} for name, shape in shapes.items()}}}}


def test_a_build_that_stays_whole_fails():
    """Two percent of what rules ask to split may stay whole; what they do not ask for is not counted."""
    good, odd = (16, 4096, 4096), (1, 4096, 1025)
    state_shardings(params(up=good, down=(1, 1025, 4096)), plan(tensor=8))
    with pytest.raises(ValueError, match=r"100% .* 'decoder/blocks/mlp/up/kernel' most of all; change config.mesh"):
        state_shardings(params(up=odd), plan(tensor=8))
    with pytest.raises(ValueError, match="6% of the parameter bytes"):
        state_shardings(params(up=good, gate=(4, 4096, 1025)), plan(tensor=8))
    norm = {"norm_post": {"scale": leaf(2**22)}}
    state_shardings({"decoder": {**params(up=good)["decoder"], **norm}}, plan(tensor=8))


def test_moments_live_with_their_parameters_and_factors_stay_whole():
    tree = params(up=(4, 1024, 2048))
    for tx, whole in ((optax.adam(1e-3), 0), (optax.scale_by_factored_rms(), 2)):
        state = jax.eval_shape(lambda p, tx=tx: fresh_state(p, tx, list(flatten(p))), tree)
        shardings = state_shardings(state, plan(fsdp=8))
        assert flatten(shardings.params)["decoder/blocks/mlp/up/kernel"].spec == P(None, "fsdp")
        for kept, sharding in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(shardings.opt_state), strict=True):
            assert sharding.spec == (P(None, "fsdp") if kept.shape == (4, 1024, 2048) else P())


def test_a_state_is_born_in_pieces_with_the_same_bits(on_meshes, small_leaves_too):
    """Moments included: nothing is made whole first and cut up later."""
    vision = ViTConfig(32, 16, TransformerConfig(layers=1, width=32, heads=2, mlp_width=64))
    tx = optax.adam(1e-3)

    def make():
        tree = {"vision": ViT(vision).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]}
        return fresh_state(tree, tx, list(flatten(tree)))

    mesh = make_mesh(MeshConfig(2, 2, 2))
    whole, pieces = sharded(make, on_meshes.mesh_of(1, 1, 1, 1)), sharded(make, mesh)
    jax.tree.map(np.testing.assert_array_equal, whole, pieces)
    expected, split = state_shardings(jax.eval_shape(make), mesh), 0
    for kept, wanted in zip(jax.tree.leaves(pieces), jax.tree.leaves(expected)):
        assert kept.sharding.is_equivalent_to(wanted, kept.ndim)
        split += kept.addressable_shards[0].data.size < kept.size
    assert split == 3 * 7  # q, k, v, o, up, down and the patch embedding; parameters and both moments


def test_every_parameter_of_the_quickstart_has_names():
    model = configs.resolve(configs.load(QUICKSTART)).model
    for path, shape in flatten(abstract_params(model)).items():
        assert len(parameter_axes(path, shape.ndim)) == shape.ndim
