"""python -m vlm_jax.evaluate --model DIR --task zero_shot|retrieval|caption|vqa [--data PATH] [--json]

Evaluates a trained model on the held-out data of its own run, or on yours: a folder with captions.jsonl or
captions.csv, or a LLaVA-style .json or .jsonl file. Prints a table, and writes DIR/eval/<task>.json and, with
a line for each example, DIR/eval/<task>.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from typing import Any, Mapping

import jax
from etils import epath

from vlm_jax import cli, config as configs
from vlm_jax.data.files import read_json
from vlm_jax.data.processor import Processor
from vlm_jax.data.records import Source
from vlm_jax.data.registry import open_source
from vlm_jax.data.sources.captions import CaptionFolderConfig
from vlm_jax.data.sources.entries import SPLITS
from vlm_jax.data.sources.llava import LlavaJsonConfig
from vlm_jax.evals import results
from vlm_jax.evals.caption import caption
from vlm_jax.evals.retrieval import retrieval
from vlm_jax.evals.vqa import vqa
from vlm_jax.evals.zero_shot import zero_shot
from vlm_jax.models.model import ModelConfig
from vlm_jax.pretrained import load_pretrained
from vlm_jax.training.cluster import on_first
from vlm_jax.training.mesh import make_mesh

# task(config, params, processor, source, examples, batch) -> Result
TASKS = {"zero_shot": zero_shot, "retrieval": retrieval, "caption": caption, "vqa": vqa}


def main() -> None:
    args = arguments()
    mesh = launch_mesh(args.model)
    loaded = load_pretrained(args.model, mesh=mesh)
    processor = loaded.own_processor()
    source, examples, batch = chosen(args)
    folder = epath.Path(args.model) / "eval"
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        metrics = evaluate(
            loaded.config, loaded.params, processor, args.task, source, folder, examples, batch)
    if jax.process_index() > 0:
        return
    print(table(args.task, metrics), file=sys.stderr if args.json else sys.stdout)
    file = folder / f"{args.task}.json"
    print(f"Written to {file} and, example by example, {file.name}l.", file=sys.stderr)
    if args.json:
        print(json.dumps({"task": args.task, "metrics": metrics, "file": str(file)}))


def arguments() -> argparse.Namespace:
    """All of them are options: a first word without dashes is free for subcommands."""
    parser = argparse.ArgumentParser(
        prog="python -m vlm_jax.evaluate", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the workdir of a training run")
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--data", help="a folder with captions.jsonl or .csv, or a LLaVA-style JSON file")
    parser.add_argument("--images", help="the image folder of a LLaVA-style file (default: the file's own)")
    parser.add_argument("--split", choices=SPLITS, help="of --data (default: all)")
    parser.add_argument("--examples", type=positive, help="how many (default: the run's, or all of --data)")
    parser.add_argument("--batch", type=positive, help="how many at a time (default: the run's)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of output")
    return parser.parse_args()


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError  # argparse says which option it was
    return number


def launch_mesh(model: str) -> jax.sharding.Mesh | None:
    """The mesh of all devices of a launch of several processes, parameters split as in the run's own; None for one
    process, whose first device does it all."""
    if jax.process_count() == 1:
        return None
    mesh = configs.resolve(read_json(epath.Path(model) / "config.json")).mesh
    return make_mesh(dataclasses.replace(mesh, data=-1))


def chosen(args: argparse.Namespace) -> tuple[Source, int, int]:
    """(source, number of examples, batch) that the arguments ask for, or else the run's config."""
    defaults = configs.resolve(read_json(epath.Path(args.model) / "config.json")).evals
    batch = args.batch or defaults.batch
    if args.data is not None:
        source = open_source(own_data(args.data, args.images, args.split or "all"))
        return source, args.examples or len(source), batch
    if args.split or args.images:
        raise ValueError("--split and --images go with --data; leave them out, or add it.")
    if defaults.source is None:
        raise ValueError(f"{args.model}/config.json has no evals.source; say with --data what to use.")
    return open_source(defaults.source), args.examples or defaults.examples, batch


def own_data(path: str, images: str | None, split: str) -> CaptionFolderConfig | LlavaJsonConfig:
    """The source that a path on the command line stands for."""
    file = epath.Path(path)
    if not file.exists():
        raise FileNotFoundError(f"There is no {path}; --data takes a folder or a LLaVA-style file.")
    if file.name in ("captions.jsonl", "captions.csv"):
        file = file.parent
    if file.is_dir() and images is None:
        return CaptionFolderConfig(str(file), split)
    if file.is_dir():
        raise ValueError("--images goes with a LLaVA-style file; a folder with captions holds its images.")
    if file.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{path} is neither a folder nor a .json or .jsonl file; --data takes one of these.")
    return LlavaJsonConfig(str(file), images, split)


def check_task(task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"Evaluation tasks are {', '.join(TASKS)}, not '{task}'{configs.nearest(task, TASKS)}")


def evaluate(
    config: ModelConfig, params: Any, processor: Processor, task: str, source: Source, folder: epath.Path,
    examples: int, batch: int,
) -> Mapping[str, float]:
    """Runs a task on `examples` records of a source, writes its files into `folder`, returns its metrics."""
    if task not in TASKS:
        raise ValueError(f"The evaluation task '{task}' is unknown; choose one of {', '.join(TASKS)}.")
    result = TASKS[task](config, params, processor, source, examples, batch)
    data = {"data": repr(getattr(source, "config", source)), "examples": examples}
    on_first(lambda: results.write(dataclasses.replace(result, extras=data | dict(result.extras)), folder))
    return result.metrics


def table(task: str, metrics: Mapping[str, float]) -> str:
    """A line for each figure: shares in per cent, numbers of examples as they are."""
    width = max(map(len, metrics))
    show = lambda value: f"{value:,}" if isinstance(value, int) else f"{100 * value:.1f} %"
    return "\n".join([task, *(f"  {name:{width}}  {show(value):>8}" for name, value in metrics.items())])


if __name__ == "__main__":
    cli.main(main)
