"""python -m experiments.benchmarks [--only PREFIX]... [--json]

Prints one row a benchmark: seconds of ours and, where there is one, of a peer that does the same work in the same
process, and their ratio (peer / ours). With --json, one object on the last line: {row: {"ours": s, "peer": s, ...}}.
"""

from __future__ import annotations

import argparse
import json
import sys

from experiments.benchmarks import data, layers, stages
from vlm_jax import cli

ROWS = {**layers.ROWS, **data.ROWS, **stages.ROWS}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="PREFIX", help="rows whose name starts so; may be repeated")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of standard output")
    args = parser.parse_args()
    names = [name for name in ROWS if not args.only or name.startswith(tuple(args.only))]
    if not names:
        parser.error(f"no row starts with {' or '.join(args.only)}; there are {', '.join(ROWS)}")
    rows = {}
    for name in names:
        rows[name] = ROWS[name]()
        figures = "  ".join(f"{key} {value:.4g}" for key, value in rows[name].items())
        print(f"{name:<24}{figures}", file=sys.stderr if args.json else sys.stdout, flush=True)
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    cli.main(main)
