"""python -m vlm_jax.inspect_data --config CONFIG [--stage NAME] [--config.path.to.key=value ...]

Shows what a stage's pipeline delivers: an HTML page of its first rows, and how fast it is. With --digest N, one sha256
over the examples of N steps instead, which depends neither on --hosts nor on --workers.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from vlm_jax import cli, config as configs
from vlm_jax.data.digest import digest
from vlm_jax.data.mixture import epochs
from vlm_jax.data.pipeline import DataConfig, RowsConfig, read, stage_seed, traced
from vlm_jax.data.processor import Processor
from vlm_jax.models.mask import build_mask, describe
from vlm_jax.reports.rows import Row, Token, write_rows
from vlm_jax.train import make_processor

SECONDS = 5.0  # how long the speed is measured, at most


def main() -> None:
    jax.config.update("jax_platforms", "cpu")  # an accelerator stays free for whoever trains
    args, overrides = arguments()
    config = configs.resolve(configs.load(args.config, overrides))
    stage = args.stage or config.run[-1]
    if stage not in config.stages:
        raise ValueError(f"There is no stage '{stage}' in config.stages{configs.nearest(stage, config.stages)}")
    data, seed = config.stages[stage].data, stage_seed(config.seed, stage)
    if args.workers is not None:
        data = dataclasses.replace(data, workers=args.workers)
    with tempfile.TemporaryDirectory() as folder:
        processor = make_processor(config, epath.Path(folder))
    if args.digest:
        found = digest(data, processor, seed, args.skip, args.skip + args.digest, args.hosts, data.workers)
        print(found, file=sys.stderr if args.json else sys.stdout)
        figures = {"digest": found, "steps": args.digest, "skip": args.skip}
    else:
        figures = measured(data, processor, seed)
        figures["epochs"] = read_epochs(data, figures["examples_per_row"], config.stages[stage].steps)
        page = write_rows(epath.Path(args.out), f"{args.config}, {stage}", shown(figures),
                          first_rows(data, processor, seed, args.rows))
        lines = [f"{label}: {value}" for label, value in shown(figures).items()]
        print("\n".join([*lines, f"page: {page}"]), file=sys.stderr if args.json else sys.stdout)
        figures["page"] = str(page)
    if args.json:
        print(json.dumps({"stage": stage, **figures}))


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m vlm_jax.inspect_data", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a Python file with get_config()")
    parser.add_argument("--stage", help="the stage to look at (default: the last)")
    parser.add_argument("--out", default="inspect_data.html", help="the page (default: inspect_data.html)")
    parser.add_argument("--rows", type=int, default=8, help="rows on the page (default: 8)")
    parser.add_argument("--digest", type=int, metavar="N", help="hash the examples of N steps")
    parser.add_argument("--skip", type=int, default=0, metavar="K", help="steps before them (default: 0)")
    parser.add_argument("--hosts", type=int, default=1, metavar="H", help="simulated hosts (default: 1)")
    parser.add_argument("--workers", type=int, metavar="W", help="worker processes of a host (default: the config's)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of output")
    args, overrides = parser.parse_known_args()
    steps = 1 if args.digest is None else args.digest
    if min(args.rows, args.hosts, steps) < 1 or min(args.skip, args.workers or 0) < 0:
        raise ValueError("--rows, --digest and --hosts take 1 or more, --skip and --workers 0 or more.")
    return args, overrides


def measured(data: DataConfig, processor: Processor, seed: int) -> dict[str, Any]:
    """Speed and fill of the pipeline alone, after its first batch."""
    batches = read(traced(data, processor, seed), 0, 1_000_000, data.workers)
    next(batches)
    rows = examples = images = tokens = slots = 0
    start = time.monotonic()
    for batch in itertools.takewhile(lambda _: time.monotonic() - start < SECONDS, batches):
        rows += data.batch
        examples += int((batch["origin"].reshape(-1, 2)[:, 0] >= 0).sum())
        if "segment_ids" in batch:
            images += sum(len(used_slots(index, processor)) for index in batch["image_index"])
            tokens += int((batch["segment_ids"] >= 0).sum())
            slots += batch["segment_ids"].size
        else:
            images += len(batch["images"])
            tokens += int((batch["text"] != processor.pad_id).sum())
            slots += batch["text"].size
    seconds = time.monotonic() - start
    if not rows:
        raise ValueError(f"The pipeline did not deliver a second batch within {SECONDS:.0f} s; make the batch smaller.")
    return {"rows_per_s": rows / seconds, "images_per_s": images / seconds, "tokens_per_s": tokens / seconds,
            "utilisation": tokens / slots, "examples_per_row": examples / rows}


def read_epochs(data: DataConfig, per_row: float, steps: int) -> dict[str, float]:
    """How often the stage reads each of its sources."""
    return epochs(data.open(), round(steps * data.batch * per_row))


def shown(figures: dict[str, Any]) -> dict[str, str]:
    """The figures in words."""
    return {
        "images/s": f"{figures['images_per_s']:,.0f}", "tokens/s": f"{figures['tokens_per_s']:,.0f}",
        "utilisation": f"{figures['utilisation']:.1%}", "rows/s": f"{figures['rows_per_s']:,.1f}",
        "examples in a row": f"{figures['examples_per_row']:.2f}",
        **{f"epochs of {name}": f"{value:.3g}" for name, value in figures["epochs"].items()}}


def first_rows(data: DataConfig, processor: Processor, seed: int, count: int) -> list[Row]:
    """The first rows of the first batch, as the page shows them."""
    names = [part.name for part in data.open()]
    batch = traced(data, processor, seed)[0]
    rows = []
    for b in range(min(count, data.batch)):
        row = {name: value[b] for name, value in batch.items()}
        origins = [f"{names[part]} {index}" for part, index in row["origin"].reshape(-1, 2).tolist() if part >= 0]
        rows.append((talk if isinstance(data.format, RowsConfig) else pair)(row, origins, processor))
    return rows


def pair(row: dict[str, np.ndarray], origins: list[str], processor: Processor) -> Row:
    """An image and its caption."""
    tokens = [Token(piece(i, processor), position=t) for t, i in enumerate(row["text"]) if i != processor.pad_id]
    return Row(origins, [visible(row["images"], processor)], tokens)


def talk(row: dict[str, np.ndarray], origins: list[str], processor: Processor) -> Row:
    """A row of tokens; the weight of a token's loss is where the token before it predicts it."""
    real = int((row["segment_ids"] >= 0).sum())
    said = np.zeros(len(row["tokens"]), np.float32)
    following = np.flatnonzero(row["loss_weights"])
    said[following + 1] = row["loss_weights"][following]
    facts = lambda t: dict(weight=float(said[t]), segment=int(row["segment_ids"][t]),
                           branch=int(row["subsegment_ids"][t]), position=int(row["positions"][t]))
    tokens, image = [], row["image_index"] // processor.tokens_per_image
    for slot, run in itertools.groupby(range(real), key=lambda t: int(image[t])):
        run = list(run)
        if slot < 0:
            tokens += [Token(piece(row["tokens"][t], processor), **facts(t)) for t in run]
        else:
            tokens.append(Token(f"image {slot}: {len(run)} tokens", **facts(run[0]), visual=True))
    info = describe(row["segment_ids"][None], positions=row["positions"][None],
                    subsegment_ids=row["subsegment_ids"][None])
    mask = np.asarray(build_mask(info, info)[0])[:real, :real]
    images = [visible(row["images"][slot], processor) for slot in used_slots(row["image_index"], processor)]
    return Row(origins, images, tokens, mask, row["segment_ids"][:real])


def used_slots(image_index: np.ndarray, processor: Processor) -> list[int]:
    """The image slots of a row that hold an image."""
    return np.unique(image_index[image_index >= 0] // processor.tokens_per_image).tolist()


def piece(token: int, processor: Processor) -> str:
    """A token as text; special ones by their names."""
    names = {number: name for name, number in processor.tokenizer.special.items()}
    return names.get(int(token)) or processor.tokenizer.decode([token]) or "·"


def visible(image: np.ndarray, processor: Processor) -> np.ndarray:
    """Pixel values back to uint8 H x W x 3."""
    settings = processor.config.image
    return np.clip((image * settings.std + settings.mean) / settings.rescale, 0, 255).round().astype(np.uint8)


if __name__ == "__main__":
    cli.main(main, joins=False)
