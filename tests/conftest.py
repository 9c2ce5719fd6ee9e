"""The tests run on the CPU, as eight devices, so that every mesh can be tried anywhere.

The variables must stand before JAX is imported. A value set by the caller wins: `JAX_PLATFORMS=cuda make test` runs
the suite on the card.

Processes that a test starts inherit them; one that should run as it would for a user gets JAX_NUM_CPU_DEVICES=1. It
also computes faster: eight devices on two cores make a small matmul step 1.4 times slower (compiling costs the same).
"""
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Tests are compilation, not computation: without the costly passes of XLA they take less than half the time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
