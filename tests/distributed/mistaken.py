"""python mistaken.py together|alone PROCESS: that process makes a mistake, which all hear of or it makes alone."""

import sys

import jax

from vlm_jax import cli
from vlm_jax.data.images import ImageProcessor
from vlm_jax.training.cluster import on_all


def main():
    how, process = sys.argv[1], int(sys.argv[2])
    wrong = lambda: ImageProcessor(0) and None if jax.process_index() == process else None
    on_all(wrong) if how == "together" else wrong()
    on_all(lambda: None)  # where the others wait for it


if __name__ == "__main__":
    cli.main(main)
