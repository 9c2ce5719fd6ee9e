"""What every verb does around its work: a user's mistake becomes one sentence and exit code 2, a bug keeps its
traceback."""

from __future__ import annotations

import logging
import pathlib
import sys
import traceback
from typing import Callable

PACKAGE = str(pathlib.Path(__file__).parent)


def main(verb: Callable[[], None]) -> None:
    """Runs a verb.

    A ValueError or OSError that a line of this package raised on purpose is a sentence for the user. The same
    exceptions from inside a library are bugs of ours, and are shown whole.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's remarks on itself; what matters it raises
    try:
        verb()
    except (ValueError, OSError) as error:
        if not _raised_here(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


def _raised_here(error: BaseException) -> bool:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.startswith(PACKAGE) and (last.line or "").lstrip().startswith("raise ")
