"""python -m vlm_jax.convert import HF_DIR OUT
python -m vlm_jax.convert export DIR HF_OUT
python -m vlm_jax.convert verify HF_DIR
python -m vlm_jax.convert minigpt4 BLIP2_DIR LLAMA_DIR PROJECTION HF_OUT

import makes a folder of ours of one in Hugging Face layout: the parameters as a checkpoint in our tree, to start a
stage from (init_from) or to load, and in huggingface/ all that stood beside the weights. export writes any folder that
load_pretrained opens in Hugging Face layout. Both keep the dtype of every parameter. verify gives the same inputs to
our model and to transformers (the extra `peer`) and prints the largest difference of every output; it exits with 1 where
one is above 1e-4 + 1e-5 |theirs| or a greedy token differs. minigpt4 puts MiniGPT-4 together from where it is published:
the eyes and Q-Former of BLIP-2, a Llama or Vicuna, and the released projection (llama_proj.*) as safetensors.
"""

from __future__ import annotations

import argparse
import json
import sys

from etils import epath

from vlm_jax import cli
from vlm_jax.inference import peer
from vlm_jax.pretrained import load_pretrained, save_pretrained
from vlm_jax.weights.checkpoints import Checkpoints
from vlm_jax.weights.huggingface import folder, minigpt4


def main() -> None:
    args = arguments()
    if args.verb == "verify":
        sys.exit(0 if verify_folder(args.folder, args.json) else 1)
    out = epath.Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty; give a new folder.")
    if args.verb == "minigpt4":
        minigpt4.save(out, *minigpt4.compose(args.eyes, args.language, args.projection), args.eyes, args.language)
    else:
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
    verify = verbs.add_parser("verify", allow_abbrev=False)
    verify.add_argument("folder", metavar="HF_DIR")
    verify.add_argument("--json", action="store_true", help="one JSON object on the last line of output")
    one = verbs.add_parser("minigpt4", allow_abbrev=False)
    places = {"eyes": "BLIP2_DIR", "language": "LLAMA_DIR", "projection": "PROJECTION", "out": "HF_OUT"}
    for name, metavar in places.items():
        one.add_argument(name, metavar=metavar)
    return parser.parse_args()


def import_folder(source: str, out: epath.Path) -> None:
    pt = load_pretrained(source, dtype=None)
    if pt.files is None:
        raise ValueError(f"{source} is a workdir of ours already; load_pretrained and init_from take it as it is.")
    with Checkpoints(out) as checkpoints:
        checkpoints.save(0, pt.params, None, {"source": str(source)})
        checkpoints.wait()
    folder.copy_files(pt.files, out / folder.IMPORTED)  # last: a folder that has it is complete


def export_folder(source: str, out: epath.Path) -> None:
    save_pretrained(load_pretrained(source, dtype=None), out)


def verify_folder(source: str, as_json: bool) -> bool:
    """Whether transformers computes the same; prints a row an output."""
    pt = load_pretrained(source)
    if pt.files is None:
        raise ValueError(f"{source} is a workdir of ours, which transformers does not open; export it, and verify that.")
    other = peer.Peer(pt.files)
    inputs = peer.questions(pt.config, pt.processor)
    rows = list(peer.compared(pt.forward(**inputs), other.outputs(inputs)))
    if not rows:
        raise ValueError(f"transformers gives none of our outputs for {source}; there is nothing to compare.")
    if pt.config.decoder is not None:
        new = pt.generate(**inputs, max_new_tokens=peer.NEW_TOKENS, eos_token_id=())
        differ = int((new != other.generate(inputs)).sum())
        rows.append(("generated", float(differ), not differ))
    for name, difference, good in rows:
        print(f"{name:20} {difference:10.2e}  {'ok' if good else 'DIFFERS'}", file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps({name: difference for name, difference, _ in rows}))
    return all(good for _, _, good in rows)


if __name__ == "__main__":
    cli.main(main)
