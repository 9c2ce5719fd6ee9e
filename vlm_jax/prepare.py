"""python -m vlm_jax.prepare --source.kind=KIND [--source.KEY=VALUE ...] --out DIR

Turns any source into ArrayRecord shards, the fastest thing to train from, with a manifest of counts and checksums. The
kinds and their keys are those of a config's `source`. Train from it with `source=dict(kind="array_record", path=DIR)`.

The same command may run again, or as several at once: on N machines, give each --part I/N.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import re
import sys
from typing import Any, Sequence

from etils import epath

from vlm_jax import cli, config as configs
from vlm_jax.data.registry import SOURCES, SourceConfig
from vlm_jax.data.shards import make_plan, prepare


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vlm_jax.prepare", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="the folder of shards, local or remote")
    parser.add_argument("--per-shard", type=int, default=1000, help="records in a shard (default: 1000)")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine (default: 1)")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="do the I-th of N parts of the shards, from 0 on")
    parser.add_argument("--bad-share", type=float, default=0.0,
                        help="share of records that may be unreadable and are left out (default: 0)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of output")
    args, rest = parser.parse_known_args()
    part, parts = part_of(args.part)
    plan = make_plan(source(rest), epath.Path(args.out), args.per_shard, args.bad_share)
    manifest = prepare(plan, part, parts, args.workers)
    if manifest is None:
        print("This part is done; the manifest is written by whichever part ends last.", file=sys.stderr)
    else:
        print(f"{manifest['records']:,} records and {manifest['images']:,} images in {plan.shards:,} shards, "
              f"{len(manifest['bad'])} bad records left out: {plan.out / 'manifest.json'}", file=sys.stderr)
    if args.json:
        keys = ("records", "images", "bytes")
        figures = {"complete": False} if manifest is None else {
            "complete": True, **{key: manifest[key] for key in keys}, "shards": plan.shards,
            "bad": len(manifest["bad"])}
        print(json.dumps(figures | {"out": str(plan.out)}))


def part_of(text: str) -> tuple[int, int]:
    """"2/8" as (2, 8)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"--part is {text!r}; write I/N with I from 0 to N - 1.")
    return int(match[1]), int(match[2])


def source(arguments: Sequence[str]) -> SourceConfig:
    """The source that --source.KEY=VALUE arguments describe."""
    given = {}
    for argument in arguments:
        key, sign, text = argument.removeprefix("--source.").partition("=")
        if not argument.startswith("--source.") or not sign:
            raise ValueError(f"Unknown argument '{argument}'; the source is described as --source.KEY=VALUE.")
        given[key] = text
    kinds = {config.kind: config for config in SOURCES}
    if given.get("kind") not in kinds:
        raise ValueError(f"--source.kind is {given.get('kind')!r}; choose one of {', '.join(kinds)}.")
    texts = {field.name for field in dataclasses.fields(kinds[given["kind"]]) if field.type.startswith("str")}
    values = {key: text if key in texts and text != "None" else literal(text) for key, text in given.items()}
    return configs.build(SourceConfig, values, "source")


def literal(text: str) -> Any:
    """The number, list or other Python value that `text` spells, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    cli.main(main, joins=False)
