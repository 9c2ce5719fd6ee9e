"""Any source as ArrayRecord shards: what `python -m vlm_jax.prepare` does.

    OUT/plan.json                              the source, its number of records and of shards
    OUT/data-00000-of-00004.array_record       records 0 to n - 1, in the order of the source, without the bad ones
    OUT/data-00000-of-00004.json               what is in it: records, images, bytes, sha256, and the bad records
    OUT/manifest.json                          all of these, once every shard is there

A shard is a function of the plan, written under another name and renamed, and done once its description exists. So any
number of processes on any machines may work on one folder, be killed and started again: what is done stays, what was
half done is done again.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from typing import Any, Sequence

from etils import epath

from vlm_jax.data.files import write_atomically
from vlm_jax.data.reading import FIRST
from vlm_jax.data.records import Record
from vlm_jax.data.registry import SourceConfig, open_source
from vlm_jax.data.sources.array_record import SUFFIX, pack, writer


@dataclasses.dataclass(frozen=True)
class Plan:
    """Shard k holds records k * `per_shard` to (k + 1) * `per_shard` - 1 of the source."""

    source: SourceConfig
    out: epath.Path
    records: int
    per_shard: int
    bad_share: float

    @property
    def shards(self) -> int:
        return -(-self.records // self.per_shard)

    def name(self, shard: int) -> str:
        return f"data-{shard:05}-of-{self.shards:05}"


def make_plan(source: SourceConfig, out: epath.PathLike, per_shard: int, bad_share: float) -> Plan:
    """The plan of a folder, written into it; raises where the folder holds the shards of another."""
    if per_shard < 1 or not 0 <= bad_share < 1:
        raise ValueError(f"per_shard is {per_shard}, bad_share {bad_share}; use 1 or more, and 0 to below 1.")
    out = epath.Path(out)
    plan = Plan(source, out, len(open_source(source, bad_share > 0)), per_shard, bad_share)
    written = {"kind": source.kind, "source": dataclasses.asdict(source), "records": plan.records,
               "shards": plan.shards, "per_shard": per_shard, "bad_share": bad_share}
    out.mkdir(parents=True, exist_ok=True)
    file, text = out / "plan.json", json.dumps(written, indent=1, default=str) + "\n"
    if file.exists() and file.read_text() != text:
        raise ValueError(f"{out} holds the shards of another source or plan (see {file}); give another --out.")
    write_atomically(file, text)
    return plan


def prepare(plan: Plan, part: int = 0, parts: int = 1, workers: int = 1) -> dict[str, Any] | None:
    """Writes the shards k with k % parts == part that are missing, and the manifest once all are there.

    Returns the manifest, or None while other parts are still at work.
    """
    todo = [shard for shard in range(part, plan.shards, parts) if not is_done(plan, shard)]
    if workers > 1 and len(todo) > 1:
        pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
        with pool:
            for done in concurrent.futures.as_completed([pool.submit(write_shard, plan, shard) for shard in todo]):
                report(plan, done.result())
    else:
        for shard in todo:
            report(plan, write_shard(plan, shard))
    return write_manifest(plan)


def is_done(plan: Plan, shard: int) -> bool:
    """Whether a shard and its description are there and agree about its size."""
    data, about = plan.out / (plan.name(shard) + SUFFIX), plan.out / f"{plan.name(shard)}.json"
    return about.exists() and data.exists() and json.loads(about.read_text())["bytes"] == data.stat().length


def write_shard(plan: Plan, shard: int) -> dict[str, Any]:
    """Writes one shard and then its description, which it returns."""
    source = open_source(plan.source, plan.bad_share > 0)
    indices = range(shard * plan.per_shard, min((shard + 1) * plan.per_shard, plan.records))
    remote = "://" in str(plan.out)  # then a finished file is uploaded, else it is renamed inside the folder
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=None if remote else str(plan.out)) as folder:
        unfinished = os.path.join(folder, plan.name(shard) + SUFFIX)
        about = _write_records(plan, source, indices, unfinished)
        about |= {"file": plan.name(shard) + SUFFIX, "bytes": os.path.getsize(unfinished), "sha256": sha256(unfinished)}
        target = plan.out / (plan.name(shard) + SUFFIX)
        if remote:
            epath.Path(unfinished).copy(target, overwrite=True)
        else:
            os.replace(unfinished, str(target))
    write_atomically(plan.out / f"{plan.name(shard)}.json", json.dumps(about, indent=1) + "\n")
    return about


def _write_records(plan: Plan, source: Any, indices: Sequence[int], path: str) -> dict[str, Any]:
    """Writes records, each image of which was decoded once, so that what is written can be read."""
    out, images, bad = writer(path), 0, []
    try:
        for index in indices:
            try:
                record = source[index]
                images += sum(1 for _ in record.images)
            except (ValueError, OSError) as error:
                bad.append({"index": index, "error": str(error)})
                if len(bad) > plan.bad_share * min(plan.records, FIRST):
                    raise ValueError(f"More bad records than --bad-share={plan.bad_share} allows, the last one being "
                                     f"{error}") from error
            else:
                out.write(pack(record))
    finally:
        out.close()
    return {"records": len(indices) - len(bad), "images": images, "bad": bad}


def write_manifest(plan: Plan) -> dict[str, Any] | None:
    """The manifest of a complete folder, None where shards are missing; raises where too many records were bad."""
    if not all(is_done(plan, shard) for shard in range(plan.shards)):
        return None
    about = [json.loads((plan.out / f"{plan.name(shard)}.json").read_text()) for shard in range(plan.shards)]
    total = lambda key: sum(shard[key] for shard in about)
    bad = [record for shard in about for record in shard["bad"]]
    if len(bad) > plan.bad_share * max(plan.records, FIRST):
        raise ValueError(f"{len(bad)} of {plan.records} records are bad, over --bad-share={plan.bad_share}; "
                         f"the last one is {bad[-1]['error']}")
    manifest = {"kind": plan.source.kind, "source": dataclasses.asdict(plan.source), "records": total("records"),
                "images": total("images"), "bytes": total("bytes"), "bad": bad,
                "shards": [{key: value for key, value in shard.items() if key != "bad"} for shard in about]}
    write_atomically(plan.out / "manifest.json", json.dumps(manifest, indent=1, default=str) + "\n")
    return manifest


def report(plan: Plan, about: dict[str, Any]) -> None:
    """A line for a finished shard, and one for each bad record in it."""
    print(f"{about['file']}: {about['records']:,} records, {about['bytes'] / 1e6:,.1f} MB", file=sys.stderr, flush=True)
    for record in about["bad"]:
        print(f"  left out record {record['index']}: {record['error']}", file=sys.stderr)


def sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
