"""What every verb does around its work: it joins the other processes of its launch; a user's mistake becomes one
sentence and exit code 2, a bug keeps its traceback."""

from __future__ import annotations

import logging
import os
import pathlib
import sys
import traceback
from typing import Callable

from vlm_jax.training import cluster

PACKAGE = str(pathlib.Path(__file__).parent)


def main(verb: Callable[[], None], joins: bool = True) -> None:
    """Runs a verb, as one of the processes of its launch unless it `joins` none.

    A ValueError or OSError that a line of this package raised on purpose is a sentence for the user. The same
    exceptions from inside a library are bugs of ours, and are shown whole.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's remarks on itself; what matters it raises
    try:
        if joins:
            cluster.initialize()
        verb()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        mistake = isinstance(error, (ValueError, OSError)) and _raised_here(error)
        if mistake:
            print(f"error: {error}", file=sys.stderr, flush=True)
        if not cluster.all_know(error):  # a clean end waits for the others, who wait for this one in a step
            if not mistake:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(2 if mistake else 1)
        if mistake:
            sys.exit(2)
        raise


def _raised_here(error: BaseException) -> bool:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.startswith(PACKAGE) and (last.line or "").lstrip().startswith("raise ")
