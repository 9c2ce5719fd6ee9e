"""Where every parameter of published models lives on named machines. After a change of the rules that is meant:

    python -m experiments.sharding_tables tests/training/sharding_tables
"""

import pathlib

import pytest

from experiments.sharding_tables import MACHINES, MODELS, sharding_table
from vlm_jax.models.model import abstract_params
from vlm_jax.training.hardware import PRESETS
from vlm_jax.training.mesh import abstract_mesh
from vlm_jax.training.sharding import state_shardings
from vlm_jax.weights.huggingface.presets import list_presets, preset

GOLDEN = pathlib.Path(__file__).parent / "sharding_tables"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("machine", MACHINES)
def test_every_parameter_lives_where_the_table_says(model, machine):
    assert sharding_table(model, machine) == (GOLDEN / f"{model}.{machine}.txt").read_text()


@pytest.mark.long
def test_every_published_model_fits_every_machine():
    """No parameter without names, none that does not divide, none of any size that stays whole."""
    for model in list_presets():
        params = abstract_params(preset(model))
        for machine in PRESETS.values():
            state_shardings(params, abstract_mesh(machine.mesh, machine.devices))
