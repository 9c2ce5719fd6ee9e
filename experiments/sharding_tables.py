"""python -m experiments.sharding_tables FOLDER

Writes where every parameter of four published models lives on two machines, one text file each: what
`tests/training/sharding_tables` holds. Shapes alone are computed, so it runs anywhere in seconds.
"""

from __future__ import annotations

import argparse
import pathlib

from vlm_jax import cli
from vlm_jax.models.model import abstract_params
from vlm_jax.training.hardware import preset as machine
from vlm_jax.training.mesh import abstract_mesh
from vlm_jax.training.sharding import table
from vlm_jax.weights.huggingface.presets import preset as model

MODELS = ("clip-vit-large-patch14-336", "siglip-so400m-patch14-384", "llava-1.5-7b", "gemma-3-4b")
MACHINES = ("v5e-64", "8-gpu")


def sharding_table(model_name: str, machine_name: str) -> str:
    """The table of a published model on a named machine."""
    hardware = machine(machine_name)
    return table(abstract_params(model(model_name)), abstract_mesh(hardware.mesh, hardware.devices))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.sharding_tables", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for model_name in MODELS:
        for machine_name in MACHINES:
            (folder / f"{model_name}.{machine_name}.txt").write_text(sharding_table(model_name, machine_name))


if __name__ == "__main__":
    cli.main(main)
