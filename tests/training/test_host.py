"""Keeping freed pages, in a process of its own, since it cannot be undone."""

import subprocess
import sys

PROGRAM = """
import resource, sys
from vlm_jax.training.host import keep_freed_pages

if len(sys.argv) > 1:
    assert keep_freed_pages()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(30):
    bytearray(64 * 2**20)  # allocated, cleared and freed
print(faults() - before)
"""


def faults(*arguments: str) -> int:
    run = [sys.executable, "-c", PROGRAM, *arguments]
    return int(subprocess.run(run, capture_output=True, text=True, check=True, timeout=60).stdout)


def test_a_block_that_comes_again_costs_no_new_pages():
    assert 5 * faults("keep") < faults()
