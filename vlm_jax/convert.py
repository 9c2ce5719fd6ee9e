"""python -m vlm_jax.convert import HF_DIR OUT
python -m vlm_jax.convert export DIR HF_OUT

import makes a folder of ours of one in Hugging Face layout: the parameters as a checkpoint in our tree, to start a
stage from (init_from) or to load, and in huggingface/ all that stood beside the weights. export writes any folder that
load_pretrained opens in Hugging Face layout. Both keep the dtype of every parameter.
"""

from __future__ import annotations

import argparse

from etils import epath

from vlm_jax import cli
from vlm_jax.pretrained import IMPORTED, load_pretrained, save_pretrained
from vlm_jax.weights.checkpoints import Checkpoints
from vlm_jax.weights.huggingface import folder


def main() -> None:
    args = arguments()
    out = epath.Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty; give a new folder.")
    (import_folder if args.verb == "import" else export_folder)(args.folder, out)
    print(out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vlm_jax.convert", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, source, out in (("import", "HF_DIR", "OUT"), ("export", "DIR", "HF_OUT")):
        one = verbs.add_parser(verb, allow_abbrev=False)
        one.add_argument("folder", metavar=source)
        one.add_argument("out", metavar=out, help="a new or empty folder")
    return parser.parse_args()


def import_folder(source: str, out: epath.Path) -> None:
    pt = load_pretrained(source, dtype=None)
    if pt.files is None:
        raise ValueError(f"{source} is a workdir of ours already; load_pretrained and init_from take it as it is.")
    with Checkpoints(out) as checkpoints:
        checkpoints.save(0, pt.params, None, {"source": str(source)})
        checkpoints.wait()
    folder.copy_files(pt.files, out / IMPORTED)  # last: a folder that has it is complete


def export_folder(source: str, out: epath.Path) -> None:
    save_pretrained(load_pretrained(source, dtype=None), out)


if __name__ == "__main__":
    cli.main(main)
