"""python train_noted.py ROWS --config FILE --workdir DIR ...: the training verb, so that runs can be compared.

Leaves of any size are split, and every row that this process reads is noted in the file ROWS, as [step, row, digest] a
line.
"""

import hashlib
import json
import sys

from vlm_jax import cli, train
from vlm_jax.training import loop, sharding


def noted(path, batches):
    def wrapped(config, processor, seed, start, stop, rows):
        with open(path, "a") as file:
            for step, batch in enumerate(batches(config, processor, seed, start, stop, rows), start + 1):
                for place, row in enumerate(rows):
                    digest = hashlib.sha256(b"".join(batch[name][place].tobytes() for name in sorted(batch)))
                    file.write(json.dumps([step, row, digest.hexdigest()]) + "\n")
                file.flush()
                yield batch
    return wrapped


if __name__ == "__main__":
    loop.batches = noted(sys.argv.pop(1), loop.batches)
    sharding.SMALLEST_SHARDED = 2**8
    cli.main(train.main)
