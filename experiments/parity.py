"""python -m experiments.parity DIR_OF_FOLDERS [--only NAME]

Loads every folder in Hugging Face layout that has a `reference.npz` (keys `<case>/in/<name>`, `<case>/out/<name>`),
with its config.json and with config.hub.json in its place, and prints the largest difference per output. Exits 1 where
one is above 1e-4 + 1e-5 |reference| or a generated token differs.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
from typing import Iterator

import numpy as np

import vlm_jax
from vlm_jax.inference.peer import within

Case = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.parity", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=pathlib.Path)
    parser.add_argument("--only", action="append", help="a folder's name; may be repeated")
    args = parser.parse_args()
    folders = [file.parent for file in sorted(args.folders.glob("*/reference.npz"))
               if (file.parent / "config.json").exists() and (not args.only or file.parent.name in args.only)]
    if not folders:
        sys.exit(f"error: no folder with a config.json and a reference.npz in {args.folders}.")
    good = [show(*row) for folder in folders for row in compare(folder)]
    sys.exit(0 if all(good) else 1)


def compare(folder: pathlib.Path) -> Iterator[tuple[str, str, float, bool]]:
    """(where, output, largest difference, within tolerance) of one folder."""
    reference = np.load(folder / "reference.npz")
    for config in ("config.json", "config.hub.json"):
        with tempfile.TemporaryDirectory() as copy:
            pt = vlm_jax.load_pretrained(with_config(folder, config, pathlib.Path(copy)))
        for name in dict.fromkeys(key.split("/")[0] for key in reference):
            where = f"{folder.name} {config.removesuffix('.json')} {name}"
            for output, difference, good in differences(pt, part(reference, name, "in"), part(reference, name, "out")):
                yield where, output, difference, good


def part(reference: np.lib.npyio.NpzFile, case: str, kind: str) -> Case:
    return {key.split("/", 2)[2]: reference[key] for key in reference if key.startswith(f"{case}/{kind}/")}


def with_config(folder: pathlib.Path, config: str, copy: pathlib.Path) -> pathlib.Path:
    """`copy` filled with links to the folder's files, `config` standing for its config.json."""
    for file in folder.iterdir():
        if file.name != "config.json":
            (copy / file.name).symlink_to(file.resolve())
    (copy / "config.json").symlink_to((folder / config).resolve())
    return copy


def differences(pt: vlm_jax.Pretrained, inputs: Case, wanted: Case) -> Iterator[tuple[str, float, bool]]:
    """(output, largest difference, within tolerance); of generated tokens, how many differ."""
    got = pt.forward(**inputs)
    for name, value in wanted.items():
        if name in ("margin", "eos_id"):
            continue
        if name.startswith("generated"):
            eos = {"eos_token_id": wanted["eos_id"].item()} if name == "generated_eos" else {}
            new = pt.generate(**inputs, **eos)[:, : value.shape[1]]
            yield name, float((new != value).sum()), bool((new == value).all())
        elif name not in got or got[name].shape != value.shape:
            yield name, float("nan"), False
        else:
            yield name, *within(got[name], value)


def show(where: str, output: str, difference: float, good: bool) -> bool:
    print(f"{where:34} {output:20} {difference:10.2e}  {'ok' if good else 'DIFFERS'}", flush=True)
    return good


if __name__ == "__main__":
    main()
